"""The version: one number, which the changelog knows."""

from __future__ import annotations

import re
from pathlib import Path

from jointquant._version import __version__


def test_the_changelog_begins_with_it() -> None:
    headings = re.findall(r"^## (\S+)", (Path(__file__).parents[1] / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == __version__
