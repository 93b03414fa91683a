"""From all records to one trajectory per task, and when each task left chance.

A task has left chance at the first checkpoint whose value is more than two standard errors above
its chance level, if the next scored checkpoint is too: one lucky checkpoint is expected among
forty, two in a row among 1,600. At the last checkpoint there is no next one, and the finding is
provisional.

An untrained model that is already beyond chance, by the same margin, answers by the form of the
options (their length, say): leaving chance then means leaving what the untrained model scored.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxllm.run.records import OK

STANDARD_ERRORS = 2.0

LEFT = "left chance"
PROVISIONAL = "left chance at the last checkpoint"
AT_CHANCE = "at chance"
NO_CHANCE_LEVEL = "no chance level"
NO_STANDARD_ERROR = "no standard error"
NO_VALUE = "no value"

_LOWER_IS_BETTER = ("bits_per_byte", "perplexity", "loss", "brier", "nll", "error")


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of `metric` is the better one."""
    return any(word in metric for word in _LOWER_IS_BETTER)


def is_share(metric: str) -> bool:
    """Whether `metric` is a share or a probability, from 0 to 1."""
    words = ("accuracy", "exact_match", "probability", "f1")
    return not lower_is_better(metric) and any(word in metric for word in words)


def charted(records: pd.DataFrame) -> pd.DataFrame:
    """The trajectories to show: of every task its primary metric at every scored checkpoint.

    Returns the columns of a record. Where a run has records of a checkpoint but none of the task,
    or the task failed, a row without a value says so in `status`, so that nothing is dropped. A
    task none of whose metrics is primary shows the first in alphabetical order.
    """
    if records.empty:
        return records
    key = ["run", "task"]
    records = records.reset_index(drop=True)
    ok = records.status == OK
    main = records[ok & records.primary].drop_duplicates(key)[key].assign(has_main=True)
    has_main = records[key].merge(main, how="left").has_main.notna()
    counted = records[ok & (records.primary | ~has_main)].groupby([*key, "metric"]).size()
    counted = counted.rename("count").reset_index()
    usual = counted.sort_values(["count", "metric"], ascending=[False, True])
    failed_only = records.drop_duplicates(key)[[*key, "metric"]]
    chosen = pd.concat([usual[[*key, "metric"]], failed_only]).drop_duplicates(key)
    metric = records[key].merge(chosen, how="left").metric
    shown = records[ok & (records.metric == metric)]
    failed = records[~ok].assign(metric=metric[~ok], value=float("nan"))
    failed = failed.drop_duplicates([*key, "step"])
    failed = failed[_not_in(failed, shown, [*key, "step"])]
    clocks = records.groupby(["run", "step"], as_index=False)[["tokens", "flops"]].max()
    last = records.assign(metric=metric).drop_duplicates(key, keep="last")
    gaps = last.drop(columns=["step", "tokens", "flops"]).merge(clocks, on="run")
    gaps = gaps[_not_in(gaps, records, [*key, "step"])]
    gaps = gaps.assign(value=float("nan"), stderr=float("nan"), n=0, status="no record")
    parts = [part for part in (shown, failed, gaps[list(records)]) if len(part)]
    frame = pd.concat(parts).drop_duplicates([*key, "step", "task_version"])
    frame.loc[~frame.value.abs().lt(float("inf")), "value"] = float("nan")
    return frame.sort_values(["run", "domain", "task", "step"], ignore_index=True)


def _not_in(rows: pd.DataFrame, others: pd.DataFrame, key: list[str]) -> np.ndarray:
    """Per row, whether `others` has none of the same key."""
    return ~pd.MultiIndex.from_frame(rows[key]).isin(pd.MultiIndex.from_frame(others[key]))


def above_chance(frame: pd.DataFrame) -> pd.Series:
    """Per row, whether the value is beyond a guess by `STANDARD_ERRORS` (no doubt, no claim).

    A guess is the chance level, or the untrained model's value where that is beyond chance itself.
    """
    signs = {metric: -1.0 if lower_is_better(metric) else 1.0 for metric in frame.metric.unique()}
    sign = frame.metric.map(signs).astype("float64")
    doubt = STANDARD_ERRORS * frame.stderr
    head_start = sign * (frame.value - frame.chance)
    untrained = head_start.where((frame.step == 0) & (head_start > doubt))
    keys = [frame.run, frame.task, frame.metric]
    bar = untrained.groupby(keys, sort=False).transform("max").fillna(0.0)
    return head_start - bar > doubt


