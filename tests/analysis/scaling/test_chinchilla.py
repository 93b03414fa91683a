"""Compute-optimal sizes: closed forms, calibration, refusals and published optima."""

import gzip
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special

from jaxllm.analysis.scaling import chinchilla
from jaxllm.analysis.scaling.fit import IntervalEstimate
from tests.analysis.scaling.helpers import covers

# Hoffmann et al. (2022), unrounded as in their LaTeX source.
A, B, E = math.exp(6.0073404), math.exp(6.0179186), math.exp(0.5267228)
ALPHA, BETA = 0.33917084, 0.2849083
EXPONENT = BETA / (ALPHA + BETA)


def loss(n, d):
    return E + A / n**ALPHA + B / d**BETA


def optimal_size(flops):
    """The minimum of the loss along 6 N D = C, found numerically."""
    cost = lambda log_n: loss(np.exp(log_n), flops / 6 / np.exp(log_n))
    return math.exp(optimize.minimize_scalar(cost, bounds=(10, 40), method="bounded").x)


def optimum(found, flops):
    """Compute-optimal parameters and tokens of a fit."""
    n = np.exp(found.draws[:, 0] + found.draws[:, 1] * math.log(flops))
    return IntervalEstimate.of(n), IntervalEstimate.of(flops / 6 / n)


def isoflops(seed, noise=0.003):
    rng = np.random.default_rng(seed)
    rows = []
    for flops in np.geomspace(6e18, 3e21, 9):
        sizes = optimal_size(flops) * np.geomspace(0.25, 4, 9) * np.exp(rng.uniform(-0.1, 0.1))
        for n in sizes:
            d = flops / 6 / n
            rows.append((n, d, flops, loss(n, d) * math.exp(rng.normal(0, noise))))
    return pd.DataFrame(rows, columns=["params", "tokens", "flops", "loss"])


def test_without_noise_the_published_law_comes_back() -> None:
    law = chinchilla.parametric(isoflops(0, noise=0), draws=30)
    truth = {"A": A, "B": B, "E": E, "alpha": ALPHA, "beta": BETA}
    for name, value in truth.items():
        assert law.parameters[name].value == pytest.approx(value, rel=0.01)
    params, tokens = optimum(law, 5.76e23)
    assert params.value == pytest.approx(optimal_size(5.76e23), rel=0.02)
    expected = loss(params.value, tokens.value)
    assert law.losses(params.value, tokens.value)[0] == pytest.approx(expected, rel=1e-3)


def test_no_other_start_finds_a_lower_objective() -> None:
    """L-BFGS-B on the summed objective, from starts spread over the published grid."""
    data = isoflops(3)
    law = chinchilla.parametric(data, draws=30)
    log_n, log_d, target = (np.log(data[c].to_numpy()) for c in ("params", "tokens", "loss"))

    def objective(p):
        fitted = special.logsumexp(
            [p[0] - p[1] * log_n, p[2] - p[3] * log_d, np.full_like(log_n, p[4])], axis=0
        )
        return special.huber(chinchilla.DELTA, fitted - target).sum() / chinchilla.DELTA

    ours = objective(law.law_draws[0])
    rng = np.random.default_rng(0)
    for _ in range(25):
        start = rng.choice([0, 5, 10, 15], 5) * [1.0, 0.05, 1.0, 0.05, 0.05]
        found = optimize.minimize(objective, start, method="L-BFGS-B", options={"maxiter": 2000})
        assert found.fun >= ours * (1 - 1e-4)


def test_isoflop_intervals_hold_the_truth_as_often_as_they_say() -> None:
    found = [chinchilla.isoflop(isoflops(s), draws=100, seed=s) for s in range(50)]
    assert not any(finding.refused for finding in found)
    hits = [covers(finding.params_exponent, EXPONENT) for finding in found]
    assert np.mean(hits) >= 0.86  # 43 of 50 is the 0.6 % quantile at 95 %
    mean = np.mean([finding.params_exponent.value for finding in found])
    assert mean == pytest.approx(EXPONENT, abs=0.015)


def test_parametric_intervals_hold_the_truth_as_often_as_they_say() -> None:
    found = [chinchilla.parametric(isoflops(s), draws=80, seed=s) for s in range(40)]
    truth = {"A": A, "B": B, "E": E, "alpha": ALPHA, "beta": BETA}
    for name, value in truth.items():
        assert np.mean([covers(f.parameters[name], value) for f in found]) >= 0.82, name
    assert np.mean([covers(f.params_exponent, EXPONENT) for f in found]) >= 0.82


def test_runs_far_off_the_law_are_named_and_left_out() -> None:
    data = isoflops(2).reset_index(names="run").astype({"run": str})
    clean = chinchilla.parametric(data.drop([3, 40]), draws=0)
    data.loc[[3, 40], "loss"] *= [1.15, 1.08]
    law = chinchilla.parametric(data, draws=0)
    assert law.notes[0].startswith("Far off the law, and left out: 3: ")
    assert "40: " in law.notes[0] and law.notes[0].count(" on ") == 2
    np.testing.assert_allclose(law.law_draws, clean.law_draws, rtol=1e-3)
    assert not any("Far off" in note for note in chinchilla.parametric(isoflops(2), draws=0).notes)


def test_no_size_is_given_beyond_those_seen() -> None:
    data = isoflops(0, noise=0)
    assert "it is 3.66B parameters on 137B tokens" in chinchilla.parametric(data, draws=0).sentence
    small = data[data.params < 0.6 * optimal_size(data.flops.max())]
    assert "it is beyond the sizes" in chinchilla.parametric(small, draws=0).sentence


