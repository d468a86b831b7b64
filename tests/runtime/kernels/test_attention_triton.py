"""The Triton programs of attention over a packed cache, in Triton's interpreter or on a GPU, against the vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton", reason="the Triton kernels need Triton: pip install triton")

from triton.runtime.errors import OutOfResources

from conftest import make_model, small
from jointquant import load, load_recipe, quantize
from jointquant.backend import launches
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime import cached_states
from jointquant.runtime.cached_states import Record
from jointquant.runtime.generation import Generation
from jointquant.runtime.kernels import attention_selection, triton_attention
from jointquant.runtime.kernels.attention_interface import AttentionProblem
from jointquant.runtime.kernels.attention_selection import attention_reasons, choose_attention
from jointquant.runtime.kernels.attention_triton import WORD, AttentionTriton
from jointquant.runtime.per_token_head import PerTokenHead

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FOUR, EIGHT = IntFormat(4, False), IntFormat(8, False)
FOUR_SYMMETRIC, EIGHT_SYMMETRIC = IntFormat(4, True), IntFormat(8, True)
BOUND = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Of an error, by the largest value: half a unit in the last place of the result, or what float32's sums leave."""


@pytest.fixture
def whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records as they are on a GPU."""
    monkeypatch.setattr(cached_states, "record_multiple", lambda device: WORD)
    monkeypatch.setattr(Record, "in_place", False)


def kept(states: torch.Tensor, fmt: IntFormat, room: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Records [..., tokens, bytes], with memory for more tokens behind each head; and the vectors, float64."""
    record = Record(DynamicRange(fmt, 0.9), states.shape[-1], states.dtype, DEVICE)
    stored = record.encode(states.to(DEVICE))
    assert stored.shape[-1] % WORD == 0
    memory = stored.new_full((*stored.shape[:2], stored.shape[2] + room, stored.shape[3]), 255)
    memory[:, :, : stored.shape[2]] = stored
    vectors = Record(record.range, states.shape[-1], torch.float32, DEVICE).decode(stored)
    return memory[:, :, : stored.shape[2]], vectors.double()


@pytest.mark.parametrize(
    ("head_dim", "heads", "tokens", "formats", "dtype", "size"),
    [
        (64, (2, 1, 1), 1, (FOUR, FOUR), torch.float32, 1.0),
        (128, (1, 2, 4), 300, (FOUR, FOUR), torch.float32, 1.0),
        (80, (1, 1, 17), 133, (EIGHT, EIGHT_SYMMETRIC), torch.float32, 1.0),
        (96, (2, 1, 3), 257, (FOUR_SYMMETRIC, FOUR), torch.float32, 8.0),
        (64, (1, 1, 8), 70, (FOUR, EIGHT), torch.float16, 1.0),
        (128, (1, 1, 1), 129, (IntFormat(3, False), IntFormat(2, False)), torch.float32, 0.1),
        (20, (1, 2, 2), 19, (EIGHT_SYMMETRIC, FOUR_SYMMETRIC), torch.float16, 1.0),
        (256, (1, 1, 2), 40, (FOUR, FOUR), torch.bfloat16, 1.0),
    ],
)
@pytest.mark.usefixtures("whole_words")
def test_attention(head_dim, heads, tokens, formats, dtype, size) -> None:
    """Batch, KV heads and queries of each; scores of up to hundreds, where one token takes all."""
    batch, kv_heads, group = heads
    generator = torch.Generator().manual_seed(tokens)
    states = size * torch.randn(2, batch, kv_heads, tokens, head_dim, generator=generator)
    query = torch.randn(batch, kv_heads * group, 1, head_dim, generator=generator).to(dtype)
    (keys, key_vectors), (values, value_vectors) = (
        kept(x.to(dtype), fmt, room) for x, fmt, room in zip(states, formats, (3, 0), strict=True)
    )
    found = triton_attention.attend(query.to(DEVICE), keys, values, formats, 0.3)
    exact = query.to(DEVICE).double()
    expected = scaled_dot_product_attention(exact, key_vectors, value_vectors, scale=0.3, enable_gqa=True)
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    largest = (exact.unflatten(1, (kv_heads, group)) @ key_vectors.unsqueeze(2).mT).abs().max() * 0.3
    bound = BOUND[dtype] + 2e-7 * float(largest)  # a score is as exact as its size allows
    assert (found - expected).abs().max() <= bound * value_vectors.abs().max()


@pytest.mark.parametrize(
    ("tokens", "columns", "block", "share"),
    [(1, 8, 64, 64), (128, 8, 64, 128), (129, 8, 64, 128), (8000, 8, 64, 256), (8000, 512, 64, 8000), (9, 1, 16, 16)],
)
def test_shares_cover_all_tokens_and_are_whole_tiles(tokens: int, columns: int, block: int, share: int) -> None:
    found = triton_attention.share_of(tokens, columns, block)
    assert found == share
    assert found % block == 0 or found >= tokens


@pytest.mark.parametrize("place", [0, 140])
@pytest.mark.usefixtures("whole_words")
def test_what_is_not_a_number_is_seen(place: int) -> None:
    records, _ = kept(torch.ones(1, 1, 150, 16), FOUR, 0)
    records[0, 0, place, 8:12] = torch.tensor([torch.nan]).view(torch.uint8)  # a scale
    query = torch.ones(1, 1, 1, 16, device=DEVICE)
    assert triton_attention.attend(query, records, records, (FOUR, FOUR), 1.0).isnan().all()


