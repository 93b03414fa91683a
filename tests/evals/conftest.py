"""The benchmarks' files as their authors publish them."""

import os
import shutil
from pathlib import Path

import pytest

from tests.evals import adapters


@pytest.fixture(scope="session")
def eval_dir(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EVAL_DIR with every set that the shared data hold."""
    return adapters.eval_dir(shared_data, tmp_path_factory.mktemp("evals"))


@pytest.fixture(scope="session")
def eval_dir_with_shots(eval_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`eval_dir`, with questions as solved examples where the shared data have none."""
    into = tmp_path_factory.mktemp("shots") / "evals"
    shutil.copytree(eval_dir, into, copy_function=os.symlink)
    adapters.add_stand_ins(into)
    return into
