"""Who may read and write what was made."""

from __future__ import annotations

import os
from pathlib import Path

from jointquant.trust.permissions import make_folders, seal


def test_modes(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        make_folders(tmp_path / "a" / "b")
        folder = tmp_path / "a" / "b"
        (folder / "file").touch(mode=0o666)
        (folder / "inner").mkdir(mode=0o777)
        outside = tmp_path / "outside"
        outside.touch(mode=0o666)
        (folder / "link").symlink_to(outside)
        seal(folder)
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a", folder, *folder.iterdir())}
    finally:
        os.umask(before)
    assert modes == {"a": 0o755, "b": 0o755, "file": 0o644, "inner": 0o755, "link": 0o664}
