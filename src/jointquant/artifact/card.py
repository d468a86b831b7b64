"""The model card of an artifact or an export: README.md with the front matter that hubs read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from pydantic import ValidationError

from jointquant.artifact.tiers import WITH_INT4_CACHE, WITH_R4
from jointquant.errors import InputError, printable, require
from jointquant.files.durable import save_text
from jointquant.recipe.faults import describe
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.recorded import recorded
from jointquant.recipe.targets import INT4_IN_VLLM, VLLM_CACHE
from jointquant.runtime.artifact_facts import check_facts
from jointquant.trust.folder import CONFIG_NAME
from jointquant.trust.model_name import may_be_id
from jointquant.trust.strict_json import read_object

CARD_NAME = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.j2")
Kind = Literal["native", "rotated", "dense", "compressed-tensors"]

ESCAPES = (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), *((c, f"\\{c}") for c in "`*[]|#"))
"""By sign of Markdown or HTML: how it is written so that it stands for itself."""

LONGEST_NAME = 200

TIER_WORDS = {
    1: "nothing runs online, so its exports load wherever models of this family do",
    2: "R4 runs online, which takes a runtime that applies it",
    3: "it needs this package to run",
}

NATIVE_LOADING = """\
```
pip install jointquant
```

```python
import jointquant  # makes transformers know this model type
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_ID")
tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_ID")
```

