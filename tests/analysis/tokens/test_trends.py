"""Classes of tokens against SciPy's lines, and tests that keep their level under noise."""

import numpy as np
import pytest
from scipy import stats

from jaxllm.analysis.stats import false_discovery
from jaxllm.analysis.tokens import noise
from jaxllm.analysis.tokens.trends import (
    CODE,
    PAPER,
    TRENDS,
    classify,
    common_checkpoints,
    surrogate,
    token_trends,
    trend_table,
)
from jaxllm.errors import UserError

UNEVEN = (2, 6, 10, 14, 18, 22, 26, 30, 38, 40, 60, 80, 120, 160, 200, 210, 230, 250, 260)


def autoregressive(rng, phi, checkpoints, scale=0.01, before=200):
    """AR(1) series, a column per φ, by the recursion from zero, `before` steps earlier."""
    phi = np.asarray(phi, float)
    series = np.zeros((checkpoints + before + 1, len(phi)))
    for t in range(1, len(series)):
        series[t] = phi * series[t - 1] + rng.normal(0, scale, len(phi))
    return series[before + 1 :].astype(np.float32)


def by_linregress(losses, steps, after, code):
    """Equation 1, or the published code with its axis repaired, one token at a time."""
    steps = np.array(steps)
    line = int(np.argmin(abs(steps - int(after * steps[-1])))) if code else None
    line = line if code else next(i for i, s in enumerate(steps) if s >= after * steps[-1])
    flat = int(after * len(steps)) if code else line
    names = []
    for loss in losses.T.astype(float):
        ppl = np.exp(loss)
        x = np.log(steps[line:]) if code else np.arange(len(steps) - line)
        fit = stats.linregress(x, ppl[line:] / ppl[line])
        mean = np.exp(np.log(ppl[flat:]).mean())
        ends = np.array([ppl[flat], ppl[-1]])
        ratios = mean / ends if code else ends / mean
        calm = ppl[flat:].var() < mean if code else True
        if fit.pvalue < 0.05:
            names.append("upward" if fit.slope > 0 else "downward")
        else:
            inside = (ratios > 0.95).all() and (ratios < 1.05).all() and calm
            names.append("stagnated" if inside else "unclassified")
    return names


@pytest.mark.parametrize("rule", [PAPER, CODE])
@pytest.mark.parametrize("after", [0.1, 0.4, 0.7])
def test_classes_are_those_of_a_line_per_token(rule, after) -> None:
    rng = np.random.default_rng(0)
    slopes = rng.normal(0, 0.01, 150) * (rng.random(150) < 0.6)
    losses = np.outer(np.arange(len(UNEVEN)), slopes) + rng.choice([0.1, 3.0], 150)
    losses = losses + rng.choice([0.005, 0.03, 0.2], 150) * rng.normal(size=losses.shape)
    classes = classify(losses.astype(np.float32), UNEVEN, after, rule)
    expected = by_linregress(losses.astype(np.float32), UNEVEN, after, rule is CODE)
    assert [TRENDS[c] for c in classes] == expected
    assert set(expected) == set(TRENDS)


@pytest.mark.parametrize(
    ("phi", "checkpoints", "share"),
    [
        *[(0, 20, 0.025), (0.5, 20, 0.12), (0.8, 20, 0.22), (1, 20, 0.35)],
        *[(0, 6, 0.025), (0.5, 6, 0.065), (0.8, 6, 0.12), (1, 6, 0.18)],
    ],
)
def test_rule_of_the_paper_finds_trends_in_noise_and_the_controlled_one_does_not(
    phi, checkpoints, share
) -> None:
    """The shares are an independent simulation's of "slope with p < 0.05", per direction."""
    rng = np.random.default_rng(1)
    losses = 3 + autoregressive(rng, np.full(6000, phi), checkpoints, before=0)
    trends = token_trends(losses, range(1, checkpoints + 1), 0.0)
    for direction in (2, 3):
        assert abs((trends.classes == direction).mean() - share) < 0.025
    assert np.isin(trends.controlled(), (2, 3)).mean() < 0.001
    assert (trends.p_value < 0.05).mean() < 0.055 or phi == 1


def test_false_discoveries_keep_their_level_when_tokens_differ_in_noise() -> None:
    """Under no trend at all, any discovery in a table is false: at most 5 % of tables have one."""
    rng = np.random.default_rng(2)
    design = PAPER.design(range(20))
    tables, small = [], []
    for phis in [(0,), (0.8,), (0, 0.3, 0.8)] * 20:
        fit = noise.fit(autoregressive(rng, rng.choice(phis, 300), 20), design)
        p = fit.test(fit.prior())[2]
        small.append((p < 0.01).mean())
        tables.append((false_discovery(p) < 0.05).any())
    assert np.mean(small) < 0.011
    assert np.mean(tables) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(tables))


