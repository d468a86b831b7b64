"""Where output may go."""

from __future__ import annotations

from pathlib import Path

import pytest

from jointquant.errors import InputError
from jointquant.trust.target import check_apart


def test_output_stays_apart_from_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    check_apart(tmp_path / "model-int4", model)
    for out in (model, model / "int4", tmp_path, tmp_path / "x" / ".." / "model"):
        with pytest.raises(InputError, match="model's folder"):
            check_apart(out, model)
