"""Held-out perplexity as the axis on which model sizes agree.

"Training Trajectories of Language Models Across Scales" (arXiv 2212.09803, section 5) has no fit
and no error. Here every size is predicted from the others, and the tasks are resampled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import Literal

import numpy as np
import pandas as pd
from scipy import special

from jaxllm.analysis.curves import Array, Curves, curves, is_share, of_metric
from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.registry import SIZES, Study, analysis
from jaxllm.run.records import OPTION_PERPLEXITIES

_TITLE = "Held-out perplexity as the axis"
ALONE = "held-out perplexity"
PREDICTORS: dict[str, list[str]] = {
    ALONE: ["perplexity"], "parameters": ["params"], "FLOPs": ["flops"],
    "parameters and FLOPs": ["params", "flops"],
    "perplexity and parameters": ["perplexity", "params"],
}  # fmt: skip
CLOCKS = {"perplexity": ALONE, "flops": "FLOPs", "tokens": "tokens", "step": "steps"}
_LOSSES = ("perplexity", "loss", "word_perplexity", "byte_perplexity", "bits_per_byte")
OPTIONS = dict(zip(OPTION_PERPLEXITIES, ("right options", "wrong options"), strict=True))
_EARLY = 0.1  # share of a run's tokens before which it predicts nothing (arXiv 2412.04403)
_LEAST = 0.005  # share of the way from chance to 1; a logit of less is noise
_FEWEST_SIZES, _MOST_FAMILIES, _FEWEST_TASKS, _DRAWS = 3, 2, 8, 300
_LAMBADA, _MADE = "lambada", ("noise_", "jsonl_")  # names of tasks begin so
TEXTS = "text_perplexity"
_EACH = {"accuracy": "Each task", TEXTS: "Noise and other texts"}


@analysis(
    SIZES,
    _TITLE,
    needs=lambda study: len(set(study.params.values())) > 1,
    place=45,
    caption="Mean accuracy by log perplexity, parameters or FLOPs. Sizes count alike; each is "
    "predicted from the others, without the first tenth of a run. Intervals resample the tasks, "
    "for these runs. At most eight sizes are drawn. Lines of accuracy are moving averages over "
    "checkpoints, which lag behind the dots. Linear or breakthrough: BIG-bench's L and B.",
    method="Leave-one-size-out regression of the logit of accuracy above chance, with a bootstrap "
    "over tasks; the figures of arXiv 2212.09803, section 5.",
)
def perplexity_axis(study: Study) -> list[Finding]:
    """Accuracies by size, perplexity and compute, of the two families with most sizes."""
    raw, own = study.raw_records, study.records
    points = (study.all_curves if raw is None or raw is own else curves(raw).directed()).points
    begun = points.run.map({run: tokens for run, (_, tokens) in study.parents.items()})
    points = points[(points.tokens > 0) & (points.flops > 0) & ~(points.tokens <= begun)]
    sizes = points.groupby("family").params.nunique().sort_values(ascending=False, kind="stable")
    families = sizes.index[sizes >= _FEWEST_SIZES][:_MOST_FAMILIES]
    if not len(families):
        return [Finding.refuse(f"no family has {_FEWEST_SIZES} sizes")]
    return [
        dataclasses.replace(one, title=(one.title or _TITLE) + f", {name}" * (len(families) > 1))
        for name in families
        for one in _of_family(points[points.family == name], study.planned_tokens)
    ]


def held_out(points: pd.DataFrame) -> tuple[pd.Series, tuple[str, ...]]:
    """Log perplexity of held-out text by run and step, of `Curves.points`, and the texts' names.

    A text is a task without an accuracy, noise, training data or generated texts; else LAMBADA's
    last words. It is in nats, named after the first of `_LOSSES` that all runs share, from which it
    is, the mean over texts.
    """
    graded = set(points.task[of_metric(is_share, points.metric)])
    other = (points.domain == "training data") | points.task.str.startswith(_MADE)
    text = ~points.task.isin(graded) & ~other
    for rows in (points[text], points[points.task.str.startswith(_LAMBADA)]):
        if (wide := _losses(rows, "any")).size:
            return wide.mean(axis=1).rename(wide.columns.name), tuple(wide.columns)
    return pd.Series(dtype=float), ()


def _losses(rows: pd.DataFrame, without: Literal["any", "all"] = "all") -> pd.DataFrame:
    """Log perplexities of tasks by run and step, by the first of `_LOSSES` that all runs share.

    Steps that are `without` any, or all, of the tasks are left out.
    """
    for metric in _LOSSES:
        if (wide := _shared(rows[rows.metric == metric], "score").dropna(how=without)).size:
            nats = -wide * (math.log(2) if metric == "bits_per_byte" else 1.0)
            return nats.rename_axis(columns=metric)
    return pd.DataFrame()


def _shared(rows: pd.DataFrame, value: str, *more: str) -> pd.DataFrame:
    """Values by run and step, with a column for each task (and `more`) that all runs have."""
    wide = rows.pivot_table(value, ["run", "step"], ["task", *more], aggfunc="last")
    return wide.loc[:, wide.notna().groupby("run").any().all()]


def _of_family(points: pd.DataFrame, running: Collection[str]) -> Iterator[Finding]:
    main = Curves(points).main().comparable()
    shares = main.points[of_metric(is_share, main.points.metric)]
    yield from _rises(shares[~shares.run.isin(running)])
    at = points.drop_duplicates(["run", "step"], keep="last")
    at = at[["run", "params", "step", "tokens", "flops"]].assign(size=at.params.map(amount))
    at = at.sort_values(["params", "tokens"])
    made = np.exp(_losses(points[points.task.str.startswith(_MADE)]))
    made = _long(at, made, TEXTS) if made.size else at.iloc[:0].assign(task="")
    yield from _by_size(_last(made[~made.run.isin(running)], TEXTS), TEXTS) if len(made) else ()
    loss, texts = held_out(points)
    if loss.empty:
        yield Finding.refuse("no held-out text was scored, as by the tasks heldout_<corpus>")
        return
    text = texts[0] if len(texts) == 1 else f"{len(texts)} texts"
    if texts[0].startswith(_LAMBADA):  # its accuracy is of the same words
        text = f"the last words of {' and '.join(texts)}"
        shares = shares[~shares.task.str.startswith(_LAMBADA)]
    text += "".join(f" per {unit}" for unit in ("byte", "word") if unit in str(loss.name))
    at = at.merge(np.exp(loss).rename("perplexity").reset_index())
    wide = _shared(shares, "value")
    complete, notes = wide.dropna() if wide.size else wide.iloc[:0], main.notes
    if lost := len(wide) - len(complete):
        notes += (f"{lost:,} checkpoints lack some of the tasks that all runs share: left out.",)
    scored = at.merge(complete.mean(axis=1).rename("accuracy").reset_index())
    if (sizes := scored.params.nunique()) < _FEWEST_SIZES or wide.shape[1] < 2:
        yield Finding.refuse(f"{sizes} sizes have accuracies of two tasks and held-out text", notes)
    else:
        accuracy = complete.loc[pd.MultiIndex.from_frame(scored[["run", "step"]])].to_numpy(float)
        chance = shares.groupby("task").chance.last()[[*complete]].fillna(0).to_numpy()
        yield dataclasses.replace(fit(scored, accuracy, chance), notes=notes)
        apart = ", ".join(f"{v:.2g} at equal {CLOCKS[x]}" for x, v in spreads(scored).items())
        sentence = (
            f"The mean accuracies of the sizes differ by {apart} (standard deviation in points, "
            f"where their curves overlap by each of these; perplexity of {text})."
        )
        if not apart:
            sentence = "The curves of the sizes overlap at no checkpoint by each of the clocks."
        yield Finding(sentence, _smooth(scored, "run"), title="Accuracy by held-out perplexity")
        yield _each_task(_long(at, complete, "accuracy"), "accuracy")
    if len(both := made.merge(at)):
        yield _each_task(both, TEXTS)
    yield from _options(points, at)
    last = at[~at.run.isin(running)].drop_duplicates("size", keep="last")
    ends = ", ".join(f"{row.perplexity:.3g} at {row.size}" for row in last.itertuples(index=False))
    sentence = f"That of {text} ends at {ends}." if ends else "No run has ended."
    yield Finding(sentence, at, title="Held-out perplexity by FLOPs")


def _smooth(table: pd.DataFrame, *by: str) -> pd.DataFrame:
    """With `smoothed`, half of the one before and half of the new, as in the paper's figure 8."""
    average = lambda y: y.ewm(alpha=0.5, adjust=False).mean()
    return table.assign(smoothed=table.groupby([*by]).accuracy.transform(average))


