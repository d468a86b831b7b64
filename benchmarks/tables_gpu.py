"""The tables of what GPUs measured, and of what was compiled for them; written by ``tables.py``."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any


def products(result: dict[str, Any]) -> list[str]:
    """Each linear and width: bfloat16's time by ours, alone and as called, by rows."""
    counts = sorted({row["rows"] for row in result["rows"]})
    heads = [f"{count} row{'s' * (count > 1)}: alone (called)" for count in counts]
    lines = [f"| linear | width | {' | '.join(heads)} |", "|-" * (len(counts) + 2) + "|"]
    found = {(row["product"], row["width"], row["rows"]): row for row in result["rows"]}
    for product, width in dict.fromkeys((row["product"], row["width"]) for row in result["rows"]):
        rows = [found[product, width, count] for count in counts]
        cells = [f"{row['ratio']:.2f} ({row['ratio_called']:.2f})" for row in rows]
        lines.append(f"| {' | '.join((product, width, *cells))} |")
    worst = max(row["error"] for row in result["rows"])
    return [*lines, "", f"Largest error, as a part of the largest number: {worst:.4f} (bfloat16). {made(result)}"]


def orders(result: dict[str, Any]) -> list[str]:
    """The Hadamard transform with quantization: torch's time by ours, by tokens; errors."""
    counts = sorted({row["rows"] for row in result["rows"]})
    heads = [f"{count} token{'s' * (count > 1)}: µs (× torch)" for count in counts]
    lines = [f"| order | factors | {' | '.join(heads)} | error | first call (s) |", "|-" * (len(counts) + 4) + "|"]
    for order in dict.fromkeys(row["order"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["order"] == order]
        cells = [f"{row['microseconds']:.0f} ({row['ratio']:.1f})" for row in rows]
        factors = " · ".join(map(str, rows[0]["factors"]))
        worst, first = max(row["error"] for row in rows), max(row["first_call_seconds"] for row in rows)
        lines.append(f"| {order} | {factors} | {' | '.join(cells)} | {worst:.1e} | {first:.1f} |")
    return [*lines, "", f"{made(result)}"]


def model(result: dict[str, Any]) -> list[str]:
    """Perplexities by who quantized and who computes."""
    lines = [
        "| model | recipe | made on | seconds | GPU, kernels | GPU, reference | CPU, kernels | CPU, reference |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for row in result["rows"]:
        figures = [row.get(f"{device} {kind}") for device in ("cuda", "cpu") for kind in ("auto", "reference")]
        cells = [row["model"], row["recipe"], row["made_on"].upper().replace("CUDA", "GPU"), f"{row['seconds']:.1f}"]
        cells += ["" if figure is None else f"{figure:.3f}" for figure in figures]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"{made(result)}"]


def calibration(result: dict[str, Any]) -> list[str]:
    """R1's optimisers at large sizes; then GPTQ of whole layers."""
    lines = ["| hidden | newton_schulz (s) | qr (s) | cayley (s) | × qr | × cayley |", "|-|-|-|-|-|-|"]
    for row in result["calibration"]:
        seconds = [f"{row[name]['seconds']:.1f}" for name in ("newton_schulz", "qr", "cayley")]
        ratios = [f"{row[f'times_faster_than_{name}']:.1f}" for name in ("qr", "cayley")]
        lines.append(f"| {' | '.join((str(row['hidden_size']), *seconds, *ratios))} |")
    gptq = ", ".join(f"{row['layer']} {row['seconds']:.2f} s" for row in result["gptq"])
    return [*lines, "", f"GPTQ of the linears of one layer, factors included: {gptq}. {made(result)}"]


def compiled(result: dict[str, Any]) -> list[str]:
    """By program, the most that any variant needs on each target."""
    targets = list(dict.fromkeys(row["target"] for row in result["rows"]))
    heads = [f"{target}: KB (stack)" for target in targets]
    lines = [f"| program | variants | {' | '.join(heads)} |", "|-" * (len(targets) + 2) + "|"]
    for program in sorted({row["program"] for row in result["rows"]}):
        cells = []
        for target in targets:
            rows = [row for row in result["rows"] if (row["program"], row["target"]) == (program, target)]
            shared, stacks = max(row["shared_bytes"] for row in rows), [row.get("stack_bytes") for row in rows]
            stack = "" if None in stacks else f" ({max(stacks)})"
            cells.append(f"{shared / 1024:.1f}{stack}")
        lines.append(f"| `{program}` | {len(rows)} | {' | '.join(cells)} |")
    compiled_now = [row["seconds"] for row in result["rows"] if row["seconds"] > 0.1]  # others were there already
    lines += [
        "",
        f"Shared memory of a block in KB, and bytes of a thread's stack, the most of any variant of "
        f"{len({row['model'] for row in result['rows']})} models. Half of the variants took less than "
        f"{median(compiled_now):.0f} s to compile on a busy machine.",
    ]
    return [*lines[:-1], f"{lines[-1]} Triton {result['triton']}, {made(result)}"]


def made(result: dict[str, Any]) -> str:
    """Where and when a result was made."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"`{result['command']}`; {result['date']}, {result['machine']}, {versions}."


TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "gpu_products": products,
    "gpu_orders": orders,
    "gpu_model": model,
    "gpu_calibration": calibration,
    "triton_compile": compiled,
}
"""By name."""
