"""What a run of ``quantize`` came to, for people: sizes, quality, and the commands that come next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from jointquant.artifact.result import QuantizeResult
from jointquant.artifact.tiers import exports_among, in_vllm
from jointquant.evaluation.check import Quality
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.targets import TARGETS, VLLM_CACHE

SMALL = 0.01
"""Parts of a model's parameters that are not worth a word."""


def summary(model: str, out: Path, recipe: Recipe, result: QuantizeResult, quality: Quality | str) -> Table:
    """One row a fact; ``quality`` is why it was not measured where it was not."""
    table = Table(show_header=False, title=f"{model} → {out}")
    part = result.size_bytes / result.original_bytes
    table.add_row(
        "size on disk", f"{result.original_bytes / 1e6:.1f} MB → {result.size_bytes / 1e6:.1f} MB ({part:.0%})"
    )
    table.add_row("bits per weight", "\n".join(bits_in_words(recipe, result)))
    table.add_row("quality", quality if isinstance(quality, str) else quality_in_words(quality))
    table.add_row("seconds", f"{result.seconds:.1f}{' (resumed)' if result.resumed else ''}")
    table.add_row("peak memory", f"{result.peak_rss_bytes / 1e6:.0f} MB")
    for name, words in result.transforms.items():
        table.add_row(name.upper(), words)
    if result.starved_experts:
        table.add_row("starved experts", f"{len(result.starved_experts)}, calibrated on all tokens of their layers")
    table.add_row("tier", str(result.tier))
    return table


def bits_in_words(recipe: Recipe, result: QuantizeResult) -> list[str]:
    """Bits of the decoder's linears, and of all parameters with what keeps them above that."""
    total = result.quantized_weights + sum(each["parameters"] for each in result.kept)
    nominal = recipe.weights.num_bits if result.quantized_weights else 16
    extra = f" ({nominal}, and what is stored beside them)" if result.bits_per_weight > nominal else ""
    found = [f"{result.bits_per_weight:.2f} in the layers{extra}"]
    kept = sorted(result.kept, key=_parameters, reverse=True)
    large = [each for each in kept if _parameters(each) >= SMALL * total]
    if large and result.quantized_weights:
        names = ", ".join(f"{each['name'].removesuffix('.weight')} ({_parameters(each) / total:.0%})" for each in large)
        bits = 8 * result.size_bytes / total
        found.append(
            f"{bits:.2f} of all {total:,} parameters: {names} {'stay' if len(large) > 1 else 'stays'} unquantized"
        )
    return found


def quality_in_words(quality: Quality) -> str:
    """What was measured, and on what."""
    found = quality.divergence
    error = "" if found.stderr is None else f" ± {found.stderr:.4f}"
    return (
        f"KL divergence {found.mean:.4f}{error} from the original, the same top token {found.same_top:.1%} of the time "
        f"({quality.tokens:,} held-out tokens of {quality.source}, {quality.seconds:.1f} s)"
    )


def following(out: Path, result: QuantizeResult) -> list[str]:
    """Where the artifact runs, each place with the lines that come next."""
    formats = exports_among(result.runtimes)
    lines = [
        "in transformers:",
        "  import jointquant, transformers",
        f"  model = transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})",
    ]
    if in_vllm(result.runtimes):
        cache = f" {VLLM_CACHE}" if any(VLLM_CACHE in words for words in result.runtimes) else ""
        export = _export(out, "compressed-tensors", f"{out}-vllm")
        lines += ["in vLLM:", f"  {export}", f"  vllm serve {out}-vllm{cache}"]
    if "gguf" in formats:
        lines += ["in llama.cpp:", f"  {_export(out, 'gguf', f'{out}.gguf')}", f"  llama-cli -m {out}.gguf"]
    if formats == ("dense",):
        lines += ["in other runtimes:", f"  {_export(out, 'dense', f'{out}-dense')} --dequantized"]
    if not formats:
        vllm, llama_cpp = TARGETS["vllm"].recipe, TARGETS["llama.cpp"].recipe
        lines += ["in vLLM, with jointquant in its environment:", f"  jointquant serve {out} --runtime vllm"]
        words = f"quantize by --recipe {vllm} for vLLM, by --recipe {llama_cpp} for llama.cpp"
        lines.append(f"no runtime does what this recipe does without jointquant: {words}")
    return lines


def _export(out: Path, format: str, target: str) -> str:
    return f"jointquant export {out} --format {format} --out {target}"


def _parameters(kept: dict[str, Any]) -> int:
    return int(kept["parameters"])
