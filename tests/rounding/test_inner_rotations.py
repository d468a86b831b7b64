"""The learned part of R4: which tokens it is learned on, what it lowers, that the function stays, where it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import jointquant
from conftest import make_model, small
from jointquant.distributed.ranks import Ranks
from jointquant.errors import InputError
from jointquant.export.export import export_artifact
from jointquant.rotations.blocks import rotate_blocks
from jointquant.rotations.learning import Training, learn_blocks
from jointquant.rotations.objectives import token_range
from jointquant.rotations.optimizers import OPTIMIZERS, Schedule
from jointquant.rotations.sampling import DrawnTokens
from jointquant.runtime.inner_rotation import INPUT_ROTATION, InnerRotation

LEARNED = ("rotations.r4.kind=learned", "rotations.r4.steps=10")
BUTTERFLY = ("rotations.r4.kind=butterfly", "rotations.r4.steps=5")
FOUR = ("weights.num_bits=4", "activations.num_bits=4", "activations.centring=mean")
INPUT_IDS = torch.randint(0, 2048, (2, 20), generator=torch.Generator().manual_seed(3))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotations(blocks: int, size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(blocks, size, size, generator=seeded(seed), dtype=torch.float64)).Q


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ranges_of_whole_tokens_fall(optimizer: str) -> None:
    """Blocks share one loss, whether its gradient is in closed form (newton_schulz) or autograd's (the others)."""
    x = torch.randn(512, 96, generator=seeded()) * torch.logspace(-1, 1, 96)
    start = torch.eye(16).repeat(6, 1, 1)
    training = Training(token_range, OPTIMIZERS[optimizer], Schedule(30, 0.3, 0.85), 128)
    found = learn_blocks(x, start, training, seeded()).rotation
    assert found.shape == start.shape
    assert (found.mT @ found - torch.eye(16)).abs().max() < 1e-9
    assert token_range(rotate_blocks(x, found.float())) < 0.85 * token_range(x)


class TwoRanks(Ranks):
    """The first of two, whose other's tensors are known."""

    size = 2

    def __init__(self, other: dict[str, Tensor]) -> None:
        self.left = list(other.items())

    def tell(self, value, source=0):  # type: ignore[no-untyped-def]
        return {name: (x.shape, x.dtype) for name, x in self.left} if source else value

    def broadcast(self, tensor, source=0):  # type: ignore[no-untyped-def]
        return self.left.pop(0)[1] if source else tensor


def test_ranks_have_the_tokens_of_all() -> None:
    x = torch.randn(100, 6, generator=seeded())
    whole, own, other = (DrawnTokens(0.5, 4) for _ in range(3))
    whole.update(x)
    own.update(x[70:])
    other.update(x[:70])
    ((keys, rows),) = other.kept
    assert torch.equal(own.take(TwoRanks({"keys": keys, "rows": rows})), whole.take())
    for drawn in (own, whole):
        drawn.update(x)
    assert torch.equal(own.take(TwoRanks({})), whole.take())  # the other has none


def test_an_opened_expert_keeps_no_more_tokens_than_others(tmp_path: Path, tokenizer, monkeypatch) -> None:
    kept: list[int] = []
    take = DrawnTokens.take

    def counted(self, ranks, device):  # type: ignore[no-untyped-def]
        kept.append(sum(len(keys) for keys, _ in self.kept))
        return take(self, ranks, device)

    monkeypatch.setattr(DrawnTokens, "take", counted)
    model, num_tokens = make_model("mixtral"), 2 * 32
    experts, passed = model.config.num_local_experts, model.config.num_experts_per_tok
    recipe = jointquant.load_recipe("fp16", small(*FOUR, *LEARNED, "calibration.num_samples=2"))
    result = jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    assert len(result.starved_experts) > len(kept) / 2  # the others keep what is routed to them
    assert len(kept) == model.config.num_hidden_layers * experts
    assert 0.5 < sum(kept) / (len(kept) * num_tokens * passed / experts) < 1.3


