"""What rings while a run is going: each fault once, and healthy runs no more than is said.

The series here are simulated. On published ones (75 training logs of the modded-nanogpt records,
310,257 logged steps) the same watch rang once, for spikes.
"""

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.health.loss import PLATEAU_SHARE, non_finite_loss
from jaxllm.analysis.health.result import ALPHA
from jaxllm.analysis.health.watch import Watch
from tests.analysis.planted_health import logged, table


def follow(watch: Watch, metrics: pd.DataFrame) -> list[tuple[int, str]]:
    """The steps and names of the alarms, in order."""
    return [
        (int(row["step"]), check.name)
        for row in metrics.to_dict("records")
        for check in watch.on_metrics(row)
        if check.raised
    ]


def test_a_divergence_rings_once_and_within_five_lines() -> None:
    metrics = logged(0, steps=600)
    metrics.loc[299:, "loss"] += 2.0
    rung = follow(Watch(), metrics)
    assert rung[0] == (304, "loss spikes")
    assert [name for _, name in rung].count("loss spikes") == 1
    again = logged(1, steps=600)
    again.loc[299:309, "loss"] += 2.0
    again.loc[399:, "loss"] += 2.0  # another spike is another alarm
    spikes = [step for step, name in follow(Watch(), again) if name == "loss spikes"]
    assert spikes == [304, 404]


def test_lines_of_skipped_steps_are_no_losses() -> None:
    metrics = logged(0, steps=600)
    metrics["skipped_steps"] = 0.0
    metrics.loc[metrics.step >= 400, "loss"] += 2.0
    metrics.loc[metrics.step % 50 == 0, "loss"] = np.nan
    assert not non_finite_loss(metrics).raised
    assert non_finite_loss(metrics.drop(columns="skipped_steps")).raised
    names = [check.name for row in metrics.to_dict("records") for check in Watch().on_metrics(row)]
    assert "finite loss" in names, "a loss that is not finite"
    watch, rung = Watch(), list[str]()
    for row in metrics.to_dict("records"):
        line = {k: v for k, v in row.items() if k != "loss" or np.isfinite(v)}
        rung += [check.name for check in watch.on_metrics(line)]
    assert "loss level" in rung and "finite loss" not in rung


def test_gradient_norm_that_grows_rings_once() -> None:
    rung = follow(Watch(), logged(0, growth=2.0, steps=1000))
    assert [name for _, name in rung] == ["gradient norm"]


def test_healthy_series_are_quiet() -> None:
    for seed in range(8):
        metrics = logged(seed, steps=600)
        metrics["learning_rate"] = 1e-3 * np.minimum(metrics.step / 50, 1)
        assert follow(Watch(), metrics) == []


def test_looking_often_does_not_ring_more_often() -> None:
    """At the edge of the null hypothesis, over two doublings of tokens."""
    tries, edge = 40, 3 * PLATEAU_SHARE
    raised = [
        any(name == "plateau" for _, name in follow(Watch(), logged(s, fall=edge, steps=256)))
        for s in range(tries)
    ]
    assert sum(raised) <= stats.binom.ppf(0.999, tries, 2 * ALPHA)


def test_an_alarm_that_was_quiet_for_a_doubling_is_new_again() -> None:
    metrics = logged(0, noise=0.002, steps=4000)
    doublings = np.log2(metrics.step / 4000)
    flat = (doublings > -4.5) & (doublings < -3.3) | (doublings > -1.2)
    metrics["loss"] = 5 - np.cumsum(np.where(flat, 0, 0.3 * np.diff(doublings, prepend=-12)))
    metrics["loss"] += np.random.default_rng(0).normal(0, 0.002, 4000)
    rung = [step for step, name in follow(Watch(), metrics) if name == "plateau"]
    assert len(rung) == 2 and rung[0] < 500 and rung[1] > 1700


def test_what_an_earlier_process_saw_does_not_ring_again() -> None:
    metrics = logged(0, steps=600)
    metrics.loc[299:, "loss"] += 2.0
    first, second = Watch(), Watch()
    for row in metrics.iloc[:400].to_dict("records"):
        for check in first.on_metrics(row):
            for subject in check.subjects or ("",):
                second.restore(check.name, subject, row["tokens"])
        second.on_metrics(row, check=False)
    assert follow(second, metrics.iloc[400:]) == follow(first, metrics.iloc[400:])
    assert follow(Watch(), metrics.iloc[:400])


def test_a_falling_capability_rings_for_each_task_once() -> None:
    records = table(0, {f"task{k}": 0.05 for k in range(10)}, {"r": 1e8}, points=40)
    for task, since in (("task1", 16), ("task2", 24)):
        late = (records.task == task) & (records.step > since)
        records.loc[late, "value"] -= 0.03 * (records.step[late] - since)
    watch = Watch()
    rung = [
        set(check.subjects)
        for _, scored in records.groupby("step")
        for check in watch.on_scores(scored)
    ]
    assert rung[0] == {"task1"} and rung[-1] == {"task1", "task2"} and len(rung) == 2
