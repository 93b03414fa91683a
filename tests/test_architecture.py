"""The house stays as it was drawn: imports point one way, files stay small, names stay ours."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "jaxllm"

# The rooms, bottom first: a module may import rooms below its own, and its own room.
LAYERS = (
    {"errors"},
    {"kvstore"},
    {"uploads"},
    {"configs", "io", "rendezvous"},
    {"runtime"},
    {"models", "sharding"},
    {"run"},
    {"evaluation", "data"},
    {"analysis", "training"},
    {"report", "planning", "suites", "interop"},
)
# Benchmarks declare tasks: they may import what tasks are declared with, and nothing imports them
# but through the registry.
EVALS_MAY_IMPORT = {"configs", "errors", "io", "evaluation", "data"}


def python_files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*.py") if "__pycache__" not in p.parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    parts = ("jaxllm", *parts) if parts[0] == "evals" else parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {
    module_name(path): path
    for path in (*python_files(REPOSITORY / "jaxllm"), *python_files(REPOSITORY / "evals"))
}


def imports(path: Path) -> set[str]:
    """Our modules that a file imports: at its top, in functions, and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found |= {m for m in (name, name.rpartition(".")[0]) if m in MODULES}
    # `from package import module` needs the package only where it is more than a name
    return {m for m in found if not any(n.startswith(f"{m}.") for n in found)}


GRAPH = {name: imports(path) - {name} for name, path in MODULES.items()}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


COMMANDS = {p.stem for p in PACKAGE.glob("*.py")} - {
    "__init__",
    "cli",
    "configs",
    "errors",
    "io",
    "kvstore",
    "rendezvous",
    "runtime",
}


def test_no_import_cycle() -> None:
    """Late imports count: a cycle is a cycle."""
    list(graphlib.TopologicalSorter(GRAPH).static_order())


def test_imports_step_down() -> None:
    level = {name: number for number, rooms in enumerate(LAYERS) for name in rooms}
    wrong = set()
    for module, imported in GRAPH.items():
        here = room(module)
        for other in imported:
            there = room(other)
            if there in (here, "") or here in ("", "cli"):
                continue
            if here in COMMANDS:
                allowed = there not in COMMANDS
            elif here == "evals":
                allowed = there in EVALS_MAY_IMPORT
            else:
                allowed = there in level and level[there] < level[here]
            if not allowed:
                wrong.add((module, other))
    assert not wrong


def test_every_room_has_its_place() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and python_files(p)}
    assert rooms <= {name for rooms in LAYERS for name in rooms} | {"evals"}


def test_files_stay_small() -> None:
    for root, most in {"jaxllm": 400, "evals": 400, "benchmarks": 400, "tests": 500}.items():
        for path in python_files(REPOSITORY / root):
            lines = len(path.read_text().splitlines())
            assert lines <= most, f"{path.relative_to(REPOSITORY)} has {lines} lines"


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


RUN_FILES = {
    "checkpoints.jsonl", "metrics.jsonl", "restarts.jsonl", "alarms.jsonl", "config.gin",
    "data.json", "trajectory", "tensorboard", "checkpoints",
}  # fmt: skip


def joined_names(path: Path) -> set[str]:
    """The texts that a file joins to a path: `… / "name"`, `joinpath` and `join`."""
    names: list[ast.expr] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            names.append(node.right)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            names += node.args if node.func.attr in ("joinpath", "join") else []
    return {str(name.value) for name in names if isinstance(name, ast.Constant)}


def test_only_the_run_room_joins_paths_of_a_run_directory() -> None:
    outside = [path for name, path in MODULES.items() if room(name) not in ("run", "evals")]
    assert not {f"{p}: {n}" for p in outside for n in joined_names(p) & RUN_FILES}
