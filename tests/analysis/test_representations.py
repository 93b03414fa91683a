"""Linear CKA and SVCCA against statements in NumPy and what they must not change with."""

import ml_dtypes
import numpy as np
import pytest

from jaxllm.analysis import representations
from jaxllm.analysis.representations import cka, compare, directions, hsic, svcca


def states(seed: int, layers: int = 2, tokens: int = 40, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(layers, tokens, width))


def similarities(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return cka(a, b), svcca(directions(a), directions(b))


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
    a, b = states(0, tokens=1100), states(9, layers=3, tokens=1100) + states(0, 1, 1100)
    parts = [slice(0, 550), slice(550, 1100)]  # 512 tokens or more
    found = cka(a, b)
    for i in range(2):
        for j in range(3):
            both, own, other = (
                sum(unbiased(x[part], y[part]) for part in parts)
                for x, y in ((a[i], b[j]), (a[i], a[i]), (b[j], b[j]))
            )
            assert found[i, j] == pytest.approx(both / np.sqrt(own * other))


def kornblith(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of all tokens at once (Kornblith et al. 2019, equation 6)."""
    x, y, norm = x - x.mean(0), y - y.mean(0), np.linalg.norm
    return float(norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)))


def test_minibatches_estimate_what_all_tokens_at_once_say() -> None:
    a = states(0, tokens=4000)
    b = a @ np.random.default_rng(5).normal(size=(6, 5)) + states(1, tokens=4000, width=5)
    assert cka(a, b)[0, 0] == pytest.approx(kornblith(a[0], b[0]), abs=0.01)


def test_a_sample_of_tokens_estimates_what_all_of_them_say() -> None:
    """Of documents, each with a topic that its tokens share."""
    rng = np.random.default_rng(4)
    topics = np.repeat(rng.normal(size=(1, 50, 6)), 400, axis=1)
    a = states(0, layers=1, tokens=20_000) + topics
    b = a @ rng.normal(size=(6, 5)) + 2 * states(1, 1, 20_000, 5)
    found = []
    for seed in range(4):
        chosen = np.random.default_rng(seed).permutation(20_000)[:4096]
        found.append(cka(a[:, chosen], b[:, chosen]).item())
    np.testing.assert_allclose(found, kornblith(a[0], b[0]), atol=0.02)


def test_both_are_1_of_a_turned_scaled_and_shifted_model_and_0_of_noise() -> None:
    a = states(0, tokens=3000)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    by_cka, by_svcca = similarities(a, 3 * a @ turn + 2)
    np.testing.assert_allclose(by_cka.diagonal(), 1)
    np.testing.assert_allclose(by_svcca.diagonal(), 1)
    assert abs(by_cka[0, 1]) < 0.02 and by_svcca[0, 1] < 0.1


def test_svcca_is_that_of_the_eigenproblem() -> None:
    """Canonical correlations are the roots of the eigenvalues of Sxx^-1 Sxy Syy^-1 Syx."""
    a, b = states(0, layers=1, tokens=500), states(1, layers=1, tokens=500)
    b = b + a @ np.diag([3, 2, 1, 0.5, 0.2, 0])
    x, y = a[0] - a[0].mean(0), b[0] - b[0].mean(0)
    inverse, cross = np.linalg.inv, x.T @ y
    roots = np.linalg.eigvals(inverse(x.T @ x) @ cross @ inverse(y.T @ y) @ cross.T)
    assert similarities(a, b)[1][0, 0] == pytest.approx(np.sqrt(roots.real).mean(), rel=1e-6)


def test_svcca_leaves_out_directions_of_little_variance() -> None:
    """A direction with less than 1 % of the variance that the models do not share."""
    common, rng = states(0, layers=1, tokens=1000, width=2), np.random.default_rng(3)
    with_noise = [np.concatenate([common, 1e-3 * rng.normal(size=(1, 1000, 3))], 2) for _ in "ab"]
    assert similarities(*with_noise)[1][0, 0] == pytest.approx(1, abs=1e-4)


def test_states_in_bfloat16_compare_as_the_same_in_float32() -> None:
    both = [states(seed, tokens=600).astype(ml_dtypes.bfloat16) for seed in (0, 1)]
    wide = (each.astype(np.float32) for each in both)
    np.testing.assert_array_equal(similarities(*both), similarities(*wide))


def test_svcca_of_chance_is_as_its_docstring_says() -> None:
    by_chance = similarities(*(states(seed, 1, tokens=400, width=40) for seed in (0, 1)))
    assert by_chance[1][0, 0] == pytest.approx(np.sqrt(40 / 400), rel=0.2)


def test_checkpoints_are_decomposed_once(monkeypatch) -> None:
    """Each with its own similarities to the last."""
    every, seen = [states(seed) for seed in range(4)], []
    note = lambda of: seen.append(of) or directions(of)
    monkeypatch.setattr(representations, "directions", note)
    table = compare("text", list("abcd"), lambda number: every[number])
    assert len(seen) == 4
    for name, own in zip("abc", every, strict=False):
        rows = table[table.checkpoint == name]
        wanted = np.ravel(similarities(own, every[3]))
        np.testing.assert_array_equal([*rows.cka, *rows.svcca], wanted)
