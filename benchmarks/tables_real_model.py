"""The tables of SmolLM2-135M-Instruct; written by ``tables.py``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby, pairwise
from statistics import mean, median
from typing import Any

from pictures import AGAIN, best, bits_of, merged, preset_of
from table_parts import headed, made

UNQUANTIZED = "unquantized"
WORDS = 60
"""Of each text that is shown side by side, at most."""


def presets(result: dict[str, Any]) -> list[str]:
    """Our rows and those of other programs, by bits, the best of each last."""
    return _rows(result, _every())


def front(result: dict[str, Any]) -> list[str]:
    """The best of them, those of the picture."""
    return _rows(result, best(_every()))


def _every() -> dict[str, Any]:
    return merged("real_model_presets", "real_model_peers")


def _rows(result: dict[str, Any], shown: dict[str, Any]) -> list[str]:
    heads = ["bits", "recipe", "calibration windows", "perplexity", "KL divergence", "same top token"]
    lines = [*headed(heads), f"| 16 | unquantized | | {result['unquantized']:.2f} | 0 | 1 |"]
    every = shown["rows"]
    for name, row in sorted(every.items(), key=lambda named: (bits_of(named[0].split()[0]), -named[1]["kl"])):
        recipe = _recipe(row)
        own = _tuned(row) + " (again)" * name.endswith(AGAIN)
        figures = f"{row['perplexity']:.2f}" if row["perplexity"] < 1e4 else f"{row['perplexity']:.0f}"
        bits, measured = name.split()[0], f"{row['kl']:.3f} | {row['top1']:.3f}"
        lines.append(f"| {bits} | {recipe}{own} | {row['windows']} | {figures} | {measured} |")
    last = list(result["rows"].values())[-1]
    lines += ["", f"`{result['command']}`; {made(last)}"]
    theirs = [row for row in every.values() if "peer_versions" in row]
    if theirs:
        versions = sorted({f"{name} {value}" for row in theirs for name, value in row["peer_versions"].items()})
        about = f"{theirs[-1]['date']}, one thread, {', '.join(versions)}."
        lines[-1] += f" Other programs: `python benchmarks/real_model_peers.py …`; {about}"
    return lines


def _recipe(row: dict[str, Any]) -> str:
    """The preset whose settings a row has, or the one that was changed, and how."""
    return preset_of(row) or ", ".join([row["recipe"], *(f"`{change}`" for change in row["changes"])])


def _tuned(row: dict[str, Any]) -> str:
    """How long and on how much, where it was tuned."""
    if "tune_epochs" not in row:
        return ""
    other = row.get("tune_windows", row["windows"]) != row["windows"]
    epochs = "one epoch" if row["tune_epochs"] == 1 else f"{row['tune_epochs']} epochs"
    return f", tuned for {epochs}" + (f" of {row['tune_windows']} windows" if other else "")


def gains(result: dict[str, Any]) -> list[str]:
    """Rounded to nearest, with gains of norms merged and not."""
    lines = headed(["W4A16, rounded to nearest", "KL divergence", "same top token"])
    for name, row in result["rows"].items():
        lines.append(f"| {name} | {row['kl']:.3f} ± {row['kl_stderr']:.3f} | {row['top1']:.3f} |")
    return [*lines, "", f"`{result['command']}`; {made(result)}"]


def texts(result: dict[str, Any]) -> list[str]:
    """The divergence and the perplexity of each row by text."""
    names = list(result["unquantized"])
    heads = [f"{what}, {name}" for name in names for what in ("KL divergence", "perplexity")]
    whole = " | ".join(f"0 | {value:.2f}" for value in result["unquantized"].values())
    lines = [*headed(["bits", "recipe", *heads]), f"| 16 | unquantized | {whole} |"]
    for row in result["rows"]:
        cells = [f"{row['texts'][name]['kl']:.3f} | {_short(row['texts'][name]['perplexity'])}" for name in names]
        lines.append(f"| {row['row'].split()[0]} | {row['recipe']} | {' | '.join(cells)} |")
    return [*lines, "", f"`{result['command']}`; {made(result)}"]


def seeds(result: dict[str, Any]) -> list[str]:
    """The mean of each recipe over its seeds, and the least and the largest."""
    lines = headed(["bits", "recipe", "calibration windows", "seeds", "perplexity", "KL divergence", "same top token"])
    rows = result["rows"].items()
    for name, same in groupby(sorted(rows), lambda named: named[0].rpartition(", seed ")[0]):
        runs = [row for _, row in same]
        bits, _, recipe = name.partition(" ")
        figures = [("perplexity", 2), ("kl", 3), ("top1", 3)]
        cells = [_spread([run[key] for run in runs], digits) for key, digits in figures]
        lines.append(f"| {bits} | {recipe} | {runs[0]['windows']} | {len(runs)} | {' | '.join(cells)} |")
    return [*lines, "", f"`{result['command']}`; {made(runs[-1])}"]


def _spread(values: list[float], digits: int) -> str:
    least, middle, largest = (f"{value:.{digits}f}" for value in (min(values), mean(values), max(values)))
    return f"{middle} ({least} – {largest})"


def behaviour(result: dict[str, Any]) -> list[str]:
    """What answers are like, and what items are solved."""
    heads = ["", "answers that end in a loop", "tokens an answer", "words as in the original's answer, median"]
    lines = headed([*heads, "last word found", "last word found, of four"])
    whole = result["rows"][UNQUANTIZED]
    for name, row in result["rows"].items():
        answers = row["answers"]
        pairs = zip(answers, whole["answers"], strict=True)
        same = median(_words_alike(ours["text"], theirs["text"]) for ours, theirs in pairs)
        cells = [
            _titled(name),
            f"{sum(answer['loops'] for answer in answers)} of {len(answers)}",
            f"{mean(answer['tokens'] for answer in answers):.0f}",
            "" if row is whole else f"{same:.0f}",
            *(_share(row, task) for task in ("last_word", "one_of_four")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"`{result['command']}`; {made(whole)}"]


def _share(row: dict[str, Any], task: str) -> str:
    """Of the items of a task that are solved, with its standard error; nothing where it was not measured."""
    if "tasks" not in row:
        return ""
    return f"{row['tasks'][task]['acc']:.1%} ± {row['tasks'][task]['acc_stderr']:.1%}"


def positions(result: dict[str, Any]) -> list[str]:
    """The divergence by the position of a token in its window."""
    spans = [f"{start} – {end - 1}" if end - start > 1 else str(start) for start, end in pairwise(result["borders"])]
    lines = headed(["KL divergence at positions", *spans])
    for name, row in result["rows"].items():
        if name != UNQUANTIZED and "kl_by_position" in row:
            lines.append(f"| {' | '.join([_titled(name), *(f'{kl:.3f}' for kl in row['kl_by_position'])])} |")
    return lines


def said(result: dict[str, Any]) -> list[str]:
    """The last text, as each model goes on with it."""
    prompt = result["rows"][UNQUANTIZED]["answers"][-1]["prompt"]
    lines = headed(["", f"“{prompt} …”"])
    for name, row in result["rows"].items():
        words = row["answers"][-1]["text"].split()
        end = " …" if len(words) > WORDS else ""
        shown = " ".join(words[:WORDS]).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
        lines.append(f"| {_titled(name)} | {shown}{end} |")
    return lines


def _titled(name: str) -> str:
    """``W4A4KV4 w4a4kv4, 30 relative steps``: the recipe, and its bits where the name does not tell them."""
    bits, _, recipe = name.partition(" ")
    return bits if not recipe else f"{recipe} ({bits})"


def _short(perplexity: float) -> str:
    return f"{perplexity:.2f}" if perplexity < 1e4 else f"{perplexity:.0f}"


def _words_alike(text: str, other: str) -> int:
    """How many words two texts begin with alike."""
    count = 0
    for ours, theirs in zip(text.split(), other.split(), strict=False):
        if ours != theirs:
            break
        count += 1
    return count


TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "real_model_presets": presets,
    "real_model_front": front,
    "merged_gains": gains,
    "real_model_texts": texts,
    "real_model_seeds": seeds,
    "real_model_behaviour": behaviour,
    "real_model_positions": positions,
    "real_model_said": said,
}
"""By name."""
