"""What verbs print."""

from __future__ import annotations

import json
import math

from rich.table import Table

from jointquant.cli.output import finish, show


def test_nothing_is_cut_where_it_goes_to_no_terminal(capsys) -> None:
    table = Table("what")
    table.add_row("word" * 100)
    show(table, to_stderr=False)
    assert "word" * 100 in capsys.readouterr().out


def test_json_has_no_infinite_number(capsys) -> None:
    finish({"perplexity": {"t": math.inf}, "rows": [1.5, math.nan, None, True]}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"perplexity": {"t": None}, "rows": [1.5, None, None, True]}
