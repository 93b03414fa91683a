"""Token laws: planted curves, the comparison on what was held out, and Pythia."""

import gzip
import json
import math

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.registry import Study
from jaxllm.analysis.scaling.tokens import (
    LAST_VALUE,
    LAWS,
    LearningCurveFits,
    learning_curve_fits,
)
from jaxllm.run.records import COLUMNS, Record

TOKENS = np.geomspace(1e9, 1e11, 24)


def token_laws(frame: pd.DataFrame, **options) -> LearningCurveFits:
    """The fits to curves that are told by `run, task, metric, tokens, value` alone."""
    blank = Record(run="", family="", params=1, step=0, tokens=0, flops=0.0, task="", domain="d",
                   shots=0, metric="", value=0.0, primary=True)  # fmt: skip
    rest = {name: getattr(blank, name) for name in COLUMNS if name not in frame}
    records = frame.assign(**rest).assign(step=frame.tokens)[list(COLUMNS)]
    return learning_curve_fits(Study(records), **options)


def series(curve, seed=0, noise=0.004, tasks=8, metric="accuracy"):
    rng = np.random.default_rng(seed)
    return pd.concat(
        [
            pd.DataFrame(
                {"run": "r", "task": f"task {i}", "metric": metric, "tokens": TOKENS,
                 "value": curve(TOKENS / 1e10) + rng.normal(0, noise, len(TOKENS))}
            )
            for i in range(tasks)
        ],
        ignore_index=True,
    )  # fmt: skip


CURVES = {
    "power law": lambda d: 0.8 - 0.3 * d**-0.5,
    "log-linear": lambda d: 0.3 + 0.08 * np.log(d),
    "sigmoid": lambda d: 0.25 + 0.6 / (1 + (d / 2.0) ** -1.5),
}


@pytest.mark.parametrize("law", CURVES)
def test_the_law_that_made_the_curve_extrapolates_it_best(law) -> None:
    found = token_laws(series(CURVES[law]), holdout=0.6)
    summary = found.summary.set_index("law")
    assert summary.late_error.idxmin() == law
    assert summary.high[law] < 0  # beyond doubt better than the last value
    assert f"the {law} (" in found.sentence and "beats" in found.sentence


def test_shape_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """The exponent 0.5 of 120 noisy power laws."""
    found = token_laws(series(CURVES["power law"], tasks=120), holdout=0.2)
    rows = found.table[found.table.law == "power law"]
    low, high = rows.low.fillna(0), rows.high.fillna(math.inf)
    step = 1.07  # of the grid of exponents
    assert ((low / step <= 0.5) & (high * step >= 0.5)).mean() >= 0.9
    assert rows["shape"].median() == pytest.approx(0.5, rel=0.2)


def test_a_row_has_the_parameters_of_what_was_fitted() -> None:
    laws = {
        "power law": lambda row, d: -(d ** -row["shape"]),
        "log-linear": lambda row, d: np.log(d),
        "sigmoid": lambda row, d: 1 / (1 + (d / row["shape"]) ** -row.steepness),
    }
    for law, shape in laws.items():
        truth = CURVES[law](TOKENS / 1e10)
        found = token_laws(series(CURVES[law], noise=0, tasks=1), holdout=0.2)
        row = found.table.set_index("law").loc[law]
        errors = np.abs(row.level + row.gain * shape(row, TOKENS / row.unit) - truth)
        assert errors.max() < 0.02  # the grids of shapes are coarse
        assert row.late_error == pytest.approx(errors[-row.n_late :].mean())


def test_shares_level_off_between_nothing_and_everything() -> None:
    rising = series(lambda d: 0.2 + 0.3 * d**0.5, noise=0, tasks=1)
    row = token_laws(rising).table.set_index("law").loc["power law"]
    assert row.level <= 1.02
    free = token_laws(rising.assign(metric="bits_per_byte")).table.set_index("law")
    assert free.early_error["power law"] <= row.early_error


def test_no_law_is_claimed_for_random_walks() -> None:
    """A random walk has no law, so that none may beat its last value; nominally 2.5 % a law."""
    rng = np.random.default_rng(2)
    claims = []
    for _ in range(30):
        data = series(lambda d: 0 * d, tasks=8, metric="bits_per_byte")
        walks = rng.normal(0, 0.02, (8, len(TOKENS))).cumsum(axis=1).ravel()
        summary = token_laws(data.assign(value=walks)).summary
        claims.append((summary.high < 0).any())
    assert sum(claims) <= 6


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.head(5),
        lambda t: t.head(0),
        lambda t: t.assign(value=math.nan),
        lambda t: t.assign(tokens=1e9),
    ],
)
def test_too_few_checkpoints_are_refused(change) -> None:
    found = token_laws(change(series(CURVES["sigmoid"], tasks=1)))
    assert found.table.empty and "checkpoints" in found.refused and found.refused in found.sentence


def test_short_curves_are_counted_and_repeats_averaged() -> None:
    whole = series(CURVES["power law"], tasks=3)
    short = whole[(whole.task != "task 2") | (whole.tokens < 3e9)]
    found = token_laws(pd.concat([short, short[short.task == "task 0"]]))
    assert set(found.table.task) == {"task 0", "task 1"} and found.notes[0].startswith("1 curves")
    pd.testing.assert_frame_equal(
        found.table, token_laws(whole[whole.task != "task 2"]).table, check_exact=False
    )


def test_pythia_saturates_as_a_power_of_tokens(shared_data) -> None:
    """From half of the training the power law beats the last value, the log-linear law does not:
    gains per doubling shrink."""
    rows = []
    for path in sorted((shared_data / "reference" / "pythia" / "v1").glob("*.zero-shot.jsonl.gz")):
        with gzip.open(path, "rt") as lines:
            for line in lines:
                result = json.loads(line)
                rows += [
                    (path.name.split(".zero")[0], task, result["step"] * 2_097_152, value["acc"])
                    for task, value in result["results"].items()
                    if "acc" in value and not task.startswith("hendrycksTest")
                ]
    records = pd.DataFrame(rows, columns=["run", "task", "tokens", "value"])
    found = token_laws(records.assign(metric="accuracy"), holdout=0.5)
    summary = found.summary.set_index("law")
    assert (found.table.law == LAST_VALUE).sum() >= 100
    assert summary.late_error.idxmin() == "power law"
    assert summary.high["power law"] < 0
    assert summary.high["log-linear"] > 0
    assert summary.late_error[LAST_VALUE] < 0.03
    assert LAWS == ("power law", "log-linear", "sigmoid")