def _long(at: pd.DataFrame, values: pd.DataFrame, name: str) -> pd.DataFrame:
    """The checkpoints `at`, with a row for each of the tasks' values by run and step."""
    long = values.melt(var_name="task", value_name=name, ignore_index=False).dropna()
    return at.merge(long.reset_index())


def _each_task(table: pd.DataFrame, name: str) -> Finding:
    """The values of each task by held-out perplexity."""
    follows = table.groupby("task")[["perplexity", name]].corr("spearman").iloc[::2, 1]
    follows = (-follows if name == "accuracy" else follows).droplevel(1).fillna(0.0)  # 0: constant
    follows = follows.sort_values(ascending=False)
    best, worst = (f"{task} ({value:.2f})" for task, value in follows.iloc[[0, -1]].items())
    sentence = (
        f"Of {len(follows)} tasks over all sizes and checkpoints, {name.removeprefix('text_')} "
        f"follows held-out perplexity most in {best} and least in {worst}, by rank correlation."
    )
    table = table.set_index("task").loc[follows.index].reset_index()
    table = _smooth(table, "run", "task") if name == "accuracy" else table
    return Finding(sentence, table, title=f"{_EACH[name]} by held-out perplexity")


def _last(points: pd.DataFrame, name: str) -> pd.DataFrame:
    """Final values by task and size, of tasks that all sizes have; empty for few sizes."""
    last = points.drop_duplicates(["run", "task"], keep="last")
    wide = last.pivot_table(name, "task", "params").dropna()
    return wide if wide.shape[1] >= _FEWEST_SIZES else wide.iloc[:0]


