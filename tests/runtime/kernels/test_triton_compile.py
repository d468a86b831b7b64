"""Each Triton program is compiled for GPUs that are not here, and needs no more than they have.

``TRITON_TARGETS=all`` compiles for every target of ``benchmarks/triton_compile.py``, at the shapes of all its models.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="what is compiled are programs of Triton: pip install triton")

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "triton_compile.py"
EVERYTHING = os.environ.get("TRITON_TARGETS") == "all"
SOME = ("--targets", "sm_86", "--models", "Llama-2-7B")
SHARED_BYTES = 99 * 1024
"""The least that a block can have on a GPU from Ampere on: those of consumers."""
ROTATION_SHARED_BYTES = 48 * 1024
"""What each GPU has for a block without being asked for more."""
ROTATIONS = {"last_factor", "outer_factor", "blocks", "hadamard_integers"}
PROGRAMS = ROTATIONS - {"last_factor", "outer_factor"} | {
    "one_row",
    "few_rows",
    "expand",
    "integer_product",
    "attend",
    "combine",
}
STACK_BYTES = 256
"""Of a thread, for what did not fit into registers: a few numbers that are seldom read."""
SECONDS = 60
"""Of a processor, to compile one variant; most take a few."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All variants, compiled by a process of its own: this one runs programs in Triton's interpreter."""
    folder = tmp_path_factory.mktemp("compiled")
    out = folder / "compiled.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    source = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    environment |= {"PYTHONPATH": source, "TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, str(SCRIPT), "--out", str(out), *(() if EVERYTHING else SOME)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return found


def test_all_programs_are_compiled(rows: list[dict[str, Any]]) -> None:
    for target in {row["target"] for row in rows}:
        compiled = {row["program"] for row in rows if row["target"] == target}
        assert compiled >= PROGRAMS | {"token_integers", "rms_norm", "round"}, target


def test_shared_memory_is_enough_on_every_card(rows: list[dict[str, Any]]) -> None:
    assert [row for row in rows if row["shared_bytes"] > SHARED_BYTES] == []


def test_rotations_need_no_more_than_is_there_without_asking(rows: list[dict[str, Any]]) -> None:
    assert [row for row in rows if row["program"] in ROTATIONS and row["shared_bytes"] > ROTATION_SHARED_BYTES] == []


def test_no_program_takes_more_than_is_asked_for(rows: list[dict[str, Any]]) -> None:
    """What a device is compared with before a launch is a bound, and fits on the smallest card."""
    bounded = [row for row in rows if row["bound_bytes"] is not None]
    assert {row["program"] for row in bounded} >= ROTATIONS - {"outer_factor", "last_factor"} | {"few_rows", "attend"}
    assert [row for row in bounded if not row["shared_bytes"] <= row["bound_bytes"] <= SHARED_BYTES] == []


def test_what_is_summed_stays_in_registers(rows: list[dict[str, Any]]) -> None:
    assert [row for row in rows if row.get("stack_bytes", 0) > STACK_BYTES] == []


def test_products_run_on_tensor_cores(rows: list[dict[str, Any]]) -> None:
    products = [row for row in rows if row["program"] in ROTATIONS | {"few_rows", "integer_product", "attend"}]
    assert products
    assert [row for row in products if not row["tensor_cores"]] == []


def test_a_variant_is_compiled_in_seconds(rows: list[dict[str, Any]]) -> None:
    assert [row for row in rows if row["seconds"] > SECONDS] == []
