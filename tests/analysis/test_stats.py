"""The shared statistics, against SciPy, NumPy and closed forms."""

import numpy as np
from scipy import stats

from jaxllm.analysis.stats import false_discovery, line_fit


def test_line_fit_is_scipys() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12))
    line, known = line_fit([*x, np.nan], [*y, 1.0]), stats.linregress(x, y)
    assert line is not None
    np.testing.assert_allclose(
        [line.slope, line.stderr, line.at(0.0)], [known.slope, known.stderr, known.intercept]
    )
    greater = stats.linregress(x, y, alternative="greater").pvalue
    np.testing.assert_allclose([line.p_above(0.0), line.p_below(0.0)], [greater, 1 - greater])


def test_weights_count_points() -> None:
    x, y, w = np.array([0.0, 1, 2, 4]), np.array([1.0, 3, 2, 5]), np.array([1, 3, 0, 2])
    line, repeated = line_fit(x, y, w), line_fit(np.repeat(x, w), np.repeat(y, w))
    assert line is not None and repeated is not None
    np.testing.assert_allclose([line.slope, *line.center], [repeated.slope, *repeated.center])
    np.testing.assert_allclose(line.slope, np.polyfit(x, y, 1, w=np.sqrt(w))[0])


def test_noise_is_the_least_scatter_and_too_few_points_have_no_line() -> None:
    line = line_fit([0.0, 1, 2, 3], [0.0, 1, 2, 3], noise=0.5)
    assert line is not None and line.scatter == 0.5 and line.stderr == 0.5 / np.sqrt(5)
    assert line_fit([0.0, 1, 2], [0.0, 1, 2], fewest=4) is None
    assert line_fit([1.0, 1], [0.0, 1]) is None
    two = line_fit([0.0, 1], [0.0, 1])
    assert two is not None and two.slope == 1 and np.isnan(two.stderr)


def test_false_discovery_is_benjamini_and_hochbergs() -> None:
    adjusted = false_discovery([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(adjusted, [0.03, np.nan, 0.04, 0.04])
