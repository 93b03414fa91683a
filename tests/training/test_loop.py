"""The loop in one process: cadence, bookkeeping, resuming, and what stops it."""

import dataclasses
import errno
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.evaluation.scoring import Interrupted
from jaxllm.io import JsonLines
from jaxllm.models.decoder import abstract_params, logits
from jaxllm.run.layout import Layout
from jaxllm.run.restore import restore_params
from jaxllm.run.run import Run
from jaxllm.training.experiment import Experiment
from jaxllm.training.learning_rate import ScheduleConfig
from jaxllm.training.loop import Outcome, train
from jaxllm.training.rollback import Diverged
from jaxllm.training.state import abstract_state
from tests.training.helpers import (
    MODEL,
    ROWS,
    FakeBatches,
    experiment,
    mesh,
    rows,
    stages,
)

TIMING = {
    "tokens_per_second", "flops_per_second", "mfu", "mfu_causal", "step_seconds",
    "data_wait_seconds", "checkpoint_seconds", "evaluation_seconds", "compile_seconds",
    "goodput", "time/data", "time/checkpoint", "time/evaluation", "time/compile", "time/start",
    "time/lost", "wall_seconds", "restarts",
}  # fmt: skip


class Evaluator:
    """Two tasks; keeps what was scored, and can be interrupted at one of them."""

    config = SimpleNamespace(due=lambda scheduled: scheduled)

    def __init__(self, interrupt: tuple[int, str] | None = None) -> None:
        self.definitions = {"a": None, "b": None}
        self.scored: dict[tuple[int, str], float] = {}
        self._interrupt = interrupt

    def evaluate(
        self,
        params: Any,
        step: int,
        tokens: int,
        flops: float,
        *,
        tasks: Sequence[str] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        checkpoint: float | None = None,
    ) -> list[tuple[int, str]]:
        for task in tasks or ():
            if self._interrupt == (step, task):
                os.kill(os.getpid(), signal.SIGTERM)
            if should_stop():
                raise Interrupted
            self.scored[step, task] = float(np.sum(np.abs(np.asarray(params["embedding"]))))
        return [(step, task) for task in tasks or ()]

    def missing(self, step: int, checkpoint: float | None = None) -> tuple[str, ...]:
        return tuple(task for task in self.definitions if (step, task) not in self.scored)


