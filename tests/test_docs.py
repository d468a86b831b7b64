"""The pages name files that are there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imports import ROOT

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted([*(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / f"{n}.md" for n in ("README", "CONTRIBUTING"))])
MENTION = re.compile(r"(?<![\w/.<>*-])[\w./<>*-]+\.py\b")
NAMES = {path.name for path in ROOT.rglob("*.py")}
PLACES = (REPOSITORY, ROOT)
"""Paths are written from the top of the repository or from ``src/jointquant``."""


def mentions(text: str) -> Iterator[tuple[int, str]]:
    """Line and words of each path of a Python file; ``<name>`` and ``*`` stand for any name."""
    for number, line in enumerate(text.splitlines(), 1):
        yield from ((number, found) for found in MENTION.findall(line))


def is_there(mention: str) -> bool:
    pattern = re.sub(r"<\w+>", "*", mention)
    return any(True for place in PLACES for _ in place.glob(pattern))


def missing(text: str, names: set[str]) -> list[str]:
    """What has a folder, or is called as a module of src, and is not where it is said to be."""
    return [
        f"line {number}: {mention}"
        for number, mention in mentions(text)
        if ("/" in mention or mention in names) and not is_there(mention)
    ]


PAGE_ID = {"ids": lambda page: page.relative_to(REPOSITORY).as_posix()}


@pytest.mark.parametrize("page", PAGES, **PAGE_ID)
def test_a_page_names_files_that_are_there(page: Path) -> None:
    assert not missing(page.read_text(encoding="utf-8"), NAMES), f"{page.name} names files that are not there"


LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def dead_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere; those to headings are checked when the site is built."""
    targets = [target for target in LINK.findall(text) if "://" not in target]
    return [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, **PAGE_ID)
def test_links_lead_somewhere(page: Path) -> None:
    assert not dead_links(page, page.read_text(encoding="utf-8"))


def test_a_dead_link_is_seen() -> None:
    text = "[a](docs/memory.md#the-plan), [b](docs/none.md), [c](https://none.example/x)"
    assert dead_links(REPOSITORY / "README.md", text) == ["docs/none.md"]


def test_every_page_is_in_the_navigation_once() -> None:
    named = re.findall(r"- (\S+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES if DOCS in page.parents)


def test_what_is_not_there_is_seen() -> None:
    text = "see `models/<model_type>.py`, `seeds.py`,\n`rounding.py`, (`models/none.py`), `windows.py`, `yours.py`"
    assert missing(text, NAMES) == ["line 2: models/none.py", "line 2: windows.py"]
    assert [mention for _, mention in mentions("`benchmarks/memory.py`, docs/a.md, x.pyc")] == ["benchmarks/memory.py"]


TABLES = [sys.executable, str(REPOSITORY / "benchmarks" / "tables.py"), "--check"]
DRAW = """
import json, sys
sys.path.insert(0, "benchmarks")
import pictures
print(pictures.real_model(json.load(sys.stdin)))
"""


BEST = """
import json, sys
sys.path.insert(0, "benchmarks")
import pictures
print(json.dumps(list(pictures.best(json.load(sys.stdin))["rows"])))
"""


def test_a_changed_recipe_is_shown_where_it_is_closer_than_a_preset_by_more_than_chance() -> None:
    preset = {"recipe": "w4a8kv8", "changes": [], "windows": 128, "kl": 0.1, "kl_stderr": 0.004}
    changed = preset | {"changes": ["refinement.steps=7"]}
    rows = {
        "W4A8KV8 w4a8kv8": preset,
        "W4A8KV8 chance": changed | {"kl": 0.097},
        "W4A8KV8 closer": changed | {"kl": 0.095},
        "W4A8KV8 no preset on as many windows": changed | {"kl": 0.3, "windows": 32},
        "W4A8KV8 a program": preset | {"recipe": "other 1.0: GPTQ", "kl": 0.5},
        "W4A16 chance, among other bits": changed | {"kl": 0.099},
    }
    command = [sys.executable, "-c", BEST]
    given = json.dumps({"rows": rows})
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert set(json.loads(done.stdout)) == set(rows) - {"W4A8KV8 chance"}


def test_tables_and_pictures_are_as_the_results_say() -> None:
    done = subprocess.run(TABLES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun python benchmarks/tables.py"


def test_the_picture_follows_its_result() -> None:
    result = json.loads((REPOSITORY / "benchmarks/results/real_model_presets.json").read_text(encoding="utf-8"))
    row = {"recipe": "another program", "kl": 0.03, "perplexity": 40.5}
    more = {"W4A16 another program <2>": row, "W4A8KV8 w4a8kv8": row | {"recipe": "w4a8kv8"}}
    rows = {"rows": {**result["rows"], **more}}
    command = [sys.executable, "-c", DRAW]
    done = subprocess.run(
        command, input=json.dumps(result | rows), capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    for words in (
        "another program &lt;2&gt;",
        "KL 0.030, perplexity 40.50",
        "W4A16: weights 4 bits<",
        "W4A8KV8: weights 4 bits, activations and KV cache 8 bits",
        "other programs",
        *(name.partition(" ")[2] for name in result["rows"]),
    ):
        assert words in done.stdout
    places = [done.stdout.index(f">{width}: ") for width in ("W4A4KV4", "W4A8KV8", "W4A16")]
    assert places == sorted(places), "fewer bits stand first"
