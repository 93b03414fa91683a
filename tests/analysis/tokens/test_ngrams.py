"""Phases by n-grams: the scores by their definition, and the published ones of Pythia."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.tokens import ngrams

TEXT = "abracadabra abacus"


def backoff(gram: str, counts: Counter) -> float:
    """Stupid backoff as its authors write it, by recursion."""
    if len(gram) == 1:
        return math.log(max(counts[gram], 1) / len(TEXT))
    if counts[gram]:
        return math.log(counts[gram] / counts[gram[:-1]])
    return math.log(0.4) + backoff(gram[1:], counts)


def test_scores_are_those_of_stupid_backoff() -> None:
    counts = Counter(TEXT[i : i + n] for n in range(1, 6) for i in range(len(TEXT) - n + 1))
    said = ["abacadabra", "us", "z", "bazar abra"]
    documents = np.repeat(np.arange(4), [len(one) for one in said])
    table, expected = np.zeros((5, len(documents)), int), np.zeros((5, len(documents)))
    grams = [(one, i) for one in said for i in range(len(one))]
    for n in range(1, 6):
        for at, (one, i) in enumerate(grams):
            if i >= n - 1:
                table[n - 1, at] = counts[one[i - n + 1 : i + 1]]
            expected[n - 1, at] = backoff(one[max(0, i - n + 1) : i + 1], counts)
    found = ngrams.log_scores(table, documents, len(TEXT))
    np.testing.assert_allclose(found, expected)


def test_a_model_that_goes_from_unigrams_to_trigrams_peaks_in_that_order() -> None:
    draw = np.random.default_rng(1)
    scores = np.cumsum(draw.normal(size=(3, 3000)), axis=0)
    at = np.linspace(-1, 2, 25)  # 0, 1 and 2 are the n-gram models
    likeness = np.exp(-8 * (at[:, None] - np.arange(3)) ** 2) + 1e-3
    losses = -(likeness @ scores) / likeness.sum(axis=1, keepdims=True)
    r = ngrams.correlations(losses, scores)
    np.testing.assert_allclose(r[4, 1], np.corrcoef(-losses[4], scores[1])[0, 1])
    table = ngrams.peaks(np.arange(25), r)
    assert table.step.is_monotonic_increasing and table.step.nunique() == 3
    assert table.passed.tolist() == [True, True, False]


def test_a_token_without_a_finite_loss_is_left_out_of_its_checkpoint() -> None:
    rng = np.random.default_rng(1)
    losses, scores = rng.normal(size=(3, 50)), rng.normal(size=(2, 50))
    expected = ngrams.correlations(losses, scores)
    expected[1] = ngrams.correlations(losses[1:2, :-1], scores[:, :-1])
    losses[1, -1], losses[2] = np.nan, np.inf
    found = ngrams.correlations(losses, scores)
    np.testing.assert_allclose(found[:2], expected[:2])
    assert np.isnan(found[2]).all()


def test_an_unseen_token_is_no_likelier_than_one_read_less_than_once() -> None:
    counts = 0.01 * np.array([[0, 1, 5]])
    unseen, rare, common = ngrams.log_scores(counts, np.zeros(3), 10.0)[0]
    assert unseen == rare == math.log(0.01 / 10) and common == math.log(0.05 / 10)


def test_the_phases_of_pythia(shared_data) -> None:
    """All seeds of 70M and 1.4B, both corpora, both coefficients: in order, on the same steps."""
    path = shared_data / "reference" / "behavioral_phases" / "all_cors.csv.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    table = pd.read_csv(path)
    table = table[table.CorrelatingVariable.str.endswith("gram")]
    table = table.assign(n=table.CorrelatingVariable.str[-5].astype(int),
                         corpus=table.CorrelatingVariable.str.partition("_")[0])  # fmt: skip
    found = []
    for _, own in table.groupby(["ModelSize", "ModelSeed", "corpus"]):
        for coefficient in ("PearsonR", "SpearmanRho"):
            r = own.pivot(index="ModelStep", columns="n", values=coefficient)
            peaks = ngrams.peaks(r.index.to_numpy(), r.to_numpy())
            assert peaks.step.is_monotonic_increasing
            assert peaks.passed[:2].all()
            found.append(np.searchsorted(r.index, peaks.step))
    assert len(found) == 44
    places = np.stack(found)  # [runs, n], index of a checkpoint
    typical = np.median(places, axis=0)
    assert r.index[typical[:4].astype(int)].tolist() == [128, 512, 1000, 2000]
    close = abs(places - typical) <= 1
    assert close[:, :4].all() and close.all(axis=1).sum() >= 43
