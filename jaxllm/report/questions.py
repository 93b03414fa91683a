"""The five questions of a reader, and the findings that answer them, each with its chart.

An analysis that refuses says why in its place; one that fails is reported there too, so that no
finding costs the page. Analyses that compare runs or sizes are made where there are several.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from altair.utils.schemapi import debug_mode

from jaxllm.analysis import (
    backtest,
    dynamics_bends,
    dynamics_informative,
    dynamics_leads,
    dynamics_milestones,
    dynamics_relations,
    dynamics_sizes,
    dynamics_unseen,
    emergence,
    forecast,
    registry,
)
from jaxllm.analysis.capabilities import is_share
from jaxllm.analysis.health import advice as health_advice
from jaxllm.analysis.health import checks as health_checks
from jaxllm.analysis.registry import Study as Runs
from jaxllm.analysis.scaling import tokens
from jaxllm.errors import one_line
from jaxllm.report import charts_findings as charts
from jaxllm.report import numbers
from jaxllm.report.charts import Chart, failure
from jaxllm.report.tables import Tables

HEALTH, NOW, AHEAD, EARLY, SIZES = "health", "now", "ahead", "early", "sizes"
QUESTIONS = {
    HEALTH: "Is the run healthy?",
    NOW: "What can it do now?",
    AHEAD: "What will it be able to do?",
    EARLY: "Which tasks tell me early?",
    SIZES: "How does it compare across sizes?",
}
_MOST_ROWS = 40


@dataclasses.dataclass(frozen=True)
class Answer:
    """One finding as the report shows it.

    Attributes:
      question: One of `QUESTIONS`.
      title: What was looked at.
      sentence: What was found, or why nothing was.
      table: The numbers, offered as CSV.
      chart: Their picture, if one says more than the sentence.
      refused: Whether there is no answer.
      lines: More sentences, such as a check each.
      notes: What was left out of the data.
    """

    question: str
    title: str
    sentence: str
    table: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    chart: Chart | None = None
    refused: bool = False
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


Study = tuple[str, str, Callable[[Tables], Answer | list[Answer]]]


@debug_mode(False)  # as in `page.render`
def answers(
    tables: Tables, *, backtested: bool = False, progress: Callable[[str], None] = lambda _: None
) -> list[Answer]:
    """All findings on the runs, in the order of the questions.

    Args:
      tables: What `jaxllm.report.tables.gather` returns.
      backtested: Whether to score the forecaster over the finished runs, too.
      progress: Called with a line when an analysis has ended.
    """
    if tables.points.value.notna().sum() == 0 and tables.logged.empty:
        return []
    made: list[Answer] = []
    for question, title, study in _studies(tables, backtested):
        began = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = study(tables)
            made += found if isinstance(found, list) else [found]
        except Exception as error:  # one analysis is not worth the report
            reason = f"{type(error).__name__}: {error}"
            logging.warning("The analysis %s failed: %s", title, one_line(reason))
            logging.debug("Its traceback:", exc_info=error)
            reason = f"This analysis failed: {reason}."
            made.append(Answer(question, title, reason, refused=True))
        progress(f"{title}: {time.monotonic() - began:.1f} s")
    return sorted(made, key=lambda one: list(QUESTIONS).index(one.question))


def _studies(tables: Tables, backtested: bool) -> Iterator[Study]:
    yield HEALTH, "Checks", _checks
    yield NOW, "Sudden or gradual", _emergence
    yield AHEAD, "The rest of the budget", _advice
    if any(overview.in_progress for overview in tables.overviews):
        yield AHEAD, "Forecast", _forecasts
    if backtested:
        yield AHEAD, "Backtest of the forecasts", _backtest
    yield AHEAD, "Learning-curve fits", _token_laws
    yield EARLY, "Telling tasks", _informative
    yield EARLY, "Share of the final gain", _milestones
    yield EARLY, "Bends", _bends
    yield EARLY, "Gains that come together", _correlations
    yield EARLY, "Domains that lead", _leads
    if tables.several_runs:
        yield EARLY, "Unseen tasks", _unseen
        yield SIZES, "Efficiency at equal tokens", _efficiency
    if tables.sizes > 2:
        from jaxllm.report import questions_sizes

        yield from questions_sizes.studies(tables)


def answer(
    question: str, title: str, finding: object, chart: Callable[[pd.DataFrame], Chart | None],
    lines: tuple[str, ...] = (),
) -> Answer:  # fmt: skip
    """A finding as an answer; a refused one, and one without numbers, has no chart."""
    table: pd.DataFrame = finding.table  # type: ignore[attr-defined]
    refused = bool(finding.refused)  # type: ignore[attr-defined]
    # Records without a value stand in the notes on the data, by task and checkpoint.
    notes = tuple(n for n in getattr(finding, "notes", ()) if "records have no value" not in n)
    drawn = None
    try:
        drawn = None if refused or table.empty else chart(table)
    except Exception as error:  # what was found stands without its picture
        notes = (failure(title, error), *notes)
    return Answer(
        question, title, finding.sentence, table, drawn, refused, lines, notes  # type: ignore[attr-defined]
    )  # fmt: skip


def shares_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose metric is a share, which have one scale; maybe none."""
    return table[table.metric.map(is_share).astype(bool)]


