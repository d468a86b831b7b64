"""The pictures of the docs, drawn from benchmarks/results/; ``python benchmarks/tables.py`` writes them too.

A picture is an SVG that looks the same in a light and a dark page: it brings its own background.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jointquant.recipe.catalogue import preset_names
from jointquant.recipe.recipe import load_recipe
from jointquant.report.charts import Scale, number

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
WIDTH, MARGIN, HEAD, GROUP, ROW, FOOT = 480, 16, 78, 36, 38, 46
AGAIN = ", on AVX-512"
"""Ends the name of a row that was made once more, on a processor of another kind."""
OURS = ("fast", "gguf", "w4a4kv4", "w4a4kv4-best", "w4a4kv16", "w4a8kv8", "w4a8kv8-best", "w4a8", "w4a16")
"""Presets of this package's own; the others are published methods of their names."""
KINDS = {
    "ours": ("our recipes", "#d55e00"),
    "published": ("published methods", "#0072b2"),
    "program": ("other programs", "#6b4fa0"),
}
"""Who made what a row measures: in words, and its colour."""
STYLE = """
text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
text { fill: #1d2530; stroke: #ffffff; stroke-width: 3px; paint-order: stroke; }
.soft, .tick { fill: #5c6673; } .tick { font-size: 11.5px; text-anchor: middle; }
.title { font-size: 15px; font-weight: 600; } .group { font-weight: 600; } .value { text-anchor: end; }
.grid { stroke: #dfe3e8; } .stem { stroke-width: 3; stroke-linecap: round; opacity: 0.45; }
"""


def real_model(result: dict[str, Any]) -> Markup:
    """The KL divergence of each row by what has how many bits, the rows of one width together, the best last."""
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, row in result["rows"].items():
        width, _, label = name.partition(" ")
        groups.setdefault(width, []).append((_label(label, row), row))
    losses = [row["kl"] for row in result["rows"].values()]
    height = HEAD + GROUP * len(groups) + ROW * len(losses) + FOOT
    scale = Scale(min(losses) / 1.5, max(losses) * 1.2, MARGIN, WIDTH - MARGIN, log=True)
    parts = [*_head(result), *_grid(scale, height)]
    y = HEAD
    for width in sorted(groups, key=bits_of):
        parts.append(_text("group", MARGIN, y + 24, in_words(width)))
        y += GROUP
        for label, row in sorted(groups[width], key=lambda named: -named[1]["kl"]):
            parts += _row(label, row, scale, y)
            y += ROW
    return _picture(parts, height, _alt(result))


def _label(name: str, row: dict[str, Any]) -> str:
    """A row's name without its bits, or the preset whose settings it has, where another one was changed to them."""
    preset = preset_of(row)
    if preset in (None, row["recipe"]):
        return name
    _, tuned, how = name.partition(", tuned")
    return f"{preset}, {row['windows']} windows{tuned}{how}"


def preset_of(row: dict[str, Any]) -> str | None:
    """The preset whose settings a row has, the changes included; None: there is none."""
    if not row.get("changes"):
        return str(row["recipe"])
    ran = _settings(row["recipe"], row["changes"])
    return next((name for name in preset_names() if _settings(name) == ran), None)


def _settings(name: str, changes: Iterable[str] = ()) -> dict[str, Any]:
    """All of a recipe's settings, but for the words that describe it."""
    return load_recipe(name, changes).model_dump(exclude={"description"})


def bits_of(width: str) -> list[int]:
    """The bits of weights, activations and cache, in this order; what W4A4 is silent about has 16."""
    found = dict(re.findall(r"(W|A|KV)(\d+)", width))
    return [int(found.get(part, 16)) for part in ("W", "A", "KV")]


def in_words(width: str) -> str:
    """``W4A4KV16``: which parts have fewer than 16 bits, in words."""
    by_bits: dict[int, list[str]] = {}
    for part, bits in zip(("weights", "activations", "KV cache"), bits_of(width), strict=True):
        if bits < 16:
            by_bits.setdefault(bits, []).append(part)
    words = [f"{_and(parts)} {bits} bits" for bits, parts in by_bits.items()]
    return f"{width}: {', '.join(words)}"


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def kind_of(recipe: str) -> str:
    """A key of ``KINDS``: whose the recipe of a row is; what is no preset was measured of another program."""
    if recipe in OURS:
        return "ours"
    return "published" if recipe in preset_names() else "program"