def _by_size(wide: pd.DataFrame, name: str) -> Iterator[Finding]:
    """The final values of each task by size, as of `_last`."""
    if wide.empty:
        return
    small, large = wide.columns[[0, -1]]
    change = wide[large] - wide[small] if name == "accuracy" else wide[large] / wide[small]
    wide = wide.loc[change.sort_values(ascending=False).index]
    first, *_, last = [
        f"{y.name} ({y[small]:.3g} to {y[large]:.3g})" for _, y in wide.iloc[[0, -1]].iterrows()
    ]
    of = f"From {amount(small)} to {amount(large)} parameters, the {name.removeprefix('text_')} of"
    sentence = f"{of} {len(wide)} tasks rises most, or falls least, in {first}, least in {last}."
    if len(wide) == 1:
        sentence = f"{of} {first} alone is known at all sizes."
    long = wide.reset_index().melt("task", value_name=name, var_name="params")
    yield Finding(sentence, long, title=f"{_EACH[name]} by size")


def fit(points: pd.DataFrame, accuracy: Array, chance: Array) -> Finding:
    """Predict the mean accuracy of each size from the others, by every one of `PREDICTORS`.

    `points` has P checkpoints, `run, params, tokens, flops, perplexity`; `accuracy` [P, T] and
    `chance` [T] are of the tasks. The table has `r2` and `rmse`, with 95% intervals, by predictor.
    """
    late = (points.tokens >= _EARLY * points.groupby("run").tokens.transform("max")).to_numpy()
    points, tasks = points[late], accuracy.shape[1]
    drawn = np.random.default_rng(0).multinomial(tasks, np.full(tasks, 1 / tasks), _DRAWS)
    drawn = np.vstack([np.ones(tasks), drawn]).T / tasks  # [T, 1 + draws], all tasks first
    means, sizes = accuracy[late] @ drawn, points.params.to_numpy()
    weights = 1 / points.groupby("params").params.transform("size").to_numpy(float)
    weights /= weights.sum()
    errors = {}
    for name, columns in PREDICTORS.items():
        logs = np.log(points[columns].to_numpy(float))
        predicted = left_out(logs, sizes, weights, means, chance @ drawn)
        if predicted is not None:
            errors[name] = np.sqrt(weights @ (means - predicted) ** 2)
    total = weights @ (means - weights @ means) ** 2
    if total[0] < 1e-12 or ALONE not in errors:
        return Finding.refuse("the accuracies, or the perplexities, of the sizes do not vary")
    rmse = np.array([*errors.values()])
    table = pd.DataFrame({"predictor": [*errors]})
    for name, of in (("r2", 1 - rmse**2 / np.maximum(total, 1e-12)), ("rmse", rmse)):
        table[name] = of[:, 0]
        table[f"{name}_low"], table[f"{name}_high"] = np.quantile(of[:, 1:], [0.025, 0.975], axis=1)
    best = min((n for n in errors if "perplexity" not in n), key=lambda n: errors[n][0])
    gain = 100 * (errors[best] - errors[ALONE])
    low, high = np.quantile(gain[1:], [0.025, 0.975])
    verdict = "better" if low > 0 else "worse" if high < 0 else "not clearly better or worse"
    if tasks < _FEWEST_TASKS:
        verdict = f"not judged by fewer than {_FEWEST_TASKS} tasks"
    sentence = (
        f"With each of {len(set(sizes))} sizes predicted from the others, held-out perplexity "
        f"alone errs by {100 * errors[ALONE][0]:.2g} points in the mean accuracy of {tasks} tasks "
        f"(R² {table.r2[0]:.2f}), and the best predictor without it, {best}, by "
        f"{100 * errors[best][0]:.2g}: perplexity is {verdict} ({gain[0]:+.2f} points; "
        f"95% interval {low:+.2f} to {high:+.2f} over tasks; seeds and sizes not resampled)."
    )
    return Finding(sentence, table)