def onsets(trajectories: pd.DataFrame) -> pd.DataFrame:
    """When each task left chance.

    Args:
      trajectories: What `charted` returns.

    Returns:
      A row per run and task, in the order in which they left chance: `run, task, domain, metric,
      state, step, tokens, flops, first, final, stderr, n, chance, shots, task_version`; `step`,
      `tokens`, `flops` are those of the onset and missing where there is none.
    """
    rows = []
    table = trajectories.assign(above=above_chance(trajectories))
    columns = {name: table[name].to_numpy() for name in table}
    groups = table.groupby(["run", "task"], sort=False).ngroup().to_numpy()
    by_step = np.lexsort((columns["step"], groups))
    bounds = np.flatnonzero(np.diff(groups[by_step])) + 1
    for every in np.split(by_step, bounds) if len(by_step) else []:
        points = every[~np.isnan(columns["value"][every])]
        last = {name: values[(points if len(points) else every)[-1]]
                for name, values in columns.items()}  # fmt: skip
        state, at = _onset(*(columns[name][points] for name in ("chance", "stderr", "above")))
        onset = {} if at is None else {name: columns[name][points[at]] for name in _CLOCKS}
        rows.append(
            {
                **{name: onset.get(name, float("nan")) for name in _CLOCKS},
                **{name: last[name] for name in _OF_LAST}, "state": state,
                "first": columns["value"][points[0]] if len(points) else float("nan"),
                "final": last["value"], "n": int(last["n"]), "shots": int(last["shots"]),
            }
        )  # fmt: skip
    frame = pd.DataFrame(rows, columns=_ONSET_COLUMNS)
    order = (LEFT, PROVISIONAL, NO_CHANCE_LEVEL, AT_CHANCE, NO_STANDARD_ERROR, NO_VALUE)
    rank = frame.state.map(order.index)
    return (
        frame.assign(rank=rank)
        .sort_values(["rank", "tokens", "task"], kind="stable", ignore_index=True)
        .drop(columns="rank")
    )


def gain_share(trajectories: pd.DataFrame, findings: pd.DataFrame) -> pd.DataFrame:
    """Which part of its gain each task had made at each checkpoint.

    The gain is counted from chance, or from the first checkpoint where there is no chance level,
    to the best value of the run. A task that never left chance has gained nothing: its noise is
    not stretched to a curve.

    Returns:
      `trajectories` with the columns `share` (0 to 1; missing where the value is) and `state`.
    """
    key = ["run", "task"]
    last = trajectories.drop_duplicates(key, keep="last")[[*key, "chance"]]
    states = findings.drop_duplicates(key)[[*key, "state"]]
    known = trajectories[key].merge(last, how="left").merge(states, how="left")
    known = known.set_index(trajectories.index)
    grouped = trajectories.groupby(key, sort=False)
    start = known.chance.fillna(grouped.value.transform("first"))
    lower = {metric: lower_is_better(metric) for metric in trajectories.metric.unique()}
    gain = (trajectories.value - start).where(
        ~grouped.metric.transform("first").map(lower).astype(bool), start - trajectories.value
    )
    most = gain.groupby([trajectories.run, trajectories.task], sort=False).transform("max")
    grew = (most > 0) & (known.state != AT_CHANCE)
    share = (gain / most.where(grew)).clip(0, 1).where(grew, gain * 0.0)
    return trajectories.assign(share=share, state=known.state).reset_index(drop=True)


_CLOCKS = ("step", "tokens", "flops")
_OF_LAST = ("run", "task", "domain", "metric", "stderr", "chance", "task_version")
_ONSET_COLUMNS = (
    "run", "task", "domain", "metric", "state", "step", "tokens", "flops", "first", "final",
    "stderr", "n", "chance", "shots", "task_version",
)  # fmt: skip


def _onset(chance: np.ndarray, stderr: np.ndarray, above: np.ndarray) -> tuple[str, int | None]:
    """The state of one task, and the position of its onset among its valid points, by step."""
    if not len(above):
        return NO_VALUE, None
    if np.isnan(chance).all():
        return NO_CHANCE_LEVEL, None
    if np.isnan(stderr).all():
        return NO_STANDARD_ERROR, None
    durable = above & np.append(above[1:], True)
    if not durable.any():
        return AT_CHANCE, None
    at = int(np.argmax(durable))
    return (PROVISIONAL if at + 1 == len(above) else LEFT), at
