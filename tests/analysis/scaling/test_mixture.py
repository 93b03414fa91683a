"""Mixture regression: planted optimum, leave-one-out, noise, and RegMix' runs."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxllm.analysis.scaling.mixture import Ridge, _kernel, mixture_regression

DOMAINS = ["web", "code", "books", "math"]
BEST = np.array([0.5, 0.1, 0.3, 0.1])


def planted(seed=0, runs=80, noise=0.01):
    """A data mixing law's exponentials would do; here a bowl in square roots, its bottom known."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(4), runs)
    truth = 3 + 2 * ((np.sqrt(weights) - np.sqrt(BEST)) ** 2).sum(axis=1)
    mixtures = pd.DataFrame(weights, columns=DOMAINS)
    return mixtures, pd.Series(truth + rng.normal(0, noise, runs), name="loss"), truth


def test_the_planted_best_mixture_is_found() -> None:
    found = mixture_regression(*planted()[:2])
    table = found.table.set_index("domain")
    np.testing.assert_allclose(table.best[DOMAINS], BEST, atol=0.06)
    assert ((table.low <= BEST) & (table.high >= BEST)).all()
    predicted = found.predict(pd.DataFrame([table.best])).iloc[0]
    assert predicted.loss == pytest.approx(3.0, abs=0.03)
    assert found.spearman > 0.97 and "web 5" in found.sentence
    assert f"with a predicted {predicted.loss:.3g} (" in found.sentence


def test_intervals_hold_new_runs_as_often_as_they_say() -> None:
    inside = []
    for seed in range(10):
        found = mixture_regression(*planted(seed, runs=60)[:2])
        mixtures, losses, _ = planted(100 + seed, runs=100)
        predicted = found.predict(mixtures)
        inside.append(((predicted.low <= losses) & (losses <= predicted.high)).mean())
    assert 0.88 <= np.mean(inside) <= 0.99


def test_left_out_runs_are_predicted_as_by_fitting_without_them() -> None:
    mixtures, losses, _ = planted(runs=20)
    shares, y = mixtures.to_numpy(), losses.to_numpy()
    fitted = Ridge.fit(shares, y)
    kernel = _kernel(shares, shares, fitted.length)
    ridge = np.mean((y - y.mean() - kernel @ fitted.solved) / fitted.solved)
    for i in (0, 7, 19):
        rest = np.delete(np.arange(20), i)
        solved = np.linalg.solve(
            kernel[np.ix_(rest, rest)] + ridge * np.eye(19), y[rest] - y.mean()
        )
        direct = y[i] - y.mean() - kernel[i, rest] @ solved
        assert fitted.left_out[i] == pytest.approx(direct, rel=1e-4)


def test_noise_ranks_nothing() -> None:
    """Nominal 5 %; 6 of 50 is its 98.8 % quantile."""
    rng = np.random.default_rng(0)
    found = 0
    for seed in range(50):
        mixtures, losses, _ = planted(seed, runs=40)
        found += not mixture_regression(mixtures, losses * 0 + rng.normal(size=40)).refused
    assert found <= 6


def test_refusals_and_broken_runs() -> None:
    mixtures, losses, _ = planted()
    few = mixture_regression(mixtures.head(5), losses)
    assert "too few" in few.refused and few.refused in few.sentence
    assert few.predict(mixtures).isna().all(axis=None)
    assert "rank" in mixture_regression(mixtures, losses * 0).refused
    same = pd.DataFrame(np.tile(BEST, (80, 1)), columns=DOMAINS)
    assert "different" in mixture_regression(same, losses).refused
    broken = mixtures.copy()
    broken.loc[3, "web"] = math.nan
    broken.loc[4] = 0.0
    found = mixture_regression(broken, losses.mask(losses.index == 5))
    assert "(77 runs)" in found.sentence and found.notes == (
        "3 of 80 runs lack a mixture or a loss",
    )


def test_weights_need_not_sum_to_one() -> None:
    mixtures, losses, _ = planted(runs=40)
    tokens = mixtures.mul(np.linspace(1e6, 9e6, 40), axis=0)
    plain, scaled = mixture_regression(mixtures, losses), mixture_regression(tokens, losses)
    np.testing.assert_allclose(plain.table.best, scaled.table.best, atol=1e-6)


def test_regmix_ranks_unseen_mixtures_of_larger_models(shared_data) -> None:
    """RegMix (arXiv 2407.01492): fitted on 512 runs of 1M parameters, it ranks 256 unseen mixtures
    trained at 60M by their Pile-CC loss at a Spearman correlation of at least 0.97."""
    path = shared_data / "reference" / "regmix"

    def read(name: str) -> pd.DataFrame:
        return pd.read_csv(path / f"{name}.csv.gz", index_col="index")

    target = "metric/the_pile_pile_cc_val_loss"
    found = mixture_regression(read("train_mixture_1m"), read("train_pile_loss_1m")[target])
    assert "(512 runs)" in found.sentence and found.spearman > 0.97
    at_60m = found.predict(read("test_mixture_60m")).loss
    assert stats.spearmanr(at_60m, read("test_pile_loss_60m")[target]).statistic >= 0.97
    unseen, losses = found.predict(read("test_mixture_1m")), read("test_pile_loss_1m")[target]
    assert stats.spearmanr(unseen.loss, losses).statistic >= 0.97
    assert 0.9 <= ((unseen.low <= losses) & (losses <= unseen.high)).mean() <= 0.99
    heaviest = found.table.sort_values("best").domain.iloc[-1]
    assert heaviest == "train_the_pile_pile_cc"
