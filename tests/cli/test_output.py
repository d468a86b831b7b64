"""What verbs print."""

from __future__ import annotations

import json
import math

from jointquant.cli.output import finish


def test_json_has_no_infinite_number(capsys) -> None:
    finish({"perplexity": {"t": math.inf}, "rows": [1.5, math.nan, None, True]}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"perplexity": {"t": None}, "rows": [1.5, None, None, True]}
