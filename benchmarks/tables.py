"""Write the tables and pictures of the docs from benchmarks/results/ and the package: ``python benchmarks/tables.py``.

``--check``: only compare.

A table stands between the lines ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pictures
import tables_gpu
import tables_real_model
from table_parts import headed, made

from jointquant.models.registry import ARCHITECTURES, summary
from jointquant.models.support import support_table
from jointquant.recipe.reference_table import key_table, size_table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "guides" / "vllm.md")


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


def plans(result: dict[str, Any]) -> list[str]:
    """What each model needs on paper."""
    lines = [
        "| model | recipe | device budget | hidden states | windows at once | host | device | disk | time |",
        "|-|-|-|-|-|-|-|-|-|",
    ]
    peaks = []
    for row in result["rows"]:
        host, device, disk = (f"{row[f'{kind}_bytes'] / 1e9:.1f} GB" for kind in ("host_peak", "device_peak", "disk"))
        minutes = f"{sum(row['seconds'].values()) / 60:.0f} min"
        where = {"device": "on the device", "memory": "in memory", "disk": "in files"}[row["storage"]]
        start = row["model"], row["recipe"], row["device_budget"]
        lines.append(f"| {' | '.join([*start, where, str(row['batch_windows']), host, device, disk, minutes])} |")
        phase = max(row["phases"], key=lambda phase: sum(phase["device"].values()))
        kinds = ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in phase["device"].items() if size)
        peaks.append(f"- {row['model']}, {row['recipe']}: the device's largest phase is {phase['name']!r}: {kinds}.")
    about = f"`--size {result['size']} --memory-budget {result['memory_budget']}`; {result['date']}."
    return [*lines, "", *peaks, "", about]


def plans_published(result: dict[str, Any]) -> list[str]:
    """What published models need on paper."""
    lines = ["| model | `model_type` | artifact | hidden states | host | device | time |", "|-|-|-|-|-|-|-|"]
    for row in result["rows"]:
        sizes = row["disk"]["artifact"], row["host_peak_bytes"], row["device_peak_bytes"]
        artifact, host, device = (f"{size / 1e9:.1f} GB" for size in sizes)
        where = {"device": "on the device", "memory": "in memory", "disk": "in files"}[row["storage"]]
        minutes = f"{sum(row['seconds'].values()) / 60:.0f} min"
        lines.append(f"| {row['model']} | `{row['family']}` | {artifact} | {where} | {host} | {device} | {minutes} |")
    about = f"`--recipe {result['recipe']} --memory-budget {result['memory_budget']} "
    return [*lines, "", f"{about}--device-budget {result['device_budget']}`; {result['date']}."]


def plans_by_size(result: dict[str, Any]) -> list[str]:
    """What models of usual sizes need on paper, in short."""
    lines = headed(["model", "recipe", "GPU memory", "main memory", "disk", "time"])
    for row in result["rows"]:
        sizes = [f"{row[f'{kind}_bytes'] / 1e9:.0f} GB" for kind in ("device_peak", "host_peak", "disk")]
        seconds = sum(row["seconds"].values())
        cells = [row["model"], f"`{row['recipe']}`", *sizes, f"{seconds / 60:.0f} min"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"`{result['command']}`; {result['date']}."]


def plans_h100(result: dict[str, Any]) -> list[str]:
    """Seconds that are predicted for one card, by stage."""
    lines = headed(["model", "recipe", "calibrate (s)", "learn (s)", "quantize (s)", "in all", "GPU memory"])
    for row in result["rows"]:
        stages = [f"{row['seconds'][stage]:.0f}" for stage in ("calibrate", "learn", "quantize")]
        whole, peak = f"{sum(row['seconds'].values()) / 60:.1f} min", f"{row['device_peak_bytes'] / 1e9:.0f} GB"
        cells = [row["model"], f"`{row['recipe']}`", *stages, whole, peak]
        lines.append(f"| {' | '.join(cells)} |")
    row = result["rows"][0]
    about = f"Predictions for {row['predicted_for']}, no measurements. Rates: {row['rates']}."
    return [*lines, "", f"{about} `{result['command']}`; {result['date']}."]


def memory(result: dict[str, Any]) -> list[str]:
    """Peak memory by depth, beside the plan's prediction."""
    lines = ["| layers | peak | predicted | bound | hidden states | seconds |", "|-|-|-|-|-|-|"]
    for row in result["rows"]:
        peak, predicted, bound = (f"{row[f'{kind}_bytes'] / 1e6:.0f} MB" for kind in ("peak", "predicted", "bound"))
        where = {"device": "in memory", "disk": "in files"}[row["hidden_states"]]
        cells = (str(row["layers"]), peak, predicted, bound, where, f"{row['seconds']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    growth = f"The deepest needs {result['growth']:.3f} times what the shallowest does."
    return [*lines, "", growth, made(result)]


def kill_and_resume(result: dict[str, Any]) -> list[str]:
    """Where runs were killed, and how many artifacts differed."""
    lines = ["| last finished step when it was killed | kills |", "|-|-|"]
    lines += [f"| {stage} | {count} |" for stage, count in result["killed_in"].items()]
    chains = ", ".join(f"{case}: {count}" for case, count in result["chains"].items())
    total = f"{result['kills']} kills in {sum(result['chains'].values())} runs ({chains})"
    return [*lines, "", f"{total}; {result['different']} artifacts that differ; {result['date']}."]


def q4_0(result: dict[str, Any]) -> list[str]:
    """Perplexities in llama.cpp, and ours beside them."""
    theirs = ["llama.cpp's Q4_0", "llama.cpp's Q4_0, embedding and head in F16"]
    heads = ["model", "F16", *theirs, "our Q4_0", "our `eval`"]
    lines = headed(heads)
    for row in result["rows"]:
        cells = (f"{row[key]:.3f}" for key in ("original", "theirs", "theirs_ends", "ours", "eval"))
        lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    return [*lines, "", f"Perplexity, all but the last column in llama.cpp; {made(result)}"]


def inference(result: dict[str, Any]) -> list[str]:
    """Ratios to bfloat16 (and to float32, where it ran), then speeds and memory; then the cache's bytes."""
    wide = "prefill_ratio_float32" in result["rows"][0]
    more = " decode × float32 | prefill × float32 |" if wide else ""
    lines = [
        f"| shape | artifact | decode × bf16 | min – max | prefill × bf16 | min – max | tokens/s | memory |{more}",
        f"|-|-|-|-|-|-|-|-|{'-|-|' if wide else ''}",
    ]
    for row in result["rows"]:
        cells = [row["shape"], row["artifact"]]
        for name in ("decode", "prefill"):
            low, high = row[f"{name}_ratio_min"], row[f"{name}_ratio_max"]
            cells += [f"{row[f'{name}_ratio']:.2f}", f"{low:.2f} – {high:.2f}"]
        speeds = [f"{row[f'{name}_tokens_per_second']:.0f}" for name in ("decode", "prefill")]
        cells += [", ".join(speeds), f"{row['weight_bytes_ratio']:.2f}"]
        cells += [f"{row[f'{name}_ratio_float32']:.2f}" for name in ("decode", "prefill") if wide]
        lines.append(f"| {' | '.join(cells)} |")
    cache = ", ".join(f"{row['ratio']:.3f} at head_dim {row['head_dim']}" for row in result["cache"])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    model = f"{result['layers'] or 'All'} layers of each shape, batch 1, prefill of {result['prefill']} tokens"
    where = f"{result['machine']}, load {result['load_average'][0]:.1f} at the start"
    words = "tokens/s of decode and prefill; memory: of all weights, by that of bfloat16's"
    lines += ["", f"{model}, medians of {result['repetitions']}; {words}."]
    return [*lines, f"A 4-bit cache by one in bfloat16: {cache}. {result['date']}, {where}, {versions}."]


def resident(result: dict[str, Any]) -> list[str]:
    """What processes hold, by what a bfloat16 model's does."""
    held = ["weights alone × bf16", "loaded (MB)", "after generating (MB)", "× bf16", "peak (MB)", "× bf16"]
    lines = headed(["artifact", "kernels", *held])
    for name, row in result["rows"].items():
        artifact, _, kernels = name.partition(", kernels=")
        sizes = {key: f"{row[f'{key}_bytes'] / 1e6:.0f}" for key in ("loaded", "generated", "peak")}
        ratios = [f"{row[key]:.2f}" if key in row else "1" for key in ("generated_ratio", "peak_ratio")]
        cells = [
            artifact,
            kernels or "transformers",
            f"{row['weight_bytes_ratio']:.2f}" if "weight_bytes_ratio" in row else "1",
            sizes["loaded"],
            sizes["generated"],
            ratios[0],
            sizes["peak"],
            ratios[1],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    where = f"`{result['command']}`; {result['date']}, {result['machine']}, {versions}."
    return [*lines, "", f"Medians of {result['runs']} processes. {where}"]


def long_context(result: dict[str, Any]) -> list[str]:
    """Decode by the length of the context."""
    lines = headed(["tokens in the cache", "decode × bf16", "min – max", "tokens/s", "cache (MB)", "in bf16 (MB)"])
    for row in result["rows"]:
        spread = f"{row['decode_ratio_min']:.2f} – {row['decode_ratio_max']:.2f}"
        speed = f"{row['decode_ratio']:.2f} | {spread} | {row['tokens_per_second']:.0f}"
        sizes = " | ".join(f"{row[key] / 1e6:.1f}" for key in ("cache_bytes", "cache_bytes_bf16"))
        lines.append(f"| {row['context']:,} | {speed} | {sizes} |")
    return [*lines, "", f"Medians of {result['repetitions']}. `{result['command']}`; {made(result)}"]


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


def distributed(result: dict[str, Any]) -> list[str]:
    """What was measured beside what was predicted; then the predictions for large models."""
    lines: list[str] = []
    if result["measured"] is not None:
        measured = result["measured"]
        lines += ["| ranks | seconds | predicted | peak of a rank | network | predicted |", "|-|-|-|-|-|-|"]
        for row in measured["rows"]:
            predicted = sum(row["predicted_seconds"].values())
            sent, expected = (f"{row[key] / 1e9:.2f} GB" for key in ("network_bytes", "predicted_network_bytes"))
            peak = f"{row['peak_rss_bytes'] / 1e6:.0f} MB"
            cells = (str(row["ranks"]), f"{row['seconds']:.0f}", f"{predicted:.0f}", peak, sent, expected)
            lines.append(f"| {' | '.join(cells)} |")
        figures = (
            f"{measured['times_faster']:.2f} times faster (medians of {len(measured['rows'][0]['every_seconds'])})",
            f"{measured['share_of_peak_memory']:.2f} of the peak memory",
            f"{measured['equal_integers']:.4%} of the integers equal",
            f"perplexity {measured['perplexity_ratio']:.6f} times that of one rank",
        )
        lines += ["", f"{', '.join(figures)}. {made(result)}", ""]
    lines += ["| model | ranks | time | on each: network | at 10 Gbit/s | at 100 Gbit/s |", "|-|-|-|-|-|-|"]
    for row in result["predicted"]:
        minutes = f"{sum(row['seconds'].values()) / 60:.0f} min"
        size = f"{sum(row['network_bytes'].values()) / 1e9:.0f} GB"
        links = [f"{seconds / 60:.0f} min" for seconds in row["network_seconds"].values()]
        lines.append(f"| {' | '.join((row['model'], str(row['ranks']), minutes, size, *links))} |")
    return lines


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


def one_capture(result: dict[str, Any]) -> list[str]:
    """The seconds of each training on one capture."""
    lines = headed(["learned on one capture", "seconds", "share of the capture's", "objective, of the start's"])
    lines.append(f"| the capture itself | {result['capture_seconds']:.2f} | | |")
    for row in result["rows"]:
        left = f"{row['loss_left']:.3f}" if "loss_left" in row else ""
        lines.append(f"| {row['training']} | {row['seconds']:.2f} | {row['share_of_capture']:.1%} | {left} |")
    facts = f"{result['model']}, {result['windows']} windows of {result['seqlen']} tokens"
    return [*lines, "", f"{facts}; `{result['command']}`; {made(result)}"]


def loss_by_part(result: dict[str, Any]) -> list[str]:
    """The divergence by what was left exact, beside that of the artifact as it is."""
    lines = headed(["left exact", "KL divergence", "less by", "same top token"])
    whole = result["rows"][0]["kl"]
    for row in result["rows"]:
        kl = f"{row['kl']:.3f} ± {row['kl_stderr']:.3f}"
        lines.append(f"| {row['part']} | {kl} | {1 - row['kl'] / whole:.0%} | {row['top1']:.3f} |")
    return [*lines, "", f"`{result['command']}`; {made(result)}"]


def where(result: dict[str, Any]) -> list[str]:
    """Each recipe in each runtime that was there."""
    lines = [
        "| recipe | what | runtime | computes in | perplexity | `verify` | differs by (let pass) |",
        "|-|-|-|-|-|-|-|",
    ]
    for row in result["rows"]:
        changes = "".join(f", `{change}`" for change in row["changes"])
        if "refused" in row:
            cells = (row["recipe"] + changes, row["format"], row["runtime"], row["dtype"], "", row["refused"], "")
        else:
            verdict = "pass" if row["passed"] else "; ".join(row["faults"])
            gap = f"{row['difference']:.2g} ({row['tolerance']:.2g})"
            head = (row["recipe"] + changes, row["format"], row["runtime"], row["dtype"] or "its own way")
            cells = (*head, f"{row['perplexity']:.3f}", verdict, gap)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"On a CPU. `{result['command']}`; {made(result)}"]


def vllm_price(result: dict[str, Any]) -> list[str]:
    """What each part of vLLM's arithmetic costs, model by model."""
    lines = headed(["model (unquantized)", "4 bits everywhere", "perplexity", "KL divergence", "same top token"])
    for row in sorted(result["rows"], key=lambda row: str(row["model"])):
        what = "; ".join([row["what"], *(f"`{change}`" for change in row.get("common", []))])
        kl = f"{row['kl']:.4f} ± {row['kl_stderr']:.4f}"
        cells = (
            f"{row['model']} ({row['unquantized']:.3f})",
            what,
            f"{row['perplexity']:.3f}",
            kl,
            f"{row['top1']:.1%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    said = "One seed: small differences may be chance."
    return [*lines, "", f"`{result['command']}`; {result['rows'][0]['date']}, {result['rows'][0]['machine']}. {said}"]


def vllm_plugin(result: dict[str, Any]) -> list[str]:
    """How near the plugin's predictions are, then its speed and memory beside the model's."""
    near, speed = ([row for row in result["rows"] if ("ratio" in row) == which] for which in (False, True))
    heads = ["artifact", "perplexity: ours", "in vLLM", "ours in float64"]
    lines = headed([*heads, "log-probabilities differ: vLLM, ours", "ours, ours in float64"])
    for row in near:
        scores = [f"{row[f'perplexity_{name}']:.3f}" for name in ("ours", "vllm", "float64")]
        gaps = [f"{row[f'rms_{name}']:.2g} ({row[f'median_{name}']:.2g})" for name in ("vllm_ours", "ours_float64")]
        lines.append(f"| {' | '.join([row['model'], *scores, *gaps])} |")
    lines += ["", *headed(["model", "served", "requests a second", "beside the model", "memory (GB)", "ratio"])]
    for row in speed:
        span = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} – {row['ratio_max']:.2f})"
        rate, memory = f"{row['requests_per_second']:.2f}", f"{row['memory'] / 1e9:.2f}"
        cells = (row["model"], row["measured"], rate, span, memory, f"{row['memory_ratio']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    load = f"{result['requests']} requests, {result['at_once']} at once"
    load += f", of {result['prompt']} tokens and {result['following']} more"
    sizes = ", ".join(f"{row['model']} {row['artifact_size'] / row['model_size']:.2f}" for row in near)
    said = "Differences are root mean squares, and medians in parentheses. Both served with `--enforce-eager`"
    said += f"; {load}; tensors on disk beside the model's: {sizes}."
    return [*lines, "", f"{said} `{result['command']}`; {made(result)}"]


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
    "plans": plans,
    "distributed": distributed,
    "memory": memory,
    "kill_and_resume": kill_and_resume,
    "q4_0": q4_0,
    "inference": inference,
    "resident": resident,
    "long_context": long_context,
    "inference_avx2": inference,
    "inference_gpu": inference,
    "gpu_products": tables_gpu.products,
    "gpu_orders": tables_gpu.orders,
    "gpu_model": tables_gpu.model,
    "gpu_calibration": tables_gpu.calibration,
    "triton_compile": tables_gpu.compiled,
    "mixture": mixture,
    "real_model_presets": tables_real_model.presets,
    "real_model_front": tables_real_model.front,
    "merged_gains": tables_real_model.gains,
    "real_model_texts": tables_real_model.texts,
    "real_model_behaviour": tables_real_model.behaviour,
    "real_model_positions": tables_real_model.positions,
    "real_model_said": tables_real_model.said,
    "token_lengths": token_lengths,
    "one_capture_stories260k": one_capture,
    "one_capture_smollm2": one_capture,
    "plans_by_size": plans_by_size,
    "plans_h100": plans_h100,
    "plans_published": plans_published,
    "where": where,
    "vllm_price": vllm_price,
    "vllm_plugin": vllm_plugin,
    "loss_by_part_smollm2": loss_by_part,
    "mixture_starved": mixture_starved,
    "trained_gemma3": trained,
    "trained_latents": trained,
    "trained_hybrid": trained,
    "trained_qwen2": trained,
    "hybrid": hybrid,
}


OF_ANOTHER = {
    "mixture_starved": "mixture",
    "real_model_front": "real_model_presets",
    "real_model_positions": "real_model_behaviour",
    "real_model_said": "real_model_behaviour",
}
"""Tables whose result file has another table's name."""


def families() -> list[str]:
    """What works for each family, and why something does not."""
    return support_table(ARCHITECTURES, {name: summary(name) for name in ARCHITECTURES})


FROM_CODE: dict[str, Callable[[], list[str]]] = {
    "recipe_keys": key_table,
    "sizes": size_table,
    "families": families,
}
"""Tables of what the package itself says."""


def render(page: str) -> str:
    """The page with each of its tables made anew."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name in FROM_CODE:
            lines = FROM_CODE[name]()
        else:
            file = RESULTS / f"{OF_ANOTHER.get(name, name)}.json"
            lines = TABLES[name](json.loads(file.read_text()))
        return "\n".join([f"<!-- table: {name} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def main() -> None:
    """Write tables and pictures, or with --check fail where one is stale."""
    stale = []
    made = {path: render(path.read_text(encoding="utf-8")) for path in PAGES} | pictures.drawn()
    for path, new in made.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != new:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    print("changed:" if stale else "all tables and pictures are as the results say", *stale)
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
