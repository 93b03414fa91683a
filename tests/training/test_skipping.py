"""Outliers are skipped by the update itself, and nothing else of a run changes."""

import os
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxllm.run.run import Run
from jaxllm.training.config import SkipConfig
from jaxllm.training.learning_rate import make_schedule
from jaxllm.training.loop import train
from jaxllm.training.rollback import Diverged
from jaxllm.training.skipping import SkipState, Verdict, clip, judge, limit
from jaxllm.training.state import TrainState, abstract_state, initializer
from jaxllm.training.step import compile_train_step, device_batch, lower_train_step
from tests.training.helpers import LENGTH, MODEL, ROWS, FakeBatches, experiment, mesh, rows, stages
from tests.training.test_loop import exact, lines

CONFIG = SkipConfig(window=4, longest=2)


def lowered(config: SkipConfig | None, devices: int = 4, **options: Any) -> Any:
    """The update in two microbatches, with a moving average of the parameters."""
    e, on = experiment("unused", ema_decay=0.9), mesh(devices, data=devices)
    abstract = abstract_state(MODEL, e.make_optimizer(), on, skip=config)
    lower = lower_train_step if config is None else compile_train_step
    step = lower(
        MODEL, e.make_optimizer(), make_schedule(e.schedule, 10), on, abstract, batch_size=ROWS,
        length=LENGTH, num_domains=2, accumulation=2, **options,
    )  # fmt: skip
    return step, abstract, e.make_optimizer()


@pytest.fixture(scope="module")
def step() -> Any:
    return lowered(CONFIG, skip=CONFIG)


def begun(step: Any, accepted: Any = np.nan, rejected: int = 0) -> tuple[TrainState, Any]:
    """A state after some steps, as on the device and in NumPy, with this window."""
    _, abstract, optimizer = step
    state = initializer(MODEL, optimizer, abstract)(0)
    window = np.broadcast_to(np.asarray(accepted, np.float32), (2, 4))
    skip = SkipState(window, np.int32(rejected))
    skip = jax.device_put(skip, jax.tree.map(lambda leaf: leaf.sharding, abstract.skip))
    state = state._replace(skip=skip)
    return state, jax.tree.map(lambda x: np.array(x), state)


def taken(step: Any, state: TrainState, poisoned: Any = ()) -> tuple[Any, Verdict]:
    batch = rows(0, ROWS)
    weights = batch.weights.copy()
    weights[list(poisoned), 1] = np.nan
    new, metrics = step[0](state, device_batch(batch._replace(weights=weights), mesh(4, data=4)))
    return jax.tree.map(np.asarray, new), metrics.skip