def test_planted_trends_are_found_at_the_level() -> None:
    rng = np.random.default_rng(3)
    checkpoints, n = 40, 500
    losses = autoregressive(rng, rng.choice([0, 0.4, 0.7], 4 * n), checkpoints, 0.02) + 2
    planted = np.repeat([2, 3, 1, 0], n)
    ramp = np.linspace(0, 0.4, checkpoints)[:, None]
    losses[:, planted == 2] += ramp
    losses[:, planted == 3] -= ramp
    losses[:, planted == 0] *= 1 + rng.normal(0, 0.4, (checkpoints, n))
    trends = token_trends(losses, range(1, checkpoints + 1), 0.1)
    found = trends.controlled()
    for direction in (2, 3):
        assert (found[planted == direction] == direction).mean() > 0.95
        assert (planted[found == direction] == direction).mean() > 0.95
    assert (trends.classes[planted == 1] == 1).mean() < 0.9  # the rule calls trends in the others
    assert (found[planted == 1] == 1).mean() > 0.85
    assert (found[planted == 0] == 0).mean() > 0.9
    np.testing.assert_allclose(trends.change[planted == 2].mean(), ramp[-1] * 35 / 39, atol=0.02)
    inside = abs(trends.change[planted == 1]) < 2 * trends.stderr[planted == 1]
    assert inside.mean() > 0.93


def test_noise_fit_is_generalised_least_squares() -> None:
    rng = np.random.default_rng(4)
    design = np.stack([np.ones(9), np.linspace(-1, 1, 9), rng.normal(size=9)], axis=1)
    series = rng.normal(5, 1, (9, 3))
    fit = noise.fit(series, design)
    for p, phi in enumerate(noise.PHIS):
        covariance = phi ** abs(np.subtract.outer(range(9), range(9))) / (1 - phi**2)
        precision = np.linalg.inv(covariance)
        gram = design.T @ precision @ design
        beta = np.linalg.solve(gram, design.T @ precision @ series)
        rest = series - design @ beta
        variance = np.einsum("sn,st,tn->n", rest, precision, rest) / 6
        np.testing.assert_allclose(fit.coefficient[p], beta[-1], rtol=1e-6)
        np.testing.assert_allclose(
            fit.stderr[p], np.sqrt(variance * np.linalg.inv(gram)[-1, -1]), rtol=1e-6
        )
        restricted = -3 * np.log(6 * variance) - 0.5 * (
            np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(gram)[1]
        )
        np.testing.assert_allclose(fit.log_likelihood[p], restricted, rtol=1e-6)


def test_surrogates_have_the_noise_and_no_trend() -> None:
    rng = np.random.default_rng(5)
    losses = 3 + autoregressive(rng, np.full(3000, 0.6), 60, 0.02)
    losses += np.linspace(0, 1, 60)[:, None].astype(np.float32)
    steps = range(1, 61)
    permuted = surrogate(losses, steps, 0.1, "permuted")
    np.testing.assert_array_equal(np.sort(permuted[5:], axis=0), np.sort(losses[5:], axis=0))
    np.testing.assert_array_equal(permuted[:5], losses[:5])
    assert (permuted != losses).any(axis=0).all()
    drawn = surrogate(losses, steps, 0.1, "autoregressive")[5:]
    np.testing.assert_allclose(drawn.mean(axis=0), losses[5:].mean(axis=0), rtol=1e-5)
    noise_ = autoregressive(rng, np.full(3000, 0.6), 55, 0.02)
    for lag in (0, 1, 2):
        pair = [(x - x.mean(0))[lag:] * (x - x.mean(0))[: 55 - lag] for x in (drawn, noise_)]
        np.testing.assert_allclose(pair[0].mean(), pair[1].mean(), rtol=0.15)


def test_table_tells_what_noise_alone_gives() -> None:
    rng = np.random.default_rng(6)
    losses = 3 + autoregressive(rng, np.full(4000, 0.7), 30)
    table = trend_table(losses, range(1, 31), afters=(0.1, 0.5), surrogate_tokens=2000)
    assert list(table.groupby("after")["tokens"].sum()) == [4000, 4000]
    assert list(table["checkpoints"]) == [28] * 4 + [16] * 4
    trend = table[table.trend.isin(["upward", "downward"])]
    assert (abs(trend["share"] - trend["autoregressive"]) < 0.04).all()
    assert (trend["share"] > 0.1).all() and (trend["permuted"] < 0.035).all()
    assert (trend.filter(like="controlled") < 0.002).all(axis=None)


def test_tokens_that_are_constant_or_not_finite_have_no_trend() -> None:
    losses = np.full((10, 3), 2, np.float32)
    losses[:, 0] = 0
    losses[4, 1] = np.nan
    trends = token_trends(losses, range(1, 11), 0.1)
    assert [TRENDS[c] for c in trends.classes] == ["stagnated", "unclassified", "stagnated"]
    assert list(trends.controlled()) == [1, 0, 1]
    assert np.isnan(trends.p_value[1]) and trends.p_value[0] == 1


def test_too_few_checkpoints_are_one_line() -> None:
    with pytest.raises(UserError, match=r"after 70% of step 10: 3 of 4 .* needs 4") as error:
        classify(np.ones((4, 2)), (1, 8, 9, 10), 0.7)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="small, large share 1 checkpoints within 10%"):
        common_checkpoints({"small": [1, 2, 3, 4], "large": [4, 50, 60, 70]})


def test_common_checkpoints_are_those_of_all() -> None:
    axes = {"a": [2, 4, 8, 16, 32, 64], "b": [1, 2, 3, 4, 8.2, 16, 20, 31], "c": range(1, 40)}
    common = common_checkpoints(axes)
    assert [axes["b"][i] for i in common["b"]] == [2, 4, 8.2, 16, 31]
    for name, axis in axes.items():
        np.testing.assert_allclose(np.array(axis)[common[name]], [2, 4, 8, 16, 32], rtol=0.1)
