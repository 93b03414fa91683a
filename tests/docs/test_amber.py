"""The figures of docs/amber.md follow from the published scores of Amber's checkpoints."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxllm.analysis.correlations import correlations
from jaxllm.analysis.curves import curves
from jaxllm.analysis.emergence import emergence
from jaxllm.analysis.finding import amount
from jaxllm.analysis.health import tasks
from jaxllm.analysis.onsets import gain_share, trajectories
from jaxllm.analysis.registry import Study
from jaxllm.analysis.signal import agreement
from jaxllm.analysis.stats import line_fit
from jaxllm.interop.importers import open_source
from tests.conftest import REPOSITORY

PAGE = re.sub(r"\s+", " ", (REPOSITORY / "docs" / "amber.md").read_text())
TASKS = {
    "hellaswag 10-shot": "HellaSwag", "piqa": "PIQA", "arc_challenge 25-shot": "ARC-Challenge",
    "winogrande": "WinoGrande", "boolq": "BoolQ", "mmlu 5-shot": "MMLU",
}  # fmt: skip
COMMONSENSE = list(TASKS)[:4]
PERPLEXITY = "pile_average_per_doc"
PHASES = ((0.0, 0.1), (0.1, 0.5), (0.5, 1.0))


@pytest.fixture(scope="module")
def records(shared_data) -> pd.DataFrame:
    folder = shared_data / "reference" / "amber"
    return open_source(f"wandb:{folder}?run=Amber&params=6.74e9").records


@pytest.fixture(scope="module")
def six(records) -> pd.DataFrame:
    """Records of the six tasks at the checkpoints at which all were scored."""
    return records[records.task.isin(TASKS) & (records.step % 2 == 0)]


@pytest.fixture(scope="module")
def levels(records) -> pd.DataFrame:
    """Scores at the checkpoints at which all tasks were scored: tokens -> a column per task."""
    points = curves(records[records.step % 2 == 0]).main().comparable().points
    return points.pivot(index="tokens", columns="task", values="score")


def inside(tokens: np.ndarray, phase: tuple[float, float]) -> np.ndarray:
    share = tokens / 1_245_143_401_344
    return (share > phase[0]) & (share <= phase[1])


def means(records: pd.DataFrame, size: int = 5) -> pd.DataFrame:
    """Records of the means over so many successive checkpoints."""
    key = ["task", "metric", "block"]
    blocks = records.assign(block=records.step // (2 * size))
    blocks = blocks[blocks.groupby(key).value.transform("size") == size]
    last = {name: "last" for name in records if name not in key}
    found = blocks.groupby(key, as_index=False).agg(last | {"value": "mean", "tokens": "mean"})
    return found[list(records)]


def test_phases(records) -> None:
    """The table of onsets and trends: points per doubling, and the gain in units of its scatter."""
    own = records[records.task.isin(TASKS)]
    main = curves(own).main()
    onsets = trajectories(main, own)[1].set_index("task")
    signal = {}
    for curve in main:
        row = f"| {TASKS[curve.task]} | {100 * onsets.guess[curve.task]:.1f} % "
        row += f"| {amount(onsets.tokens[curve.task])} |"
        for phase in PHASES:
            at = inside(curve.tokens, phase)
            x, y = np.log2(curve.tokens[at]), 100 * curve.scores[at]
            line, seen = line_fit(x, y, noise=100 * tasks.noise(curve)), line_fit(x, y)
            half = stats.t.ppf(0.975, line.dof) * line.stderr
            signal[TASKS[curve.task], phase] = f"{seen.slope * seen.span / seen.scatter:.0f}"
            told = signal[TASKS[curve.task], phase].replace("-0", "0")
            row += f" {line.slope:.1f} ± {half:.1f} ({told}) |"
        row += f" {100 * curve.values[-1]:.1f} % |"
        assert row in PAGE
    first, second, last = PHASES
    moved = f"{signal['HellaSwag', first]} and {signal['PIQA', first]} standard deviations"
    assert moved in PAGE
    assert f"HellaSwag ({signal['HellaSwag', second]}) and ARC-Challenge" in PAGE
    ends = [signal[name, last] for name in ("HellaSwag", "BoolQ", "MMLU")]
    assert "and now BoolQ and MMLU ({}, {} and {})".format(*ends) in PAGE


def test_shares_of_the_gain(records) -> None:
    points, onsets = trajectories(curves(records).main(), records)
    shares = gain_share(points, onsets).dropna(subset="value")
    early = shares[inside(shares.tokens.to_numpy(), PHASES[0])].groupby("task").share
    made = {name: f"{early.get_group(task).tail(5).mean():.0%}" for task, name in TASKS.items()}
    assert ("HellaSwag has made {HellaSwag} of its gain and PIQA {PIQA}, ARC-Challenge "
            "{ARC-Challenge} and WinoGrande {WinoGrande}, BoolQ {BoolQ} and MMLU {MMLU}"
            ).format(**made).replace("%", " %") in PAGE  # fmt: skip


def test_ends_and_widths(records) -> None:
    found = emergence(Study(records[records.task.isin(TASKS)]))
    judged = found.table.set_index("task")
    assert (judged.end == "growing").all() and "none is shown to be sudden" in found.sentence
    gradual = judged[judged.verdict == "gradual"].low
    assert set(gradual.index) == {"hellaswag 10-shot", "arc_challenge 25-shot", "winogrande"}
    least = sorted(f"{low:.1f}" for low in gradual)
    assert f"at least {least[0]}, {least[1]} and {least[2]} decades" in PAGE


def test_mmlu_and_boolq(levels) -> None:
    mmlu = 100 * levels["mmlu 5-shot"]
    before, after = mmlu[mmlu.index <= 0.85e12].mean(), mmlu[mmlu.index > 0.9 * 1.245e12].mean()
    assert f"MMLU is at {before:.1f} % on average until 0.85T tokens" in PAGE
    assert f"{after:.1f} % over the last tenth" in PAGE
    assert f"BoolQ begins at {levels.boolq.iloc[0]:.1%}".replace("%", " %") in PAGE


def test_levels_correlate_trivially(levels) -> None:
    found = levels[list(TASKS)].corr("spearman")
    pairs = list(itertools.combinations(TASKS, 2))
    within = [found.loc[pair] for pair in pairs if set(pair) <= set(COMMONSENSE)]
    across = [found.loc[pair] for pair in pairs if not set(pair) <= set(COMMONSENSE)]
    assert f"{min(within):.2f} to {max(within):.2f} within commonsense" in PAGE
    assert f"{min(across):.2f} to {max(across):.2f} across" in PAGE


def test_gains_within_and_across(records, six) -> None:
    whole = correlations(Study(records))
    found = whole.table[whole.table.gain_q <= 0.05]
    assert whole.sentence in PAGE
    language = (found[["domain_a", "domain_b"]] == "language").all(axis=1)
    assert f"Of the {len(found)} pairs {language.sum()} are two perplexities" in PAGE
    for study, apart in ((six, "7B"), (means(six), "35B")):
        found = correlations(Study(study))
        within, across, p = re.search(
            r"correlate at (\S+) within a domain and (\S+) across domains \(p = (\S+)\)",
            found.sentence,
        ).groups()
        pairs = int((found.table.gain_q <= 0.05).sum())
        assert f"| {apart} | {within} | {across} | {p} | {pairs} of {len(found.table)} |" in PAGE
    best = correlations(Study(six)).table.iloc[0]
    assert {best.task_a, best.task_b} == {"boolq", "winogrande"}
    assert f"({best.gain:.2f}, q = {best.gain_q:.2f})" in PAGE


def test_perplexity_orders_checkpoints_no_better_than_tokens(levels) -> None:
    worse = 0
    for task, name in TASKS.items():
        row = f"| {name} |"
        for phase in PHASES:
            part = levels[inside(levels.index.to_numpy(), phase)]
            goal = pd.DataFrame({"unit": range(len(part)), "stratum": 0, "goal": part[task].array})
            _, share, low, high, _ = agreement(goal.assign(score=part[PERPLEXITY].array))
            tokens = agreement(goal.assign(score=part.index))[1]
            worse += share < tokens
            row += f" {100 * share:.0f} ({100 * low:.0f} to {100 * high:.0f}), {100 * tokens:.0f} |"
        assert row in PAGE
    assert f"in {worse} of 18 cells" in PAGE


def test_gains_of_perplexity(records) -> None:
    both = records[records.task.isin([*TASKS, PERPLEXITY]) & (records.step % 2 == 0)]
    for study, apart in ((both, "7B"), (means(both), "35B")):
        table = correlations(Study(study)).table
        own = table[(table[["task_a", "task_b"]] == PERPLEXITY).any(axis=1)]
        most = own.sort_values("gain", key=abs).iloc[-1]
        assert (own.gain_q > 0.3).all() and len(own) == 6
        assert f"{most.gain:.2f} over {apart} (p = {most.gain_p:.2f}" in PAGE


def test_perplexity_falls_while_mmlu_does_not_move(levels) -> None:
    perplexity = np.exp(-levels[PERPLEXITY])
    first, half = (perplexity[perplexity.index <= s * 1.2452e12].tail(5).mean() for s in (0.1, 0.5))
    assert f"from {first:.1f} to {half:.1f}" in PAGE
