"""Commands on two hosts of four devices write the records that one host of eight writes."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxllm.run.run import Run
from tests.hosts import finish, start_hosts
from tests.training.processes import make_home

TASKS = (  # likelihoods, options, generated text, and the run's own training sequences
    "heldout_words", "counting", "addition_exact", "training_loss", "memorization_8_8",
)  # fmt: skip
TOKEN_SET = "heldout_words:3x40"
CONFIG = f"""
TRAIN_STEPS = 2
EVAL_TASKS = {TASKS}
EvalConfig.token_sets = ("{TOKEN_SET}",)
SEQUENCE_LENGTH = 64
BATCH_SIZE = 8
ScheduleConfig.warmup_steps = 1
EvalConfig.tokens_per_batch = 512
MeshConfig.data = 2
MeshConfig.fsdp = 4
"""


def tables(run: Path) -> dict[str, pd.DataFrame]:
    """Records and examples by file, without what is measured anew."""
    found = {}
    for path in sorted((run / "trajectory").rglob("*.parquet")):
        frame = pd.read_parquet(path)
        measured = [name for name in ("run", "family", "seconds") if name in frame]
        found[str(path.relative_to(run))] = frame.drop(columns=measured)
    return found


@pytest.mark.slow
def test_two_hosts_write_the_records_of_one(tmp_path: Path) -> None:
    """In training, by `evaluate`, and by a follower, which finds the run ended."""
    home = make_home(tmp_path, CONFIG)
    flags = [f"--gin_file={home}/tiny.gin", f"--gin.MODEL_DIR={home}/run"]
    finish(start_hosts(home, 2, 8, "train", *flags))
    trained = tables(home / "run")
    steps = {int(Path(name).parts[1]) for name in trained}
    assert len(trained) == len(steps) * (len(TASKS) + 1) * 2
    assert max(steps) == 2
    assert all((frame["status"] == "ok").all() for frame in trained.values() if "status" in frame)

    shutil.copytree(home / "run", home / "alone")
    for written in ("trajectory", "token_losses"):
        shutil.rmtree(home / "alone" / written)
    shutil.copytree(home / "alone", home / "followed")
    finish(start_hosts(home, 1, 8, "evaluate", f"--model_dir={home}/alone"))
    follow = [f"--model_dir={home}/followed", "--follow", "--poll_seconds=1"]
    first, second = finish(start_hosts(home, 2, 8, "evaluate", *follow))
    assert "addition_exact" in first
    assert "addition_exact" not in second, "one host speaks"
    losses = Run(home / "run").token_losses(TOKEN_SET)
    assert set(losses.steps()) == steps and losses.read().any()
    for run in ("alone", "followed"):
        own = Run(home / run).token_losses(TOKEN_SET)
        assert own.headers() == losses.headers()
        np.testing.assert_array_equal(own.read(), losses.read())
        found = tables(home / run)
        assert found.keys() == trained.keys()
        for name, expected in trained.items():
            pd.testing.assert_frame_equal(found[name], expected, check_exact=True)
    other = start_hosts(home, 2, 8, "evaluate", f"--model_dir={home}/alone", last=["--steps=2"])
    for output in finish(other, code=2):
        assert "error: host 1 does not agree with host 0 on the steps: 2, not None" in output
