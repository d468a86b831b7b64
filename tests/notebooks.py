"""Notebooks run without Jupyter, in one namespace; ``python tests/notebooks.py`` executes and renders them."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def run(cells: list[dict[str, Any]]) -> list[str]:
    """What each code cell prints, and the value of its last line, in the working directory."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    return [_shown("".join(cell["source"]), namespace) for cell in cells if cell["cell_type"] == "code"]


def _shown(source: str, namespace: dict[str, Any]) -> str:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
            print("" if value is None else value, end="")
    return printed.getvalue()


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with what its cells gave, in a folder that is gone afterwards."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            outputs = iter(run(notebook["cells"]))
        finally:
            os.chdir(before)
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            text = next(outputs)
            cell["execution_count"] = count
            cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": text}] if text else []
    return notebook


def page(notebook: dict[str, Any], name: str) -> str:
    """The notebook as a page of the documentation."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [f"```text\n{''.join(output['text']).rstrip()}\n```" for output in cell.get("outputs", [])]
    parts.append(f"[Download this notebook]({name})")
    return "\n\n".join(parts) + "\n"


def load(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def main() -> None:
    for path in NOTEBOOKS:
        notebook = executed(load(path))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(page(notebook, path.name), encoding="utf-8")
        print(path.name, file=sys.stderr)


if __name__ == "__main__":
    main()
