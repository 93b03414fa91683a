"""A run that diverges goes back and passes over the data that led there, and says so."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.report.alarms import RUN, HealthWriter
from jaxllm.run.checkpoint_schedule import CheckpointConfig
from jaxllm.run.manifest import Rollback
from jaxllm.run.run import Run
from jaxllm.train import main
from jaxllm.training import rollback
from jaxllm.training.config import RollbackConfig
from jaxllm.training.experiment import Experiment
from jaxllm.training.loop import Outcome, train
from jaxllm.training.rollback import Diverged, SpikeWatch, roll_back, skip_by_hand
from tests.training.helpers import ROWS, FakeBatches, experiment, mesh, stages
from tests.training.test_loop import Memory, exact, lines, params

SAID = [("raised", 4), ("cleared", 9)]
ROLLBACK = {"times": 2, "margin": 1, "recovery_steps": 4}


class Planted(FakeBatches):
    """NaN in the batches of step 7 and from `hopeless` on, and a signal before step 10."""

    stop = hopeless = 99

    def __next__(self) -> Any:
        step = self._next // ROWS + 1
        batch = super().__next__()
        if step == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == 7 or step >= self.hopeless:
            batch = batch._replace(weights=batch.weights * np.float32(np.nan))
        return batch


class Stopped(Planted):
    stop = 10


class Hopeless(Planted):
    hopeless = 8


def go(e: Experiment, batches: Any = Planted, writers: Any = ()) -> Outcome:
    return train(e, mesh(1), stages(e, batches), writers)


def of(path: Path, **options: Any) -> Experiment:
    return experiment(path, **{"steps": 12, "rollback": ROLLBACK} | options)


def check_same_end(one: Experiment, other: Experiment) -> None:
    """Check that two runs have the same metrics and last parameters, bitwise."""
    assert [*map(exact, lines(Path(one.model_dir)))] == [*map(exact, lines(Path(other.model_dir)))]
    jax.tree.map(np.testing.assert_array_equal, params(one, 12), params(other, 12))


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Step 7 diverges: back to step 4, and past 6, 7 and 8."""
    e, memory = of(tmp_path_factory.mktemp("recovered")), Memory()
    assert go(e, writers=[memory, HealthWriter(e.model_dir)]).finished
    assert memory.begun == [0, 4]
    return e


def test_a_run_recovers_and_says_how(recovered: Experiment) -> None:
    run = Run(recovered.model_dir)
    (row,) = run.rollbacks()
    assert row[:4] == (4, 6, 8, "divergence") and "the loss is nan at step 7" in row.reason
    entries = {entry.step: entry for entry in run.available()}
    assert sorted(entries) == [0, 1, 2, 4, 8, 12], "scheduled ones in the stretch, too"
    assert [entries[step].skipped_steps for step in (4, 8, 12)] == [0, 3, 3]
    assert entries[12].data_position == 12 * ROWS and entries[12].rollbacks == 1
    same = jax.tree.map(np.array_equal, params(recovered, 8), params(recovered, 12))
    assert not jax.tree.all(same), "it trains on after the stretch"
    written = {line["step"]: line for line in lines(run.path)}
    assert sorted(written) == [3, 9, 12] and written[12]["skipped_steps"] == 3
    assert written[9]["learning_rate"] < written[3]["learning_rate"]
    assert written[12]["restarts"] == 1


def test_a_rollback_is_an_alarm_until_the_run_has_passed_the_stretch(
    recovered: Experiment, tmp_path: Path
) -> None:
    rows = Run(recovered.model_dir).alarm_lines.read()[0]
    told = [(row["check"], row["subjects"], row["state"], row["step"]) for row in rows]
    assert told == [(RUN, ["rolled back"], state, at) for state, at in SAID]
    assert rows[0]["severity"] == "critical"
    expected = "The run went back to step 4, and goes on past steps 6:8: the loss is nan at step 7;"
    assert rows[0]["reason"].startswith(expected)
    # killed before it was told, and then within the stretch
    run = Run(shutil.copytree(recovered.model_dir, tmp_path / "run"))
    run.layout.alarms.unlink()
    for begun in (4, 7, 12):
        HealthWriter(run.path).begin(begun)
    told = [(row["state"], row["step"]) for row in run.alarm_lines.read()[0]]
    assert told == SAID[:1]


def test_the_record_alone_gives_the_same_run(recovered: Experiment, tmp_path: Path) -> None:
    """Stopped and resumed on its way, without a rollback of its own; and said twice."""
    e = of(tmp_path, rollback=None)
    skip_by_hand(Run.create(tmp_path), "6:8")
    assert not go(e, Stopped).finished
    skip_by_hand(Run(tmp_path), "6:8")
    assert go(e).finished and len(Run(tmp_path).rollbacks()) == 1
    check_same_end(e, recovered)


def test_a_kill_between_the_record_and_the_way_back(recovered: Experiment, tmp_path: Path) -> None:
    """Checkpoints of the abandoned steps are not resumed from."""
    e = of(tmp_path, checkpoints=CheckpointConfig(early=(0, 1, 2, 4, 6), every_steps=4))
    with pytest.raises(Diverged) as diverged:
        go(dataclasses.replace(e, train=dataclasses.replace(e.train, rollback=None)))
    assert Run(tmp_path).available()[-1].step == 6
    roll_back(Run(tmp_path), e.train.rollback, diverged.value, print)
    assert Run(tmp_path).available()[-1].step == 4
    with (tmp_path / "rollbacks.jsonl").open("a") as file:
        file.write('{"step": 4, "fir')  # of another, killed while it was written
    assert go(e).finished
    check_same_end(e, recovered)


