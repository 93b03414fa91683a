"""The schedule law on published curves, on known laws and on the cooldowns of the study."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.scaling import schedule_law
from jaxllm.analysis.scaling.schedule_law import LossCurve, fit
from jaxllm.errors import UserError

PEAK, WARM_UP = 3e-4, 2160
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")  # as published


def published_rates(curve: str) -> np.ndarray:
    """The rate of every step; see the description of the data."""
    kind, *numbers = curve.split("_")
    last = int(numbers[-1]) if kind != "wsdcon" else 16000
    step = np.arange(last)
    after = {
        "constant": np.full(last, PEAK),
        "cosine": PEAK
        * (0.1 + 0.9 * (1 + np.cos(np.pi * (step - WARM_UP) / (last - WARM_UP))) / 2),
        "wsd": PEAK * 0.1 ** (np.maximum(step - 20000, 0) / 4000),
        "wsdld": PEAK * (1 - 0.9 * np.maximum(step - 20000, 0) / 4000),
        "wsdcon": np.where(step < 8000, PEAK, int(numbers[0]) * 1e-5),
    }[kind]
    return np.where(step < WARM_UP, PEAK * step / (WARM_UP - 1), after)


@pytest.fixture(scope="module")
def published(shared_data: Path) -> dict[str, LossCurve]:
    table = pd.read_csv(shared_data / "reference/schedule_law/loss_curves_25M.csv.gz")
    curves = {}
    for name, rows in table.groupby("curve"):
        rates = published_rates(str(name))
        assert np.allclose(rates[rows.step], rows.lr, rtol=1e-3)
        curves[str(name)] = LossCurve(rates, rows.step.to_numpy() + 1, rows.loss.to_numpy())
    return curves


def test_unseen_schedules_are_predicted_as_published(published) -> None:
    law = fit([published[name] for name in FITTED])
    errors, explained, covered = [], [], 0
    for name in published.keys() - set(FITTED):
        curve = published[name]
        residual = law.predict(curve.rates, curve.steps) - curve.losses
        errors.append(np.mean(np.abs(residual) / curve.losses))
        explained.append(
            1 - (residual**2).sum() / ((curve.losses - curve.losses.mean()) ** 2).sum()
        )
        low, high = law.interval(curve.rates, curve.steps[-10:])
        covered += low.mean() < curve.losses[-10:].mean() < high.mean()
    assert len(errors) == 6 and np.mean(errors) <= 0.0015 and np.mean(explained) >= 0.998
    assert covered >= 5


def schedule(steps: int, decay: int, end: float = 0.0) -> np.ndarray:
    rates = np.full(steps, 1e-3)
    rates[:50] = np.linspace(2e-5, 1e-3, 50)
    if decay:
        rates[-decay:] = np.linspace(1e-3, end, decay + 1)[1:]
    return rates


def true_loss(rates: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The multi-power law by its definition, a sum over all updates."""
    relative, losses = rates / 1e-3, []
    for step in steps:
        k = np.arange(50, step)
        gap, root = relative[k - 1] - relative[k], np.sqrt(np.maximum(relative[k], 0.01))
        since = np.cumsum(relative[:step][::-1])[::-1][k]
        given = 1 - (1 + 0.05 * since / root) ** -0.5
        losses.append(2.0 + 9.0 * relative[:step].sum() ** -0.4 - 0.3 * (gap * given).sum())
    return np.array(losses)


def test_a_known_law_is_found_from_a_run_and_a_branch() -> None:
    steps = np.arange(80, 2001, 20)
    trunk, branch = schedule(2000, 0), schedule(1000, 150)
    own = np.arange(860, 1001, 10)
    law = fit([LossCurve(trunk, steps, true_loss(trunk, steps)),
               LossCurve(branch, own, true_loss(branch, own))])  # fmt: skip
    longer, at = schedule(3000, 300), np.array([2700, 2850, 3000])
    assert law.predict(longer, at) == pytest.approx(true_loss(longer, at), rel=2e-3)
    assert law.lowest_rate == pytest.approx(0, abs=1e-5)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    steps, rates = np.arange(80, 1001, 10), schedule(1000, 200)
    clean, longer, end = true_loss(rates, steps), schedule(1500, 150), np.array([1500])
    truth, held, widths = true_loss(longer, end)[0], 0, []
    for _ in range(12):
        noise = rng.normal(0, 0.01, len(steps))
        low, high = fit([LossCurve(rates, steps, clean * np.exp(noise))]).interval(longer, end)
        held += bool(low[0] < truth < high[0])
        widths.append(high[0] - low[0])
    assert held >= 10 and np.median(widths) < 0.25


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_a_cosine_on_its_way_has_finite_intervals(share: float) -> None:
    whole = 1e-3 * (1 + np.cos(np.pi * np.arange(1000) / 1000)) / 2
    whole[:50] = np.linspace(2e-5, whole[50], 50)
    steps = np.arange(60, int(1000 * share), 20)
    law = fit([LossCurve(whole[: steps[-1]], steps, true_loss(whole, steps))])
    low, high = law.interval(whole, np.array([999]))
    assert low[0] - 1e-5 < true_loss(whole, np.array([999]))[0] < high[0] + 1e-5


def test_the_derivatives_are_those_of_the_law() -> None:
    rates, steps = schedule(500, 100), np.array([60, 200, 420, 460, 500])
    inputs = schedule_law._Inputs.of(rates, steps, 1e-3, 450.0)
    for p in (np.array([2.0, 0.7, 0.4, 0.2]), np.array([2.0, 0.7, 0.4, 0.2, -3.0])):
        shifts = 1e-6 * np.eye(len(p))
        numeric = [(inputs.log_loss(p + d) - inputs.log_loss(p - d)) / 2e-6 for d in shifts]
        assert inputs.jacobian(p) == pytest.approx(np.stack(numeric, axis=1), abs=1e-7)


def test_a_constant_rate_tells_nothing_of_decays() -> None:
    rates, steps = schedule(500, 0), np.arange(60, 501, 10)
    with pytest.raises(UserError, match="fell by 30%"):
        fit([LossCurve(rates, steps, true_loss(rates, steps))])
    with pytest.raises(UserError, match="after the warm-up"):
        fit([LossCurve(rates, steps[:0], np.array([]))])