def _study(tables: Tables) -> registry.Study:
    plans = {o.run: o.planned_tokens for o in tables.overviews if o.in_progress}
    return registry.Study(tables.records, tables.all_records, tables.logged, planned_tokens=plans)


def _checks(tables: Tables) -> Answer:
    found = health_checks.checks(_study(tables))
    made = found.table[found.table.state != "refused"]
    cells = made.assign(level=(made.state == "alarm").astype(float))
    if tables.many_runs:  # the others are fine in every check that could be made
        alarmed = list(dict.fromkeys(cells.run[cells.level > 0]))
        cells = cells[cells.run.isin(alarmed[:_MOST_ROWS])]
    chart = None
    if len(cells) and tables.several_runs:
        chart = charts.matrix(cells, "check", "run", "level", "alarm", text="state", domain=(0, 1))
    return Answer(HEALTH, "Checks", found.sentence, found.table, chart, bool(found.refused),
                  lines=found.lines)  # fmt: skip


def _advice(tables: Tables) -> Answer:
    found = health_advice.advice(_study(tables))
    axis = "expected gain, with its 90% interval (up is better)"

    def chart(table: pd.DataFrame) -> Chart | None:
        by_run = "verdict" in table
        rows = table if by_run else shares_of(table).sort_values("gain")[::-1]
        if rows.empty:
            return None
        return charts.dots(rows.head(_MOST_ROWS), "run" if by_run else "task", "gain", axis,
                           low="low", high="high", series="verdict" if by_run else "",
                           reference=0.0)  # fmt: skip

    return answer(AHEAD, "The rest of the budget", found, chart)


def _forecasts(tables: Tables) -> list[Answer]:
    going = {o.run: o.planned_tokens for o in tables.overviews if o.in_progress}
    finished = [o.run for o in tables.overviews if o.run not in going]
    made = []
    for run, total in going.items():
        found = forecast.forecast(tables.records, run, total_tokens=total, finished=finished)
        title = f"Forecast for {run}" if tables.several_runs else "Forecast"
        made.append(answer(AHEAD, title, found, _forecast_chart))
    return made


def _forecast_chart(table: pd.DataFrame) -> Chart | None:
    shares = shares_of(table).sort_values("forecast")[::-1]
    if shares.empty:
        return None
    kinds = ("now", "at the end, with its 90% interval")
    now = shares.assign(value=shares["last"], low=shares["last"], high=shares["last"], at=kinds[0])
    end = shares.assign(value=shares.forecast, at=kinds[1])
    both = pd.concat([now, end], ignore_index=True)
    return charts.dots(both, "task", "value", "value", low="low", high="high", series="at",
                       order=kinds)  # fmt: skip


