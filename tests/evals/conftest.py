"""The benchmarks' files as their authors publish them."""

from pathlib import Path

import pytest

from tests.evals import adapters


@pytest.fixture(scope="session")
def eval_dir(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EVAL_DIR with every set that the shared data hold."""
    return adapters.eval_dir(shared_data, tmp_path_factory.mktemp("evals"))
