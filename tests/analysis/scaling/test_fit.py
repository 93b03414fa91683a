"""Fits from several starts and to samples, and what reaches them of bad input."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special

from jaxllm.analysis.registry import Study
from jaxllm.analysis.scaling import fit
from jaxllm.analysis.scaling.chinchilla import compute_optimal
from jaxllm.analysis.scaling.fit import IntervalEstimate, finished
from jaxllm.analysis.scaling.kaplan import loss_laws
from jaxllm.run.records import COLUMNS
from tests.analysis.scaling.helpers import covers

BOUNDS = ((-5.0, 0.0, -5.0), (5.0, 9.0, 5.0))


def saturating(x):
    """E + A exp(-c x) of the parameters (log A, c, E), and its derivatives."""

    def curve(p):
        return np.exp(p[0] - p[1] * x)

    return (
        lambda p: p[2] + curve(p),
        lambda p: np.stack([curve(p), -x * curve(p), np.ones_like(x)], axis=1),
    )


@pytest.mark.parametrize("delta", [math.inf, 0.02])
def test_the_best_of_the_starts_has_the_least_huber_loss(delta) -> None:
    """Against a general minimiser of SciPy's Huber loss, from the truth."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 4, 40)
    y = 0.5 + 2 * np.exp(-0.7 * x) + rng.standard_t(2, 40) * 0.02
    model, jacobian = saturating(x)
    starts = np.array([[0.0, 1.0, 0.0], [3.0, 5.0, 2.0]])
    found = fit.fit(model, jacobian, y, starts, iter(()), bounds=BOUNDS, delta=delta)

    def loss(p):
        error = model(p) - y
        return (special.huber(delta, error) if delta < math.inf else error**2 / 2).sum()

    other = optimize.minimize(loss, [math.log(2), 0.7, 0.5], method="Nelder-Mead",
                              options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 5000})  # fmt: skip
    assert loss(found[0]) == pytest.approx(other.fun, rel=1e-5)
    np.testing.assert_allclose(found[0], other.x, rtol=2e-3)


def test_samples_are_fitted_as_copies_of_points() -> None:
    rng = np.random.default_rng(1)
    x = np.linspace(0, 4, 12)
    y = 0.5 + 2 * np.exp(-0.7 * x) + rng.normal(0, 0.05, 12)
    (rows,) = fit.resamples(np.arange(12), 1, seed=3)
    assert len(rows) == 12 and len(np.unique(rows)) < 12
    start = np.array([[0.5, 0.7, 0.4]])
    model, jacobian = saturating(x)
    drawn = fit.fit(model, jacobian, y, start, iter([rows]), bounds=BOUNDS)[1]
    copy, of_copy = saturating(x[rows])
    copied = fit.fit(copy, of_copy, y[rows], start, iter(()), bounds=BOUNDS)[0]
    np.testing.assert_allclose(drawn, copied, rtol=1e-4)


def test_groups_are_drawn_whole() -> None:
    groups = np.array(["a", "a", "b", "c", "c", "c"])
    for rows in fit.resamples(groups, 50, seed=0):
        times = np.bincount(rows, minlength=6)
        assert times[0] == times[1] and times[3] == times[4] == times[5]
        assert times[[0, 2, 3]].sum() == 3


def test_of_bad_points_it_is_said_what_was_left_out() -> None:
    frame = pd.DataFrame(
        {"run": list("aabbc"), "params": [1e6, 1e6, 2e6, math.nan, "x"], "loss": [3, 5, 2, 2, 2.0]}
    )
    good, notes = fit.usable(frame, ("params", "loss"))
    assert good.loss.tolist() == [4.0, 2.0]
    assert notes == ("2 of 5 points lack a valid number", "1 repeated points were averaged")
    nothing, notes = fit.usable(frame, ("params", "tokens"))
    assert nothing.empty and notes[0].startswith("5 of 5 points")


def test_an_interval_needs_draws() -> None:
    assert math.isnan(IntervalEstimate.of(np.ones(6)).low)
    drawn = IntervalEstimate.of(np.array([1.0, *np.linspace(0, 2, 1001)]))
    assert covers(drawn, 0.06) and not covers(drawn, 0.04)


def families(metrics=("perplexity", "accuracy")):
    """Records of five sizes of one family and three of another, whose losses differ by its data."""
    rows = []
    for family, count, offset in (("a", 5, 0.0), ("b", 3, 0.5)):
        for n in np.geomspace(1e8, 1e10, count):
            for part in (0.5, 0.9, 1.0):
                loss = 1 + offset + (1e10 / n) ** 0.1 / part**0.3
                for metric in metrics:
                    value = {"perplexity": math.exp(loss), "bits_per_byte": loss, "accuracy": 0.5}
                    rows.append(
                        {"run": f"{family}-{n:.0f}", "family": family, "params": n, "status": "ok",
                         "tokens": part * 1e11, "flops": 6 * n * part * 1e11, "task": "lambada",
                         "metric": metric, "value": value[metric]}
                    )  # fmt: skip
    return pd.DataFrame(rows, columns=[*COLUMNS])


def test_a_law_of_a_benchmark_is_called_that() -> None:
    law = loss_laws(Study(families()))[0]
    assert law.title == "Log perplexity of lambada and parameters"
    assert law.sentence.startswith("The log perplexity of lambada falls as a power of parameters")
    refused = compute_optimal(Study(families()))[0]
    assert "no training or validation loss" in refused.refused
    assert "lambada" in refused.refused


def test_families_are_never_mixed_and_the_unfinished_have_no_loss() -> None:
    study = Study(families(["bits_per_byte"]), planned_tokens={"a-100000000": 2e11})
    losses = fit.family_losses(study)
    assert (losses.kind, losses.name) == (fit.VALIDATION, "bits per byte of lambada")
    assert sorted(losses.points.run) == [
        "a-1000000000",
        "a-10000000000",
        "a-316227766",
        "a-3162277660",
    ]
    assert any("left out: b" in note for note in losses.notes)
    assert any("In progress, and left out: a-100000000" in note for note in losses.notes)
    # The mean of the measurements in the last 15 % of the tokens: at 90 % and at the end.
    largest = losses.points.set_index("run").loss["a-10000000000"]
    assert largest == pytest.approx(1 + (0.9**-0.3 + 1) / 2)


def test_the_training_loss_goes_before_others() -> None:
    logged = families(["bits_per_byte"]).rename(columns={"value": "loss"})
    columns = ["run", "params", "tokens", "flops", "loss"]
    losses = fit.family_losses(Study(families(), losses=logged[columns]))
    assert (losses.kind, losses.name) == (fit.TRAINING, "training loss")
    assert fit.family_losses(Study(families().head(0))).points.empty


def test_the_final_loss_is_the_mean_of_the_last_measurements() -> None:
    def log(count: int) -> pd.DataFrame:
        return pd.DataFrame({"run": "a", "tokens": np.arange(1, count + 1.0),
                             "loss": np.arange(float(count))})  # fmt: skip

    assert finished(log(40), "loss").loss.tolist() == [37.0]  # 35 to 39
    assert finished(log(40), "loss", last=3).loss.tolist() == [38.0]
    assert finished(log(2000), "loss").loss.tolist() == [1989.5]  # 1980 to 1999
    assert finished(log(7), "loss").loss.tolist() == [5.5]  # at 6 and 7 of 7 tokens
    assert finished(log(0), "loss").empty
