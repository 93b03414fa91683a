"""MAUVE is the package's on the same features, and its interval has the expected score."""

import numpy as np
import pytest

from jaxllm.analysis.mauve import area, jackknife, mauve

RNG = np.random.default_rng(0)
HUMAN, NEAR = RNG.normal(size=(2, 300, 8))
FAR = HUMAN[:200] + 1.0


@pytest.mark.parametrize("generated", [HUMAN, NEAR, FAR])
def test_the_score_is_the_packages(generated: np.ndarray) -> None:
    compute_mauve = pytest.importorskip("mauve").compute_mauve
    package = compute_mauve(p_features=HUMAN, q_features=generated, seed=3, verbose=False)
    ours = mauve(HUMAN, generated, seed=3)
    assert ours.value == package.mauve
    assert area(package.p_hist, package.q_hist) == pytest.approx(package.mauve, rel=1e-12)
    assert 0 <= ours.value <= 1 and ours.stderr >= 0
    assert ours.value <= ours.corrected <= 1
    assert ours.clusters == package.num_buckets


def test_intervals_tell_other_texts_of_the_same_source_from_those_of_another() -> None:
    pytest.importorskip("mauve")
    near, far = mauve(HUMAN, NEAR), mauve(HUMAN, FAR)
    assert far.value + 1.96 * far.stderr < near.value - 1.96 * near.stderr
    assert near.value + 1.96 * near.stderr > 0.95


def test_histograms_without_overlap_have_the_area_of_their_curve() -> None:
    """Disjoint: KL(q|r) = -log(1 - w), KL(p|r) = -log w, so that x = (1-w)^5 and y = w^5."""
    w = np.linspace(1e-6, 1 - 1e-6, 25)
    x, y = np.array([1, *(1 - w) ** 5, 0]), np.array([0, *w**5, 1])
    found = area(np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.0, 1.0]))
    assert found == pytest.approx(np.trapezoid(y[::-1], x[::-1]), rel=1e-9)
    assert area(np.array([0.3, 0.7]), np.array([0.3, 0.7])) == pytest.approx(1.0)


@pytest.mark.parametrize("distance", [0.0, 0.6, 1.2, 2.0])
def test_intervals_have_the_expected_score_and_correction_comes_near_that_of_all(distance):
    """On samples of two known histograms, whose scores range from 1 to 0.4."""
    rng, n, k = np.random.default_rng(1), 200, 20
    p = rng.dirichlet(np.full(k, 3.0))
    q = p * np.exp(distance * rng.normal(size=k))
    p, q, covered, errors, corrected = p, q / q.sum(), [], [], []
    draw = lambda: (rng.multinomial(n, p).astype(float), rng.multinomial(n, q).astype(float))
    scores = np.array([area(*(of / n for of in draw())) for _ in range(400)])
    for _ in range(100):
        sample = draw()
        value, (bias, stderr) = area(*(of / n for of in sample)), jackknife(*sample)
        covered.append(abs(value - scores.mean()) < 1.96 * stderr)
        errors.append(stderr)
        corrected.append(min(value - bias, 1.0))
    assert np.mean(covered) >= 0.9
    assert scores.std() < 1.2 * np.mean(errors) < 2 * scores.std()
    assert abs(np.mean(corrected) - area(p, q)) < 0.25 * abs(scores.mean() - area(p, q))
