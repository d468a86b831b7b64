"""Where an artifact loses: how far it is from its model with one thing after another left as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn
from typing_extensions import Unpack

from jointquant.activations.substitution import substituted
from jointquant.backend.memory import Size
from jointquant.errors import require
from jointquant.evaluation.divergence import Divergence
from jointquant.evaluation.evaluate import measured
from jointquant.evaluation.pair import Pair
from jointquant.evaluation.runners import Loaded
from jointquant.events import OnEvent, reported
from jointquant.models.architecture import Architecture
from jointquant.models.options import ModelOptions, completed
from jointquant.progress import Progress
from jointquant.run.fitting import window_length
from jointquant.runtime.attention import CachePath
from jointquant.runtime.latents import LatentPath
from jointquant.runtime.linear import OnlineLinear, PackedLinear
from jointquant.runtime.loading import load_tokenizer
from jointquant.runtime.per_token_head import PerTokenHead
from jointquant.text.sources import load_text
from jointquant.text.tokens import tokenize
from jointquant.text.windows import check_vocabulary, evaluation_windows

NOTHING = "nothing"
INPUTS, CACHE = "all inputs", "keys and values"


@dataclass(frozen=True)
class Part:
    """What is left unquantized.

    Attributes:
        name: in words.
        remedy: the options of ``quantize`` that give it 8 bits; empty where no setting is for it alone.
        sites: the sites whose inputs stay as they are; those of experts go by what stands before the dot.
        key: whether keys do.
        value: whether values do.
    """

    name: str
    remedy: str = ""
    sites: frozenset[str] = frozenset()
    key: bool = False
    value: bool = False


@dataclass(frozen=True)
class Losses:
    """An artifact's divergence from its model, by what was left unquantized.

    Attributes:
        source: the text.
        tokens: of the windows that were measured.
        seqlen: of a window.
        divergence: by part; ``nothing`` is the artifact as it is, and what remains with ``all inputs, keys and
            values`` is the weights'.
        remedies: by part, the options of ``quantize`` that give it 8 bits, where there are some.
        seconds: wall time, with loading.
    """

    source: str
    tokens: int
    seqlen: int
    divergence: dict[str, Divergence]
    remedies: dict[str, str]
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def loss_by_part(
    artifact: str | Path,
    model: str | Path,
    text: str,
    *,
    seqlen: int | None = None,
    max_tokens: int = 4096,
    memory_budget: Size = None,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
    **options: Unpack[ModelOptions],
) -> Losses:
    """Measure an artifact beside its model with the inputs of one site after another, keys and values unquantized.

    The weights stay as they are: they were learned for quantized inputs, so a part may even do harm by being exact.

    Args:
        artifact: a folder that ``quantize`` wrote.
        model: the folder or hub id that it was made of.
        text: what is measured on, as for ``evaluate``.
        seqlen: tokens of a window; None: 2048, or all that the model reads where that is less.
        max_tokens: of the text.
        memory_budget: bytes that the process may use, or a size such as "16GB"; None: what is free.
        progress: where progress is shown.
        on_event: is told what happens (``jointquant.events.OnEvent``); None: nobody is.
        **options: how the model is found and opened, as for ``quantize``.

    Raises:
        InputError: no such text or model, an artifact that quantizes weights alone, or both together take more memory
            than they may.
    """
    start, given, progress = time.perf_counter(), completed(options), reported(progress, on_event)
    pair = Pair.open(artifact, model, given, memory_budget, progress)
    stream, tokenizer = pair.stream, load_tokenizer(pair.artifact, given["digests"])
    tokens = tokenize(tokenizer, load_text(text, "evaluation", progress, tokenizer))
    check_vocabulary(tokens, stream.config.vocab_size)
    length = window_length(stream.config, seqlen)
    windows = evaluation_windows(tokens[:max_tokens], length, text)
    quantized, exact = pair.load()
    places = [
        (quantized.get_submodule(stream.architecture.layer_prefix(index)), stream.architecture_of(index))
        for index in range(stream.num_layers)
    ]
    parts = parts_of(places)
    require(
        len(parts) > 1, f"{artifact} quantizes weights alone: expected an artifact with fewer bits for inputs or cache"
    )
    found: dict[str, Divergence] = {}
    for part in parts:
        with left_exact(places, part):
            name = f"{text}, left exact: {part.name}"
            _, divergence = measured(Loaded(quantized), Loaded(exact), windows, name, progress)
        assert divergence is not None
        found[part.name] = divergence
    remedies = {part.name: part.remedy for part in parts if part.remedy}
    return Losses(text, windows.numel(), length, found, remedies, time.perf_counter() - start)


REMEDY = "--set kv_cache.num_bits=8"
AFFINE_REMEDY = f"--set kv_cache.scheme=affine {REMEDY}"
"""Of a cache that has 4 bits and no others."""

Places = Sequence[tuple[nn.Module, Architecture]]
"""The layers of an artifact in memory, and how each is built."""


def parts_of(places: Places) -> list[Part]:
    """What can be left unquantized in an artifact, from nothing to all but the weights."""
    sites: dict[str, set[str]] = {}
    key, value, remedy = False, False, REMEDY
    for layer, architecture in places:
        for site in architecture.sites:
            names = [name for name in site.linears if _quantizes(layer.get_submodule(name))]
            if names:
                sites.setdefault(_family(site.name), set()).update(name.rpartition(".")[2] for name in names)
        if (cache := _cache(layer, architecture)) is not None:
            key, value = key or cache.key is not None, value or cache.value is not None
            remedy = AFFINE_REMEDY if isinstance(cache.key, PerTokenHead) else REMEDY
    parts = [Part(NOTHING)]
    parts += [Part(f"inputs of {site}", _eight_bits(names), frozenset({site})) for site, names in sites.items()]
    if sites:
        parts.append(Part(INPUTS, "--set activations.num_bits=8", frozenset(sites)))
    parts += [Part("keys", key=True)] * key + [Part("values", value=True)] * value
    if key or value:
        parts.append(Part(CACHE, remedy, key=True, value=True))
    if sites and (key or value):
        parts.append(Part(f"{INPUTS}, {CACHE}", "", frozenset(sites), key=True, value=True))
    return parts


def _eight_bits(linears: set[str]) -> str:
    patterns = ", ".join(f'{{modules: "*.{name}", activations: {{num_bits: 8}}}}' for name in sorted(linears))
    return f"--set 'overrides=[{patterns}]'"


@contextmanager
def left_exact(places: Places, part: Part) -> Iterator[None]:
    """While open, a part is not quantized; rotations, means and bases stay."""
    with ExitStack() as stack:
        for layer, architecture in places:
            values: dict[str, dict[str, object]] = {}
            for site in architecture.sites:
                for name in site.linears if _family(site.name) in part.sites else ():
                    linear = layer.get_submodule(name)
                    if _quantizes(linear):
                        values[name] = {"path": replace(linear.path, quantizer=None)}  # type: ignore[type-var]
            cache = _cache(layer, architecture)
            if cache is not None and (part.key or part.value):
                key, value = None if part.key else cache.key, None if part.value else cache.value
                values[architecture.attention] = {"cache_path": replace(cache, key=key, value=value)}
            stack.enter_context(substituted(layer, values=values))
        yield


def _family(site: str) -> str:
    return site.partition(".")[0]


def _quantizes(linear: nn.Module) -> bool:
    return isinstance(linear, PackedLinear | OnlineLinear) and linear.path.quantizer is not None


def _cache(layer: nn.Module, architecture: Architecture) -> CachePath | LatentPath | None:
    path: CachePath | LatentPath | None = getattr(layer.get_submodule(architecture.attention), "cache_path", None)
    return path if path is not None and path.quantizes else None
