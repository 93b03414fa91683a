"""The benchmarks' files as their authors publish them."""

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.evals import adapters

STANDINS = 40


@pytest.fixture(scope="session")
def eval_dir(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EVAL_DIR with every set that the shared data hold."""
    return adapters.eval_dir(shared_data, tmp_path_factory.mktemp("evals"))


@pytest.fixture(scope="session")
def eval_dir_with_shots(eval_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`eval_dir`, with questions as solved examples where the shared data have none."""
    into = tmp_path_factory.mktemp("shots") / "evals"
    shutil.copytree(eval_dir, into, copy_function=os.symlink)
    for name, source in (
        ("superglue/COPA/train.jsonl", "superglue/COPA/val.jsonl"),
        ("hellaswag/hellaswag_train.jsonl", "hellaswag/hellaswag_val.jsonl"),
        ("nq_open/NQ-open.train.jsonl", "nq_open/NQ-open.dev.jsonl"),
        ("siqa/train.jsonl", "siqa/dev.jsonl"),
    ):
        with open(into / source) as file:
            adapters.write_rows(into / name, map(json.loads, itertools.islice(file, STANDINS)))
    labels = (into / "siqa/dev-labels.lst").read_text().split()[:STANDINS]
    (into / "siqa/train-labels.lst").write_text("\n".join(labels))
    for part in ("web", "wikipedia"):
        data = json.loads((into / f"triviaqa/qa/{part}-dev.json").read_text())["Data"]
        text = json.dumps({"Data": data[:STANDINS]})
        (into / f"triviaqa/qa/{part}-train.json").write_text(text)
    return into
