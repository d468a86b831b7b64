"""The tables of what is lost, but for those of SmolLM2-135M-Instruct; written by ``tables.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from table_parts import headed, made


def demo(result: dict[str, Any]) -> list[str]:
    """The demo's table."""
    lines = ["| recipe | perplexity | min – max | size (MB) | bits per weight | seconds |", "|-|-|-|-|-|-|"]
    for row in result["rows"]:
        size = f"{row['size_bytes'] / 1e6:.2f}"
        spread = f"{row['perplexity_min']:.2f} – {row['perplexity_max']:.2f} ({row['seeds']} seeds)"
        cells = (
            row["recipe"],
            f"{row['perplexity']:.2f}",
            spread if row["seeds"] > 1 else "",
            size,
            f"{row['bits_per_weight']:.2f}",
            f"{row['seconds']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def stories260k(result: dict[str, Any]) -> list[str]:
    """Means over seeds, with the spread."""
    lines = [f"| width | recipe | perplexity (FP {result['fp']:.3f}) | min – max |", "|-|-|-|-|"]
    for row in result["rows"]:
        cells = (row["width"], row["recipe"], f"{row['mean']:.2f}", f"{row['min']:.2f} – {row['max']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"{result['rows'][0]['seeds']} seeds; {made(result)}"]
    return lines


def experiments(result: dict[str, Any]) -> list[str]:
    """Rows of a comparison on one text."""
    ((_, reference),) = result["reference"]["perplexity"].items()
    head = f"recipe | perplexity (unquantized {reference:.3f}) | min – max | KL divergence | size (MB) | seconds"
    lines = [f"| {head} |", "|-|-|-|-|-|-|"]
    for row in result["rows"]:
        (mean,), (low,), (high,) = (row[key].values() for key in ("perplexity", "perplexity_min", "perplexity_max"))
        (divergence,) = row["divergence"].values()
        size, seconds = f"{row['size_bytes'] / 1e6:.2f}", f"{row['seconds']:.1f}"
        cells = (row["recipe"], f"{mean:.3f}", f"{low:.3f} – {high:.3f}", f"{divergence:.4f}", size, seconds)
        lines.append(f"| {' | '.join(cells)} |")
    seeds = ", ".join(map(str, result["rows"][0]["seeds"]))
    return [*lines, "", f"Seeds: {seeds}. `{result['command']}`; {made(result)}"]


def mixture(result: dict[str, Any]) -> list[str]:
    """The presets on a mixture of experts."""
    part = result["presets"]
    lines = [
        f"| recipe | perplexity (unquantized {part['fp']:.2f}) | min – max | bits per weight | loads alike | seconds |",
        "|-|-|-|-|-|-|",
    ]
    for row in part["rows"]:
        span = f"{row['min']:.2f} – {row['max']:.2f} ({row['seeds']} seeds)" if row["seeds"] > 1 else ""
        same = "yes, and generates" if row["reloads"] else "no"
        cells = (row["recipe"], f"{row['mean']:.2f}", span, f"{row['bits']:.2f}", same, f"{row['seconds']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"`{result['command'].replace('…', 'presets')}`; {made(result)}"]


def mixture_starved(result: dict[str, Any]) -> list[str]:
    """What experts that see few tokens are given."""
    part = result["starved"]
    lines = [
        f"| windows of 256 tokens | starved, of {part['experts']} | given | perplexity | min – max |",
        "|-|-|-|-|-|",
    ]
    for row in part["rows"]:
        span = f"{row['min']:.2f} – {row['max']:.2f}"
        few = max(other["starved"] for other in part["rows"] if other["windows"] == row["windows"])
        cells = (str(row["windows"]), f"{few:.1f}", row["experts given"], f"{row['mean']:.2f}", span)
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        f"{part['rows'][0]['seeds']} seeds; `{result['command'].replace('…', 'starved')}`; {made(result)}",
    ]


def strategies(result: dict[str, Any]) -> list[str]:
    """Σ loss and perplexity by strategy, means over seeds with the spread."""
    lines = ["| strategy | Σ loss over layers | min – max | perplexity | min – max |", "|-|-|-|-|-|"]
    for row in result["rows"]:
        cells = [row["strategy"]]
        for name, digits in (("loss", 4), ("perplexity", 2)):
            low, high = (f"{row[f'{name}_{end}']:.{digits}f}" for end in ("min", "max"))
            cells += [f"{row[name]:.{digits}f}", f"{low} – {high}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"{result['rows'][0]['seeds']} seeds; {result['date']}, {result['machine']}."]


def optimizers(result: dict[str, Any]) -> list[str]:
    """Ratios first, then seconds and losses; below, perplexities."""
    lines = [
        "| sample | faster than `qr` | than `cayley` | seconds: ours, `qr`, `cayley` | loss | on unseen tokens |",
        "|-|-|-|-|-|-|",
    ]
    for row in result["rows"]:
        runs = [row[name] for name in ("newton_schulz", "qr", "cayley")]
        ratios = [f"{row[f'times_faster_than_{name}']:.1f} ×" for name in ("qr", "cayley")]
        figures = [
            ", ".join(format(run[key], form) for run in runs)
            for key, form in (("seconds", ".2f"), ("loss", ".4f"), ("unseen", ".4f"))
        ]
        lines.append(f"| {' | '.join([row['case'], *ratios, *figures])} |")
    words = [f"`{p['optimizer']}` {p['mean']:.2f} ({p['min']:.2f} – {p['max']:.2f})" for p in result["perplexity"]]
    seeds = result["perplexity"][0]["seeds"]
    return [
        *lines,
        "",
        f"Perplexity of the embedded model at W4A4KV16, {seeds} seeds: {', '.join(words)}. {made(result)}",
    ]


def quantization(result: dict[str, Any]) -> list[str]:
    """Ratios first, then seconds, memory and perplexity, ours and the peer's."""
    lines = [
        "| model | computed in | faster | than its plain GPTQ | share of its peak memory | seconds | MB "
        "| MB on one window | perplexity |",
        "|-|-|-|-|-|-|-|-|-|",
    ]
    for row in result["rows"]:
        runs = [row[name] for name in ("jointquant", "random-hadamard")]
        seconds = " against ".join(f"{run['seconds']:.1f}{_spread(run['runs'], 'seconds')}" for run in runs)
        size = " against ".join(f"{run['peak_bytes'] / 1e6:.0f}" for run in runs)
        measured = [run["perplexity"] for run in runs if run["perplexity"] is not None]
        cells = [
            row["case"],
            row["dtype"],
            f"{row['times_faster_than_random_hadamard']:.2f} ×",
            f"{row['times_faster_than_gptq']:.2f} ×",
            f"{row['share_of_peak_memory']:.2f}",
            seconds,
            size,
            f"{row['one_window_peak_bytes'] / 1e6:.0f}",
            " against ".join(f"{value:.2f}" for value in measured),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", made(result)]


def _spread(runs: list[dict[str, Any]], key: str) -> str:
    """The least and the largest of several runs, in brackets."""
    values = [run[key] for run in runs]
    return f" ({min(values):.1f} – {max(values):.1f})" if len(values) > 1 else ""


def accuracy(result: dict[str, Any]) -> list[str]:
    """Rows of one part of the accuracy benchmark."""
    return _accuracy(result, ["seconds"])


def accuracy_seen(result: dict[str, Any]) -> list[str]:
    """Without seconds: other work was on the machine, and they contradict each other."""
    return _accuracy(result, [])


def _accuracy(result: dict[str, Any], costs: list[str]) -> list[str]:
    """With what each row costs, if that was measured well."""
    apart = any("divergence" in row for row in result["rows"])
    heads = ["", "unquantized", "recipe", "perplexity", "min – max", *(["KL divergence"] * apart), "seeds", *costs]
    lines = headed(heads)
    for row in result["rows"]:
        spread = f"{row['min']:.2f} – {row['max']:.2f}" if row["seeds"] > 1 else ""
        changed = "".join(f", `{change}`" for change in row.get("changes", ()))
        cells = [row["what"], row["fp"], f"{row['recipe']}{changed}", f"{row['mean']:.2f}", spread]
        if apart:
            cells.append(_divergence(row) if "divergence" in row else "")
        cells += [str(row["seeds"]), *(f"{row[cost]:.0f}" for cost in costs)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"`{result['command']}`; {made(result)}"]


def _divergence(row: dict[str, Any]) -> str:
    """The mean over seeds, and how far these are from it."""
    spread = (row["divergence_max"] - row["divergence_min"]) / 2
    return f"{row['divergence']:.4f}" + (f" ± {spread:.4f}" if row["seeds"] > 1 else "")


def inner_rotations(result: dict[str, Any]) -> list[str]:
    """Noise at down_proj's input, by layer, and what a rotation would have to store."""
    layers = list(result["rows"][0]["noise"])
    heads = " | ".join(f"layer {layer}" for layer in layers)
    lines = [f"| rotation | {heads} | mean | bits per weight |", "|-" * (len(layers) + 3) + "|"]
    plain = result["rows"][0]["noise"]
    for row in result["rows"]:
        ratios = [row["noise"][layer] / plain[layer] for layer in layers]
        stored = 8 * row["numbers"] / result["weights_of_a_layer"]
        cells = [row["rotation"], *(f"{ratio:.2f}" for ratio in (*ratios, sum(ratios) / len(ratios))), f"{stored:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"`{result['command']}`; {made(result)}"]


def butterflies(result: dict[str, Any]) -> list[str]:
    """Errors of down projections by layer, in parts of the first row's; then whole models, where they were measured."""
    first = result["rows"][0]
    heads = ["R4", *(f"layer {layer}" for layer in first["errors"]), "mean", "bits", "seconds"]
    lines = headed(heads + (["perplexity", "min – max", "KL divergence"] if "kl" in first else []))
    for row in result["rows"]:
        parts = [error / plain for error, plain in zip(row["errors"].values(), first["errors"].values(), strict=True)]
        cells = [row["rotation"], *(f"{part:.2f}" for part in (*parts, sum(parts) / len(parts)))]
        cells += [f"{row['stored_bits']:.2f}", f"{row['training']:.1f}"]
        if "kl" in row:
            spread = f"{row['perplexity_min']:.3f} – {row['perplexity_max']:.3f}"
            cells += [f"{row['perplexity']:.3f}", spread, f"{row['kl']:.4f}"]
        cells += ["–"] * (lines[0].count("|") - 1 - len(cells))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"{result['model']}; `{result['command']}`; {made(result)}"]


def trained(result: dict[str, Any]) -> list[str]:
    """The presets on a small model of one kind, means over seeds with the spread of the divergence."""
    perplexity = f"perplexity (unquantized {result['unquantized']:.2f})"
    lines = headed(["recipe", "KL divergence", "min – max", perplexity, "same top token"])
    for name, row in result["rows"].items():
        recipe = ", ".join([name, *(f"`{change}`" for change in row["changes"])])
        kl = row["kl"]
        span = f"{kl['min']:.4f} – {kl['max']:.4f} ({row['seeds']} seeds)" if row["seeds"] > 1 else ""
        figures = f"{row['perplexity']['mean']:.2f} | {row['top1']['mean']:.3f}"
        lines.append(f"| {recipe} | {kl['mean']:.4f} | {span} | {figures} |")
    last, learned = list(result["rows"].values())[-1], result["training"]
    about = f"Trained in {learned['steps']} steps on {learned['tokens']:,} tokens. `{result['command']}`"
    return [*lines, "", f"{about}; {made(last)}"]


def hybrid(result: dict[str, Any]) -> list[str]:
    """Logits of tiny models after rotation, in parts of those before."""
    lines = headed(
        ["model", "rotations", "tool", "largest change of a logit, in parts of the largest", "KL divergence"]
    )
    for row in result["rows"]:
        if "refused" in row:
            figures = f"refused: {row['refused'].partition(': ')[0]} | "
        else:
            figures = f"{row['largest']:.1e} | {row['kl']:.1e}"
        cells = (f"`{row['family']}`", ", ".join(row["rotations"]), row["tool"], figures)
        lines.append(f"| {' | '.join(cells)} |")
    versions = next(row["versions"] for row in result["rows"] if "versions" in row)
    peer = f"llm-compressor {versions['llmcompressor']} (transformers {versions['transformers']})"
    return [*lines, "", f"{peer}; `{result['command']}`; {made(result)}"]


def token_lengths(result: dict[str, Any]) -> list[str]:
    """Every third layer, and those before which the first token is not yet long."""
    heads = ["behind layer", "another token (median)", "the first token", "its share of all squares"]
    lines = headed(heads)
    for row in result["rows"]:
        if row["layer"] % 3 == 2 or row["output"]["share_of_first"] > 0.99:
            out = row["output"]
            lengths = f"{out['median_of_others']:.0f} | {out['mean_of_first']:.0f} | {out['share_of_first']:.1%}"
            lines.append(f"| {row['layer']} | {lengths} |")
    return [*lines, "", f"`{result['command']}`; {made(result)}"]


def loss_by_part(result: dict[str, Any]) -> list[str]:
    """The divergence by what was left exact, beside that of the artifact as it is."""
    lines = headed(["left exact", "KL divergence", "less by", "same top token"])
    whole = result["rows"][0]["kl"]
    for row in result["rows"]:
        kl = f"{row['kl']:.3f} ± {row['kl_stderr']:.3f}"
        lines.append(f"| {row['part']} | {kl} | {1 - row['kl'] / whole:.0%} | {row['top1']:.3f} |")
    return [*lines, "", f"`{result['command']}`; {made(result)}"]


TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "demo": demo,
    "stories260k": stories260k,
    "experiments_demo": experiments,
    "experiments_stories260k": experiments,
    "strategies": strategies,
    "optimizers": optimizers,
    "quantization": quantization,
    "accuracy_presets": accuracy,
    "accuracy_ingredients": accuracy,
    "accuracy_models": accuracy,
    "accuracy_texts": accuracy,
    "accuracy_sites": accuracy,
    "accuracy_smoothing": accuracy,
    "accuracy_weights": accuracy,
    "accuracy_seen": accuracy_seen,
    "inner_rotations": inner_rotations,
    "butterflies_demo": butterflies,
    "butterflies_stories260k": butterflies,
    "butterflies_smollm2": butterflies,
    "mixture": mixture,
    "token_lengths": token_lengths,
    "loss_by_part_smollm2": loss_by_part,
    "mixture_starved": mixture_starved,
    "trained_gemma3": trained,
    "trained_latents": trained,
    "trained_hybrid": trained,
    "trained_qwen2": trained,
    "hybrid": hybrid,
}
"""By name."""