def test_noise_has_no_optimum() -> None:
    """At most the nominal 5 %: 5 of 30 is its 99.7 % quantile."""
    rng = np.random.default_rng(0)
    found = {"isoflop": 0, "parametric": 0}
    for seed in range(30):
        data = isoflops(seed).assign(loss=lambda t: np.exp(rng.normal(1, 0.05, len(t))))
        found["isoflop"] += not chinchilla.isoflop(data, draws=40).refused
        if seed < 10:
            found["parametric"] += not chinchilla.parametric(data, draws=40).refused
    assert found["isoflop"] <= 5 and found["parametric"] <= 2


def test_what_cannot_be_told_apart_is_refused() -> None:
    data = isoflops(0)
    in_step = data.assign(tokens=20 * data.params)
    assert "in step" in chinchilla.parametric(in_step).refused
    assert "sizes" in chinchilla.parametric(data.assign(params=1e8)).refused
    assert "eight" in chinchilla.parametric(data.head(5)).refused
    assert "budgets" in chinchilla.isoflop(data[data.flops < 1e19]).refused
    falling = data[data.params < data.groupby("flops").params.transform("median")]
    assert "inside" in chinchilla.isoflop(falling).refused
    for approach in ("isoflop", "parametric"):
        empty = getattr(chinchilla, approach)(data.head(0))
        assert empty.refused and empty.refused in empty.sentence


def test_broken_points_are_left_out_and_said() -> None:
    data = isoflops(1)
    broken = pd.concat([data, data.head(3).assign(loss=math.nan), data.head(1)])
    finding = chinchilla.isoflop(broken, draws=60)
    assert any("3 of 85" in note for note in finding.notes)
    law = finding.draws[0]
    np.testing.assert_allclose(
        finding.table.residual,
        np.log(finding.table.params) - law[0] - law[1] * np.log(finding.table.flops),
    )
    assert finding.params_exponent == chinchilla.isoflop(data, draws=60).params_exponent


def test_a_budget_without_a_minimum_is_left_out_and_said() -> None:
    data = isoflops(1)
    first = data.flops == data.flops.min()
    falling = data.assign(loss=np.where(first, 5 * data.params**-0.02, data.loss))
    found = chinchilla.isoflop(falling, draws=60)
    assert len(found.table) == 8
    assert "the largest budget with an optimum" in found.sentence
    assert found.notes == ("1 budgets have no minimum between their smallest and largest size",)
    assert covers(found.params_exponent, EXPONENT)


def test_budgets_nearly_equal_are_one() -> None:
    data = isoflops(1)
    shaken = data.assign(flops=data.flops * np.tile([0.99, 1.0, 1.01], 27))
    found, plain = (chinchilla.isoflop(d, draws=40) for d in (shaken, data))
    assert len(found.table) == len(plain.table) == 9
    assert found.params_exponent.value == pytest.approx(plain.params_exponent.value, abs=1e-3)


SETUP = ["hparams", "warmup", "decay", "param_count", "val"]


@pytest.fixture(scope="module")
def porian(shared_data):
    """Measured runs, published optima and published exponents of Porian et al. (2406.19146)."""
    path = shared_data / "reference" / "isoflop_porian"
    runs = pd.read_csv(path / "isoflop_rw.csv.gz").rename(columns={"n": "params"})
    optima = pd.read_csv(path / "optima_rw.csv.gz")
    with gzip.open(path / "published_fits_rw.jsonl.gz", "rt") as lines:
        fits = [json.loads(line) for line in lines]
    exponents = {tuple(f[k] for k in SETUP): f["fit_results"]["weighted"] for f in fits}
    return {
        key: (group, optima.set_index(SETUP).sort_index().loc[key], exponents[key])
        for key, group in runs.groupby(SETUP)
    }


def test_the_published_isoflop_exponents_come_out(porian) -> None:
    """Six sets of experiments, from Kaplan's 0.84 to Chinchilla's 0.50."""
    assert len(porian) == 6
    for key, (runs, _, published) in porian.items():
        found = chinchilla.isoflop(runs, draws=300)
        assert covers(found.params_exponent, published["n_exponent"]), key
        assert 1 - found.params_exponent.high <= published["t_exponent"], key
        assert published["t_exponent"] <= 1 - found.params_exponent.low, key
        assert found.params_exponent.value == pytest.approx(published["n_exponent"], abs=0.012)
        width = found.params_exponent.high - found.params_exponent.low
        assert width < 0.12  # so that agreement means something


def test_the_published_isoflop_optima_come_out(porian) -> None:
    inside = total = 0
    for runs, optima, _ in porian.values():
        table = chinchilla.isoflop(runs, draws=300).table
        for row in table.itertuples():
            nearest = np.abs(np.log(optima.flops / row.flops)).argmin()
            published = optima.n.iloc[nearest]
            assert row.params == pytest.approx(published, rel=0.06)
            inside += row.low <= published <= row.high
            total += 1
    assert total >= 66 and inside / total >= 0.95


def test_approaches_agree_on_measured_runs(porian) -> None:
    """With tuned hyperparameters all of them are near one half, Chinchilla's finding."""
    runs, _, published = porian[("tuned", "short", "const", "standard", "val")]
    parametric = chinchilla.parametric(runs, draws=100)
    assert covers(parametric.params_exponent, published["n_exponent"])
    assert "C^a with a = 0.5" in parametric.sentence
    isoflop = chinchilla.isoflop(runs)
    # Chinchilla itself: 70B parameters on 1.4T tokens, 20,000 times beyond the largest budget.
    params, tokens = optimum(isoflop, 5.76e23)
    assert covers(params, 7e10) and covers(tokens, 1.4e12)
    sizes = [optimum(each, 1e19)[0].value for each in (parametric, isoflop)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.35)
