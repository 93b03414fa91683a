"""The cadence against Pythia's published checkpoints and first principles."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.errors import UserError
from jaxllm.run.checkpoint_schedule import CheckpointConfig, preserved, scheduled_steps


def test_default_is_pythias_154_checkpoints() -> None:
    """Biderman et al. 2023: step 0, 1, 2, 4, …, 512, then every 1000 to 143,000: 154 in all."""
    steps = scheduled_steps(CheckpointConfig(), steps=143_000)
    assert len(steps) == 154
    assert steps[:12] == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
    assert steps[-2:] == (142_000, 143_000)


@pytest.mark.parametrize(
    ("early", "steps"),
    [
        (75, (0, 75, 150, 300, 400)),
        ((8, 11, 16, 350, 500), (8, 11, 16, 300, 350, 400)),
        ((), (300, 400)),
        (None, (300, 400)),
    ],
)
def test_early_steps_double_or_are_listed(early: Any, steps: tuple[int, ...]) -> None:
    assert scheduled_steps(CheckpointConfig(early=early, every_steps=300), 400) == steps


def test_without_regular_steps_the_early_ones_and_the_last_are_saved() -> None:
    config = CheckpointConfig(early=3, every_steps=None, extra_steps=(7, 90))
    assert scheduled_steps(config, 20) == (0, 3, 6, 7, 12, 20)
    assert scheduled_steps(config, 20, begin=6) == (7, 12, 20)


@given(
    scheduled=st.sets(st.integers(0, 60), min_size=1),
    preempted=st.sets(st.integers(0, 60)),
    last=st.integers(1, 5),
)
def test_last_k_and_extra_steps_stay(scheduled: set[int], preempted: set[int], last: int) -> None:
    config = CheckpointConfig(keep_last=last, extra_steps=tuple(range(0, 61, 10)))
    preempted = {step for step in preempted - scheduled if step % 10}  # no extra step is one
    steps = sorted(scheduled | preempted)
    kept = {s for s, keep in zip(steps, preserved(config, steps, preempted), strict=True) if keep}
    assert steps[-1] in kept
    assert {s for s in scheduled if s % 10 == 0} <= kept
    assert set(sorted(scheduled)[-last:]) <= kept
    assert len({s for s in kept if s % 10} - {steps[-1]}) <= last
    assert not (kept & preempted) - {steps[-1]}


def test_as_many_checkpoints_from_before_a_spike_stay() -> None:
    config, steps = CheckpointConfig(keep_last=2), [0, 10, 20, 30, 40, 50, 55]
    assert preserved(config, steps, {55}) == [False, False, False, False, True, True, True]
    stay = preserved(config, steps, {55}, {30, 40, 50, 55})
    assert stay == [False, True, True, False, True, True, True]


def test_a_preempted_checkpoint_is_replaced_by_the_next() -> None:
    assert preserved(CheckpointConfig(), [0, 10, 13], {13}) == [True, True, True]
    assert preserved(CheckpointConfig(), [0, 10, 13, 20], {13}) == [True, True, False, True]


@pytest.mark.parametrize(
    "wrong",
    [{"every_steps": 0}, {"keep_last": 0}, {"early": 0}, {"early": (-1,)}],
)
def test_impossible_schedules_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        CheckpointConfig(**wrong)