def changes(new: TrainState, old: TrainState) -> list[str]:
    """The arrays that differ."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(new), jax.tree.leaves(old), strict=True)
    same = lambda a, b: np.array_equal(a, b, equal_nan=True)
    return [jax.tree_util.keystr(path) for (path, a), b in pairs if not same(a, b)]


@pytest.mark.parametrize(
    "poisoned", [range(ROWS), range(0, ROWS, 2), [ROWS - 1]], ids=["loss", "microbatch", "shard"]
)
def test_a_step_with_nan_changes_nothing_but_the_steps(step: Any, poisoned: Any) -> None:
    state, before = begun(step, accepted=[3, 3.5, 3.6, 3.7])
    after, verdict = taken(step, state, poisoned)
    assert not verdict.applied and not verdict.normal and verdict.rejected == 1
    others = [name for name in changes(after, before) if name not in (".step", ".skip.rejected")]
    assert len(others) == 1 and others[0].endswith(".count"), "the schedule's, and no moment's"
    assert after.step == before.step + 1


def test_a_level_shift_becomes_the_new_normal(step: Any) -> None:
    """The third outlier in a row is accepted, and the window begins with it; NaN never is."""
    low = [0.10, 0.11, 0.12, 0.13]
    state, before = begun(step, accepted=low)
    assert ".params['embedding']" not in changes(taken(step, state)[0], before)
    state, before = begun(step, accepted=low, rejected=2)
    after, verdict = taken(step, state)
    assert verdict.applied and ".params['embedding']" in changes(after, before)
    assert np.isnan(after.skip.accepted[:, :3]).all() and after.skip.accepted[0, 3] > 3
    assert not taken(step, begun(step, accepted=low, rejected=2)[0], [0])[1].applied


def test_nan_in_the_window_is_an_empty_place(step: Any) -> None:
    """With the other three the decision is made; with too few of them every value is accepted."""
    nan = np.nan
    for window, applied in {(nan, 3, 3.5, 4): True, (nan, 1, 1.1, 1.2): False,
                            (nan, nan, nan, 1): True}.items():  # fmt: skip
        _, verdict = taken(step, begun(step, accepted=window)[0])
        assert bool(verdict.applied) == applied, window


def test_the_limit_is_that_of_scipy() -> None:
    random = np.random.default_rng(0)
    window = random.lognormal(size=(2, 128)).astype(np.float32)
    spread = stats.median_abs_deviation(window, axis=1, scale="normal")
    expected = np.median(window, axis=1) + 5.0 * spread
    np.testing.assert_allclose(limit(window, 5.0), expected, rtol=1e-4)
    np.testing.assert_allclose(limit(window, 5.0, np), expected, rtol=1e-4)
    assert limit(np.full(128, 2.0), 5.0, np) == pytest.approx(2.01), "equal values have a floor"


def test_false_skips_on_healthy_noise_and_a_spike(threshold: float = 10.0) -> None:
    """AR(1) noise, φ = 0.9, with a spike: at most one false skip per 10,000 steps."""
    random, series, length = np.random.default_rng(0), 64, 1200
    noise = random.standard_normal((length, series)) * np.sqrt(1 - 0.9**2)
    for step in range(1, length):
        noise[step] += 0.9 * noise[step - 1]
    noise[1000] += 15.0
    config = SkipConfig(threshold=threshold)

    def one(state: SkipState, loss: Any) -> Any:
        verdict, state = judge(config, state, loss, jnp.float32(1.0))
        return state, verdict.applied

    run = jax.jit(jax.vmap(lambda x: jax.lax.scan(one, SkipState.empty(128), x)[1]))
    applied = np.asarray(run(jnp.asarray(noise.T + 30.0, jnp.float32)))
    assert not applied[:, 1000].any()
    assert np.delete(~applied, 1000, axis=1).mean() <= 1e-4


def test_a_clipped_gradient_has_the_largest_accepted_norm() -> None:
    config = SkipConfig(rule="clip", window=4)
    state = SkipState(jnp.array([[3.0, 3, 3, 3], [1.0, 1.1, 1.2, 1.3]]), jnp.int32(0))
    gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    verdict, after = judge(config, state, jnp.float32(9.0), jnp.float32(13.0))
    assert verdict.applied and not verdict.normal
    assert np.array_equal(after.accepted, state.accepted), "what is clipped is not of the window"
    clipped = clip(gradients, jnp.float32(13.0), verdict)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in clipped.values()))
    assert norm == pytest.approx(float(verdict.limits[1]), rel=1e-6)
    assert not judge(config, state, jnp.float32(9.0), jnp.float32(np.inf))[0].applied


def test_the_window_is_restored_bitwise_in_any_size() -> None:
    accepted = np.full((2, 5), np.nan, np.float32)
    accepted[:, 2:] = np.random.default_rng(0).random((2, 3), np.float32)
    saved = SkipState(accepted, np.int32(3)).to_json()
    for size in (5, 8, 2):
        again = SkipState.restored(saved, size)
        assert again.rejected == 3 and again.accepted.shape == (2, size)
        newest = min(size, 3)
        assert np.array_equal(again.accepted[:, -newest:], accepted[:, -newest:])
        assert np.isnan(again.accepted[:, :-newest]).all()


def test_a_run_without_it_has_no_operation_of_it() -> None:
    text = lowered(None)[0].as_text()
    assert "is_finite" not in text and text == lowered(None, skip=None)[0].as_text()


class PoisonedBatches(FakeBatches):
    """NaN in one sequence of some steps' batches, and a signal before one."""

    steps: range = range(6, 8)
    stop: int | None = None

    def __next__(self) -> Any:
        step = self._next // ROWS + 1
        if step == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        batch = super().__next__()
        if step in self.steps:
            batch.weights[3] = np.nan
        return batch


class Stopped(PoisonedBatches):
    stop = 6  # the signal is seen after the first of two bad steps


class Hopeless(PoisonedBatches):
    steps = range(6, 99)


def test_a_run_skips_logs_and_resumes_bitwise(tmp_path: Path) -> None:
    for name, batches in {"whole": PoisonedBatches, "stopped": Stopped, "worse": Hopeless}.items():
        e = experiment(tmp_path / name, skip={"window": 4, "threshold": 50.0, "longest": 3})
        if batches is Hopeless:
            with pytest.raises(Diverged, match="the loss is nan at step 9; last good: "):
                train(e, mesh(1), stages(e, batches))
            continue
        while not train(e, mesh(1), stages(e, batches)).finished:
            assert Run(tmp_path / name).available()[-1].step == 6
            batches = PoisonedBatches
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert list(map(exact, lines(whole))) == list(map(exact, lines(stopped)))
    assert [line["skipped_steps"] for line in lines(whole)] == [0, 1, 2, 2]
    assert all(np.isfinite(line["loss"]) for line in lines(whole))
    for run in map(Run, (whole, stopped)):
        assert [entry.skipped_steps for entry in run.available()][-2:] == [2, 2]
        skipped = run.skipped_lines.read()[0]
        assert [(row["step"], row["effect"], row["loss"]) for row in skipped] == [
            (6, "skipped", None), (7, "skipped", None),
        ]  # fmt: skip
        assert (skipped[0]["first_sequence"], skipped[0]["last_sequence"]) == (40, 47)


class Pair(PoisonedBatches):
    steps = range(4, 7)  # all of one line


def test_a_line_of_skipped_steps_has_no_loss(tmp_path: Path) -> None:
    e = experiment(tmp_path, steps=7, skip={"window": 4, "threshold": 50.0, "longest": 3})
    assert train(e, mesh(1), stages(e, Pair)).finished
    assert [("loss" in line, line["skipped_steps"]) for line in lines(tmp_path)] == [
        (True, 0), (False, 3), (True, 3)
    ]  # fmt: skip
