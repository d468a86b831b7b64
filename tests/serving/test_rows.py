"""Artifacts over rows of several requests' tokens, with pages in plain torch, beside the artifacts alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

import jointquant
from conftest import few_steps, make_model, possible, small
from jointquant.models.registry import architecture_of
from jointquant.serving.rows import PagesFacts, Rows

LENGTHS = (7, 1, 12)
PART = 5
"""Tokens of the last request in a first step."""


class Pages(nn.Module):
    """Keeps keys and values of requests, which it is told of by ``steps``: (request, tokens) of the next row."""

    def __init__(self, facts: PagesFacts) -> None:
        super().__init__()
        self.facts = facts
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.steps: list[tuple[int, int]] = []

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[tokens, heads · head_dim]; causal, in float64 as it comes."""
        mixed, facts, sizes = [], self.facts, [count for _, count in self.steps]
        for (request, count), q, k, v in zip(
            self.steps, query.split(sizes), key.split(sizes), value.split(sizes), strict=True
        ):
            before = self.kept.get(request)
            k, v = (k, v) if before is None else (torch.cat([before[0], k]), torch.cat([before[1], v]))
            self.kept[request] = k, v
            heads = [x.view(len(x), -1, facts.head_dim).transpose(0, 1) for x in (q, k, v)]
            places = torch.arange(len(k))
            behind = places[-count:, None] - places
            seen = (behind >= 0) & (behind < (facts.sliding_window or len(k)))
            out = functional.scaled_dot_product_attention(*heads, seen, scale=facts.scaling, enable_gqa=True)
            mixed.append(out.transpose(0, 1).flatten(1))
        return torch.cat(mixed)


@pytest.mark.parametrize(
    ("family", "preset"),
    [("llama", "w4a4kv4"), ("qwen3", "w4a4kv4"), ("mistral", "vllm-w4a4kv4"), ("granite", "w4a16"), ("phi3", "w4a16")],
)
def test_a_row_of_requests_is_the_requests_one_by_one(
    family: str, preset: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """In float64, in two steps: a request is cut in two, and another one begins behind it."""
    changes = possible(family, *few_steps(preset), "weights.group_size=null")
    sizes = {"sliding_window": 6} if family == "mistral" else {}
    recipe = jointquant.load_recipe(preset, small(*changes))
    jointquant.quantize(make_model(family, **sizes), tmp_path / "a", recipe, tokenizer=tokenizer)
    with torch.no_grad():
        one_by_one(tmp_path / "a", family)


def one_by_one(artifact: Path, family: str) -> None:
    requests = [torch.arange(5, 5 + 3 * n, 3) + 100 * n for n in LENGTHS]
    alone = jointquant.load(artifact, dtype="float64")
    want = torch.cat([alone(input_ids=each[None]).logits[0] for each in requests])

    found: list[Pages] = []

    def pages(facts: PagesFacts) -> Pages:
        found.append(Pages(facts))
        return found[-1]

    rows = Rows(jointquant.load(artifact, dtype="float64"), architecture_of(family), pages)
    first, second = [(0, 7), (2, PART)], [(2, LENGTHS[2] - PART), (1, 1)]
    done = dict.fromkeys(range(3), 0)
    logits: dict[int, list[Tensor]] = {n: [] for n in done}
    for steps in (first, second):
        for each in found:
            each.steps = steps
        tokens = torch.cat([requests[n][done[n] : done[n] + count] for n, count in steps])
        positions = torch.cat([torch.arange(done[n], done[n] + count) for n, count in steps])
        states = rows.hidden_states(None, positions, rows.embed(tokens))
        for (n, count), part in zip(steps, rows.logits(states).split([c for _, c in steps]), strict=True):
            logits[n].append(part)
            done[n] += count
    got = torch.cat([torch.cat(parts) for parts in logits.values()])
    assert (got - want).abs().max() < 1e-9
    assert len(found) == alone.config.num_hidden_layers
