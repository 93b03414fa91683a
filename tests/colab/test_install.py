"""The first cell of every notebook installs jaxllm from what the user has."""

import importlib.util
import io
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.colab.notebooks import code_of
from tests.conftest import REPOSITORY

CELL = code_of("trajectories", "def install(")
CONSTRAINTS = f"jaxllm/constraints/py{sys.version_info[0]}{sys.version_info[1]}.txt"


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the cell asks for: pip's arguments, a restart of the kernel; all else is done."""
    calls: list[Any] = []
    really = subprocess.run

    def run(command: list[str], **options: Any) -> object:
        if command[1:3] == ["-m", "pip"]:
            return calls.append(command[3:])
        return really(command, **options)

    monkeypatch.setitem(sys.modules, "numpy", SimpleNamespace())
    kernel = SimpleNamespace(do_shutdown=lambda restart: calls.append(f"restart {restart}"))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return calls


def install() -> None:
    """Runs the cell, which ends all cells of this kernel."""
    with pytest.raises(SystemExit, match=r"Installed. The kernel restarts: run the cells again"):
        exec(CELL, {})


def test_it_is_the_same_cell_everywhere() -> None:
    assert code_of("train_on_tpu", "def install(") == CELL


def test_nothing_to_install_from_is_said_in_one_line(ran: list[Any]) -> None:
    with pytest.raises(SystemExit, match=r"Upload its wheel or tarball .*, or set SOURCE to an"):
        exec(CELL, {})
    assert ran == []


def test_an_uploaded_wheel_is_installed_with_its_constraints(ran: list[Any]) -> None:
    with zipfile.ZipFile("jaxllm-0.1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(CONSTRAINTS, "numpy==2")
    install()
    [pip, restart] = ran
    assert pip[:2] == ["install", "--quiet"]
    assert pip[2] == str(Path.cwd() / "jaxllm-0.1.0-py3-none-any.whl")
    assert pip[3:] == ["-c", f"jaxllm_source/{CONSTRAINTS}"]
    assert Path(pip[4]).read_text() == "numpy==2"
    assert restart == "restart True"


def test_an_uploaded_tarball_is_installed_with_its_constraints(ran: list[Any]) -> None:
    with tarfile.open("jaxllm-main.tar.gz", "w:gz") as tar:
        for name in ("pyproject.toml", CONSTRAINTS):
            tar.addfile(tarfile.TarInfo(f"jaxllm-main/{name}"), io.BytesIO())
    install()
    assert ran[0][2:] == [
        str(Path.cwd() / "jaxllm_source" / "jaxllm-main"),
        "-c", f"jaxllm_source/jaxllm-main/{CONSTRAINTS}",
    ]  # fmt: skip


def test_an_address_is_cloned(ran: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", "origin", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    constraints = Path("origin", CONSTRAINTS)
    constraints.parent.mkdir(parents=True)
    constraints.touch()
    Path("origin", "pyproject.toml").touch()
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setenv("JAXLLM_SOURCE", f"file://{Path.cwd() / 'origin'}")
    for _ in range(2):  # again after a failure
        install()
    assert ran[0][2:] == [
        str(Path.cwd() / "jaxllm_source"), "-c", f"jaxllm_source/{CONSTRAINTS}"
    ]  # fmt: skip


def test_a_wheel_and_a_clone_have_the_constraints_where_the_cell_looks() -> None:
    assert (REPOSITORY / "jaxllm" / "constraints" / "py312.txt").exists()
    packages = (REPOSITORY / "pyproject.toml").read_text()
    assert '"jaxllm.constraints" = ["*.txt"]' in packages


def test_a_wheel_has_the_tables_that_are_read_at_import() -> None:
    packages = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    data = packages["package-data"]
    assert "*.txt" in data["jaxllm.evals"] and "*.csv" in data["jaxllm.interop.importers"]
