"""The table of hostile artifacts: what is done to a sound one, and what the one line says about it."""

from __future__ import annotations

from pathlib import Path

import torch

from hostile.damage import CODE, Damage, both, config, edit_json, remove, tensors, write

QUANT = "quantization_config"


def quantization(**changes: object) -> Damage:
    """Change the quantization_config of an artifact."""
    return edit_json("config.json", lambda data: data[QUANT].update(changes))


def recipe(edit: Damage) -> Damage:
    """Change the recipe of an artifact."""
    return edit_json("config.json", lambda data: edit(data[QUANT]["recipe"]))


LAYER = "model-00002-of-00005.safetensors"
PACKED, SCALE = "model.layers.0.mlp.up_proj.weight_packed", "model.layers.0.mlp.up_proj.weight_scale"

ARTIFACTS: dict[str, tuple[Damage, str]] = {
    "artifact without its config": (remove("config.json"), "no config.json"),
    "artifact without quantization": (edit_json("config.json", lambda d: d.pop(QUANT)), "has no quantization_config"),
    "artifact of another method": (quantization(quant_method="gptq"), "has no quantization_config of jointquant"),
    "artifact of a later version": (quantization(format_version=99), "format version 99"),
    "artifact of another family": (quantization(architecture="qwen2"), "has model_type jointquant_llama"),
    "artifact of no family": (quantization(architecture=["llama"]), "has model_type jointquant_llama"),
    "artifact without a recipe": (edit_json("config.json", lambda d: d[QUANT].pop("recipe")), "has no recipe"),
    "artifact whose recipe is text": (quantization(recipe="w4a4kv4"), "recipe of the artifact"),
    "artifact of unknown settings": (recipe(lambda r: r.update(colour="red")), "unknown key 'colour'"),
    "artifact of 40 bits": (recipe(lambda r: r["weights"].update(num_bits=40)), "must be between 2 and 8"),
    "artifact of another width": (recipe(lambda r: r["weights"].update(num_bits=8)), "its recipe makes it int32"),
    "artifact of odd groups": (recipe(lambda r: r["weights"].update(group_size=7)), "does not divide"),
    "artifact of many layers": (config(num_hidden_layers=10**9), "num_hidden_layers is"),
    "artifact of more layers": (config(num_hidden_layers=4), "the artifact lacks tensor model.layers.3"),
    "artifact of fewer layers": (config(num_hidden_layers=2), "unexpected tensor model.layers.2"),
    "artifact that lacks a tensor": (tensors(lambda t: t.pop(PACKED), LAYER), f"lacks tensor {PACKED}"),
    "artifact of another shape": (
        tensors(lambda t: t.update({PACKED: t[PACKED][:3].clone()}), LAYER),
        f"tensor {PACKED} of the artifact is I32 [3, ",
    ),
    "artifact of another dtype": (tensors(lambda t: t.update({PACKED: t[PACKED].float()}), LAYER), "is F32"),
    "artifact of wider integers": (tensors(lambda t: t.update({PACKED: t[PACKED].long()}), LAYER), "is I64"),
    "artifact of small floats": (
        tensors(lambda t: t.update({SCALE: t[SCALE].to(torch.float8_e4m3fn)}), LAYER),
        "is F8_E4M3",
    ),
    "artifact with NaN scales": (tensors(lambda t: t[SCALE].fill_(torch.nan), LAYER), f"{SCALE} holds NaN"),
    "artifact whose shard is cut": (write(LAYER, b"\x08\0\0\0\0\0\0\0{}"), "not a whole safetensors file"),
    "artifact without a shard": (remove(LAYER), "is missing"),
    "artifact of broken rotations": (write("rotations.safetensors", b"rotations"), "not a whole safetensors file"),
    "artifact without its rotations": (remove("rotations.safetensors"), "expected the whole of the artifact"),
    "artifact that names code": (
        both(write("own.py", CODE), config(auto_map={"AutoConfig": "own.C"}, model_type="x")),
        "never run",
    ),
}

SHARD, LAST = "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"


def bit(name: str, place: float) -> Damage:
    """Flip a bit of a file, at a part of its length."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(place * len(data))] ^= 0x01
        (folder / name).write_bytes(data)

    return damage


def earlier(folder: Path) -> None:
    """What versions before wrote."""
    quantization(digests=None)(folder)
    remove("digests.json")(folder)


DAMAGED: dict[str, tuple[Damage, str]] = {
    "a bit of a layer": (bit(SHARD, 0.9), "tensor model.layers.0.self_attn.q_proj.weight_packed in"),
    "a bit of the head": (bit(LAST, 0.9), "tensor model.norm.weight in|tensor lm_head.weight in"),
    "a shard of another artifact": (
        tensors(lambda t: t["lm_head.weight"].mul_(2), LAST),
        "tensor lm_head.weight in",
    ),
    "the configuration": (config(rms_norm_eps=1e-4), "config.json in"),
    "the recipe": (recipe(lambda r: r["kv_cache"].update(num_bits=8)), "config.json in"),
    "the digests": (bit("digests.json", 0.5), "digests.json in"),
    "the digest of the digests": (quantization(digests="0" * 32), "digests.json in"),
    "no digests": (remove("digests.json"), "digests.json in"),
    "an earlier version's": (earlier, "written by an earlier version of jointquant, quantize again or install that"),
    "the index": (edit_json("model.safetensors.index.json", lambda d: d.pop("metadata")), "index.json in"),
    "the tokenizer": (edit_json("tokenizer.json", lambda d: d["added_tokens"].pop()), "tokenizer.json in"),
    "the tokenizer's settings": (
        edit_json("tokenizer_config.json", lambda d: d.update(add_bos_token=True)),
        "tokenizer_config.json in",
    ),
    "the chat template": (write("chat_template.jinja", "{{ messages }}"), "chat_template.jinja in"),
    "no chat template": (remove("chat_template.jinja"), "(it is missing)"),
}
"""Artifacts whose digests stayed as they were, one for each kind of file."""
