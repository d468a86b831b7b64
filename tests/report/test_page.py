"""The pages: every plot is there, nothing is fetched, names are escaped, and a browser has nothing to complain of."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jointquant.report.page import comparison_page, statistics_page
from report_data import comparison, spread, statistics

PLOTS = {
    "trade",
    "perplexity",
    "divergence",
    "parts",
    "loss",
    "angle",
    "histogram",
    "outliers",
    "kurtosis",
    "error",
}


class Outline(HTMLParser):
    """Sections with their plots, and everything that could reach outside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.plots: dict[str, int] = {}
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.unnamed = 0
        self.section = ""
        self.sections: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if tag == "section":
            self.section = found.get("id") or ""
            self.sections.append(self.section)
        if tag == "svg" and found.get("role") == "img":
            self.plots[self.section] = self.plots.get(self.section, 0) + 1
            self.unnamed += not found.get("aria-label")
        for name in ("src", "href", "srcset", "action", "data"):
            target = found.get(name)
            if target and not target.startswith(("#", "data:")):
                self.outside.append(target)


def test_every_plot_of_a_comparison() -> None:
    page = comparison_page(comparison(texts=("a/b.txt", "wikitext2")))
    outline = Outline(page)
    counts = {
        "trade": 2,
        "perplexity": 2,
        "divergence": 2,
        "parts": 1,
        "loss": 2,
        "angle": 2,
        "histogram": 6,
        "outliers": 6,
        "kurtosis": 6,
        "error": 3,
    }
    assert outline.plots == counts
    assert outline.unnamed == 0
    assert "+1.5" not in page  # the figures are the data's, not computed again
    assert "9.000" in page
    assert "4 MB" in page


def test_every_plot_of_an_analysis() -> None:
    outline = Outline(statistics_page(statistics()))
    assert outline.plots == {"histogram": 6, "outliers": 6, "kurtosis": 6, "loss": 2, "angle": 2}


def test_no_training_no_training_plots() -> None:
    assert set(Outline(comparison_page(comparison(("quarot",)))).plots) == PLOTS - {"parts", "loss", "angle"}


@pytest.mark.parametrize("page", [comparison_page(comparison()), statistics_page(statistics())])
def test_nothing_is_fetched_and_names_are_escaped(page: str) -> None:
    outline = Outline(page)
    assert outline.outside == []
    assert outline.tags.count("script") == 2  # the data, and ours
    assert not re.search(r"https?://|(?<!:)//[a-z]|@import|url\(", page)
    assert "&lt;script&gt;" in page
    assert page == page.encode().decode()


def test_the_data_are_embedded_and_end_no_script() -> None:
    data = comparison()
    data["rows"][0]["seconds"] = math.inf
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', comparison_page(data), re.DOTALL)
    assert found is not None
    assert "<" not in found[1]
    embedded = json.loads(found[1])
    assert embedded["rows"][0].pop("seconds") is None
    data["rows"][0].pop("seconds")
    assert embedded == data


def test_tables_are_there_to_copy() -> None:
    page = comparison_page(comparison())
    assert {"markdown", "csv"} <= set(re.findall(r'data-copy="(\w+)"', page)) & set(
        re.findall(r'<textarea id="(\w+)"', page)
    )
    assert "| quarot | 9.000 (9.000–9.000) |" in page


def test_a_narrow_screen_gets_rows_as_cards_and_letters_that_can_be_read() -> None:
    page = comparison_page(comparison())
    narrow = page[page.index("@media (max-width: 700px)") : page.index("@media print")]
    assert "td:not(:first-child)::before { content: attr(data-label)" in narrow
    cells, named = page.count("<td"), page.count("<td data-label=")
    assert cells == named > 0
    width = 390 - 2 * 9.6 - 2 * 11.2 - 2  # of a plot: the screen without the padding of main and of a section
    smallest = min(float(size) for size in re.findall(r"svg [^{]*\{ font-size: ([\d.]+)px", narrow))
    widest = max(float(box) for box in re.findall(r'<svg viewBox="0 0 ([\d.]+) [\d.]+" role="img"', page))
    assert smallest * width / widest > 10


def test_the_same_data_give_the_same_page() -> None:
    assert comparison_page(comparison()) == comparison_page(comparison())


def browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@pytest.mark.parametrize("kind", ["comparison", "statistics"])
def test_a_browser_shows_every_plot_and_has_no_complaint(kind: str, tmp_path: Path) -> None:
    program = browser()
    if program is None:
        pytest.skip("no chromium on PATH: the pages are not loaded in a browser")
    page = tmp_path / "page.html"
    page.write_text(comparison_page(comparison()) if kind == "comparison" else statistics_page(statistics()))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([program, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert Outline(done.stdout).plots == Outline(page.read_text()).plots
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []


def line_names(page: str, section: str) -> list[str]:
    """The names of the lines of a section's first plot."""
    found = page[page.index(f'<section id="{section}"') :]
    return re.findall(r'data-name="([^"]*)"', found[: found.index("</svg>", found.index('role="img"'))])


def test_recipes_that_lie_on_each_other_are_one_line_with_all_their_names() -> None:
    data = comparison(("rtn", "gptq", "quarot", "dartquant", "other"))
    for name in ("rtn", "gptq"):
        for entry in data["details"][name]["spreads"]:
            entry["after"] = entry["before"]
    for entry in data["details"]["other"]["spreads"]:
        entry["after"] = spread(1.5)
    page = comparison_page(data)
    assert line_names(page, "outliers") == ["before rotation (rtn and gptq)", "quarot and dartquant", "other"]
    for section in ("histogram", "kurtosis"):
        assert line_names(page, section) == line_names(page, "outliers")


def test_what_models_write_stands_side_by_side() -> None:
    page = comparison_page(comparison())
    section = page[page.index('<section id="generations">') : page.index('<section id="settings">')]
    assert "<blockquote>Say it:</blockquote>" in section
    name = '<dt>quarot <span class="soft">(5 tokens, it repeats itself)</span></dt>'
    assert name + '<dd><span class="soft"> one two</span>  four\n\nfive</dd>' in section
    assert "&lt;b&gt;four&lt;/b&gt;</span></dd>" in section, "the unquantized model is as it is"
    assert '<td data-label="end in a loop">1 of 1</td>' in section
    assert "48 of them at most" in section
    none = comparison()
    none["about"]["prompts"] = []
    assert "generations" not in {*Outline(comparison_page(none)).sections}


def test_why_parts_were_not_measured_is_told() -> None:
    page = comparison_page(comparison(("rtn",)))
    assert "Not measured of rtn: &lt;script&gt;" in page
    nobody_asked = comparison(("rtn",))
    nobody_asked["details"]["rtn"]["parts"] = {}
    assert "Where the loss is" not in comparison_page(nobody_asked)
