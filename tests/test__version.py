"""The version: one number, which the changelog knows."""

from __future__ import annotations

import re
from pathlib import Path

import jointquant
from jointquant._version import __version__


def test_the_citation_names_it() -> None:
    assert f"version: {__version__}" in (Path(__file__).parents[1] / "CITATION.cff").read_text().splitlines()


def test_the_package_says_that_it_has_types() -> None:
    assert (Path(jointquant.__file__).parent / "py.typed").is_file()


def test_the_changelog_begins_with_it() -> None:
    headings = re.findall(r"^## (\S+)", (Path(__file__).parents[1] / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == __version__
