"""A job: one recipe on one model, and everything that the two passes over its layers are given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from jointquant.distributed.ranks import Ranks
from jointquant.models.layer import Place
from jointquant.models.stream import ModelStream
from jointquant.progress import Progress
from jointquant.recipe.recipe import Recipe
from jointquant.run.opening import Subject
from jointquant.run.workspace import Workspace
from jointquant.runtime.assembly import Assembly


@dataclass(frozen=True)
class Job:
    """One recipe on one model.

    Attributes:
        subject: the model, found and opened.
        assembly: how its layers are built: its family, the recipe, what runs online.
        windows: the calibration windows [n, T] of token ids.
        workspace: where layers run, where hidden states are kept, where finished steps are written down.
        artifact: the folder that pass 2 fills.
        progress: where progress is shown.
    """

    subject: Subject
    assembly: Assembly
    windows: Tensor
    workspace: Workspace
    artifact: Path
    progress: Progress

    @property
    def recipe(self) -> Recipe:
        """All settings."""
        return self.assembly.recipe

    @property
    def stream(self) -> ModelStream:
        """The unquantized model, layer by layer."""
        return self.subject.stream

    @property
    def place(self) -> Place:
        """Where layers run."""
        return self.workspace.place

    @property
    def ranks(self) -> Ranks:
        """Who shares the windows."""
        return self.workspace.ranks