def test_matrices_are_kept_until_they_are_let_go_of(tmp_path: Path, tokenizer) -> None:
    recipe = jointquant.load_recipe("fp16", small(*FOUR, *LEARNED))
    jointquant.quantize(make_model("llama"), tmp_path / "a", recipe, tokenizer=tokenizer)
    loaded = jointquant.load(tmp_path / "a", kernels="auto")
    down = loaded.model.layers[0].mlp.down_proj
    with torch.no_grad():
        before = loaded(INPUT_IDS).logits
        assert [kept.dtype for kept in down._matrices.values()] == [torch.float32]
        assert down.input_rotation.dtype == torch.int8
        down.release_prepared()
        assert not down._matrices
        assert torch.equal(loaded(INPUT_IDS).logits, before)
        down.load_state_dict(down.state_dict() | {INPUT_ROTATION: -down.input_rotation})
        assert not torch.equal(loaded(INPUT_IDS).logits, before)


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_an_artifact_is_what_was_quantized(family: str, tmp_path: Path, tokenizer) -> None:
    """All kernels agree, most down projections have turned their blocks, and a rerun makes the same bytes."""
    model = make_model(family)
    recipe = jointquant.load_recipe("fp16", small(*FOUR, *LEARNED))
    result = jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    assert "then blocks of at most 64 channels" in result.transforms["r4"]
    reference = jointquant.load(tmp_path / "a", kernels="reference")
    turned = {n: b for n, b in reference.named_buffers() if n.endswith(INPUT_ROTATION)}
    assert turned
    assert all("down_proj" in name and buffer.dtype == torch.int8 for name, buffer in turned.items())
    moved = [n for n, b in turned.items() if (b - torch.eye(b.shape[-1], dtype=torch.int8) * 127).any()]
    assert len(moved) >= len(turned) / 2
    with torch.no_grad():
        expected = reference(INPUT_IDS).logits
        actual = jointquant.load(tmp_path / "a", kernels="auto")(INPUT_IDS).logits
    assert (actual - expected).abs().max() < 1e-3 * expected.abs().max()
    again = jointquant.quantize(model, tmp_path / "b", recipe, tokenizer=tokenizer)
    assert again.size_bytes == result.size_bytes
    for file in sorted((tmp_path / "a").glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_the_matrices_count_among_the_bits_per_weight(tmp_path: Path, tokenizer) -> None:
    bits, model = {}, make_model("llama")
    for kind in ("hadamard", "learned"):
        recipe = jointquant.load_recipe("fp16", small("weights.num_bits=4", f"rotations.r4.kind={kind}"))
        bits[kind] = jointquant.quantize(model, tmp_path / kind, recipe, tokenizer=tokenizer).bits_per_weight
    linears = [m.weight for n, m in model.named_modules() if n.endswith("_proj")]
    stored = 3 * 2 * 40 * 40 * 8  # layers, blocks of the 80 channels, their entries, bits
    assert bits["learned"] - bits["hadamard"] == pytest.approx(stored / sum(w.numel() for w in linears), rel=1e-6)


def test_one_token_teaches_nothing(tmp_path: Path, tokenizer, monkeypatch) -> None:
    take = DrawnTokens.take
    monkeypatch.setattr(DrawnTokens, "take", lambda self, ranks, device: take(self, ranks, device)[:1])
    recipe = jointquant.load_recipe("fp16", small(*FOUR, *LEARNED))
    jointquant.quantize(make_model("llama"), tmp_path / "a", recipe, tokenizer=tokenizer)
    found = [b for n, b in jointquant.load(tmp_path / "a").named_buffers() if n.endswith(INPUT_ROTATION)]
    assert len(found) == 3
    for buffer in found:
        assert torch.equal(buffer, InnerRotation(64).buffers(80)[INPUT_ROTATION])


def test_other_runtimes_refuse_it(tmp_path: Path, tokenizer) -> None:
    recipe = jointquant.load_recipe("fp16", small("weights.num_bits=4", *LEARNED))
    jointquant.quantize(make_model("llama"), tmp_path / "a", recipe, tokenizer=tokenizer)
    with pytest.raises(InputError, match="R4 is learned"):
        export_artifact(tmp_path / "a", "compressed-tensors", tmp_path / "b")


def test_a_butterfly_artifact_is_what_was_quantized(tmp_path: Path, tokenizer, calibration_text) -> None:
    """All kernels agree, transformers loads it by itself, it is evaluated and generates, and a rerun repeats it."""
    model = make_model("llama")
    recipe = jointquant.load_recipe("fp16", small(*FOUR, *BUTTERFLY))
    result = jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    assert "then a butterfly of plane rotations" in result.transforms["r4"]
    reference = jointquant.load(tmp_path / "a", kernels="reference")
    turned = [b for n, b in reference.named_buffers() if n.endswith(INPUT_ROTATION)]
    assert [(b.dtype, b.shape, bool(b.any())) for b in turned] == [(torch.int16, (4, 40), True)] * 3
    with torch.no_grad():
        expected = reference(INPUT_IDS).logits
        actual = jointquant.load(tmp_path / "a", kernels="auto")(INPUT_IDS).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "a")(INPUT_IDS).logits, actual)
        assert (actual - expected).abs().max() < 1e-3 * expected.abs().max()
        assert reference.generate(INPUT_IDS, max_new_tokens=3, do_sample=False).shape == (2, 23)
    found = jointquant.evaluate(tmp_path / "a", (calibration_text,), seqlen=32, max_tokens=128)
    assert 1 < found.perplexity[calibration_text] < 1e6
    jointquant.quantize(model, tmp_path / "b", recipe, tokenizer=tokenizer)
    for file in sorted((tmp_path / "a").glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    with pytest.raises(InputError, match="R4 is learned"):
        export_artifact(tmp_path / "a", "compressed-tensors", tmp_path / "c")


def test_roundings_are_refined_behind_a_butterfly(tmp_path: Path, tokenizer) -> None:
    """Gradients pass it, from the rounded down projection to the linears before it."""
    recipe = jointquant.load_recipe("w4a4kv4", small(*BUTTERFLY, "refinement.steps=2"))
    result = jointquant.quantize(make_model("llama"), tmp_path / "a", recipe, tokenizer=tokenizer)
    assert "then a butterfly of plane rotations" in result.transforms["r4"]


def test_a_butterfly_changes_no_function_and_counts_among_the_bits(tmp_path: Path, tokenizer) -> None:
    """Experts have their own; where nothing is rounded the logits are the model's."""
    model = make_model("qwen2_moe")
    recipe = jointquant.load_recipe("fp16", small(*BUTTERFLY, "rotations.r4.objective=range"))
    result = jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    with torch.no_grad():
        expected = model(INPUT_IDS).logits
        loaded = jointquant.load(tmp_path / "a")
        assert (loaded(INPUT_IDS).logits - expected).abs().max() < 1e-4 * expected.abs().max()
    stored = sum(b.numel() * 16 for n, b in loaded.named_buffers() if n.endswith(INPUT_ROTATION) and b.any())
    assert stored
    assert result.bits_per_weight > 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("rotations.r3.kind=butterfly",), "r3.kind butterfly would store and run what a learned R3 does"),
        (("rotations.r1.kind=butterfly",), "rotations.r1.kind: expected one of none, hadamard, learned"),
        (("rotations.r4.kind=butterfly",), "reconstruction needs weights.num_bits or activations.num_bits below 16"),
        ((*FOUR, *BUTTERFLY, "rotations.r4.most=32"), "unknown key 'rotations.r4.most'"),
    ],
)
def test_what_a_butterfly_is_not_for(changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        jointquant.load_recipe("fp16", changes)
