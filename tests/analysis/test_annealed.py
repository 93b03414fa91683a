"""What a run would reach if annealed, on the runs and cooldowns of the study."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis import annealed as module
from jaxllm.analysis.annealed import annealed
from jaxllm.analysis.registry import Study
from jaxllm.analysis.scaling.fit import finished
from jaxllm.analysis.scaling.schedule_law import fit
from jaxllm.report.tables import gather
from jaxllm.run.suite_layout import runs_in
from tests.conftest import REPOSITORY

RUN = "800k_seed1"


@pytest.fixture(scope="module")
def study() -> Study:
    return gather(runs_in(REPOSITORY / "docs" / "study")).study


def cut(study: Study, runs: list[str], step: int) -> Study:
    """Some of the runs, the first one in progress at a step."""
    log = study.logged[study.logged.run.isin(runs)]
    log = log[(log.run != runs[0]) | (log.step <= step)]
    return dataclasses.replace(study, logged=log, planned_tokens={runs[0]: 1953 * 8192})


def test_cooldowns_are_foretold_by_their_trunks(study) -> None:
    logged, held = dict(module._logged(study)), 0
    for run, (parent, _) in study.parents.items():
        branch = logged[run].curve
        law = fit([logged[parent].curve])
        low, high = law.interval(branch.rates, branch.steps[-2:])
        held += bool(low.mean() < branch.losses[-2:].mean() < high.mean())
    assert len(study.parents) == 8 and held >= 7


def test_a_run_in_progress_is_annealed_now_and_at_its_end(study) -> None:
    (found,) = annealed(cut(study, [RUN, f"{RUN}_cooldown0.5"], 1400))
    rows = found.table.set_index("kind")
    planned, now = rows.loc["planned"], rows.loc["annealed"].iloc[-1]
    assert planned.low < 2.69 < planned.high  # it ended there
    assert now.step == round(1400 / 0.9) and now.value < rows.loc["law"].value.min()
    assert planned.value < now.value and planned.tokens == 1953 * 8192
    assert f"reach a training loss of {now.value:.3f} (90% interval {now.low:.3f}" in found.sentence
    assert f"at its planned end, 16M tokens, {planned.value:.3f}" in found.sentence


def test_a_sibling_tells_what_a_decay_gives_at_the_level_of_the_run(study) -> None:
    both = cut(study, [RUN, "800k_seed2"], 1400)
    log = both.logged.assign(
        loss=both.logged.loss.where(both.logged.run == RUN, both.logged.loss * 2)
    )
    value = [
        annealed(dataclasses.replace(both, logged=table))[0]
        .table.set_index("kind")
        .value["planned"]
        for table in (both.logged, log)
    ]
    assert value[0] == pytest.approx(value[1], rel=1e-6) and 2.4 < value[0] < 2.9


def test_without_any_decay_there_is_no_answer(study) -> None:
    (found,) = annealed(cut(study, [RUN], 1400))
    assert "fell by 30%" in found.refused
    (other_size,) = annealed(cut(study, [RUN, "400k_seed1"], 1400))
    assert "fell by 30%" in other_size.refused


def test_a_plan_below_the_rates_that_were_seen_is_noted(study) -> None:
    (found,) = annealed(cut(study, [RUN], 1920))  # at 17% of its peak
    assert found.notes and "learning rate of 0" in found.notes[0] and "only" in found.notes[0]
    assert found.table.kind.iloc[-1] == "planned"


def test_a_finished_run_tells_what_less_would_have_given(study) -> None:
    found, other = annealed(study)
    ends = finished(study.logged, "loss").set_index("run").loss  # as in the table of runs
    at = f"{RUN} ended at a training loss of {ends[RUN]:.3f}, the law at 2."
    assert found.sentence.startswith(at) and ends[RUN] == pytest.approx(2.717, abs=5e-4)
    assert "annealed by 7.9" in found.sentence and other.title.endswith("800k_seed2")
    assert found.table[found.table.kind == "annealed"].step.max() <= 1953


def test_the_beginning_must_be_known() -> None:
    steps = np.arange(500, 1000, 10)
    log = pd.DataFrame(
        {"run": "late", "step": steps, "tokens": steps * 10.0, "loss": 3.0, "learning_rate": 1e-3}
    )
    (found,) = annealed(Study(pd.DataFrame(columns=["run", "params"]), logged=log))
    assert "from its beginning" in found.refused
