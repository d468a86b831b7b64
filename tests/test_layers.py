"""What may import what: the folders are floors of a house, and nobody looks up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import jointquant
from imports import ROOT, circles, files, graph, reached
from jointquant.cli.main import VERBS

ORDER = (
    "errors",
    "seeds",
    "_version",
    "report",
    "trust",
    "backend",
    "distributed",
    "progress",
    "events",
    "hub",
    "files",
    "text",
    "quantization",
    "rotations",
    "models",
    "recipe",
    "runtime",
    "activations",
    "run",
    "artifact",
    "calibration",
    "rounding",
    "planning",
    "probing",
    "evaluation",
    "fingerprint",
    "export",
    "tuning",
    "job",
    "pipeline",
    "analysis",
    "generation",
    "verification",
    "serving",
    "demo",
    "__init__",
    "cli",
    "__main__",
)
"""Folders and modules in the root of the package, the lowest floor first."""


def floor(module: str) -> str:
    return module.split(".")[0]


def test_every_folder_and_root_module_has_a_floor() -> None:
    floors = {floor(module) for module in graph()}
    unknown, gone = sorted(floors - set(ORDER)), sorted(set(ORDER) - floors)
    assert not unknown, f"no floor for {unknown}: give them their place in ORDER"
    assert not gone, f"ORDER names {gone}, which are no more"
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("module", graph())
def test_a_module_imports_from_its_own_folder_and_from_floors_below(module: str) -> None:
    own = floor(module)
    allowed = {own, *ORDER[: ORDER.index(own)]}
    above = sorted(other for other in graph()[module] if floor(other) not in allowed)
    assert not above, f"{module} imports {above}: {own} lies below them"


@pytest.mark.parametrize("own", ORDER)
def test_nothing_above_is_reached_through_others(own: str) -> None:
    start = [module for module in graph() if floor(module) == own]
    found = {floor(module) for module in reached(start, graph())}
    assert found <= {own, *ORDER[: ORDER.index(own)]}


def test_no_modules_import_each_other() -> None:
    assert not circles(graph()), "these import each other, type-only imports included"


def test_circles_and_what_looks_up_are_seen() -> None:
    """The checks above can fail."""
    made = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"b"}), "d": frozenset({"d"})}
    assert circles(made) == [["b", "c"], ["d"]]
    assert reached(["a"], made) == {"a", "b", "c"}


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    lines = [
        "from typing import TYPE_CHECKING",
        "from jointquant.models import layer",
        "import jointquant.errors",
        "if TYPE_CHECKING:",
        "    from jointquant.run.job import Job",
        "def f():",
        "    from jointquant import seeds, quantize",
    ]
    for name in ("seeds", "errors", "models/__init__", "models/layer", "run/job", "__init__"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "a.py").write_text("\n".join(lines))
    assert graph(tmp_path)["a"] == {"models.layer", "errors", "run.job", "seeds", "__init__"}


def test_few_modules_lie_in_the_root() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 10, "put the new module into the folder of its idea"


BACKEND = re.compile(r"(cuda|npu|xpu|mps|torch_npu)(:\d+)?")
FACTORISATIONS = {"qr", "cholesky", "cholesky_ex", "cholesky_inverse", "solve", "solve_ex", "inv", "svd", "eigh", "eig"}
TABLES = ("backend/devices.py", "backend/operations.py")
TOOLS = ("demo/train.py",)  # run by developers, on the CPU


def sources() -> dict[str, Path]:
    found = {path.relative_to(ROOT).as_posix(): path for path in files().values()}
    for name in (*TABLES, *TOOLS):
        del found[name]
    return found


def test_accelerators_are_named_in_one_place() -> None:
    for name, path in sources().items():
        if "kernels" in path.parts:
            continue
        assert "cuda" not in path.read_text().lower(), f"{name} names an accelerator"
        for node in ast.walk(ast.parse(path.read_text())):
            words = [
                node.attr if isinstance(node, ast.Attribute) else "",
                node.id if isinstance(node, ast.Name) else "",
                node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "",
                *([alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []),
            ]
            for word in words:
                assert not BACKEND.fullmatch(word), f"{name}:{node.lineno} names {word}"


def test_what_a_backend_may_lack_goes_through_the_table() -> None:
    """float64 and factorisations are asked for through backend/operations.py, which knows where they run."""
    for name, path in sources().items():
        for function in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)):
            calls = [n for n in ast.walk(function) if isinstance(n, ast.Call)]
            called = {n.func.attr if isinstance(n.func, ast.Attribute) else getattr(n.func, "id", "") for n in calls}
            methods = {n.func.attr for n in calls if isinstance(n.func, ast.Attribute)}
            where = f"{name}: {function.name}"
            assert "double" not in methods, f"{where} calls .double(): expected operations.double"
            assert not (methods & FACTORISATIONS) or "runs_on" in called, f"{where} asks no runs_on"


def private_imports(text: str) -> list[str]:
    """Names of other files of the package that begin with one underscore: imported, or read off an imported module."""
    tree, modules, found = ast.parse(text), set(), []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            source = getattr(node, "module", None) or ""
            names = [alias.name for alias in node.names]
            if "jointquant" in {source.split(".")[0], *(name.split(".")[0] for name in names)}:
                parts = [part for name in (source, *names) for part in name.split(".")]
                found += [part for part in parts if re.match("_[^_]", part) and part != "_version"]
                inside = source.removeprefix("jointquant.")
                modules |= {alias.asname or alias.name for alias in node.names if f"{inside}.{alias.name}" in graph()}
    found += [
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id in modules and re.match("_[^_]", node.attr)
    ]
    return sorted(found)


def test_names_with_an_underscore_stay_in_their_file() -> None:
    found = {name: private_imports(path.read_text(encoding="utf-8")) for name, path in files().items()}
    assert not {name: names for name, names in found.items() if names}


def test_private_names_are_seen() -> None:
    text = "from jointquant.seeds import _a, b, __c__\nfrom jointquant.rounding import layers\nlayers._d\nself._e\n"
    assert private_imports(text + "from torch import _f\nfrom jointquant._version import __version__") == [
        "_a",
        "layers._d",
    ]


MOST = 7
FREE = {"runtime/attention.py explicit_attention": "transformers' signature"}
"""Functions with more parameters, and whose choice that was."""

EXPORTED = set(jointquant.__all__)
"""The public API: its options are the reader's, each by name."""


def parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    names = [argument.arg for argument in (*plain, arguments.vararg, arguments.kwarg) if argument is not None]
    return [name for name in names if name not in ("self", "cls")]


def is_public(name: str, function: str) -> bool:
    """Whether a module defines what the package exports under that name."""
    home = getattr(getattr(jointquant, function, None), "__module__", "")
    return function in EXPORTED and home == f"jointquant.{name.removesuffix('.py').replace('/', '.')}"


def is_free(name: str, function: ast.FunctionDef) -> bool:
    """Whether what it takes is decided elsewhere: by the user, by Triton, by a library that calls it."""
    compiled = any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list)
    verb = name.startswith("cli/") and function.name in {verb.__name__ for verb in VERBS.values()}
    return compiled or verb or is_public(name, function.name) or f"{name} {function.name}" in FREE


def crowded() -> list[str]:
    found = []
    for path in files().values():
        name = path.relative_to(ROOT).as_posix()
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef) and len(parameters(function)) > MOST:
                found += [] if is_free(name, function) else [f"{name} {function.name}: {len(parameters(function))}"]
    return found


def test_functions_take_few_parameters() -> None:
    assert not crowded(), f"more than {MOST}: what belongs together is one object"


def test_parameters_are_counted() -> None:
    (function,) = ast.parse("def f(self, a, /, b, *c, d=1, **e): ...").body
    assert isinstance(function, ast.FunctionDef)
    assert parameters(function) == ["a", "b", "d", "c", "e"]
    assert is_public("pipeline.py", "quantize")
    assert not is_public("cli/quantize.py", "quantize")
