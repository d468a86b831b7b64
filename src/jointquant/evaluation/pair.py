"""An artifact and the model that it was made of, in memory side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from jointquant.backend.devices import resolve_device, resolve_dtype
from jointquant.backend.memory import Size, words
from jointquant.errors import require
from jointquant.evaluation.runners import needed_in_memory, room_for
from jointquant.hub import locate
from jointquant.models.layer import Place
from jointquant.models.options import ModelOptions, of_folder
from jointquant.models.stream import ModelStream
from jointquant.progress import Progress
from jointquant.runtime.loading import load
from jointquant.runtime.streaming import open_any_stream


@dataclass(frozen=True)
class Pair:
    """Both are found and opened, and fit into memory together; neither is loaded yet.

    Attributes:
        artifact: its folder.
        model: the folder of the model.
        stream: of the artifact.
        reference: of the model.
        options: how both are opened, complete.
    """

    artifact: Path
    model: Path
    stream: ModelStream
    reference: ModelStream
    options: ModelOptions

    @classmethod
    def open(
        cls,
        artifact: str | Path,
        model: str | Path,
        options: ModelOptions,
        memory_budget: Size,
        progress: Progress,
        besides: Callable[[ModelStream], int] = lambda _: 0,
    ) -> Pair:
        """Find both.

        Args:
            artifact: a folder that ``quantize`` wrote.
            model: a folder or hub id.
            options: complete.
            memory_budget: bytes that the process may use, or a size; None: what is free.
            progress: where a download is shown.
            besides: of the artifact, the bytes that the work on both takes besides.

        Raises:
            InputError: no such model or artifact, or both together take more memory than they may.
        """
        folders = Path(artifact), locate(model, options["revision"], options["hub"], progress).folder
        streams = [open_any_stream(folder, options["allow_pickle"], options["digests"]) for folder in folders]
        where = resolve_device(options["device"])
        places = [Place(where, resolve_dtype(options["dtype"], where, stream.stored_dtype)) for stream in streams]
        needed = sum(needed_in_memory(stream, place) for stream, place in zip(streams, places, strict=True))
        needed += besides(streams[0])
        room = room_for(where, memory_budget)
        require(
            room is None or needed <= room,
            f"model and artifact together take {words(needed)}, and there are {words(max(0, room or 0))}: expected "
            "a larger `memory_budget`; jointquant eval runs layer by layer",
        )
        return cls(*folders, streams[0], streams[1], options)

    def load(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """The artifact, computed by the reference, and the model."""
        options = of_folder(self.options)
        artifact, model = (load(each, kernels="reference", **options) for each in (self.artifact, self.model))
        return artifact, model