def problem(key=None, value=None, head_dim: int = 64, dtype=torch.bfloat16) -> AttentionProblem:
    four = DynamicRange(FOUR)
    return AttentionProblem(key or four, value or four, head_dim, dtype, torch.device("cuda"))


def test_what_it_does_not_read() -> None:
    refusal = AttentionTriton().refusal_of_formats
    assert refusal(problem()) is None
    assert refusal(problem(DynamicRange(EIGHT), DynamicRange(IntFormat(4, False, 64)))) is None
    assert "one scale a vector" in str(refusal(problem(DynamicRange(IntFormat(4, False, 32)))))
    assert "one scale a vector" in str(refusal(problem(value=PerTokenHead())))
    assert "one scale a vector" in str(refusal(AttentionProblem(None, None, 64, torch.float32, DEVICE)))
    assert "even length" in str(refusal(problem(head_dim=63)))
    assert "float64" in str(refusal(problem(dtype=torch.float64)))


def test_a_device_with_too_little_shared_memory_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = AttentionTriton().refusal_of_memory
    on_host = [
        AttentionProblem(None, None, size, torch.float32, torch.device("cpu")) for size in (16, 64, 80, 128, 512)
    ]
    assert [ask(each) for each in on_host] == [None] * 5
    monkeypatch.setattr("jointquant.runtime.kernels.shared_memory.block_bytes", lambda device: 32 * 1024)
    assert "KB of shared memory for a block, where this device has 32" in str(ask(on_host[3]))


class Interpreted(AttentionTriton):
    """The kernel where the interpreter runs its programs."""

    def refusal(self, problem: AttentionProblem) -> str | None:
        return self.refusal_of_formats(problem) or launches.reason(self.name, problem)


@pytest.fixture
def asked_first(monkeypatch: pytest.MonkeyPatch) -> AttentionTriton:
    kernel = AttentionTriton() if DEVICE.type == "cuda" else Interpreted()
    monkeypatch.setattr(attention_selection, "ATTENTION", (kernel,))
    launches.forget()
    yield kernel
    launches.forget()


def artifact(folder: Path, tokenizer, *changes: str):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    recipe = load_recipe("fp16", small("rotations.r3.kind=hadamard", "kv_cache.num_bits=4", *changes))
    quantize(make_model("llama", num_hidden_layers=2, **sizes), folder, recipe, tokenizer=tokenizer)
    return load(folder, device=str(DEVICE), dtype="float32")


OPTIONS = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.mark.usefixtures("whole_words")
def test_generation(tmp_path: Path, tokenizer, asked_first: AttentionTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    """R3 and centred keys: the programs attend for each new token of each layer, and the logits are the vectors'."""
    model = artifact(tmp_path / "a", tokenizer, "kv_cache.centring=keys")
    ids = (torch.arange(1, 21).reshape(2, 10) * 7).to(DEVICE)
    runs, run = [], AttentionTriton.run
    monkeypatch.setattr(AttentionTriton, "run", lambda self, *rest: runs.append(self) or run(self, *rest))

    def generate() -> torch.Tensor:
        found = model.generate(ids, **OPTIONS, return_dict_in_generate=True, output_logits=True)
        return torch.stack(found.logits)

    by_programs = generate()
    assert len(runs) == 2 * (OPTIONS["max_new_tokens"] - 1)
    monkeypatch.setattr(attention_selection, "ATTENTION", ())
    torch.testing.assert_close(by_programs, generate(), rtol=0, atol=1e-4 * float(by_programs.abs().max()))
    assert len(runs) == 2 * (OPTIONS["max_new_tokens"] - 1)


@pytest.mark.usefixtures("whole_words")
def test_a_launch_that_fails_leaves_it_to_the_vectors_and_says_so_once(
    tmp_path: Path, tokenizer, asked_first: AttentionTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> torch.Tensor:
        raise OutOfResources(300000, 101376, "shared memory")

    model = artifact(tmp_path / "a", tokenizer)
    monkeypatch.setattr(triton_attention, "attend", fail)
    ids = (torch.arange(1, 11)[None] * 7).to(DEVICE)
    with pytest.warns(UserWarning, match=r"attention_triton cannot run attention .* of head_dim 8 here") as said:
        found = model.generate(ids, **OPTIONS)
    assert len([each for each in said if "attention_triton" in str(each.message)]) == 1
    monkeypatch.setattr(attention_selection, "ATTENTION", ())
    assert torch.equal(found, model.generate(ids, **OPTIONS))
    (failed,) = launches.failed_launches()
    assert failed["program"] == "attention_triton"
    assert Generation("", 0, 0.0).to_dict()["failed_launches"] == [failed]


def test_the_table_gives_the_first_that_does_it() -> None:
    on_host = AttentionProblem(DynamicRange(EIGHT), DynamicRange(FOUR), 64, torch.float32, torch.device("cpu"))
    assert choose_attention(on_host) is None
    reasons = attention_reasons(on_host)
    assert "at most 4 bits" in reasons["packed_attention"] or "program" in str(reasons)
    assert reasons["attention_triton"] == "runs on NVIDIA GPUs"
