"""A draft that reads an artifact's hidden states proposes what it proposed beside the model; all else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import AutoModelForCausalLM, PreTrainedModel

import jointquant
from commands import assert_refused, last_json, run
from conftest import make_model, possible, small
from invariance import LEARNED, exact

INPUT_IDS = torch.randint(5, 2048, (2, 12), generator=torch.Generator().manual_seed(1))
HIDDEN, OWN, VOCABULARY = 48, 40, 300
"""Of the model; of what the draft mixes into; of the draft."""


def made_draft(
    own_embedding: bool, mixed: int = HIDDEN, prefix: str = "", layer: str = "midlayer"
) -> dict[str, Tensor]:
    """A draft of EAGLE-3 of random numbers, under the names that published ones have."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / 4

    shapes = {
        "fc.weight": (mixed, 3 * HIDDEN),
        f"{layer}.input_layernorm.weight": (HIDDEN,),
        f"{layer}.hidden_norm.weight": (mixed,),
        f"{layer}.self_attn.q_proj.weight": (32, HIDDEN + mixed),
        f"{layer}.self_attn.k_proj.weight": (32, HIDDEN + mixed),
        f"{layer}.self_attn.v_proj.weight": (32, HIDDEN + mixed),
        f"{layer}.self_attn.o_proj.weight": (mixed, 32),
        f"{layer}.post_attention_layernorm.weight": (mixed,),
        f"{layer}.mlp.gate_proj.weight": (64, mixed),
        f"{layer}.mlp.up_proj.weight": (64, mixed),
        f"{layer}.mlp.down_proj.weight": (mixed, 64),
        "norm.weight": (mixed,),
    }
    if own_embedding:
        shapes["embed_tokens.weight"] = (2048, HIDDEN)
    tensors = {prefix + name: random(*shape) + (len(shape) == 1) for name, shape in shapes.items()}
    tensors["lm_head.weight"] = random(VOCABULARY, mixed)
    return tensors | {"d2t": torch.arange(VOCABULARY), "t2d": torch.arange(2048) < VOCABULARY}


