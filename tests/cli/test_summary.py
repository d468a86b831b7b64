"""What a run came to, in words, and the commands that come next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from artifact.test_result import RESULT
from jointquant import load_recipe
from jointquant.artifact.tiers import NATIVE, RUNTIMES, WITH_R4
from jointquant.cli.summary import bits_in_words, following, quality_in_words
from jointquant.evaluation.check import Quality
from jointquant.evaluation.divergence import Divergence

OUT = Path("out")
EXPORT = "  jointquant export out --format"


@pytest.mark.parametrize(
    ("runtimes", "lines"),
    [
        (
            (NATIVE,),
            [
                "in vLLM, with jointquant in its environment:",
                "  jointquant serve out --runtime vllm",
                "no runtime does what this recipe does without jointquant: quantize by --recipe w4a16 for vLLM, ",
            ],
        ),
        ((WITH_R4, NATIVE), ["in vLLM:", f"{EXPORT} compressed-tensors --out out-vllm", "  vllm serve out-vllm"]),
        ((RUNTIMES["gguf"], NATIVE), ["in llama.cpp:", f"{EXPORT} gguf --out out.gguf", "  llama-cli -m out.gguf"]),
        ((RUNTIMES["dense"], NATIVE), ["in other runtimes:", f"{EXPORT} dense --out out-dense --dequantized"]),
        ((*RUNTIMES.values(), NATIVE), ["in vLLM:", EXPORT, "  vllm", "in llama.cpp:", EXPORT, "  llama-cli"]),
    ],
)
def test_each_runtime_has_its_command(runtimes: tuple[str, ...], lines: list[str]) -> None:
    native, rest = (
        following(OUT, replace(RESULT, runtimes=list(runtimes)))[:3],
        following(OUT, replace(RESULT, runtimes=list(runtimes)))[3:],
    )
    assert native[0] == "in transformers:"
    assert "import jointquant" in native[1]
    assert len(rest) == len(lines)
    assert all(line.startswith(beginning) for line, beginning in zip(rest, lines, strict=True))


def test_bits_and_why_they_are_more_than_the_recipe_says() -> None:
    kept = [
        {"name": "model.embed_tokens.weight", "parameters": 500, "why": ""},
        {"name": "model.norm.weight", "parameters": 4, "why": ""},
    ]
    result = replace(RESULT, quantized_weights=1000, kept=kept, size_bytes=1504, bits_per_weight=4.5)
    assert bits_in_words(load_recipe("w4a16"), result) == [
        "4.50 in the layers (4, and what is stored beside them)",
        "8.00 of all 1,504 parameters: model.embed_tokens (33%) stays unquantized",
    ]
    exact = replace(result, kept=[], bits_per_weight=16.0, quantized_weights=0)
    assert bits_in_words(load_recipe("fp16"), exact) == ["16.00 in the layers"]


def test_quality() -> None:
    found = Divergence(mean=0.01234, stderr=None, median=0.01, p99=0.1, maximum=1.0, same_top=0.957)
    words = quality_in_words(Quality("wikitext2", 1024, 12.0, found, 3.21))
    assert words == (
        "KL divergence 0.0123 from the original, the same top token 95.7% of the time "
        "(1,024 held-out tokens of wikitext2, 3.2 s)"
    )
