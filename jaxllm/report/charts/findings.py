"""The chart of each analysis, in a function of the analysis' name.

Each takes the finding, which has an answer and a table with rows, and the study that it is of; it
returns None where the sentence says it all.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from jaxllm.analysis.baselines import BASELINES
from jaxllm.analysis.curves import is_share
from jaxllm.analysis.emergence import NO_GAIN, VERDICTS
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.mixtures.check import OBJECTIVE
from jaxllm.analysis.mixtures.findings import STEP
from jaxllm.analysis.perplexity_axis import CLOCKS, TEXTS
from jaxllm.analysis.registry import Study
from jaxllm.analysis.rises import SUDDEN
from jaxllm.analysis.stats import Z95
from jaxllm.report.charts import marks
from jaxllm.report.charts.specs import Chart
from jaxllm.report.charts.trajectories import side_by_side
from jaxllm.report.theme import DISTINCT

_PERCENT = "format(100 * datum.value, '.0f')"
_MOST_ROWS, _MOST_PANELS = 40, 12
_MOST_NUMBERS = 10  # with a sign and three digits that stand side by side


def _shares(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose metric is a share, which have one scale; maybe none."""
    return table[table.metric.map(is_share).astype(bool)]


def _by(table: pd.DataFrame, column: str, order: Any) -> pd.DataFrame:
    """The rows by the first of `_MOST_ROWS` values of `column` in an order."""
    return table.set_index(column).loc[list(order)[:_MOST_ROWS]].reset_index()


def annealed(finding: Finding, study: Study) -> Chart | None:
    """The loss of a run, the law through it, and what it would be if annealed."""
    rows, order = finding.table, ("measured", "law", "annealed", "planned")
    shown = rows[rows.tokens >= rows.tokens[rows.kind == "law"].min()]
    titles = (_AMOUNTS["tokens"], "training loss")
    return marks.bands(shown, "tokens", "value", "kind", titles, order)


def forecasts(finding: Finding, study: Study) -> Chart | None:
    """The last and the final value of each task."""
    shares = _shares(finding.table).sort_values("forecast")[::-1]
    kinds = ("now", "at the end, with its 90% interval")
    now = shares.assign(value=shares["last"], low=shares["last"], high=shares["last"], at=kinds[0])
    end = shares.assign(value=shares.forecast, at=kinds[1])
    both = pd.concat([now, end], ignore_index=True)
    return marks.dots(both, "task", "value", "value", low="low", high="high", series="at",
                      order=kinds)  # fmt: skip


def backtest(finding: Any, study: Study) -> Chart | None:
    """The error of the forecast and of simple ones, by what is known and how far away."""
    shares = _shares(finding.points)
    scores = dataclasses.replace(finding, points=shares if len(shares) else finding.points)
    shown = ("last", "nearest_gain", "gain_line")
    names = {"mae": "forecast", **{f"mae_{name}": BASELINES[name] for name in shown}}
    rows = scores.summary(["fraction", "far"])
    rows["far"] = rows.far.map(scores.points.groupby("far").distance.median())
    rows = rows.sort_values(["far", "fraction"])
    long = rows.melt(["fraction", "far"], list(names), "by", "error").dropna(subset="error")
    after = long.fraction.map("after {:.0%}".format)
    after += long.far.map(", ×{:.2g}".format).where(long.far.notna(), "")
    title = "mean absolute error of the final value"
    return marks.dots(
        long.assign(by=long.by.map(names), after=after), "after", "error", title, series="by",
        reference=0.0,
    )  # fmt: skip


def emergence(finding: Finding, study: Study) -> Chart | None:
    """The widths of the rises, where anything is known of them: sudden ones first."""
    known = finding.table[(finding.table.low > 0) | np.isfinite(finding.table.high)]
    rows = known[known.hard & (known.verdict != NO_GAIN)]
    order = rows.verdict.map(VERDICTS.index)
    rows = rows.assign(order=order).sort_values(["order", "high", "low"]).head(_MOST_ROWS)
    ends = rows[["low", "high"]]
    edge = np.ceil(ends.where(np.isfinite(ends)).max().max())
    name = rows.run + " · " + rows.task if len(study.runs) > 1 else rows.task
    rows = rows.assign(name=name, **rows[["width", "high"]].clip(upper=edge))
    title = "decades of tokens from 10 to 90 % of the gain, with the 95 % interval"
    return marks.dots(rows, "name", "width", title, low="low", high="high", series="verdict",
                      order=VERDICTS[:-1], reference=SUDDEN)  # fmt: skip


