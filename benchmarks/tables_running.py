"""The tables of time, memory and runtimes; written by ``tables.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from table_parts import headed, made


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


def one_capture(result: dict[str, Any]) -> list[str]:
    """The seconds of each training on one capture."""
    lines = headed(["learned on one capture", "seconds", "share of the capture's", "objective, of the start's"])
    lines.append(f"| the capture itself | {result['capture_seconds']:.2f} | | |")
    for row in result["rows"]:
        left = f"{row['loss_left']:.3f}" if "loss_left" in row else ""
        lines.append(f"| {row['training']} | {row['seconds']:.2f} | {row['share_of_capture']:.1%} | {left} |")
    facts = f"{result['model']}, {result['windows']} windows of {result['seqlen']} tokens"
    return [*lines, "", f"{facts}; `{result['command']}`; {made(result)}"]


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
    "one_capture_stories260k": one_capture,
    "one_capture_smollm2": one_capture,
    "plans_by_size": plans_by_size,
    "plans_h100": plans_h100,
    "plans_published": plans_published,
    "where": where,
    "vllm_price": vllm_price,
    "vllm_plugin": vllm_plugin,
}
"""By name."""
