"""The law of a sweep: optima by closed form, planted laws found again through noise, bad sweeps."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.errors import UserError
from jaxllm.training.rules import RULES, advice
from jaxllm.training.sweep import Trial, law, optima, rule_of, vertex
from tests.training.helpers import MODEL

RATES = [1e-3 * 2**k for k in range(7)]


def runs(
    rate: float, params: float = 1e5, tokens: float = 2e6, batch: float = 2048,
    rates: list[float] = RATES, noise: float = 0, seed: int = 0,
) -> list[Trial]:  # fmt: skip
    """A sweep with this optimum; far above it losses rise faster than a parabola."""
    noises = np.random.default_rng([seed, int(params), int(tokens), int(batch)])
    away = [math.log(one / rate) for one in rates]
    losses = [3 + 0.05 * x**2 + max(0, x - 1.5) ** 3 + noise * noises.normal() for x in away]
    return [Trial(params, tokens, batch, *pair) for pair in zip(rates, losses, strict=True)]


@given(st.floats(-1.9, 1.9), st.floats(0.01, 100))
def test_of_a_parabola_it_is_the_vertex(at: float, curvature: float) -> None:
    x = np.array([-2.0, -1.0, 0.3, 1.0, 2.0])
    place, height, inside = vertex(x, 3 + curvature * (x - at) ** 2)
    lowest = np.argmin((x - at) ** 2)
    assert inside == (lowest not in (0, 4))
    assert place == pytest.approx(at if inside else x[lowest], abs=1e-6)
    assert height == pytest.approx(3 + curvature * (place - at) ** 2, abs=1e-6 * curvature)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=9))
def test_noise_never_throws_it_beyond_the_neighbours_of_the_best(y: list[float]) -> None:
    place, _, _ = vertex(np.arange(len(y), dtype=float), np.array(y))
    assert abs(place - np.argmin(y)) <= 1


def test_a_planted_law_is_found_through_noise() -> None:
    """lr = 2 N^-0.4 at 20 tokens per parameter, with the noise of seeds of small runs."""
    trials = [
        one
        for params in (1e5, 2e5, 4e5, 8e5)
        for seed in range(2)
        for one in runs(2 * params**-0.4, params, 20 * params, noise=0.004, seed=seed)
    ]
    rule = law("own", optima(trials), "deepseek")
    assert rule.learning_rate(4e5, 8e6) == pytest.approx(2 * 4e5**-0.4, rel=0.1)
    assert rule.learning_rate(3.2e6, 6.4e7) == pytest.approx(2 * 3.2e6**-0.4, rel=0.2)
    assert "beyond" not in rule.advice(8e5, 1.6e7) and "beyond" in rule.advice(1.6e6, 3.2e7)
    assert "N^-0." in rule.notes[0] and "D^" not in rule.notes[0]


def test_tokens_count_where_they_vary_at_one_size() -> None:
    """Bjorck et al.'s joint law, c N^a D^b."""
    sizes = [(n, n * ratio) for n in (1e5, 4e5) for ratio in (10, 40)]
    trials = [one for n, d in sizes for one in runs(10 * n**-0.3 * d**-0.3, n, d)]
    rule = law("own", optima(trials), "deepseek")
    for n, d in sizes:
        assert rule.learning_rate(n, d) == pytest.approx(10 * n**-0.3 * d**-0.3, rel=0.1)
    for n, d in ((1.6e6, 1e6), (1e5, 6.4e7)):
        assert rule.learning_rate(n, d) == pytest.approx(10 * n**-0.3 * d**-0.3, rel=0.15)
    assert "N^-0." in rule.notes[0] and "D^-0." in rule.notes[0]
    assert "batch 2050 for every size" in rule.notes[0]


def test_one_size_says_that_it_knows_no_other() -> None:
    rule = law("own", optima(runs(5e-3)), "deepseek")
    assert rule.learning_rate(1e5, 2e6) == rule.learning_rate(1e7, 2e8)
    assert rule.learning_rate(1e5, 2e6) == pytest.approx(5e-3, rel=0.05)
    assert "for every size" in rule.notes[0]
    assert "beyond" in rule.advice(1e6, 2e7) and "beyond" not in rule.advice(1e5, 2e6)


def test_an_optimum_at_the_end_of_a_sweep_is_flagged() -> None:
    low, high = (optima(runs(rate))[0] for rate in (5e-4, 0.2))
    assert (low.rate, high.rate) == pytest.approx((RATES[0], RATES[-1]))
    assert all("may lie beyond" in one.note for one in (low, high))
    assert "beyond" not in optima(runs(5e-3))[0].note


def test_batches_are_swept_or_those_of_the_law_that_trained() -> None:
    deepseek = RULES["deepseek"]
    own = law("own", optima(runs(5e-3, batch=2048)), "deepseek")  # the power of two nearest to it
    assert own.batch_tokens(1e7, 2e8) == deepseek.batch_tokens(1e7, 2e8)
    assert "that of deepseek" in own.notes[0]
    other = law("own", optima(runs(5e-3, batch=512)), "deepseek")
    assert other.batch_tokens(1e7, 2e8) == pytest.approx(512)
    # losses best at 1024 tokens, where the optimal rate grows as the root of the batch
    swept = [
        one._replace(loss=one.loss + 0.1 * math.log(batch / 1024) ** 2)
        for batch in (256, 512, 1024, 2048, 4096)
        for one in runs(5e-3 * (batch / 1024) ** 0.5, batch=batch)
    ]
    (best,) = optima(swept)
    assert (best.batch, best.rate) == pytest.approx((1024, 5e-3), rel=0.1)
    assert best.runs == 35 and "batch 1,0" in best.note


def test_advice_adds_the_own_law_to_the_published_ones() -> None:
    own = law("runs/sweep", optima(runs(5e-3)), "deepseek")
    assert advice(MODEL, 2e6, RULES["deepseek"]) == advice(MODEL, 2e6)
    assert advice(MODEL, 2e6, own) == [
        *advice(MODEL, 2e6), own.advice(2 * 16 + 4 * 16**2 + 3 * 16 * 32 + 16, 2e6), *own.notes
    ]  # fmt: skip


def test_what_is_no_law_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'step-law': neither .*; did you mean step_law\?"):
        rule_of("step-law")
    (tmp_path / "suite.json").write_text(json.dumps({"runs": {"a": {}, "b": {}}}))
    with pytest.raises(UserError, match="0 of its 2 runs are finished, and no three"):
        rule_of(str(tmp_path))