def early_tasks(finding: Finding, study: Study) -> Chart | None:
    """The decision accuracy of each task, or of runs alone when each task moves."""
    if "share" in finding.table:
        rows = finding.table.groupby("task", as_index=False).tokens.median()
        rows = rows[np.isfinite(rows.tokens)].sort_values("tokens").head(_MOST_ROWS)
        title = "tokens at which the task moves beyond a guess and its noise"
        return marks.dots(rows, "task", "tokens", title, log=True)
    main = finding.table[finding.table.main]
    kinds = main.order.map(lambda order: ", sizes" if "of sizes" in order else "")
    cells = main.assign(
        at=main.proxy.str.replace(" of the tokens", "") + kinds,
        text=(100 * main.accuracy).map("{:.0f}".format).where(main.tells, ""),
        accuracy=main.accuracy.where(main.tells),
    )
    for side in ("at", "task"):
        cells = cells[cells.groupby(side).tells.transform("any")]
    order = cells.sort_values(["tells", "accuracy"], ascending=False).task.unique()
    title = "pairs of runs whose order is told, in percent"
    return marks.matrix(_by(cells, "task", order), "at", "task", "accuracy", title, text="text",
                        domain=(0.5, 1), legend=_PERCENT)  # fmt: skip


def correlations(finding: Finding, study: Study) -> Chart | None:
    """The correlation of the gains of each two tasks."""
    turned = finding.table.rename(columns={"task_a": "task_b", "task_b": "task_a"})
    cells = pd.concat([finding.table, turned], ignore_index=True)
    tasks = cells.groupby("task_a").gain.mean().sort_values(ascending=False).index[:_MOST_ROWS]
    cells = cells[cells.task_a.isin(tasks) & cells.task_b.isin(tasks)]
    cells = cells.assign(mark=np.where(cells.gain_q <= 0.05, "•", ""))
    title = "correlation of gains; • at 5% false discoveries"
    most = max(float(cells.gain.abs().max()), 0.3)
    return marks.matrix(cells, "task_b", "task_a", "gain", title, text="mark",
                        domain=(-most, most), order=list(tasks), diverging=True)  # fmt: skip


def branches(finding: Finding, study: Study) -> Chart | None:
    """The change of each task from the beginning of a branch to its end."""
    several = finding.table.run.nunique() > 1
    rows = finding.table.assign(
        low=finding.table.change - Z95 * finding.table.stderr,
        high=finding.table.change + Z95 * finding.table.stderr,
        row=finding.table.task + (" · " + finding.table.run if several else ""),
    )
    title = "change of the score since the branch began"
    return marks.dots(rows, "row", "change", title, low="low", high="high", reference=0.0)


def collapse(finding: Finding, study: Study) -> Chart | None:
    """The loss over the final loss, by runs; of the group with the most of them."""
    table = finding.table.assign(low=finding.table.ratio, high=finding.table.ratio)
    near = table[table.group == table.groupby("group").run.nunique().idxmax()]
    runs = list(near.sort_values("params").run.unique())[:DISTINCT]
    titles = ("share of the tokens", "loss over the final loss")
    return marks.bands(near[near.run.isin(runs)], "x", "ratio", "run", titles, runs)


_AMOUNTS = {"params": "parameters", "tokens": "training tokens", "flops": "training FLOPs"}


def loss_laws(finding: Any, study: Study) -> Chart | None:
    """The loss over parameters, tokens or FLOPs."""
    variable = next(name for name in _AMOUNTS if name in finding.table)
    return marks.law(finding.table, variable, "loss", (_AMOUNTS[variable], finding.measure))


def compute_optimal(finding: Any, study: Study) -> Chart | None:
    """The optimal parameters over FLOPs; of the parametric law the loss over the fitted one."""
    if finding.parameters:
        return marks.law(finding.table, "fitted", "loss", ("fitted loss", "loss"))
    return marks.law(finding.table, "flops", "params", (_AMOUNTS["flops"], "optimal parameters"))


