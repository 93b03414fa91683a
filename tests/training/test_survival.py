"""Runs that are really killed, and end as if they never had been.

Each run is `python -m jaxllm.train` in a process of its own, on a corpus made here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from jaxllm.run.run import Run
from tests.chaos.driver import assert_same_run, saved
from tests.training.processes import finish, kill_when, make_home, start, steps_logged


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a config and a corpus."""
    return make_home(tmp_path_factory.mktemp("survival"))


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """The run that nothing disturbed."""
    finish(start(home, "whole"))
    return home / "whole"


@pytest.mark.slow
def test_killed_twice_and_resumed_is_never_killed(home: Path, whole: Path) -> None:
    """SIGTERM between two checkpoints, then SIGKILL between two others."""
    run = home / "killed"
    process = start(home, "killed")
    seconds = kill_when(process, signal.SIGTERM, lambda: steps_logged(run) >= 7)
    output = finish(process)
    stopped = saved(run)[-1]
    assert seconds < 20  # on a busy machine; it is one or two on an idle one
    assert f"stopped at step {stopped} and saved" in output
    assert Run(run).available()[-1].kind == ("scheduled" if stopped in (20, 40) else "preempted")

    process = start(home, "killed")
    kill_when(process, signal.SIGKILL, lambda: steps_logged(run) >= max(stopped + 7, 28))
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    lost_from = saved(run)[-1]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # a line that the kill cut off

    output = finish(start(home, "killed"))
    assert f"resuming {run} at step {lost_from}" in output
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["restarts"] >= 2
    assert_same_run(run, whole)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(
    home: Path, whole: Path
) -> None:
    run = home / "damaged"
    shutil.copytree(whole, run)
    data = max((run / "checkpoints" / "60" / "model").rglob("d/*"), key=lambda p: p.stat().st_size)
    os.truncate(data, data.stat().st_size // 2)
    output = finish(start(home, "damaged"))
    assert f"checkpoint {run}/checkpoints/60 is damaged" in output
    assert f"resuming {run} at step 40" in output
    assert_same_run(run, whole)


@pytest.mark.slow
def test_mistakes_are_one_line_and_leave_nothing(home: Path, whole: Path) -> None:
    """Another architecture for an existing run, and a MODEL_DIR that cannot be written."""
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    wider = start(home, "whole", "--gin.ModelConfig.mlp_dim=48", "--gin.TRAIN_STEPS=70")
    (home / "occupied").write_text("")
    nowhere = start(home, "occupied/run")
    output = finish(wider, code=2)
    error = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert "mlp" in error[0]
    assert "Traceback" not in output
    after = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    changed = {p.relative_to(whole).parts[0] for p in after if after[p] != before.get(p)}
    assert changed <= {"tensorboard"}, "nothing but an empty event file is new"
    output = finish(nowhere, code=2)
    assert "error: cannot write to MODEL_DIR" in output
    assert "Traceback" not in output