def _backtest(tables: Tables) -> Answer:
    found = backtest.backtest(tables.all_records)

    def chart(_: pd.DataFrame) -> Chart | None:
        shares = shares_of(found.points)
        scores = dataclasses.replace(found, points=shares if len(shares) else found.points)
        table = scores.summary(["fraction"])
        names = {"mae": "forecast", "mae_last": "last value", "mae_log_linear": "log-linear line"}
        long = table.melt("fraction", list(names), "by", "error")
        long = long.assign(by=long.by.map(names), after=long.fraction.map("after {:.0%}".format))
        title = "mean absolute error of the final value"
        return charts.dots(long, "after", "error", title, series="by", reference=0.0)

    return answer(AHEAD, "Backtest of the forecasts", found, chart)


def _token_laws(tables: Tables) -> Answer:
    found = tokens.learning_curve_fits(Runs(tables.records))

    def chart(_: pd.DataFrame) -> Chart:
        rows = found.summary.sort_values("late_error")
        title = "mean absolute error on held-out late checkpoints"
        return charts.dots(rows, "law", "late_error", title, number=".3~g")

    return answer(AHEAD, "Learning-curve fits", found, chart)


def _emergence(tables: Tables) -> Answer:
    def chart(table: pd.DataFrame) -> Chart | None:
        tested = table[table.hard & table.suddenness.notna() & (table.suddenness > 0)]
        tested = tested[tested.verdict != emergence.NO_GAIN].sort_values(["q", "p"])
        tested = tested.assign(name=tested.task)
        if tables.several_runs:
            tested = tested.assign(name=tested.run + " · " + tested.task)
        if tested.empty:
            return None
        title = "suddenness B/L: 1 for equal steps; the 15 clearest"
        return charts.dots(tested.head(15), "name", "suddenness", title, series="verdict", log=True)

    return answer(NOW, "Sudden or gradual", emergence.emergence(tables.records), chart)


def _informative(tables: Tables) -> Answer:
    def chart(table: pd.DataFrame) -> Chart:
        strength = table[["gain", "spread"]].max(axis=1)
        cells = table.assign(
            tokens=table.phase + " of the tokens",
            signal=np.log10(strength.where(table.informs).clip(lower=1.0)),
            said=strength.map(lambda s: f"{s:.0f}" if s >= 10 else f"{s:.1f}" if s == s else ""),
        )
        order = cells.groupby("task").signal.max().sort_values(ascending=False).index
        cells = cells.set_index("task").loc[order[:_MOST_ROWS]].reset_index()
        title = "signal in standard deviations of the noise"
        return charts.matrix(cells, "phase", "task", "signal", title, text="said")

    found = dynamics_informative.informative_tasks(tables.records)
    return answer(EARLY, "Telling tasks", found, chart)


def _milestones(tables: Tables) -> Answer:
    def chart(table: pd.DataFrame) -> Chart | None:
        mean = table.groupby(["task", "fraction"], as_index=False).share.mean().dropna()
        if mean.empty:
            return None
        order = mean.groupby("task").share.mean().sort_values(ascending=False).index
        mean = mean.set_index("task").loc[order[:_MOST_ROWS]].reset_index()
        mean = mean.assign(
            said=mean.share.map("{:.0%}".format), at=mean.fraction.map("{:.0%} of tokens".format)
        )
        title = "share of the final gain"
        return charts.matrix(mean, "at", "task", "share", title, text="said", domain=(0, 1))

    found = dynamics_milestones.milestones(tables.records)
    return answer(EARLY, "Share of the final gain", found, chart)


