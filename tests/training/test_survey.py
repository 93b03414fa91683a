"""What a run says of itself: where its time went, what hangs, what the profiler sees."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from jaxllm.errors import UserError
from jaxllm.run.run import Run
from jaxllm.run.times import TimeBreakdown
from jaxllm.training.config import TrainConfig
from jaxllm.training.experiment import Experiment
from jaxllm.training.loop import Outcome, train
from tests.training.helpers import FakeBatches, experiment, mesh, stages


def go(e: Experiment, batches: Any = FakeBatches) -> Outcome:
    return train(e, mesh(1), stages(e, batches))


class Killed(Exception):
    """Stands for a kill: nothing is saved after it."""


def killed_at(step: int, seconds: float) -> type[FakeBatches]:
    """Batches that take `seconds` each, and kill the run when the one of `step` is asked for."""

    class Batches(FakeBatches):
        def __next__(self) -> Any:
            time.sleep(seconds)
            if self._next >= (step - 1) * 8:
                raise Killed
            return super().__next__()

    return Batches


def test_work_that_is_done_again_is_lost_time(tmp_path: Path) -> None:
    """Killed at step 8 with the checkpoint of 4, killed again before a line, and finished."""
    e = experiment(tmp_path, steps=10, log_every=1)
    with pytest.raises(Killed):
        go(e, killed_at(8, seconds=0.1))
    first = Run(tmp_path).metrics_lines.read()[0]
    assert first[-1]["step"] == 6  # 7 was under way
    lost = first[-1]["wall_seconds"] - Run(tmp_path).available()[-1].wall_seconds
    assert lost > 0.2, "two batches, at least"
    with pytest.raises(Killed):
        go(e, killed_at(5, seconds=0.0))
    outcome = go(e)

    one, two = (row for row in Run(tmp_path).restart_lines.read()[0] if "restarts" in row)
    assert [(row["step"], row["restarts"]) for row in (one, two)] == [(4, 1), (4, 2)]
    assert one["wall_seconds"] == two["wall_seconds"] == first[-1]["wall_seconds"]
    assert one["lost_seconds"] == two["lost_seconds"] == pytest.approx(lost, abs=0.01)

    spent, here = outcome.run_seconds, outcome.seconds
    assert spent.lost == pytest.approx(two["lost_seconds"] + here.setup + here.compile)
    assert spent.wall == pytest.approx(two["wall_seconds"] + here.wall, abs=0.01)
    last = Run(tmp_path).metrics_lines.read()[0][-1]
    assert last["wall_seconds"] > first[-1]["wall_seconds"]
    assert last["time/lost"] * last["wall_seconds"] > two["lost_seconds"]
    shares = [last[name] for name in ("goodput", *(n for n in last if n.startswith("time/")))]
    assert sum(shares) == pytest.approx(1.0)
    assert "lost to 2 restarts" in outcome.timing()


def test_parts_of_the_time_sum_to_the_whole() -> None:
    lap = TimeBreakdown(
        wall=10.0, setup=1.0, compile=1.5, checkpoint=0.5, evaluation=2.0, data=1.0, lost=1.0
    )
    assert lap.steps == 4.0
    shares = lap.shares()
    assert shares["goodput"] == pytest.approx(0.3)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_a_profile_is_where_tensorboard_looks(tmp_path: Path) -> None:
    from jax.profiler import ProfileData

    outcome = go(experiment(tmp_path, steps=7, profile_steps=(3, 5)))
    assert outcome.finished
    (file,) = (tmp_path / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb")
    events = {
        (event.name, dict(event.stats).get("step_num"))
        for plane in ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
    }
    assert {step for name, step in events if name == "train"} == {3, 4, 5}


def test_a_profile_that_the_end_cuts_off_is_written(tmp_path: Path) -> None:
    go(experiment(tmp_path, steps=4, profile_steps=(4, 9)))
    assert list((tmp_path / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb"))


@pytest.mark.parametrize("steps", [(5, 3), (0, 2), (3,)])
def test_steps_that_are_no_interval_are_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="profile_steps"):
        dataclasses.replace(TrainConfig(), profile_steps=steps)  # type: ignore[arg-type]
