"""What may import what."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import jointquant

ROOT = Path(jointquant.__file__).parent

# Package (or module) → what it must not import, directly.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "errors": ("models", "runtime", "quantization", "rotations", "pipeline", "cli", "evaluation", "text"),
    "devices": ("models", "runtime", "quantization", "rotations", "pipeline", "cli", "evaluation", "text"),
    "trust": (
        "models",
        "runtime",
        "quantization",
        "rotations",
        "pipeline",
        "cli",
        "evaluation",
        "text",
        "hub",
        "recipe",
    ),
    "tiers": ("models", "runtime", "pipeline", "cli", "evaluation", "text", "export"),
    "card": ("models", "runtime", "pipeline", "cli", "evaluation", "text", "export", "report"),
    "recipe": ("models", "runtime", "pipeline", "cli", "evaluation", "text"),
    "settings": ("models", "runtime", "pipeline", "cli", "evaluation", "text", "recipe"),
    "quantization": ("models", "runtime", "pipeline", "cli", "evaluation", "export", "report", "text", "recipe"),
    "rotations": ("models", "runtime", "pipeline", "cli", "evaluation", "export", "report", "text"),
    "models": ("quantization", "runtime", "pipeline", "cli", "evaluation", "export", "report", "text", "recipe"),
    "runtime": ("pipeline", "cli", "evaluation", "export", "report", "text"),
    "text": ("models", "runtime", "pipeline", "cli", "evaluation", "export", "report"),
    "evaluation": ("export", "report", "cli"),
    "export": ("evaluation", "report", "cli", "pipeline"),
    "report": ("evaluation", "export", "models", "runtime", "pipeline", "cli"),
    "needs": ("runtime", "pipeline", "calibration", "rounding", "rounding_pass", "cli", "plan"),
    "plan": ("runtime", "pipeline", "calibration", "rounding", "rounding_pass", "cli"),
    "journal": ("models", "runtime", "quantization", "rotations", "pipeline", "cli", "recipe"),
    "hidden_states": ("models", "runtime", "quantization", "rotations", "pipeline", "cli", "recipe"),
    "ranks": ("models", "runtime", "quantization", "rotations", "pipeline", "cli", "recipe", "process_group", "guard"),
    "guard": ("models", "runtime", "quantization", "rotations", "pipeline", "cli", "recipe", "process_group"),
    "process_group": ("models", "runtime", "quantization", "rotations", "pipeline", "cli"),
    "hessians": ("models", "runtime", "pipeline", "cli", "recipe"),
    "traffic": ("runtime", "pipeline", "calibration", "rounding", "rounding_pass", "cli", "plan"),
    "rounding_pass": ("pipeline", "cli", "comparison", "report"),
    "pipeline": ("export", "cli", "comparison", "analysis", "inspection", "report"),
    "keys": ("cli", "comparison", "analysis", "pipeline", "report", "inspection"),
    "reference": ("cli", "comparison", "analysis", "pipeline", "report", "inspection", "recipe", "runtime"),
    "refinement": ("cli", "comparison", "analysis", "pipeline", "report", "inspection", "recipe"),
    "inspection": ("cli", "comparison", "analysis", "pipeline", "report"),
    "comparison": ("cli",),
    "analysis": ("cli",),
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports(part: str) -> None:
    paths = [ROOT / f"{part}.py"] if (ROOT / f"{part}.py").is_file() else sorted((ROOT / part).rglob("*.py"))
    assert paths or not (ROOT / part).is_dir()
    for path in paths:
        for name in imports_of(path):
            for forbidden in FORBIDDEN[part]:
                target = f"jointquant.{forbidden}"
                assert name != target, f"{path.name} imports {name}"
                assert not name.startswith(f"{target}."), f"{path.name} imports {name}"


BACKEND = re.compile(r"(cuda|npu|xpu|mps|torch_npu)(:\d+)?")
FACTORISATIONS = {"qr", "cholesky", "cholesky_ex", "cholesky_inverse", "solve", "solve_ex", "inv", "svd", "eigh", "eig"}
TOOLS = ("demo/train.py",)  # run by developers, on the CPU


def sources() -> list[Path]:
    return [
        p for p in sorted(ROOT.rglob("*.py")) if p.name != "devices.py" and p.relative_to(ROOT).as_posix() not in TOOLS
    ]


def test_accelerators_are_named_in_one_place() -> None:
    for path in sources():
        if "kernels" in path.parts:
            continue
        assert "cuda" not in path.read_text().lower(), f"{path.relative_to(ROOT)} names an accelerator"
        for node in ast.walk(ast.parse(path.read_text())):
            words = [
                node.attr if isinstance(node, ast.Attribute) else "",
                node.id if isinstance(node, ast.Name) else "",
                node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "",
                *([alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []),
            ]
            for word in words:
                assert not BACKEND.fullmatch(word), f"{path.relative_to(ROOT)}:{node.lineno} names {word}"


def test_what_a_backend_may_lack_goes_through_the_table() -> None:
    """float64 and factorisations are asked for through devices.py, which knows where they run."""
    for path in sources():
        if path.name == "doctor.py":  # tries each operation on each device
            continue
        for function in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)):
            calls = [n for n in ast.walk(function) if isinstance(n, ast.Call)]
            called = {n.func.attr if isinstance(n.func, ast.Attribute) else getattr(n.func, "id", "") for n in calls}
            methods = {n.func.attr for n in calls if isinstance(n.func, ast.Attribute)}
            where = f"{path.relative_to(ROOT)}: {function.name}"
            assert "double" not in methods, f"{where} calls .double(): expected devices.double"
            assert not (methods & FACTORISATIONS) or "linalg_device" in called, f"{where} asks no linalg_device"
