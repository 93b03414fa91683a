"""Normalized loss curves: the published ladder, and how often the check alarms for nothing."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.collapse import AT, collapse, leaves_collapse, spread
from jaxllm.analysis.registry import Study
from jaxllm.run.records import COLUMNS

NOTHING = pd.DataFrame(columns=COLUMNS)
X = np.linspace(0.02, 1, 100)


@pytest.fixture(scope="module")
def ladder(shared_data: Path) -> pd.DataFrame:
    """C4 losses of the OLMo ladder; of 1xC the run with all its evaluations."""
    folder, parts = shared_data / "reference/olmo_ladder", []
    sizes = pd.read_csv(folder / "models.csv.gz").set_index("files").n
    for size in ("190M", "370M", "760M", "1B"):
        for factor in ("0.5xC", "1xC-rerun", "2xC", "5xC", "10xC"):
            rows = pd.read_csv(folder / f"{size}-{factor}.csv.gz")
            loss = rows["eval/c4_en-validation/CrossEntropyLoss"]
            own = {"run": f"{size}-{factor}", "params": float(sizes[size]), "flops": np.nan}
            tokens = rows["throughput/total_tokens"]
            parts.append(pd.DataFrame({"tokens": tokens, "loss": loss}).assign(**own))
    return pd.concat(parts, ignore_index=True)


# Relative spread in percent at 20, 30, 50 and 70 % of the run, over the mean of the last three.
FIGURES = {
    10: (0.28, 0.10, 0.20, 0.08),
    5: (0.45, 0.21, 0.19, 0.11),
    2: (0.44, 0.34, 0.22, 0.09),
    1: (0.81, 0.36, 0.22, 0.07),
    0.5: (1.7, 0.97, 0.33, 0.10),
}


def test_the_ladder_collapses_as_published(ladder) -> None:
    found = collapse(Study(NOTHING, losses=ladder))
    assert len(found.lines) == 4
    groups = dict(list(found.table.groupby(found.table.run.str.split("-").str[1])))
    for factor, figures in FIGURES.items():
        table = groups["1xC" if factor == 1 else f"{factor:g}xC"]
        ours = [100 * spread(table, x) for x in AT]
        assert ours == pytest.approx(figures, abs=0.011 if factor != 0.5 else 0.03)
        assert np.isfinite(table.excess).all()


def cut(ladder: pd.DataFrame, run: str, share: float, fault: float = 0.0) -> Study:
    """One run stopped at a share of its tokens, its loss rising by `fault` over the last tenth."""
    own = ladder.run == run
    total = ladder.tokens[own].max()
    x = ladder.tokens / total
    rise = 1 + fault * np.clip((x - share + 0.1) / 0.1, 0, 1)
    losses = ladder.assign(loss=ladder.loss.where(~own, ladder.loss * rise))[~own | (x <= share)]
    return Study(NOTHING, losses=losses, planned_tokens={run: float(total)})


def test_a_fault_in_the_ladder_shows_and_no_healthy_run_alarms(ladder) -> None:
    alarms = [
        leaves_collapse(cut(ladder, run, share), run).raised
        for run in ladder.run.unique()
        for share in (0.6,)
    ]
    assert len(alarms) == 20 and sum(alarms) <= 1
    found = leaves_collapse(cut(ladder, "1B-10xC", 0.6, fault=0.03), "1B-10xC")
    assert found.raised and found.number > 0.01 and "3 finished runs" in found.reason


def simulated(rng: np.random.Generator, run: str, params: float) -> pd.DataFrame:
    """A curve with its own smooth deviation and noise, and its own final loss."""
    smooth = rng.normal(0, 0.004, 4) @ np.cos(np.outer(np.arange(4), np.pi * X))
    loss = (
        (2 + 1e3 * params**-0.4)
        * (0.9 + 0.1 * X**-0.4)
        * np.exp(smooth + rng.normal(0, 0.002, 100))
    )
    own = {"run": run, "params": params, "flops": np.nan}
    return pd.DataFrame({"tokens": X * 20 * params, "loss": loss}).assign(**own)


def test_false_alarms_are_as_rare_as_the_level_says(count: int = 4, draws: int = 80) -> None:
    rng, p = np.random.default_rng(0), []
    for _ in range(draws):
        runs = [simulated(rng, str(i), 1e8 * 2**i) for i in range(count + 1)]
        runs[-1] = runs[-1][runs[-1].tokens <= 0.6 * runs[-1].tokens.max()]
        study = Study(NOTHING, losses=pd.concat(runs), planned_tokens={str(count): 20e8 * 2**count})
        p.append(leaves_collapse(study, str(count)).p_value)
    print(count, np.mean(np.array(p) < 0.01), np.mean(np.array(p) < 0.1))
    assert np.mean(np.array(p) < 0.01) <= 0.05 and 0.03 <= np.mean(np.array(p) < 0.1) <= 0.18


def test_nothing_is_said_without_siblings() -> None:
    rng = np.random.default_rng(1)
    one = simulated(rng, "one", 1e8)
    assert collapse(Study(NOTHING, losses=one)).refused
    other = simulated(rng, "other", 1e9).assign(tokens=lambda rows: 3 * rows.tokens)
    assert collapse(Study(NOTHING, losses=pd.concat([one, other]))).refused
    assert leaves_collapse(Study(NOTHING, losses=one, planned_tokens={"one": 4e9}), "one") is None


def test_only_siblings_are_compared() -> None:
    """Of one family and one schedule, where they are known."""
    rng = np.random.default_rng(2)
    runs = [simulated(rng, str(i), 1e8 * 2**i) for i in range(4)]
    study = Study(NOTHING, losses=pd.concat(runs), planned_tokens={"3": 16e9})
    cosine, linear = 1 + np.cos(np.pi * X), np.linspace(1, 0.5, 300)
    rates = {"0": cosine, "1": 3 * cosine[::2], "2": cosine, "3": cosine}
    assert len(_runs(dataclasses.replace(study, planned_rates=rates))) == 3
    assert leaves_collapse(dataclasses.replace(study, planned_rates=rates), "3") is not None
    others = dataclasses.replace(study, planned_rates=rates | {"2": linear})
    assert set(_runs(others)) == {"0", "1"} and leaves_collapse(others, "3") is None
    families = pd.DataFrame({"run": ["0", "1", "2"], "family": ["a", "b", "b"]})
    of_families = dataclasses.replace(study, records=families.reindex(columns=COLUMNS))
    assert set(_runs(of_families)) == {"1", "2"}
    assert leaves_collapse(of_families, "3") is None  # of any family, and two siblings are few
    first = families.assign(run=["1", "2", "x"], family=["a", "b", "b"])  # and "0" of any
    of_first = dataclasses.replace(study, records=first.reindex(columns=COLUMNS))
    assert len(_runs(of_first)) == 2
    of_some = dataclasses.replace(study, records=families[:1].reindex(columns=COLUMNS))
    assert len(_runs(of_some)) == 3 and leaves_collapse(of_some, "3") is not None


def _runs(study: Study) -> list[str]:
    return list(collapse(study).table.run.unique())


def test_three_sizes_do_not_tell_an_irreducible_loss() -> None:
    rng = np.random.default_rng(3)
    for count in (3, 4):
        runs = [simulated(rng, str(i), 1e8 * 2**i) for i in range(count)]
        found = collapse(Study(NOTHING, losses=pd.concat(runs)))
        assert found.table.excess.isna().all() == ("irreducible" not in found.sentence)
        assert ("irreducible" in found.sentence) == (count == 4)
