"""Memorization by age, and of one checkpoint for another, on tables that can be counted by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.tokens.memorization import by_age, prediction


def table(trained_at: list[int], extractible: list[bool]) -> pd.DataFrame:
    ids = [f"{step}/0" for step in trained_at]
    score = np.where(extractible, 1.0, 0.25)
    return pd.DataFrame(
        {"id": ids, "trained_at": trained_at, "extractible": extractible, "score": score}
    )


def test_by_age() -> None:
    trained = [10, 20, 30, 40, 50, 60]
    found = by_age(table(trained, [False, False, True, True, False, True]), 45, bins=2)
    assert found.n.tolist() == [2, 2, 2]
    np.testing.assert_array_equal(found.age, [np.nan, 10.0, 30.0])
    np.testing.assert_array_equal(found.extractible, [0.5, 1.0, 0.0])
    np.testing.assert_array_equal(found.score, [0.625, 1.0, 0.25])
    assert found.extractible_stderr[0] == pytest.approx(0.5)
    passed_over = by_age(table([10, np.inf, 30], [False, True, True]), 40, bins=1)
    np.testing.assert_array_equal(passed_over.extractible, [1.0, 0.5])
    assert by_age(table([10, 20], [True, False]), 5).n.tolist() == [2]  # all are to come


def test_early_for_late() -> None:
    early = table([1, 2, 3, 4, 5], [True, True, True, False, False])
    late = table([5, 4, 3, 2, 9], [True, True, True, False, True])  # 1 and 9 are not in both
    found = prediction(early, late)
    assert (found["n"], found["precision"], found["recall"]) == (4, 1 / 2, 1 / 3)
    assert found["recall_stderr"] == pytest.approx(math.sqrt(2 / 9 / 3))
    none = prediction(early, late.assign(extractible=False))
    assert none["precision"] == 0 and math.isnan(none["recall"])