def left_out(
    logs: Array, sizes: Array, weights: Array, values: Array, floor: Array
) -> Array | None:
    """Predictions [P, B] of the values [P, B] of each size from the other sizes.

    The logit of the share of the way from `floor` [B] to 1 is linear in the predictors `logs`
    [P, V]. None where the other sizes do not determine the coefficients.
    """
    z = (logs - logs.mean(axis=0)) / np.maximum(logs.std(axis=0), 1e-12)
    design = np.hstack([np.ones((len(z), 1)), z])
    logits = special.logit(np.clip((values - floor) / (1 - floor), _LEAST, 1 - _LEAST))
    root, predicted = np.sqrt(weights)[:, None], np.empty_like(values)
    for size in np.unique(sizes):
        out = sizes == size
        known = root[~out] * design[~out], root[~out] * logits[~out]
        coefficients, _, rank, _ = np.linalg.lstsq(*known, rcond=1e-6)
        if rank < design.shape[1]:
            return None
        predicted[out] = floor + (1 - floor) * special.expit(design[out] @ coefficients)
    return predicted


def spreads(scored: pd.DataFrame) -> dict[str, float]:
    """Mean standard deviation, in points, between the sizes' curves of accuracy by each clock,
    over checkpoints where by all two or more overlap; clocks by which they do nowhere are left out.
    """
    apart = pd.DataFrame(index=scored.index)
    for clock in CLOCKS:
        x = np.log(scored[clock].astype(float).where(scored[clock] > 0)).sort_values()
        each = scored.accuracy[x.dropna().index].groupby(scored.params)
        lines = {n: np.interp(x, x[y.index], y, np.nan, np.nan) for n, y in each}
        apart[clock] = pd.DataFrame(lines, x.index).std(axis=1)
    return dict((100 * apart.dropna(axis=1, how="all").dropna().mean()).dropna())


