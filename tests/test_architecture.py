"""The house stays as it was drawn: imports point one way, files stay small, names stay ours."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "jaxllm"

# part -> the parts it may import. Commands (jaxllm/*.py) may import everything.
ALLOWED = {
    "models": set(),
    "sharding": set(),
    "trajectory": set(),
    "data": {"models"},
    "checkpoints": {"models", "sharding"},
    "evaluation": {"models", "sharding", "data", "trajectory"},
    "training": {"models", "sharding", "data", "checkpoints", "evaluation", "trajectory"},
    "analysis": {"trajectory"},
    "report": {"analysis", "trajectory"},
    "planning": {"models", "sharding", "data", "training"},
}
SHARED = {"configs", "errors", "imports"}


def python_files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*.py") if "__pycache__" not in p.parts)


def imported_parts(path: Path) -> set[str]:
    """The `jaxllm.<part>` names that a file imports, anywhere in it."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts |= {name.split(".")[1] for name in names if name.startswith("jaxllm.")}
    return parts - {"__version__"}


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_point_one_way(part: str) -> None:
    for path in python_files(PACKAGE / part):
        wrong = imported_parts(path) - ALLOWED[part] - SHARED - {part}
        assert not wrong, f"{path.relative_to(REPOSITORY)} must not import {sorted(wrong)}"


def test_every_part_is_listed() -> None:
    parts = {p.name for p in PACKAGE.iterdir() if p.is_dir() and python_files(p)}
    assert parts <= set(ALLOWED)


def test_files_stay_small() -> None:
    for root in ("jaxllm", "evals", "tests", "benchmarks"):
        for path in python_files(REPOSITORY / root):
            lines = len(path.read_text().splitlines())
            assert lines <= 500, f"{path.relative_to(REPOSITORY)} has {lines} lines"


def test_gin_folder_does_not_hide_the_gin_library() -> None:
    code = "import gin; gin.parse_config"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize("command", ["train", "evaluate", "analyze", "prepare", "generate"])
def test_help_does_not_wait_for_heavy_imports(command: str) -> None:
    """`--help` stays under two seconds because neither JAX nor TensorFlow is imported for it."""
    code = (
        "import sys\n"
        f"import jaxllm.{command} as command\n"
        "try:\n    command.main(['--help'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "heavy = {'jax', 'tensorflow', 'seqio', 'pandas', 'altair'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