def test_rollbacks_are_bounded_and_the_last_words_name_them(tmp_path: Path) -> None:
    with pytest.raises(Diverged) as stopped:
        go(of(tmp_path), Hopeless)
    assert "rollbacks past the steps 6:8, 8:10 have not helped" in str(stopped.value)
    assert "the loss is nan at step 11" in str(stopped.value)
    assert [one.step for one in Run(tmp_path).rollbacks()] == [4, 4]


def test_a_run_without_a_checkpoint_before_the_stretch_ends(tmp_path: Path) -> None:
    e = of(tmp_path, checkpoints=CheckpointConfig(early=(6,), every_steps=None))
    with pytest.raises(Diverged, match=r"nan at step 7.*has no checkpoint before step 6"):
        go(e)
    assert not Run(tmp_path).rollbacks()


@pytest.mark.parametrize("steps", ["8", "0:4", "9:8", "a:b"])
def test_malformed_steps_are_refused(tmp_path: Path, steps: str) -> None:
    with pytest.raises(UserError, match=f"--skip_steps={steps}: write the first and last step"):
        skip_by_hand(Run(tmp_path), steps)


def test_a_spike_that_does_not_recover_is_a_divergence() -> None:
    config, random = RollbackConfig(recovery_steps=5), np.random.default_rng(0)
    watch = SpikeWatch(config, {})
    losses = 3.0 + 0.01 * random.standard_normal(100)
    for step, loss in enumerate(losses, 1):
        watch.add(step, loss)
    assert watch.since is None
    watch.add(101, 3.5)
    watch.add(102, float("nan"))
    assert watch.since == 101, "a checkpoint of now is marked"
    watch.add(103, 3.0)
    assert watch.since == 101, "one good loss is luck"
    for step in range(103, 108):
        watch = SpikeWatch(config, watch.to_json())
        watch.add(step, 3.0)
    assert watch.since is None, "recovered"
    for step in range(108, 113):
        watch.add(step, 3.5)
        watch = SpikeWatch(config, watch.to_json())
    with pytest.raises(Diverged, match="at step 108 and has not recovered by step 113") as spike:
        watch.add(113, 3.5)
    assert (spike.value.first, spike.value.last) == (108, 113)


def watched(watch: SpikeWatch, losses: Any, *shifts: int) -> None:
    for step, loss in enumerate(losses, 1):
        watch.add(step, loss, step in shifts)


def test_a_noisy_divergence_is_one_too() -> None:
    random = np.random.default_rng(0)
    high = np.where(np.arange(300) % 4 == 3, 3.0, 4.0)  # one good loss in four
    losses = np.append(3.0 + 0.01 * random.standard_normal(100), high)
    with pytest.raises(Diverged, match="at step 101 and has not recovered by step 301"):
        watched(SpikeWatch(RollbackConfig(), {}), losses)


def test_a_level_that_skipping_has_accepted_is_no_spike() -> None:
    random = np.random.default_rng(0)
    losses = np.append(np.full(100, 3.0), np.full(400, 4.0)) + 0.01 * random.standard_normal(500)
    watched(watch := SpikeWatch(RollbackConfig(), {}), losses, 111)
    assert watch.since is None
    with pytest.raises(Diverged, match="at step 101"):
        watched(SpikeWatch(RollbackConfig(), {}), losses)


def test_a_run_just_branched_begins_again_at_its_parent(tmp_path: Path) -> None:
    parent, path = of(tmp_path / "parent", steps=4, rollback=None), tmp_path / "branch"
    assert go(parent, FakeBatches).finished
    with (Path(Run.create(path).path) / "rollbacks.jsonl").open("w") as file:
        file.write('{"step": 4, "fir')  # killed while it took over those of its parent
    parent_row = Rollback(4, 11, 11, "hand", "")
    Run(tmp_path / "parent").rollback_lines.append(parent_row._asdict())
    e = of(path, branch_from=f"{tmp_path}/parent@4", rollback={"margin": 100},
           checkpoints=CheckpointConfig(early=(6,), every_steps=None))  # fmt: skip
    assert go(e).finished
    rows = Run(path).rollbacks()
    assert [one[:4] for one in rows] == [(4, 11, 11, "parent"), (4, 5, 107, "divergence")]


class Shuffled(FakeBatches):
    """Targets without sense from step 19 to 26, and a signal before step 22."""

    def __next__(self) -> Any:
        step = self._next // ROWS + 1
        batch = super().__next__()
        if step == 22:
            os.kill(os.getpid(), signal.SIGTERM)
        wrong = np.random.default_rng(step).permuted(batch.targets, axis=1)
        return batch._replace(targets=wrong) if 19 <= step <= 26 else batch


def test_checkpoints_in_a_spike_are_marked_and_not_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "WINDOW", 8)
    monkeypatch.setattr(rollback, "THRESHOLD", 3.0)
    e = of(tmp_path, steps=30, checkpoints=CheckpointConfig(early=None, every_steps=5),
           rollback={"recovery_steps": 6, "margin": 2})  # fmt: skip
    assert not go(e, Shuffled).finished
    entries = Run(tmp_path).available()
    assert [(entry.step, entry.spike) for entry in entries][-2:] == [(20, True), (22, True)]
    assert not go(e, Shuffled).finished, "from step 22, in the middle of it"
    assert [one[:4] for one in Run(tmp_path).rollbacks()] == [(15, 17, 27, "divergence")]
    assert Run(tmp_path).available()[-1].step == 22, "in the stretch"
    assert go(e, Shuffled).finished
    assert not any(entry.spike for entry in Run(tmp_path).available())


def test_steps_are_not_skipped_in_a_stack() -> None:
    with pytest.raises(UserError, match="--skip_steps: train the run alone"):
        main(["--stack=runs.json", "--skip_steps=1:2"])
