"""The cards on tokens, on runs with planted trends."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.registry import Study
from jaxllm.analysis.tokens.findings import token_kinds_of_trends, token_shares, token_subsets
from jaxllm.analysis.tokens.runs import TokenRun, TokenStudy
from jaxllm.run.token_losses import TokenSet

DOCUMENTS, LENGTH, CHECKPOINTS = 20, 100, 24
DIGITS = np.arange(DOCUMENTS * LENGTH) % 5 == 0  # a fifth: forgotten


def token_set() -> TokenSet:
    text = "".join("7 " if k % 5 == 0 else "a " for k in range(LENGTH))
    ids = [np.arange(LENGTH) % 5 == 0 for _ in range(DOCUMENTS)]
    return TokenSet.of("books", [text] * DOCUMENTS, ids, [range(2, 2 * LENGTH + 1, 2)] * DOCUMENTS)


def run(name: str, params: float, seed: int) -> TokenRun:
    rng = np.random.default_rng(seed)
    steps = np.arange(1, CHECKPOINTS + 1) * 100
    rise = np.linspace(0, 1, CHECKPOINTS)[:, None] * np.where(DIGITS, 1.0, 0.0)
    losses = 2 + rise + rng.normal(0, 0.02, (CHECKPOINTS, len(DIGITS)))
    clock = steps * 1000.0
    return TokenRun(name, "suite", params, steps, clock, 6 * params * clock, np.float32(losses))


@pytest.fixture(scope="module")
def study() -> Study:
    runs = (run("small", 1e6, 1), run("large", 4e6, 2))
    return Study(pd.DataFrame(), token_studies=(TokenStudy(token_set(), runs),))


def test_planted_shares_come_out(study: Study) -> None:
    (finding,) = token_shares(study)
    shares = finding.table.set_index(["run", "after", "trend"]).share
    assert shares["large", 20, "upward"] == pytest.approx(0.2, abs=0.005)
    assert shares["large", 20, "downward"] == pytest.approx(0, abs=0.005)
    assert "20.3% forgotten" in finding.sentence


def test_the_subset_of_one_run_is_followed_in_the_other(study: Study) -> None:
    (finding,) = token_subsets(study)
    forgotten = finding.table[(finding.table.trend == "upward") & (finding.table.by == "small")]
    last = forgotten.groupby("run").perplexity.last()
    assert last["large"] == pytest.approx(np.exp(3), rel=0.1)
    assert "No double descent in 2 tests" in finding.lines[0]


def test_the_kind_of_the_forgotten_tokens_is_named(study: Study) -> None:
    (finding,) = token_kinds_of_trends(study)
    assert "upward 100.0%" in finding.sentence
    shares = finding.table.set_index(["group", "trend"]).share
    assert shares["part: number", "upward"] == 1 and shares["part: whole", "upward"] < 0.02


def test_few_checkpoints_are_refused(study: Study) -> None:
    (one,) = study.token_studies
    short = [
        TokenRun(r.run, r.family, r.params, r.steps[:3], r.tokens[:3], r.flops[:3], r.losses[:3])
        for r in one.runs
    ]
    few = Study(pd.DataFrame(), token_studies=(TokenStudy(one.token_set, tuple(short)),))
    for analysis in (token_shares, token_subsets, token_kinds_of_trends):
        (finding,) = analysis(few)
        assert "four" in finding.refused