Without jointquant, transformers does not know this model type, and refuses it. Exports for other runtimes:
{runtimes}."""

PLAIN_LOADING = """\
A plain checkpoint of its family; jointquant is not needed.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_ID")
tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_ID")
```"""

COMPRESSED_LOADING = PLAIN_LOADING.replace(
    "jointquant is not needed.", "`pip install compressed-tensors` is needed."
) + ("\n\n```\nvllm serve FOLDER_OR_ID\n```")

ONLINE_LOADING = """\
R4 is a transform in the `transform_config` of compressed-tensors, which vLLM applies (without tensor parallelism).
transformers does not apply it, and refuses this folder.

```
vllm serve FOLDER_OR_ID
```"""


TRANSFORMS = ("r1", "r2", "smoothing", "r3", "keys", "r4", "basis_change")
"""In the order of the card; a configuration that was written and read has them in that of the alphabet."""

INT4_LOADING = """\
{runtime} computes this: packed integer weights, symmetric inputs of 4 bits, R4 as a transform
where there is one (without tensor parallelism). GPUs before Hopper multiply 4-bit integers; on later ones vLLM takes
inputs of more bits. transformers does none of it, and refuses this folder.

```
vllm serve FOLDER_OR_ID{options}
```"""


@dataclass(frozen=True)
class Measured:
    """One perplexity: on which text, in windows of how many tokens."""

    text: str
    seqlen: int
    perplexity: float

    def result(self) -> EvalResult:
        """As hubs have it."""
        return EvalResult(
            task_type="text-generation",
            dataset_type=self.text,
            dataset_name=self.text,
            metric_args={"seqlen": self.seqlen},
            metric_type="perplexity",
            metric_value=self.perplexity,
        )


def write_card(folder: Path, quantization: dict[str, Any], kind: Kind, *, carried_from: Path | None = None) -> None:
    """Write the card of a folder.

    Args:
        folder: the artifact or export.
        quantization: the artifact's ``quantization_config``.
        kind: what the folder is; ``rotated``: the rotated model before rounding.
        carried_from: a folder that computes the same; perplexities on its card are taken over (not for ``rotated``).
    """
    measured = read_measured(carried_from) if carried_from is not None and kind != "rotated" else []
    _render(folder, quantization, kind, measured)


def check_carded(folder: Path, texts: Sequence[str]) -> None:
    """Refuse what could not be recorded, before it is measured.

    Raises:
        InputError: the folder is neither an artifact nor an export of one, or two texts have one name on a card.
    """
    _identify(folder)
    names = [_public(text) for text in texts]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, f"two texts are called {', '.join(twice)} on a card: expected other names, or one at a time")


def record_perplexity(folder: Path, perplexity: dict[str, float], seqlen: int) -> None:
    """Write measured perplexities into the card of an artifact or an export of one, beside those it has.

    Raises:
        InputError: the folder is neither.
    """
    quantization, kind = _identify(folder)
    new = [Measured(_public(text), seqlen, round(value, 6)) for text, value in perplexity.items()]
    replaced = {(row.text, row.seqlen) for row in new}
    kept = [row for row in read_measured(folder) if (row.text, row.seqlen) not in replaced]
    _render(folder, quantization, kind, sorted([*kept, *new], key=lambda row: (row.text, row.seqlen)))


def read_measured(folder: Path) -> list[Measured]:
    """The perplexities on the card of a folder; none where it has no card."""
    if not (folder / CARD_NAME).is_file():
        return []
    with _readable(folder / CARD_NAME):
        results = ModelCard.load(folder / CARD_NAME).data.eval_results or []
        return [
            Measured(found.dataset_name, int((found.metric_args or {}).get("seqlen", 0)), float(found.metric_value))
            for found in results
            if found.metric_type == "perplexity"
        ]


def _identify(folder: Path) -> tuple[dict[str, Any], Kind]:
    """What made a folder, and what it is: its card says so, for its weights may look alike."""
    path = folder / CONFIG_NAME
    data = read_object(path) if path.is_file() else {}
    quantization = data.get("quantization_config") or {}
    if isinstance(quantization, dict) and quantization.get("quant_method") == "jointquant":
        return _checked(quantization, path), "native"
    require(
        "jointquant" in data and (folder / CARD_NAME).is_file(),
        f"{folder} is no artifact and no export of one: expected a folder that jointquant wrote, to write its card",
    )
    with _readable(folder / CARD_NAME):
        kind = ModelCard.load(folder / CARD_NAME).data.to_dict().get("jointquant_format")
    require(
        kind in get_args(Kind), f"{folder / CARD_NAME} does not say which export this is: expected jointquant's card"
    )
    return _checked(data["jointquant"], path), cast("Kind", kind)


def _checked(quantization: Any, path: Path) -> dict[str, Any]:
    """What made a folder, as a card needs it. Raises InputError, naming the key, for what is none."""
    require(isinstance(quantization, dict) and "recipe" in quantization, f"{path} does not say the recipe of it")
    check_facts(quantization, str(path))
    try:
        recipe = Recipe.model_validate(quantization["recipe"])
    except ValidationError as error:
        raise InputError(f"recipe in {path}: {describe(error)}") from None
    return {**quantization, "recipe": recorded(recipe)}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises InputError for a card whose front matter is not ours to read."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        raise InputError(f"{path} has no readable front matter: {' '.join(str(error).split())[:200]}") from None


def _render(folder: Path, quantization: dict[str, Any], kind: Kind, measured: list[Measured]) -> None:
    recipe, base = quantization["recipe"], str(quantization.get("base_model") or "unnamed")
    revision, tier = quantization.get("base_revision"), int(quantization["tier"])
    name = f"{printable(base.rpartition('/')[2], LONGEST_NAME)}-jointquant"
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base if may_be_id(base) else None,
        base_model_relation="quantized" if may_be_id(base) else None,
        tags=["jointquant", "quantized", *([] if kind == "native" else [kind])],
        eval_results=[row.result() for row in measured] or None,
        jointquant_format=kind,
    )
    calibration = dict(recipe["calibration"])
    calibration["source"] = _public(calibration["source"])
    shown = {key: value for key, value in recipe.items() if key != "description"} | {"calibration": calibration}
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_name=inline(name),
        name=inline(base),
        revision_words=f"revision {inline(revision)}" if revision else "a local model",
        version=inline(quantization["jointquant_version"]),
        description=inline(recipe.get("description") or "a recipe of its own (below)"),
        rows=[(inline(what), inline(here)) for what, here in _rows(recipe, quantization, kind)],
        tier=tier,
        tier_words=TIER_WORDS[tier],
        loading=_loading(kind, tier, quantization["runtimes"]),
        measured=[replace(row, text=inline(row.text)) for row in measured],
        calibration=calibration | {"source": inline(calibration["source"])},
        versions=f"jointquant {inline(quantization['jointquant_version'])}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        recipe=(dumped := yaml.safe_dump(shown).rstrip()),
        fence=fence_of(dumped),
    )
    save_text(folder / CARD_NAME, str(card).rstrip() + "\n")


def _rows(recipe: dict[str, Any], quantization: dict[str, Any], kind: Kind) -> list[tuple[str, str]]:
    """The table at the top: bits of everything, and the transforms."""
    if kind == "rotated":
        merged = {key: quantization["transforms"][key] for key in ("r1", "r2")}
        return [("weights", "rotated, not rounded"), *((key.upper(), words) for key, words in merged.items())]
    rows = [(part.replace("_", " "), _bits(recipe[part])) for part in ("weights", "activations", "kv_cache")]
    order = {name: place for place, name in enumerate(TRANSFORMS)}
    transforms = sorted(quantization["transforms"].items(), key=lambda pair: order.get(pair[0], len(order)))
    rows += [(key.upper(), words) for key, words in transforms]
    return rows + list(_inventory(quantization))


def _inventory(quantization: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was quantized, what was kept and why, and which experts saw too little."""
    for fact in quantization.get("tuned", []):
        text = f"on {fact['windows']} windows of {fact['seqlen']} tokens of {_public(fact['text'])}"
        yield f"tuned {text}", f"{fact['kl_before']:.4f} → {fact['kl_after']:.4f} nats from its model, on other windows"
    if "quantized_weights" in quantization:
        yield "quantized weights", str(quantization["quantized_weights"])
    by_reason: dict[str, list[str]] = {}
    for kept in quantization.get("kept", []):
        by_reason.setdefault(kept["why"], []).append(f"{kept['name']} ({kept['parameters']})")
    if by_reason:
        yield "kept in high precision", "; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items())
    if quantization.get("left_aside"):
        yield "in the base model's checkpoint, and left aside", ", ".join(quantization["left_aside"])
    few = [
        f"layer {each['layer']} expert {each['expert']} ({each['tokens']})"
        for each in quantization.get("starved_experts", [])
    ]
    if few:
        yield "experts that too few tokens reached, and that were calibrated on all of their layer's", ", ".join(few)


def _bits(settings: dict[str, Any]) -> str:
    if settings["num_bits"] == 16:
        return "not quantized"
    group = settings.get("group_size")
    words = [f"{settings['num_bits']} bits", "symmetric" if settings["symmetric"] else "asymmetric"]
    words += ["restricted range"] if settings.get("symmetric_range") == "restricted" else []
    return ", ".join(words + ([f"groups of {group}"] if group else []))


def _loading(kind: Kind, tier: int, runtimes: list[str]) -> str:
    if kind == "native":
        others = [inline(words) for words in runtimes if "import jointquant" not in words]
        return NATIVE_LOADING.format(runtimes="; ".join(others) or "none")
    if kind == "compressed-tensors" and tier == 2 and WITH_R4 not in runtimes:
        return INT4_LOADING.format(
            runtime=INT4_IN_VLLM, options=f" {VLLM_CACHE}" if WITH_INT4_CACHE in runtimes else ""
        )
    if kind == "compressed-tensors":
        return ONLINE_LOADING if tier == 2 else COMPRESSED_LOADING
    return PLAIN_LOADING


def inline(words: object) -> str:
    """Words of others in a line of Markdown: no line ends, nothing that makes a heading, a cell, a link or a tag."""
    line = printable(str(words))
    for sign, written in ESCAPES:
        line = line.replace(sign, written)
    return line


def fence_of(code: str) -> str:
    """What a block of code is set between: longer than any row of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    return "`" * max(3, longest + 1)


def _public(source: str) -> str:
    """A text's name as it may be published: of a file, its own name without the folders."""
    return Path(source).name if Path(source).suffix and not source.startswith("hub:") else source