def task_ladders(finding: Finding, study: Study) -> Chart | None:
    """The accuracy over the soft metric."""
    return marks.law(finding.table, "soft", "accuracy", ("soft metric", "accuracy"), log=False)


def perplexity_axis(finding: Finding, study: Study) -> Chart | None:
    """Errors of the predictors; accuracies by all clocks, side by side; or perplexities."""
    table, title, down = finding.table, "held-out perplexity", ("perplexity", "option_perplexity")
    if "rmse" in table:
        label = "root-mean-square error of the mean accuracy of sizes left out, with 95 % intervals"
        return marks.dots(table.sort_values("rmse"), "predictor", "rmse", label, low="rmse_low",
                          high="rmse_high", number=".1%", reference=0.0)  # fmt: skip
    if "linearity" in table:
        rows = table.assign(text=(100 * table.accuracy).map("{:.0f}".format))
        rows, label = _by(rows, "task", rows.task.unique()), "final accuracy, in percent"
        return marks.matrix(rows, "size", "task", "accuracy", label, text="text", legend=_PERCENT)
    over = lambda rows, x, titles: marks.lines(rows, x, "accuracy", titles, down)
    if "task" in table:
        y = "accuracy" if "accuracy" in table else TEXTS
        x, label = ("perplexity", title) if "perplexity" in table else ("params", "parameters")
        each = table if "run" in table else table.assign(run="all sizes", size="all sizes")
        panels = list(each.groupby("task", sort=False))[:_MOST_PANELS]
        titles = (label, y.replace("text_", ""))
        return side_by_side(
            [(n, marks.lines(of, x, y, titles, ("perplexity",))) for n, of in panels], 3
        )
    if "accuracy" in table:
        clocks = {x: (name, "mean accuracy") for x, name in CLOCKS.items()}
        panels = [(f"By {titles[0]}", over(table, x, titles)) for x, titles in clocks.items()]
        return side_by_side(panels, 2)
    if "options" in table:
        return marks.lines(table, *down, (title, "perplexity, wrong dashed"), down, "options")
    return marks.lines(table, "flops", "perplexity", (_AMOUNTS["flops"], title))


def swarm_shares(finding: Finding, study: Study) -> Chart | None:
    """The shares of each run; of many, of the best and the worst."""
    runs = list(dict.fromkeys(finding.table.run))
    half = _MOST_ROWS // 2
    shown = runs if len(runs) <= _MOST_ROWS else [*runs[:half], *runs[-half:]]
    rows = finding.table.set_index("run").loc[shown].reset_index()
    rows = rows.assign(text=(100 * rows.share).map("{:.0f}".format))
    title = "share of the training data, in percent"
    return marks.matrix(rows, "domain", "run", "share", title, text="text", legend=_PERCENT)


def left_out_mixtures(finding: Finding, study: Study) -> Chart | None:
    """Measured over predicted values of mixtures that a law has not seen."""
    rows = _short(finding.table).assign(fitted=finding.table.predicted)
    return marks.law(rows, "predicted", "measured", ("predicted", "measured"), "target", log=False)


def domain_effects(finding: Finding, study: Study) -> Chart | None:
    """The change of each target by a tenth of each domain."""
    rows = _short(finding.table)
    digits = max(0, 2 - int(np.floor(np.log10(rows.effect.abs().max() or 1.0))))
    text = rows.effect.map(f"{{:+.{digits}f}}".format).str.replace("-", "−")
    if rows.domain.nunique() > _MOST_NUMBERS:
        text = pd.Series("", rows.index)
    unsure = (rows.low <= 0) & (rows.high >= 0)
    rows = rows.assign(text=text.mask(unsure, "(" + text + ")"))
    title = f"change if a domain takes the place of {STEP:.0%} of the natural data"
    return marks.matrix(rows, "domain", "target", "effect", title, text="text", diverging=True)


def mixture_proposal(finding: Finding, study: Study) -> Chart | None:
    """The natural and the proposed share of each domain, and DoReMi's."""
    title = "share of the training data"
    return marks.dots(finding.table, "domain", "share", title, series="mixture", number=".0%",
                      reference=0.0, apart=True)  # fmt: skip


