"""Runs a notebook's cells in this process, without Jupyter."""

import ast
import json
from typing import Any

from tests.conftest import REPOSITORY


def execute(name: str) -> tuple[dict[str, Any], list[Any]]:
    """Runs the cells of colab/NAME.ipynb from top to bottom.

    Returns:
      The names that they define, and what the notebook would show under them.
    """
    names: dict[str, Any] = {}
    shown = []
    for cell in _code_cells(name):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body[-1]
        if isinstance(last, ast.Expr):
            tree.body.pop()
        exec(compile(tree, "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    return names, shown


def has_outputs(name: str) -> bool:
    """Whether a cell keeps what it showed when it was run."""
    return any(cell["outputs"] or cell["execution_count"] for cell in _code_cells(name))


def code_of(name: str, words: str) -> str:
    """The one cell of colab/NAME.ipynb that has `words` in it."""
    [cell] = [s for s in ("".join(c["source"]) for c in _code_cells(name)) if words in s]
    return cell


def _code_cells(name: str) -> list[dict[str, Any]]:
    notebook = json.loads((REPOSITORY / "colab" / f"{name}.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