def _bends(tables: Tables) -> Answer:
    def chart(table: pd.DataFrame) -> Chart | None:
        first = table.sort_values("tokens").drop_duplicates(["run", "task"])
        grouped = first.groupby("task").agg(
            tokens=("tokens", "median"), low=("low", "median"), high=("high", "median")
        )
        rows = grouped[grouped.low > 0].sort_values("tokens").head(_MOST_ROWS).reset_index()
        kind = "tokens at the first bend, with its 95% interval"
        kind += " (medians over runs)" if tables.several_runs else ""
        return charts.dots(rows, "task", "tokens", kind, low="low", high="high", log=True)

    return answer(EARLY, "Bends", dynamics_bends.change_points(tables.records), chart)


def _correlations(tables: Tables) -> Answer:
    def chart(table: pd.DataFrame) -> Chart:
        turned = table.rename(columns={"task_a": "task_b", "task_b": "task_a"})
        cells = pd.concat([table, turned], ignore_index=True)
        tasks = cells.groupby("task_a").gain.mean().sort_values(ascending=False).index[:_MOST_ROWS]
        cells = cells[cells.task_a.isin(tasks) & cells.task_b.isin(tasks)]
        cells = cells.assign(mark=np.where(cells.gain_q <= 0.05, "•", ""))
        title = "correlation of gains; • at 5% false discoveries"
        low, high = min(float(cells.gain.min()), 0.0), max(float(cells.gain.max()), 0.3)
        return charts.matrix(cells, "task_b", "task_a", "gain", title, text="mark",
                             domain=(low, high), order=list(tasks))  # fmt: skip

    found = dynamics_relations.correlations(tables.records)
    return answer(EARLY, "Gains that come together", found, chart)


def _leads(tables: Tables) -> Answer:
    def chart(table: pd.DataFrame) -> Chart:
        rows = table.assign(
            pair=table["first"] + " → " + table.second,
            proof=np.where(table.leads, "demonstrably first", "not told from chance"),
        )
        title = "lead: best correlation ahead minus best behind"
        return charts.dots(rows.head(15), "pair", "lead", title, series="proof", reference=0.0)

    return answer(EARLY, "Domains that lead", dynamics_leads.lead_lag(tables.records), chart)


def _unseen(tables: Tables) -> Answer:
    def chart(table: pd.DataFrame) -> Chart:
        tested = table[table.why == ""].sort_values("gain", ascending=False).head(_MOST_ROWS)
        names = {"error": "from its domain", "other_domains": "from other domains",
                 "naive": "naive guess", "noise": "sampling noise alone"}  # fmt: skip
        tested = tested.assign(naive=tested[["same_tokens", "constant"]].min(axis=1))
        long = tested.melt("task", list(names), "by", "off").replace({"by": names})
        title = "mean absolute error on held-out sizes"
        return charts.dots(long, "task", "off", title, series="by", reference=0.0)

    return answer(EARLY, "Unseen tasks", dynamics_unseen.unseen_tasks(tables.records), chart)


def _efficiency(tables: Tables) -> Answer:
    params = pd.Series([o.params for o in tables.overviews if o.params > 0])
    low, high = 5e9, 9e9
    if params.between(low, high).sum() < 2 and len(params):
        crowd = [params.between(0.7 * size, 1.4 * size).sum() for size in params]
        usual = params.iloc[int(np.argmax(crowd))]
        low, high = 0.7 * usual, 1.4 * usual

    def chart(table: pd.DataFrame) -> Chart:
        last = table[table.tokens == table.tokens.max()]
        half = 1.96 * last.stderr
        last = last.assign(low=last.score - half, high=last.score + half)
        title = f"mean score from chance (0) to perfect (1) at {numbers.count(table.tokens.max())}"
        return charts.dots(last, "run", "score", f"{title} tokens", low="low", high="high")

    found = dynamics_sizes.efficiency(tables.records, params=(low, high))
    return answer(SIZES, "Efficiency at equal tokens", found, chart)
