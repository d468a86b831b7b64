"""The preset ``jointquant`` end to end, against the method written out in plain torch."""

from __future__ import annotations

from pathlib import Path

import torch

from jointquant_sides import Case, in_float32


def test_the_preset_is_the_method(tmp_path: Path) -> None:
    """The same losses, the same R1, and a perplexity within half a percent, on the grid without ties."""
    case = Case(in_float32(tmp_path / "model"), seed=0, windows=8, batch=146, evaluated=24576, grid="jointquant")
    wanted, found = case.by_hand(), case.by_preset(tmp_path / "artifact")
    assert len(found.losses) == len(wanted.losses) == 100
    torch.testing.assert_close(torch.tensor(found.losses), torch.tensor(wanted.losses), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.rotation, wanted.rotation.double(), rtol=0, atol=1e-4)
    assert abs(found.perplexity / wanted.perplexity - 1) < 0.005, (found.perplexity, wanted.perplexity)
