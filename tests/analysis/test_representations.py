"""Linear CKA and SVCCA against statements in NumPy and what they must not change with."""

import numpy as np
import pytest

from jaxllm.analysis.representations import hsic, similarities, svcca


def states(seed: int, layers: int = 2, tokens: int = 40, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(layers, tokens, width))


def unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, of linear kernels."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    value = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (value - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3))


def test_hsic_is_the_unbiased_estimate_of_every_pair() -> None:
    a, b = states(0), states(1, layers=3, width=4) + 5
    wanted = [[unbiased(x, y) for y in b] for x in a]
    np.testing.assert_allclose(hsic(a, b), wanted, rtol=1e-9)


def test_cka_is_the_ratio_of_the_sums_over_minibatches() -> None:
    parts = [(states(s), states(s + 9, layers=3) + states(s, layers=3)) for s in range(3)]
    cka, _ = similarities(iter(parts))
    for i in range(2):
        for j in range(3):
            both, own, other = (
                sum(unbiased(x, y) for x, y in pairs)
                for pairs in zip(
                    *(((a[i], b[j]), (a[i], a[i]), (b[j], b[j])) for a, b in parts), strict=True
                )
            )
            assert cka[i, j] == pytest.approx(both / np.sqrt(own * other))


def test_minibatches_estimate_what_all_tokens_at_once_say() -> None:
    a = states(0, tokens=4000)
    b = a @ np.random.default_rng(5).normal(size=(6, 5)) + states(1, tokens=4000, width=5)
    x, y = a[0] - a[0].mean(0), b[0] - b[0].mean(0)
    norm = np.linalg.norm
    whole = norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))  # Kornblith et al., equation 6
    assert similarities([(a, b)])[0][0, 0] == pytest.approx(whole, abs=0.01)


def test_both_are_1_of_a_turned_scaled_and_shifted_model_and_0_of_noise() -> None:
    a = states(0, tokens=3000)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    cka, correlations = similarities([(a, 3 * a @ turn + 2)])
    np.testing.assert_allclose(cka.diagonal(), 1)
    np.testing.assert_allclose(correlations.diagonal(), 1)
    assert abs(cka[0, 1]) < 0.02 and correlations[0, 1] < 0.1


def test_svcca_is_that_of_the_eigenproblem() -> None:
    """Canonical correlations are the roots of the eigenvalues of Sxx^-1 Sxy Syy^-1 Syx."""
    a, b = states(0, layers=1, tokens=500), states(1, layers=1, tokens=500)
    b = b + a @ np.diag([3, 2, 1, 0.5, 0.2, 0])
    x, y = a[0] - a[0].mean(0), b[0] - b[0].mean(0)
    inverse, cross = np.linalg.inv, x.T @ y
    roots = np.linalg.eigvals(inverse(x.T @ x) @ cross @ inverse(y.T @ y) @ cross.T)
    assert svcca(a, b)[0, 0] == pytest.approx(np.sqrt(roots.real).mean(), rel=1e-6)


def test_svcca_leaves_out_directions_of_little_variance() -> None:
    """A direction with less than 1 % of the variance that the models do not share."""
    common, rng = states(0, layers=1, tokens=1000, width=2), np.random.default_rng(3)
    with_noise = [np.concatenate([common, 1e-3 * rng.normal(size=(1, 1000, 3))], 2) for _ in "ab"]
    assert svcca(*with_noise)[0, 0] == pytest.approx(1, abs=1e-4)


def test_svcca_of_a_stream_is_that_of_its_first_4096_tokens() -> None:
    parts = [[states(s + i, layers=1, tokens=1000) for i in (0, 9)] for s in range(5)]
    first, second = (np.concatenate(side, axis=1)[:, :4096] for side in zip(*parts, strict=True))
    np.testing.assert_allclose(similarities(iter(parts))[1], svcca(first, second))


def test_svcca_of_chance_is_as_its_docstring_says() -> None:
    by_chance = svcca(*(states(seed, layers=1, tokens=400, width=40) for seed in (0, 1)))
    assert by_chance[0, 0] == pytest.approx(np.sqrt(40 / 400), rel=0.2)