def mixture_check(finding: Finding, study: Study) -> Chart | None:
    """The predicted and the measured difference of each target."""
    rows = _short(finding.table[finding.table.mixture == "difference"])
    kinds = ("predicted", "measured")
    predicted = rows.assign(
        value=rows.predicted, low=rows.predicted_low, high=rows.predicted_high, kind=kinds[0]
    )
    both = pd.concat([predicted, rows.assign(value=rows.measured, kind=kinds[1])])
    title = "difference of the proposal to the natural mixture (lower is better)"
    return marks.dots(both, "target", "value", title, low="low", high="high", series="kind",
                      order=kinds, reference=0.0, apart=True)  # fmt: skip


def _short(table: pd.DataFrame) -> pd.DataFrame:
    """With the targets named by their tasks alone, where all are bits per byte."""
    bits = "/bits_per_byte"
    alike = table.target.str.endswith(bits) | (table.target == OBJECTIVE)
    return table.assign(target=table.target.str.removesuffix(bits)) if alike.all() else table


def token_shares(finding: Finding, study: Study) -> Chart | None:
    """Shares of the trends against p, a panel per trend and a colour per run."""
    table, runs = finding.table, list(dict.fromkeys(finding.table.run))
    panels = [
        (name, marks.bands(table[table.trend == name], "after", "share", "run",
                           ("after p % of training", "share of tokens"), runs))
        for name in ("downward", "upward", "stagnated")
    ]  # fmt: skip
    return side_by_side(panels, 3)


def token_subsets(finding: Finding, study: Study) -> Chart | None:
    """Perplexity of a trend's tokens by three clocks, or by one; or overlaps of choices."""
    table, falling = finding.table, ("of_all_tokens",)
    if "lift" in table:
        text = (100 * table.share).map("{:.0f}".format).where(table.share.notna(), "")
        cells = table.assign(text=text, chosen=table.trend + " in " + table["first"])
        title = "share of its tokens that have the same trend in another run, in percent"
        return marks.matrix(cells, "second", "chosen", "share", title, text="text",
                            domain=(0, 1), legend=_PERCENT)  # fmt: skip
    known = {"flops": _AMOUNTS["flops"]} if table.flops.notna().all() else {"tokens": "tokens"}
    clocks = known | {"of_all_tokens": "held-out perplexity", "step": "steps"}
    panels = [
        (
            f"as {by} sorts them after {after:g} %",
            marks.lines(rows, x, "perplexity", (clocks[x], "perplexity"), falling, "selection"),
        )
        for (after, by), rows in table.groupby(["after", "by"], sort=False)
        for x in list(clocks)[: 3 if after == table.after.iloc[0] else 1]
    ]
    return side_by_side(panels, 3)


def text_scores(finding: Finding, study: Study) -> Chart | None:
    """MAUVE of each file of texts, a colour per run."""
    return marks.dots(finding.table, "task", "value", "MAUVE, with its 95 % interval", low="low",
                      high="high", series="run", apart=True)  # fmt: skip


def token_kinds_of_trends(finding: Finding, study: Study) -> Chart | None:
    """How over- or under-represented each trend is among the kinds of tokens."""
    label = "log2 of the share among these tokens over that among all"
    return marks.matrix(finding.table, "trend", "group", "ratio", label, diverging=True)


def layer_similarity(finding: Finding, study: Study) -> Chart | None:
    """The similarity of each layer over the steps, or of the layers of two checkpoints."""
    x = "step" if "step" in finding.table else "other_layer"
    columns = finding.table[x].unique()
    rows = _by(finding.table, x, columns[:: len(columns) // _MOST_ROWS + 1])
    return marks.matrix(rows.astype({x: str}), x, "layer", "cka", "linear CKA", domain=(0, 1))


def layer_norms(finding: Finding, study: Study) -> Chart | None:
    """The gradient norm of each layer over the steps, by its logarithm."""
    rows = finding.table[(finding.table.metric == "grad_norm") & (finding.table.value > 0)]
    steps, legend = rows.step.unique(), "format(pow(10, datum.value), '.2~g')"
    rows = rows[rows.step.isin(steps[:: len(steps) // _MOST_ROWS + 1])].astype({"step": str})
    rows = rows.assign(value=np.log10(rows.value.astype(float)))
    return marks.matrix(rows, "step", "layer", "value", "gradient norm", legend=legend)
