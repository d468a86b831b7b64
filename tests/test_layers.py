"""What may import what."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import jointquant

ROOT = Path(jointquant.__file__).parent

# Package (or module) → what it must not import, directly.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "errors": ("models", "runtime", "quantization", "rotations", "pipeline", "cli", "evaluation", "text"),
    "devices": ("models", "runtime", "quantization", "rotations", "pipeline", "cli", "evaluation", "text"),
    "recipe": ("models", "runtime", "pipeline", "cli", "evaluation", "text"),
    "quantization": ("models", "runtime", "pipeline", "cli", "evaluation", "export", "report", "text", "recipe"),
    "rotations": ("models", "runtime", "pipeline", "cli", "evaluation", "export", "report", "text"),
    "models": ("quantization", "runtime", "pipeline", "cli", "evaluation", "export", "report", "text", "recipe"),
    "runtime": ("pipeline", "cli", "evaluation", "export", "report", "text"),
    "text": ("models", "runtime", "pipeline", "cli", "evaluation", "export", "report"),
    "evaluation": ("export", "report", "cli"),
    "export": ("evaluation", "report", "cli"),
    "report": ("evaluation", "export", "models", "runtime", "pipeline", "cli"),
    "pipeline": ("cli", "comparison", "analysis", "inspection", "report"),
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


def test_accelerators_are_named_in_one_place() -> None:
    for path in ROOT.rglob("*.py"):
        if path.name in ("devices.py",) or "kernels" in path.parts or "demo" in path.parts:
            continue
        code = path.read_text()
        for word in ("torch.cuda", ".cuda(", '"cuda"', "'cuda'"):
            assert word not in code, f"{path.relative_to(ROOT)} names {word}"
