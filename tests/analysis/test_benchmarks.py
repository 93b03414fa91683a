"""A benchmark's tasks become their mean with its standard error; nothing vanishes unsaid."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.benchmarks import pooled
from tests.analysis.planted import table


def suite(exams: int = 6) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    values = {f"mmlu_{i}": rng.uniform(0.2, 0.4, 5) for i in range(exams)}
    return table(values | {"piqa": np.linspace(0.5, 0.7, 5)}, stderr=0.06)


def test_the_mean_and_its_standard_error() -> None:
    records = suite()
    shown, notes = pooled(records, most=5)
    assert sorted(shown.task.unique()) == ["mmlu", "piqa"]
    exams = records[records.task != "piqa"]
    mmlu = shown[shown.task == "mmlu"].set_index("step").sort_index()
    assert mmlu.value.to_numpy() == pytest.approx(exams.groupby("step").value.mean())
    assert mmlu.stderr.to_numpy() == pytest.approx(0.06 / np.sqrt(6))
    assert (mmlu.n == 6 * 1000).all()
    assert mmlu.primary.all()
    assert list(shown) == list(records)
    assert "mmlu (6 tasks)" in notes[0]
    piqa = shown[shown.task == "piqa"].value
    assert list(piqa) == list(records[records.task == "piqa"].value)


def test_few_tasks_are_shown_one_by_one() -> None:
    records = suite()
    shown, notes = pooled(records)
    assert shown is records
    assert notes == ()


def test_a_checkpoint_without_some_exams_is_left_out_and_counted() -> None:
    records = suite()
    gap = (records.task == "mmlu_3") & (records.step == 2)
    shown, notes = pooled(records[~gap], most=5)
    assert sorted(shown.step[shown.task == "mmlu"]) == [0, 1, 3, 4]
    assert "1 checkpoints of benchmarks lack some of their tasks" in notes[1]


def test_shots_stay_apart_and_nan_has_no_part() -> None:
    zero = suite()
    five = zero.assign(task=zero.task + " 5-shot", shots=5, value=np.nan)
    shown, _ = pooled(pd.concat([zero, five], ignore_index=True), most=5)
    assert set(shown.task) == {"mmlu", "piqa", "piqa 5-shot"}
    assert pooled(zero.iloc[:0])[1] == ()
