"""What a start says and refuses, where the settings or the files of a run have changed."""

import dataclasses
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jaxllm.errors import UserError
from jaxllm.run.run import Run
from jaxllm.training.experiment import Experiment
from jaxllm.training.learning_rate import ScheduleConfig
from jaxllm.training.loop import Outcome, train
from jaxllm.training.metrics import MetricsLog
from tests.training.helpers import MODEL, experiment, mesh, stages


def go(e: Experiment, config_text: str = "TRAIN_STEPS = 4", **options: Any) -> Outcome:
    return train(e, mesh(1), stages(e, **options), config_text=config_text)


@pytest.fixture
def trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Experiment:
    e = experiment(tmp_path, steps=4)
    go(e)
    capsys.readouterr()
    return e


def longer(e: Experiment, steps: int) -> Experiment:
    return dataclasses.replace(e, train=dataclasses.replace(e.train, steps=steps))


def test_another_number_of_steps_is_told_and_each_config_stays(
    trained: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    go(longer(trained, 8), "TRAIN_STEPS = 8")
    said = capsys.readouterr().out
    assert "changed since the last start: TRAIN_STEPS = 8 (was 4)" in said
    assert "the learning rate goes on from" in said and "it was 0.001 at step 4" in said
    run = Run(trained.model_dir)
    assert run.config() == "TRAIN_STEPS = 8"
    assert run.layout.config_until(4).read_text() == "TRAIN_STEPS = 4"


def test_a_running_wsd_run_begins_its_decay_when_it_is_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SIGTERM and a start with fewer steps: the plateau until then, the decay of the new end."""
    monkeypatch.setattr(MetricsLog, "add", _signal_at(6, MetricsLog.add))
    wsd = ScheduleConfig(kind="wsd", peak_lr=1e-2, end_lr=0.0, warmup_steps=2, decay_steps=4)
    e = experiment(tmp_path, steps=100, schedule=wsd, log_every=1)
    text = "TRAIN_STEPS = {}\nScheduleConfig.decay_steps = 4\n"
    assert not go(e, text.format(100)).finished
    assert go(longer(e, 10), text.format(10)).finished
    rates = {row["step"]: row["learning_rate"] for row in Run(tmp_path).metrics_lines.read()[0]}
    assert list(rates.values()) == pytest.approx([5e-3] + [1e-2] * 5 + [7.5e-3, 5e-3, 2.5e-3, 0.0])
    said = capsys.readouterr().out
    assert "changed since the last start: TRAIN_STEPS = 10 (was 100)" in said
    assert "the learning rate goes on from" not in said, "it was at its peak by both"


def _signal_at(stop: int, add: Callable[..., None]) -> Callable[..., None]:
    def added(log: MetricsLog, step: int, metrics: Any) -> None:
        add(log, step, metrics)
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    return added


def test_the_same_start_again_says_nothing_of_changes(
    trained: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    go(trained)
    said = capsys.readouterr().out
    assert "nothing to train: the run is at step 4, and TrainConfig.steps = 4" in said
    assert "changed" not in said and "learning rate" not in said
    assert not Run(trained.model_dir).layout.config_until(4).exists()


@pytest.mark.parametrize(
    "change", [{"rope_theta": 5e5}, {"activation": "gelu"}, {"norm_eps": 1e-5}, {"num_layers": 2}]
)
def test_another_model_is_refused_with_the_setting_that_differs(
    trained: Experiment, change: dict[str, Any]
) -> None:
    (name,) = change
    other = dataclasses.replace(longer(trained, 8), model=dataclasses.replace(MODEL, **change))
    with pytest.raises(UserError, match=f"is of a model with {name} = .*another MODEL_DIR"):
        go(other, "TRAIN_STEPS = 8")
    assert Run(trained.model_dir).config() == "TRAIN_STEPS = 4", "nothing may be overwritten"
    remat = dataclasses.replace(longer(trained, 8), model=dataclasses.replace(MODEL, remat="full"))
    assert go(remat).finished, "how a model is run may change"


def test_records_of_steps_that_are_done_again_are_moved_away(trained: Experiment) -> None:
    run = Run(trained.model_dir)
    for step in (4, 6):
        run.trajectory.write(step, "task", [])
    go(longer(trained, 5))
    assert run.trajectory.steps() == (4,)
    assert [path.name for path in run.layout.abandoned.glob("*/6/*")] == ["task.parquet"]


class SlowEvaluator:
    """One task that takes a while, during which the run is told to stop."""

    config = SimpleNamespace(due=lambda scheduled: [4])

    def __init__(self, now: Any, stop: bool) -> None:
        self.definitions = {"task": None}
        self._now, self._stop = now, stop

    def evaluate(self, *_: Any, should_stop: Callable[[], bool], **__: Any) -> Sequence[Any]:
        self._now.seconds += 1000.0
        if self._stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return []

    def missing(self, step: int, checkpoint: float | None) -> Sequence[str]:
        return ()


def test_a_stop_while_scoring_keeps_the_time_of_that_scoring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    from jaxllm.run import times

    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(times.time, "perf_counter", lambda: now.seconds)
    e = experiment(tmp_path, steps=6)
    outcome = go(e, evaluator=SlowEvaluator(now, stop=True))
    assert (outcome.step, outcome.finished) == (4, False)
    again = go(e, evaluator=SlowEvaluator(now, stop=False))
    assert again.run_seconds.evaluation == 1000.0
    assert again.run_seconds.wall == 1000.0 and again.run_seconds.lost == 0.0


def test_the_last_rate_of_a_linear_decay_is_not_below_its_end() -> None:
    from jaxllm.training.learning_rate import make_schedule

    for steps in range(20, 400, 7):
        config = ScheduleConfig(kind="wsd", peak_lr=1.67e-3, end_lr=0.0, warmup_steps=5)
        assert float(make_schedule(config, steps)(steps - 1)) == 0.0