def _rises(shares: pd.DataFrame) -> Iterator[Finding]:
    """Final accuracies by size, with L and B of each task."""
    wide = _last(shares.rename(columns={"value": "accuracy"}), "accuracy")
    yield from _by_size(wide, "accuracy")
    if wide.empty:
        return
    n = shares.groupby("task").n.max().fillna(0).replace(0, 100)
    both = {task: linear_and_sudden(y.to_numpy(), 1 / n[task]) for task, y in wide.iterrows()}
    of = pd.DataFrame(both, ["linearity", "breakthroughness"]).T
    # The error of a difference of two shares is at most sqrt(0.5 / n).
    clear = wide.iloc[:, -1] - wide.iloc[:, 0] > 2 * np.sqrt(0.5 / n[wide.index])
    of = of[(of.linearity > 0) & clear].sort_values("breakthroughness", ascending=False)
    if len(of) < 2:
        return
    sentence = (
        f"Over {wide.shape[1]} sizes, BIG-bench's breakthroughness of final accuracy is highest "
        f"in {', '.join(of.index[:3])}, its linearity in {of.linearity.idxmax()}, of {len(of)} "
        "tasks where it rises from first to last by more than two standard errors."
    )
    long = wide.reset_index().melt("task", value_name="accuracy", var_name="params")
    long = of.reset_index(names="task").merge(long).assign(size=lambda t: t.params.map(amount))
    yield Finding(sentence, long, title="Linear or breakthrough over sizes")


def linear_and_sudden(y: Array, least: float) -> tuple[float, float]:
    """BIG-bench's linearity and breakthroughness of accuracies by size (arXiv 2206.04615, app. B).

    The signed range over the root mean, or median, square of the differences, each at least
    `least`, the weight of an example: the median of a breakthrough may be 0.
    """
    rise = float(np.sign(np.argmax(y) - np.argmin(y)) * np.ptp(y))
    squares = np.maximum(np.diff(y) ** 2, least**2)
    return rise / math.sqrt(squares.mean()), rise / math.sqrt(np.median(squares))


def _options(points: pd.DataFrame, at: pd.DataFrame) -> Iterator[Finding]:
    """Perplexities of right and wrong options, whose logs are means over tasks by tokens."""
    rows = points[points.metric.isin(OPTIONS)]
    wide = _shared(rows, "score", "metric").dropna()
    tokens = _shared(rows, "n", "metric").reindex_like(wide).fillna(1).clip(lower=1)
    total, weight = (of.T.groupby("metric").sum().T for of in (wide * tokens, tokens))
    mean = np.exp(-total / weight).rename(columns=OPTIONS)
    if set(mean) != set(OPTIONS.values()) or (both := at.merge(mean.reset_index())).empty:
        return
    ends = both.sort_values("perplexity", ascending=False).iloc[[0, -1]]
    text = [f"{name} {' to '.join(map('{:.3g}'.format, ends[name]))}" for name in mean]
    x = " to ".join(map("{:.3g}".format, ends.perplexity))
    sentence = f"As held-out perplexity goes from {x}, that of {' and of '.join(text)}."
    long = both.melt([*at], [*mean], "options", "option_perplexity")
    yield Finding(sentence, long, title="Right and wrong options")
