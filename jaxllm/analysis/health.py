"""Is a run healthy, and is the rest of its budget worth spending?

`examine` makes every check that the data allow, for one run, finished or in progress; `advise`
says what the remaining tokens will bring. Both take the trajectory table and the logged metrics as
they are and can be called at any checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxllm.analysis import capabilities, checks_loss, checks_tasks
from jaxllm.analysis.checks import ALPHA, Check, trend

GO_ON, STOP, UNCLEAR = "go on", "stop", "unclear"
# A mean gain over the tasks below this, half a point of accuracy, is not worth a budget.
WORTH_GAIN = 0.005
LEVEL = 0.9
_UNKNOWN = (math.nan, math.nan, math.nan)


@dataclasses.dataclass(frozen=True)
class Health:
    """All checks of one run."""

    run: str
    checks: tuple[Check, ...]

    @property
    def alarms(self) -> tuple[Check, ...]:
        """The checks that found cause for alarm."""
        return tuple(check for check in self.checks if check.raised)

    @property
    def refused(self) -> str:
        """Why nothing could be said; empty when at least one check was made."""
        if all(check.refused for check in self.checks):
            return "; ".join(f"{check.name}: {check.refused}" for check in self.checks)
        return ""

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        made = [check for check in self.checks if not check.refused]
        if not made:
            return f"{self.run}: nothing could be checked."
        names = ", ".join(check.name for check in self.alarms)
        left = len(self.checks) - len(made)
        tail = f"; {left} could not be made" if left else ""
        if self.alarms:
            count = f"{len(self.alarms)} of {len(made)} checks raise alarm"
            return f"{self.run}: {count}: {names}{tail}."
        return f"{self.run} looks healthy: {len(made)} checks found nothing{tail}."

    @property
    def table(self) -> pd.DataFrame:
        """A row per check: `run, check, state, number, p_value, step, says`."""
        return pd.DataFrame(
            {
                "run": check.run, "check": check.name,
                "state": "refused" if check.refused else "alarm" if check.raised else "fine",
                "number": check.number, "p_value": check.p_value, "step": check.step,
                "says": check.sentence,
            }
            for check in self.checks
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Advice:
    """What the rest of the budget will bring.

    Attributes:
      run: Whose.
      verdict: `GO_ON`, `STOP` or `UNCLEAR`.
      seen_tokens: Tokens so far.
      budget_tokens: Tokens at the end of the plan.
      mean_gain: Expected gain of the mean over `tasks` tasks that are shares: estimate, low, high
        at `LEVEL`.
      tasks: How many those are.
      loss_gain: Expected fall of the loss, as the share of it: estimate, low, high; NaN without.
      table: A row per task: `task, metric, now, gain, low, high`, up is better.
      refused: Why no advice can be given; empty when it is.
    """

    run: str
    verdict: str = UNCLEAR
    seen_tokens: float = math.nan
    budget_tokens: float = math.nan
    mean_gain: tuple[float, float, float] = _UNKNOWN
    tasks: int = 0
    loss_gain: tuple[float, float, float] = _UNKNOWN
    table: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    refused: str = ""

    @property
    def sentence(self) -> str:
        """The advice with the numbers that it rests on."""
        if self.refused:
            return f"{self.run}: no advice on stopping: {self.refused}."
        more = self.budget_tokens / self.seen_tokens - 1
        parts = []
        if math.isfinite(self.mean_gain[0]):
            gain, low, high = (100 * value for value in self.mean_gain)
            parts.append(
                f"the mean over {self.tasks} tasks by {gain:+.2f} points "
                f"({LEVEL:.0%} interval {low:+.2f} to {high:+.2f})"
            )
        if math.isfinite(self.loss_gain[0]):
            gain, low, high = (-100 * value for value in self.loss_gain)
            parts.append(f"the loss by {gain:+.2f}% ({high:+.2f}% to {low:+.2f}%)")
        words = {GO_ON: "worth going on", STOP: "stopping costs little",
                 UNCLEAR: "too uncertain to tell"}  # fmt: skip
        return (
            f"{self.run}: {more:.0%} more tokens are expected to change {' and '.join(parts)}: "
            f"{words[self.verdict]}."
        )


def examine(
    records: pd.DataFrame,
    metrics: pd.DataFrame,
    *,
    runs: Sequence[str] | None = None,
    budget_tokens: float = math.nan,
) -> tuple[Health, ...]:
    """Makes every check of each run that the data allow; the others say why they were not made.

    Args:
      records: Trajectory table. A run is compared with all others in it, at equal tokens.
      metrics: Logged steps with the columns of metrics.jsonl; with a column `run` when it holds
        several runs. May be empty.
      runs: The runs to look at; None for all of either table.
      budget_tokens: Tokens at the end of the planned runs; NaN when unknown.
    """
    all_curves = checks_tasks.curves(capabilities.charted(records))
    names = _names(records, metrics)
    all_curves += [
        loss for run in names
        if (loss := logged_loss(_of_run(metrics, run), run, _params(records, run)))
    ]  # fmt: skip
    by_run: dict[str, list[checks_tasks.Curve]] = {}
    for curve in all_curves:
        by_run.setdefault(curve.run, []).append(curve)
    losses: dict[str, list[checks_tasks.Curve]] = {}
    for curve in _scored_losses(records):
        losses.setdefault(curve.run, []).append(curve)
    return tuple(
        _examine(
            run, _of_run(metrics, run), by_run.get(run, []), losses.get(run, []), all_curves,
            budget_tokens,
        )
        for run in (names if runs is None else runs)
    )  # fmt: skip


def _examine(
    run: str,
    logged: pd.DataFrame,
    mine: Sequence[checks_tasks.Curve],
    losses: Sequence[checks_tasks.Curve],
    everyone: Sequence[checks_tasks.Curve],
    budget_tokens: float,
) -> Health:
    of_loss = loss_checks(logged, run, budget_tokens)
    slopes = [line.slope > 0 for curve in losses if (line := curve.recent_trend()) is not None]
    loss_falls = falls(of_loss)
    if loss_falls is None and slopes:
        loss_falls = bool(np.mean(slopes) >= 0.5)
    shares = [curve for curve in mine if curve.metric != "loss"]
    band = checks_tasks.outside_band(mine, run, everyone)
    return Health(run, (*of_loss, checks_tasks.falling(shares, run, loss_falls), band))


def loss_checks(
    logged: pd.DataFrame,
    run: str,
    budget_tokens: float = math.nan,
    alpha: float = ALPHA,
    newest: int | None = None,
) -> tuple[Check, ...]:
    """The checks of the logged metrics of one run.

    Args:
      logged: Its logged steps.
      run: Its name.
      budget_tokens: Tokens at the end of its plan; NaN when unknown.
      alpha: Level of each test.
      newest: Spikes are looked for among so many of the last steps; None for all.
    """
    late = logged if newest is None else logged.tail(newest)
    return (
        checks_loss.finite(late, run),
        checks_loss.spikes(late, run, alpha),
        checks_loss.spike_score(late, run, alpha=alpha),
        checks_loss.gradient_drift(logged, run, alpha),
        checks_loss.plateau(logged, run, alpha),
        checks_loss.returns(logged, run, budget_tokens, alpha),
    )


def falls(checks: Sequence[Check]) -> bool | None:
    """Whether the loss falls, by the plateau among `checks`; None where that was refused."""
    plateau = next(check for check in checks if check.name == "plateau")
    return None if plateau.refused else plateau.number > 0


def advise(
    records: pd.DataFrame,
    metrics: pd.DataFrame,
    *,
    runs: Sequence[str] | None = None,
    budget_tokens: float = math.nan,
) -> tuple[Advice, ...]:
    """Whether the rest of the budget is worth spending, for each run.

    Extends the trend of each task in the last doubling of tokens, a straight line in log tokens,
    to the end of the budget (NaN: twice the tokens seen). Curves flatten, so the line promises
    rather too much. "stop" needs the upper ends of the intervals of both the mean over tasks and
    the loss (whichever there are) below `WORTH_GAIN` and `checks_loss.WORTH_SHARE`; "go on" needs
    one of the lower ends above it. Arguments as of `examine`.
    """
    by_run: dict[str, list[checks_tasks.Curve]] = {}
    for curve in checks_tasks.curves(capabilities.charted(records)):
        by_run.setdefault(curve.run, []).append(curve)
    return tuple(
        _advise(run, _of_run(metrics, run), by_run.get(run, []), budget_tokens)
        for run in (_names(records, metrics) if runs is None else runs)
    )


def _advise(
    run: str, logged: pd.DataFrame, mine: Sequence[checks_tasks.Curve], budget_tokens: float
) -> Advice:
    clocks = [curve.tokens[-1] for curve in mine] + list(logged.get("tokens", []))
    if not clocks or not np.nanmax(clocks) > 0:
        return Advice(run, refused="nothing was scored or logged after a known number of tokens")
    seen = float(np.nanmax(clocks))
    budget = budget_tokens if budget_tokens > 0 else 2 * seen
    if budget <= seen:
        return Advice(run, refused="the budget is spent", seen_tokens=seen, budget_tokens=budget)
    doublings = math.log2(budget / seen)
    rows = []
    for curve in mine:
        line = curve.recent_trend()
        if line is not None:
            gain, low, high = line.gain(doublings, LEVEL)
            rows.append({"task": curve.task, "metric": curve.metric, "now": line.end,
                         "gain": gain, "low": low, "high": high})  # fmt: skip
    table = pd.DataFrame(rows, columns=["task", "metric", "now", "gain", "low", "high"])
    mean, tasks = _mean_gain(mine, doublings)
    fall = _UNKNOWN
    check = checks_loss.returns(logged, run, budget)
    if not check.refused:
        line = trend(np.log2(check.table.tokens.to_numpy()), -check.table.value.to_numpy())
        if line is not None:
            gain, low, high = line.gain(doublings, LEVEL)
            fall = (gain / -line.end, low / -line.end, high / -line.end)
    worths = ((mean, WORTH_GAIN), (fall, checks_loss.WORTH_SHARE))
    known = [(interval, worth) for interval, worth in worths if math.isfinite(interval[0])]
    if not known:
        few = "too few checkpoints and logged steps for a trend"
        return Advice(run, refused=few, seen_tokens=seen, budget_tokens=budget)
    verdict = UNCLEAR
    if all(high < worth for (_, _, high), worth in known):
        verdict = STOP
    elif any(low > worth for (_, low, _), worth in known):
        verdict = GO_ON
    return Advice(run, verdict, seen, budget, mean, tasks, fall, table)


def _mean_gain(
    mine: Sequence[checks_tasks.Curve], doublings: float
) -> tuple[tuple[float, float, float], int]:
    """The gain of the mean over the tasks that are shares, and how many those are.

    Checkpoints that lack one of them are left out, or else the mean would jump there.
    """
    shares = [pd.Series(c.better, c.tokens) for c in mine if c.is_share and len(c.tokens) >= 4]
    if not shares:
        return _UNKNOWN, 0
    mean = pd.concat(shares, axis=1).dropna().mean(axis=1)
    if len(mean) < checks_tasks.FEWEST:
        return _UNKNOWN, 0
    late = mean.iloc[-checks_tasks.recent(mean.index.to_numpy(np.float64)) :]
    line = trend(np.log2(late.index.to_numpy(np.float64)), late.to_numpy())
    return (line.gain(doublings, LEVEL), len(shares)) if line is not None else (_UNKNOWN, 0)


def logged_loss(metrics: pd.DataFrame, run: str, params: float) -> checks_tasks.Curve | None:
    """The logged loss as a curve, so that runs are compared by it too: means in log tokens.

    Args:
      metrics: The logged steps of one run.
      run: Its name.
      params: Its parameters; NaN when unknown.
    """
    logged = checks_loss.logged(metrics, "loss")
    logged = logged[logged.tokens > 0]
    if logged.empty:
        return None
    blocks = logged.groupby((4 * np.log2(logged.tokens)).astype(int)).mean()
    return checks_tasks.Curve(
        run, "logged loss", "loss", "", False, params,
        blocks.tokens.to_numpy(), -blocks.value.to_numpy(), 0.0, math.nan,
    )  # fmt: skip


def _scored_losses(records: pd.DataFrame) -> list[checks_tasks.Curve]:
    """The curves of perplexities and bits per byte, be they a task's main metric or not."""
    if records.empty:
        return []
    scored = records[records.metric.str.contains("perplexity|bits_per_byte|loss")]
    named = scored.assign(task=scored.task + "/" + scored.metric)
    return checks_tasks.curves(named)


def _params(records: pd.DataFrame, run: str) -> float:
    params = records.params[records.run == run].to_list() if len(records) else []
    return float(params[0]) if params else math.nan


def _names(records: pd.DataFrame, metrics: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys([*records.get("run", []), *metrics.get("run", [])]))


def _of_run(metrics: pd.DataFrame, run: str) -> pd.DataFrame:
    return metrics[metrics.run == run] if "run" in metrics else metrics