class Memory:
    """A writer that keeps everything."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict]] = []
        self.records: list[Any] = []
        self.begun: list[int] = []
        self.closed = False

    def begin(self, step: int) -> None:
        self.begun.append(step)

    def write_metrics(self, step: int, metrics: Any) -> None:
        self.metrics.append((step, dict(metrics)))

    def flush(self) -> None:
        pass

    def write_records(self, step: int, records: Sequence[Any]) -> None:
        self.records += records

    def close(self) -> None:
        self.closed = True


def go(e: Experiment, **options: Any) -> Outcome:
    own = {name: options.pop(name) for name in ("batches", "evaluator") if name in options}
    return train(e, mesh(1), stages(e, **own), **options)


def lines(model_dir: Path) -> list[dict]:
    return Run(model_dir).metrics_lines.read()[0]


TRAFFIC = ("requests/", "bytes/")  # to buckets that an earlier test has used


def exact(line: dict) -> str:
    """The part of a metrics line that may not depend on the machine or on restarts."""
    other = (*TIMING, *TRAFFIC)
    return json.dumps({k: v for k, v in line.items() if not k.startswith(other)})


def params(e: Experiment, step: int) -> Any:
    optimizer = e.train.optimizer.build(lambda count: 0.1, abstract_params(e.model))
    return restore_params(
        Layout(e.model_dir), step, abstract_state(e.model, optimizer, mesh(1)).params
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Evaluator, Memory]:
    """A run that nothing disturbed: 10 steps, saved at 0, 1, 2, 4, 8, 10."""
    e, evaluator, memory = experiment(tmp_path_factory.mktemp("whole")), Evaluator(), Memory()
    outcome = go(e, evaluator=evaluator, writers=[memory])
    assert (outcome.step, outcome.finished) == (10, True)
    return e, evaluator, memory


def test_saves_and_scores_on_schedule(whole: tuple[Experiment, Evaluator, Memory]) -> None:
    e, _, memory = whole
    entries = Run(e.model_dir).available()
    assert [entry.step for entry in entries] == [0, 1, 2, 4, 8, 10]
    assert [entry.kind for entry in entries] == ["scheduled"] * 5 + ["final"]
    assert [entry.tokens for entry in entries] == [s * 64 for s in (0, 1, 2, 4, 8, 10)]
    assert [entry.data_position for entry in entries] == [s * 8 for s in (0, 1, 2, 4, 8, 10)]
    assert entries[-1].flops == 6 * e.model.num_params * 640
    assert memory.records == [(s, t) for s in (0, 1, 2, 4, 8, 10) for t in "ab"]
    assert memory.closed and memory.begun == [0]


def test_metrics_say_what_was_agreed(whole: tuple[Experiment, Evaluator, Memory]) -> None:
    e, _, memory = whole
    written = lines(Path(e.model_dir))
    assert [line["step"] for line in written] == [3, 6, 9, 10]
    assert [line for _, line in memory.metrics] == [
        {k: v for k, v in line.items() if k != "step"} for line in written
    ]
    expected = {"step", "tokens", "flops", "loss", "loss/even", "loss/odd", "grad_norm"}
    named = {name for name in written[0] if not name.startswith(TRAFFIC)}
    assert named == expected | {"param_norm", "learning_rate"} | TIMING
    assert written[0]["mfu"] is None, "no peak is known of a CPU"
    assert written[-1]["tokens"] == 640


def test_z_loss_is_logged_beside_the_loss(tmp_path: Path) -> None:
    """One step in two microbatches, against NumPy on the saved parameters."""
    schedule = ScheduleConfig(peak_lr=1e-2, warmup_steps=1)
    e = experiment(tmp_path, steps=1, schedule=schedule, gradient_accumulation=2, z_loss=0.1)
    go(e)
    batch = rows(0, ROWS)
    values = np.asarray(logits(MODEL, params(e, 0), jax.tree.map(jnp.asarray, batch)), np.float64)
    log_z = np.log(np.exp(values).sum(-1))
    chosen = np.take_along_axis(values, batch.targets[..., None], -1)[..., 0]
    (line,) = lines(tmp_path)
    for name, losses in {"loss": log_z - chosen, "z_loss": 0.1 * log_z**2}.items():
        mean = np.sum(losses * batch.weights) / np.sum(batch.weights)
        assert line[name] == pytest.approx(mean, rel=1e-5)


def test_setup_checkpoints_and_evaluation_are_not_step_time(tmp_path: Path) -> None:
    class Slow(Evaluator):
        def evaluate(self, *args: Any, **options: Any) -> Any:
            import time

            time.sleep(0.2)
            return super().evaluate(*args, **options)

    e = experiment(tmp_path, steps=4, log_every=3)
    outcome = go(e, evaluator=Slow())
    line = lines(tmp_path)[0]
    assert line["evaluation_seconds"] >= 1.2  # two tasks at steps 0, 1 and 2
    assert outcome.seconds.evaluation >= 1.6
    assert line["step_seconds"] < 0.4  # two tasks after each step
    assert line["data_wait_seconds"] <= 3 * line["step_seconds"]
    assert outcome.seconds.wall > outcome.seconds.evaluation + outcome.seconds.setup


def test_ctrl_c_after_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_stop = Run.note_stop

    def interrupted(run: Run, *known: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        note_stop(run, *known)

    monkeypatch.setattr(Run, "note_stop", interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also of a test run in the background
    outcome = go(experiment(tmp_path))
    assert (outcome.step, outcome.finished, outcome.interrupted) == (10, False, True)


@pytest.mark.parametrize("stop", [5, 8])
def test_interrupted_by_sigterm_and_resumed_is_bitwise_the_same(
    tmp_path: Path, whole: tuple[Experiment, Evaluator, Memory], stop: int
) -> None:
    """At step 5 in the middle of a log interval; at step 8 in the middle of an evaluation."""
    reference, scored, _ = whole

    class Signalling(FakeBatches):
        def __next__(self) -> Any:
            if self._next == (stop - 1) * 8 and stop == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__next__()

    e = experiment(tmp_path)
    evaluator = Evaluator(interrupt=(8, "b") if stop == 8 else None)
    outcome = go(e, batches=Signalling, evaluator=evaluator)
    assert (outcome.step, outcome.finished) == (stop, False)
    assert Run(tmp_path).available()[-1].kind == ("preempted" if stop == 5 else "scheduled")
    assert evaluator.missing(8) == (("b",) if stop == 8 else ("a", "b"))
    # what a kill may leave behind
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1.0}\n{"step": 1')

    evaluator._interrupt = None
    outcome = go(e, evaluator=evaluator)
    assert (outcome.step, outcome.finished) == (10, True)
    assert evaluator.scored == scored.scored
    assert list(map(exact, lines(tmp_path))) == list(map(exact, lines(Path(reference.model_dir))))
    assert [line["restarts"] for line in lines(tmp_path)][-2:] == [1, 1]
    for entry, other in zip(
        Run(tmp_path).available(), Run(reference.model_dir).available(), strict=True
    ):
        assert (entry.step, entry.loss, entry.learning_rate) == (
            other.step, other.loss, other.learning_rate,
        )  # fmt: skip
        same = jax.tree.map(
            lambda a, b: np.array_equal(a, b), params(e, entry.step), params(reference, entry.step)
        )
        assert jax.tree.all(same), f"step {entry.step}"


def test_a_finished_run_does_nothing_but_what_is_missing(
    whole: tuple[Experiment, Evaluator, Memory],
) -> None:
    e, evaluator, _ = whole
    before = (Path(e.model_dir) / "metrics.jsonl").read_text()
    del evaluator.scored[10, "a"]
    outcome = go(e, evaluator=evaluator)
    assert (outcome.step, outcome.finished) == (10, True)
    assert (10, "a") in evaluator.scored
    assert (Path(e.model_dir) / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("log_every", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run_with_a_clear_line(
    tmp_path: Path, log_every: int
) -> None:
    e = experiment(tmp_path, log_every=log_every)
    memory = Memory()
    with pytest.raises(Diverged) as stopped:
        go(e, batches=lambda start: FakeBatches(start, poison_at=8 * 6), writers=[memory])
    text = str(stopped.value)
    assert "the loss is nan at step 7" in text
    assert "last good: step 6 (loss " in text
    assert "newest checkpoint: step 4" in text
    assert memory.closed
    assert Run(tmp_path).available()[-1].step == 4
    assert lines(tmp_path)[-1]["step"] == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_accumulation": 3}, "gradient_accumulation = 3 does not divide"),
        ({"gradient_accumulation": 4}, r"batch size 2 does not divide over data=1 x fsdp=4"),
        ({"model_dir": ""}, "MODEL_DIR is not set"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    options = {"model_dir": tmp_path} | changes
    e = experiment(options.pop("model_dir"), **options)
    with pytest.raises(UserError, match=message):
        train(e, mesh(4), stages(e))
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_that_the_model_has_no_room_for_is_refused(tmp_path: Path) -> None:
    narrow = experiment(tmp_path, model=dataclasses.replace(MODEL, vocab_size=31))
    with pytest.raises(UserError, match="vocab_size = 31 is too small"):
        go(narrow)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_during_the_run_is_one_line(tmp_path: Path, number: int) -> None:
    reason = os.strerror(number)  # as: No space left on device

    class Full(Memory):
        def write_metrics(self, step: int, metrics: Any) -> None:
            raise OSError(number, reason)

        def close(self) -> None:
            self.closed = True
            raise OSError(number, f"{reason}, again")

    writer = Full()
    with pytest.raises(UserError, match=rf"cannot write to MODEL_DIR .*: {reason};"):
        go(experiment(tmp_path), writers=[writer])
    assert writer.closed
    assert [e.step for e in Run(tmp_path).available()][:3] == [0, 1, 2], "what was saved stays"


@pytest.mark.parametrize("number", [3, 7])
def test_a_run_that_has_lost_its_lease_stores_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """At the third save, of step 2; and after the last one."""
    flushes, stored = [], []

    class Lease(Memory):
        def flush(self) -> None:
            flushes.append(True)
            if len(flushes) == number:
                raise UserError("this run may not write any more")

    def store(self: JsonLines) -> None:
        stored.append(self.path.name)

    monkeypatch.setattr(JsonLines, "flush", store)
    with pytest.raises(UserError, match="may not write any more"):
        go(experiment(tmp_path), writers=[Lease()])
    assert stored == ["metrics.jsonl"] * (number - 1)
    assert [e.step for e in Run(tmp_path).entries()] == [0, 1, 2, 4, 8, 10][: number - 1]
    assert not Layout(tmp_path).restarts.exists()


def test_a_run_that_lost_its_lease_before_it_began_keeps_the_config_of_the_other(
    tmp_path: Path,
) -> None:
    class Lease(Memory):
        def flush(self) -> None:
            raise UserError("this run may not write any more")

    run, e = Run(tmp_path), experiment(tmp_path)
    run.write_config("TrainConfig.steps = 10\n")
    with pytest.raises(UserError, match="may not write any more"):
        train(e, mesh(), stages(e), [Lease()], "TrainConfig.steps = 20\n")
    assert run.settings()["TrainConfig.steps"] == 10


def test_a_full_disk_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil._ntuple_diskusage(10**9, 10**9 - 10**4, 10**4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="the run's checkpoints will need"):
        go(experiment(tmp_path))
    assert not Run(tmp_path).entries()