def _head(result: dict[str, Any]) -> list[Markup]:
    """The title, how to read the picture, and which colour is whose."""
    title = "What SmolLM2-135M-Instruct loses, by bits"
    reading = f"On WikiText-2. Unquantized: perplexity {result['unquantized']:.2f}. Further left is better."
    parts = [_text("title", MARGIN, 26, title), _text("soft", MARGIN, 46, reading)]
    x: float = MARGIN + 5
    present = {kind_of(row["recipe"]) for row in result["rows"].values()}
    for kind, (words, colour) in KINDS.items():
        if kind in present:
            parts.append(Markup('<circle cx="{}" cy="62" r="5" fill="{}"/>').format(x, colour))
            parts.append(_text("soft", x + 10, 66, words))
            x += 28 + 6.9 * len(words)
    return parts


def _grid(scale: Scale, height: int) -> list[Markup]:
    """Lines at round values of the KL divergence, named below."""
    parts = []
    for tick in scale.ticks():
        line = Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>')
        parts.append(line.format(scale(tick), HEAD + 4, height - FOOT + 4))
        parts.append(_text("tick", scale(tick), height - FOOT + 19, number(tick)))
    words = "KL divergence from the unquantized model (logarithmic)"
    return [*parts, _text("tick", WIDTH / 2, height - 10, words)]


def _row(label: str, row: dict[str, Any], scale: Scale, y: float) -> list[Markup]:
    """The name and the values, and below them a dot at the divergence."""
    _, colour = KINDS[kind_of(row["recipe"])]
    figures = f"KL {row['kl']:.3f}, perplexity {perplexity(row['perplexity'])}"
    stem = Markup('<line class="stem" stroke="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    dot = Markup('<circle cx="{}" cy="{}" r="6" fill="{}"/>')
    return [
        stem.format(colour, MARGIN, scale(row["kl"]), y + 22, y + 22),
        dot.format(scale(row["kl"]), y + 22, colour),
        _text("", MARGIN, y + 12, label),
        _text("value", WIDTH - MARGIN, y + 12, figures),
    ]


def perplexity(value: float) -> str:
    """Two digits behind the point, where they say something."""
    return f"{value:.2f}" if value < 1e4 else f"{value:,.0f}"


def _text(style: str, x: float, y: float, words: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(style, x, y, words)


def _alt(result: dict[str, Any]) -> str:
    rows = ", ".join(f"{name} {row['kl']:.3f}" for name, row in result["rows"].items())
    return f"KL divergence from the unquantized model by bits and recipe: {rows}"


def _picture(parts: list[Markup], height: int, alt: str) -> Markup:
    """A whole SVG file."""
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img">\n'
        '<title>{2}</title>\n<style>{3}</style>\n<rect width="{0}" height="{1}" rx="8" fill="#ffffff"/>\n'
    ).format(WIDTH, height, alt, Markup(STYLE))
    return head + Markup("\n").join(parts) + Markup("\n</svg>\n")


def merged(*names: str) -> dict[str, Any]:
    """A result with the rows of others added, whose files are there."""
    files = [RESULTS / f"{name}.json" for name in names]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    return dict(results[0] | {"rows": {name: row for result in results for name, row in result["rows"].items()}})


def best(result: dict[str, Any]) -> dict[str, Any]:
    """A result with the best row alone of each width, recipe or program, and number of windows, tuned or not.

    A row whose settings are a preset's is one of that preset, whatever it was changed from. Rows that were made once
    more on another processor are no candidates: the luckier of two would be taken. Nor is what was changed to no
    preset, and is no closer than a preset by more than chance.
    """
    rows: dict[tuple[object, ...], str] = {}
    every = result["rows"]
    candidates = [name for name in every if not (name.endswith(AGAIN) and name.removesuffix(AGAIN) in every)]
    of_presets: dict[tuple[object, ...], float] = {}
    for name in (name for name in candidates if preset_of(every[name]) in preset_names()):
        terms, kl = _terms(name, every[name]), every[name]["kl"]
        of_presets[terms] = min(kl, of_presets.get(terms, kl))
    for name in candidates:
        row, terms = every[name], _terms(name, every[name])
        preset = preset_of(row)
        if preset is None and row["kl"] > of_presets.get(terms, math.inf) - row["kl_stderr"]:
            continue
        key = (*terms, (preset or f"{row['recipe']} changed").split(":")[0])
        if key not in rows or row["kl"] < every[rows[key]]["kl"]:
            rows[key] = name
    return result | {"rows": {name: every[name] for name in rows.values()}}


def _terms(name: str, row: dict[str, Any]) -> tuple[object, ...]:
    """What rows must have in common to be compared: bits, windows, and whether they were tuned."""
    return name.split()[0], row["windows"], "tune_epochs" in row


PICTURES: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], Markup]]] = {
    "docs/pictures/real_model.svg": (
        ("real_model_presets", "real_model_peers"),
        lambda result: real_model(best(result)),
    ),
}
"""By file: the results that it shows, and what draws it."""


def drawn() -> dict[Path, str]:
    """Each picture's file, and what stands in it."""
    return {ROOT / file: str(draw(merged(*results))) for file, (results, draw) in PICTURES.items()}
