"""Damage done on purpose to dense folders and artifacts whose weights are in floating point."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from conftest import few_steps, make_model, small
from jointquant import load_recipe, quantize
from jointquant.rotations.bundle import ROTATIONS_NAME, Rotations
from jointquant.runtime.loading import load_tokenizer

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TURNED = ("rotations.r1.kind=hadamard", "rotations.r2.kind=hadamard")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def tiny(out: Path, preset: str, *changes: str, **options: object) -> Path:
    """An artifact of a tiny Llama whose tokenizer has a chat template."""
    tokenizer = load_tokenizer(Path(__file__).parents[2] / "src/jointquant/demo/model")
    tokenizer.chat_template = TEMPLATE
    model = make_model("llama", **({"attention_bias": False} | options))  # type: ignore[arg-type]
    quantize(model, out, load_recipe(preset, small(*few_steps(preset), *changes)), tokenizer=tokenizer)
    return out


def tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of each shard that has an end of the model."""
    for shard in folder.glob("model*.safetensors"):
        found = load_file(shard)
        if {EMBEDDING, HEAD} & set(found):
            change(found)
            save_file({name: t.contiguous() for name, t in found.items()}, shard, metadata={"format": "pt"})


def settings(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def embedding_times(*turns: Callable[[Tensor], Tensor]) -> Callable[[Path, Tensor], None]:
    def damage(folder: Path, r1: Tensor) -> None:
        def change(found: dict[str, Tensor]) -> None:
            for turn in turns if EMBEDDING in found else ():
                found[EMBEDDING] = (found[EMBEDDING].float() @ turn(r1).float()).to(found[EMBEDDING])

        tensors(folder, change)

    return damage


def tie_the_head(folder: Path, _: Tensor) -> None:
    whole = {name: t for shard in folder.glob("model*.safetensors") for name, t in load_file(shard).items()}

    def change(found: dict[str, Tensor]) -> None:
        if HEAD in found:
            found[HEAD] = whole[EMBEDDING].clone()

    tensors(folder, change)


def begin_with_a_token(folder: Path, _: Tensor) -> None:
    tokenizer = load_tokenizer(folder, "ignore")
    begin = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)


def another_template(folder: Path, _: Tensor) -> None:
    tokenizer = load_tokenizer(folder, "ignore")
    tokenizer.chat_template = TEMPLATE.replace("<a>", "<b>")
    tokenizer.save_pretrained(folder)


DAMAGE: dict[str, Callable[[Path, Tensor], None]] = {
    "rotated_twice": embedding_times(lambda r1: r1),
    "rotation_transposed": embedding_times(lambda r1: r1.T, lambda r1: r1.T),
    "head_tied": tie_the_head,
    "bos_differs": begin_with_a_token,
    "chat_template_differs": another_template,
}
"""By the fault that is to be found."""


def damaged(source: Path, out: Path, fault: str, artifact: Path) -> Path:
    """A copy of a folder with one of ``DAMAGE``; ``artifact`` has the rotations."""
    shutil.copytree(source, out)
    (r1,) = Rotations.load(artifact / ROTATIONS_NAME).r1
    DAMAGE[fault](out, r1)
    return out


def without_r4(export: Path) -> None:
    """What transformers makes of an export with R4 that does not refuse it: R4 is dropped without a word."""
    settings(export, attn_implementation=None, experts_implementation=None)


def without_transforms(source: Path, out: Path) -> Path:
    """A copy of an export with R4 whose configuration has lost its transforms: R4 is dropped in any runtime."""
    shutil.copytree(source, out)
    quantization = json.loads((out / "config.json").read_text())["quantization_config"]
    settings(out, quantization_config=quantization | {"transform_config": {}})
    return out
