"""Learning rates against Transformers' schedules and a constant."""

import math

import numpy as np
import pytest
import torch
import transformers

from jaxllm.errors import UserError
from jaxllm.training.learning_rate import ScheduleConfig, make_schedule


def ours(config: ScheduleConfig, steps: int) -> list[float]:
    schedule = make_schedule(config, steps)
    return [float(schedule(count)) for count in range(steps + 3)]


def theirs(make: object, steps: int, **options: int | str | float) -> list[float]:
    """Factors of a Transformers schedule at update 1, 2, …"""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = make(optimizer, **options)  # type: ignore[operator]
    return [scheduler.lr_lambdas[0](update) for update in range(1, steps + 1)]


def test_cosine_is_transformers_cosine() -> None:
    config = ScheduleConfig(kind="cosine", peak_lr=2e-3, end_lr=0.0, warmup_steps=7)
    expected = theirs(
        transformers.get_cosine_schedule_with_warmup, 50, num_warmup_steps=7, num_training_steps=50
    )
    assert ours(config, 50)[:50] == pytest.approx([2e-3 * f for f in expected], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_wsd_is_transformers_wsd(floor: float) -> None:
    config = ScheduleConfig(
        kind="wsd", peak_lr=1e-2, end_lr=1e-2 * floor, warmup_steps=5, decay_steps=12
    )
    expected = theirs(
        transformers.get_wsd_schedule, 40, num_warmup_steps=5, num_decay_steps=12,
        num_training_steps=40, decay_type="linear", min_lr_ratio=floor,
    )  # fmt: skip
    first = 4 if floor else 0  # their warmup begins at the floor, ours at 0
    assert ours(config, 40)[first:40] == pytest.approx(
        [1e-2 * f for f in expected[first:]], rel=1e-5, abs=1e-9
    )


def test_constant_after_warmup() -> None:
    config = ScheduleConfig(kind="constant", peak_lr=1.0, warmup_steps=4)
    assert ours(config, 6) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 6)


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_ends_at_final_and_stays(kind: str) -> None:
    config = ScheduleConfig(kind=kind, peak_lr=1.0, end_lr=0.25, warmup_steps=0)
    rates = ours(config, 20)
    assert rates[19:] == pytest.approx([0.25] * 4)
    assert max(rates) <= 1.0


def test_a_horizon_beyond_the_run_is_the_longer_runs_schedule() -> None:
    long = ours(ScheduleConfig(peak_lr=1.0, end_lr=0.1, warmup_steps=2), 40)
    short = ours(ScheduleConfig(peak_lr=1.0, end_lr=0.1, warmup_steps=2, decay_end_step=40), 10)
    assert short == long[:13]
    assert long[9] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 8 / 38)))


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_a_warmup_longer_than_the_run_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match="do not fit into 10 steps"):
        make_schedule(ScheduleConfig(kind=kind, warmup_steps=11), 10)
    with pytest.raises(UserError, match="linear"):
        ScheduleConfig(kind="linear")


@pytest.mark.parametrize(
    "config",
    [
        ScheduleConfig(warmup_steps=7),
        ScheduleConfig("cosine", end_lr=0.0, warmup_steps=0, decay_end_step=60),
        ScheduleConfig("wsd", warmup_steps=7),
        ScheduleConfig("wsd", warmup_steps=3, decay_steps=20, begin_step=10, end_lr=0.0),
        ScheduleConfig("constant", warmup_steps=5),
    ],
)
def test_the_planned_rates_of_a_report_are_those_of_training(config: ScheduleConfig) -> None:
    trained = make_schedule(config, 50)(np.arange(50))
    planned = make_schedule(config, 50, np)(np.arange(50))
    assert planned == pytest.approx(np.asarray(trained), rel=1e-5, abs=1e-10)