def save_draft(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLMEagle3"]}))
    return folder


@torch.no_grad()
def proposals(tensors: dict[str, Tensor], model: PreTrainedModel) -> Tensor:
    """Logits of a draft behind a model: EAGLE-3, section 3.1, one layer, positions left out."""
    named = {name.removeprefix("model.").replace("layers.0", "midlayer"): value for name, value in tensors.items()}

    def normed(x: Tensor, norm: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * named[f"{norm}.weight"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ named[f"{name}.weight"].T

    states = model(input_ids=INPUT_IDS, output_hidden_states=True).hidden_states
    mixed = linear(torch.cat([states[0], states[1], states[2]], -1), "fc")
    table = named.get("embed_tokens.weight", model.get_input_embeddings().weight)
    both = torch.cat([normed(table[INPUT_IDS], "midlayer.input_layernorm"), normed(mixed, "midlayer.hidden_norm")], -1)
    heads = (linear(both, f"midlayer.self_attn.{part}_proj").unflatten(-1, (2, 16)).transpose(1, 2) for part in "qkv")
    attended = scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
    x = mixed + linear(attended, "midlayer.self_attn.o_proj")
    inner = normed(x, "midlayer.post_attention_layernorm")
    gated = silu(linear(inner, "midlayer.mlp.gate_proj")) * linear(inner, "midlayer.mlp.up_proj")
    return linear(normed(x + linear(gated, "midlayer.mlp.down_proj"), "norm"), "lm_head")


def make_artifact(family: str, out: Path, tokenizer, *changes: str) -> PreTrainedModel:
    """An artifact of nothing quantized; returns the model that it is of."""
    model = make_model(family, torch.float64)
    recipe = jointquant.load_recipe("fp16", small(*possible(family, *changes)))
    jointquant.quantize(model, out, recipe, tokenizer=tokenizer, dtype="float64")
    return model


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> tuple[PreTrainedModel, Path]:
    folder = tmp_path_factory.mktemp("rotated") / "a"
    return make_artifact("llama", folder, tokenizer, "rotations.r1.kind=hadamard"), folder


def difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize(
    ("own_embedding", "mixed", "prefix", "layer"),
    [(True, HIDDEN, "", "midlayer"), (False, HIDDEN, "model.", "layers.0"), (False, OWN, "", "midlayer")],
)
def test_proposals_are_as_before(
    own_embedding: bool, mixed: int, prefix: str, layer: str, rotated: tuple[PreTrainedModel, Path], tmp_path: Path
) -> None:
    """With an embedding of its own and with a borrowed one; without the rotation they are others."""
    model, artifact = rotated
    tensors = made_draft(own_embedding, mixed, prefix, layer)
    draft = save_draft(tmp_path / "draft", tensors)
    result = jointquant.rotate_draft(draft, artifact, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(artifact)
    exact(model)
    exact(loaded)
    expected = proposals(tensors, model)
    assert difference(proposals(found, loaded), expected) < 1e-10
    assert difference(proposals(tensors, loaded), expected) > 0.1
    assert found.keys() == tensors.keys()
    assert {name for name in tensors if not torch.equal(found[name], tensors[name])} == set(result.rotated)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)
    assert result.embedding == ("draft" if own_embedding else "artifact")


def test_other_drafts_are_refused(rotated: tuple[PreTrainedModel, Path], tmp_path: Path) -> None:
    whole = made_draft(own_embedding=False)
    first = {name: value for name, value in whole.items() if "hidden_norm" not in name}
    narrow = whole | {"midlayer.input_layernorm.weight": torch.ones(OWN)}
    refused = {
        "no hidden_norm": first,
        "no lm_head.weight": {name: value for name, value in whole.items() if name != "lm_head.weight"},
        "no fc.weight": {name: value for name, value in whole.items() if name != "fc.weight"},
        "multi-token prediction": whole | {"mtp.fc.weight": torch.ones(2, 2)},
        "none that such a draft has": whole | {"medusa.0.weight": torch.ones(2, 2)},
        "reads 100 numbers": whole | {"fc.weight": torch.ones(4, 100)},
        "hidden size 48": narrow,
        "none of q_proj": {
            name: value
            for name, value in whole.items()
            if not name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
        },
    }
    for number, (words, tensors) in enumerate(refused.items()):
        draft = save_draft(tmp_path / str(number), tensors)
        with pytest.raises(jointquant.InputError, match=words):
            jointquant.rotate_draft(draft, rotated[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", [], "has no R1"),
        ("llama", [*LEARNED, "rotations.r1.strategy=independent"], "changes the basis after each layer"),
        ("opt", ["rotations.r1.kind=hadamard"], "without their mean"),
    ],
)
def test_artifacts_of_other_states_are_refused(
    family: str, changes: list[str], words: str, tmp_path: Path, tokenizer
) -> None:
    make_artifact(family, tmp_path / "a", tokenizer, *changes)
    draft = save_draft(tmp_path / "draft", made_draft(own_embedding=True))
    with pytest.raises(jointquant.InputError, match=words):
        jointquant.rotate_draft(draft, tmp_path / "a", tmp_path / "out")


def test_on_the_command_line_and_not_twice(rotated: tuple[PreTrainedModel, Path], tmp_path: Path, capsys) -> None:
    draft, out = save_draft(tmp_path / "draft", made_draft(own_embedding=True)), tmp_path / "out"
    arguments = ["--for", str(rotated[1]), "--out"]
    assert run("rotate-draft", str(draft), *arguments, str(out), "--json") == 0
    assert last_json(capsys)["rotated"] == ["fc.weight"]
    assert_refused(["rotate-draft", str(out), *arguments, str(tmp_path / "b")], "rotated already", capsys, tmp_path)
    assert_refused(["rotate-draft", str(draft), *arguments, str(draft)], "is the model's folder", capsys, tmp_path)
