"""The pages: every plot is there, nothing is fetched, names are escaped, and a browser has nothing to complain of."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from jointquant.report.page import comparison_page, statistics_page

NASTY = '<script>alert("x")</script> & {{ 1 }}'
SITES = ("attn_in", "o_in", "mlp_in", "down_in", "k_cache", "v_cache")
PLOTS = {"perplexity", "divergence", "loss", "angle", "histogram", "outliers", "kurtosis", "error"}


def spread(value: float) -> dict[str, Any]:
    return {"max_over_rms": value, "largest": 2 * value, "kurtosis": value, "histogram": [0.0, 0.5, 0.4, 0.1]}


def spreads() -> list[dict[str, Any]]:
    layers = [(layer, site) for layer in range(3) for site in SITES]
    return [{"layer": layer, "site": s, "before": spread(5.0 + layer), "after": spread(2.5)} for layer, s in layers]


def detail(learned: bool) -> dict[str, Any]:
    trace = {"losses": [3.0, 2.0, 1.5], "angles": [0.1, 0.05, 0.0]}
    errors = [
        {"layer": i, "hidden": 0.01 * (i + 1), "weights": {"q": 0.01, "o": 0.02}, "activations": {"q": 0.0, "o": 0.0}}
        for i in range(3)
    ]
    traces = {"r1": trace, "r2.0": trace, "r2.1": trace} if learned else {}
    return {"traces": traces, "spreads": spreads(), "errors": errors, "transforms": {"r1": "learned"}}


def comparison(names: tuple[str, ...] = ("quarot", NASTY), texts: tuple[str, ...] = ("a/b.txt",)) -> dict[str, Any]:
    def row(name: str, value: float) -> dict[str, Any]:
        keys = [key + end for key in ("perplexity", "divergence") for end in ("", "_min", "_max")]
        by_text = {key: dict.fromkeys(texts, value) for key in (*keys, "delta", "same_top")}
        return {
            "recipe": name,
            **by_text,
            "bits": 4.1,
            "size_bytes": 1e6,
            "seconds": 2.0,
            "peak_rss_bytes": 5e8,
            "seeds": [0, 1],
        }

    return {
        "about": {
            "base_model": f"model {NASTY}",
            "layers": 3,
            "device": "cpu",
            "dtype": "float32",
            "tokens": 1000,
            "seqlen": 32,
            "versions": {"jointquant": "0"},
            "recipes": {name: {"description": NASTY} for name in names},
        },
        "reference": {"perplexity": dict.fromkeys(texts, 7.5), "bits": 16.0, "size_bytes": 4e6},
        "rows": [row(name, 9.0 + index) for index, name in enumerate(names)],
        "runs": [],
        "details": {name: detail(index > 0) for index, name in enumerate(names)},
    }


def statistics() -> dict[str, Any]:
    values = {"max_over_rms": 5.0, "largest": 9.0, "kurtosis": 4.0}
    about = {"base_model": NASTY, "recipe": NASTY, "layers": 3, "versions": {"jointquant": "0"}}
    sites = [{"site": site, "before": values, "after": values} for site in SITES]
    return {"about": about, "sites": sites, "spreads": spreads(), "traces": detail(True)["traces"]}


class Outline(HTMLParser):
    """Sections with their plots, and everything that could reach outside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.plots: dict[str, int] = {}
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.unnamed = 0
        self.section = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if tag == "section":
            self.section = found.get("id") or ""
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
        "perplexity": 2,
        "divergence": 2,
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
    assert set(Outline(comparison_page(comparison(("quarot",)))).plots) == PLOTS - {"loss", "angle"}


@pytest.mark.parametrize("page", [comparison_page(comparison()), statistics_page(statistics())])
def test_nothing_is_fetched_and_names_are_escaped(page: str) -> None:
    outline = Outline(page)
    assert outline.outside == []
    assert "script" not in outline.tags
    assert not re.search(r"https?://|//[a-z]|@import|url\(", page)
    assert "&lt;script&gt;" in page
    assert page == page.encode().decode()


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
