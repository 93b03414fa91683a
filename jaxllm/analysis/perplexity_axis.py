"""Held-out perplexity as the axis on which model sizes agree.

"Training Trajectories of Language Models Across Scales" (arXiv 2212.09803, section 5) calls
perplexity a strong predictor of accuracy by its figures alone. Here every size is predicted from
the others, by perplexity and by parameters and FLOPs, and the tasks are resampled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import special

from jaxllm.analysis.curves import Array, Curves, curves, is_share, of_metric
from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.registry import SIZES, Study, analysis

ALONE = "held-out perplexity"
PREDICTORS: dict[str, list[str]] = {
    ALONE: ["perplexity"],
    "parameters": ["params"],
    "FLOPs": ["flops"],
    "parameters and FLOPs": ["params", "flops"],
    "perplexity and parameters": ["perplexity", "params"],
}
CLOCKS = {"perplexity": ALONE, "flops": "FLOPs", "tokens": "tokens", "step": "steps"}
_LOSSES = ("perplexity", "loss", "word_perplexity", "byte_perplexity", "bits_per_byte")
_OPTIONS = {"perplexity_correct": "right options", "perplexity_incorrect": "wrong options"}
_EARLY = 0.1  # share of a run's tokens before which it predicts nothing (arXiv 2412.04403)
_FEWEST_SIZES, _MOST_FAMILIES, _DRAWS = 3, 2, 300


@analysis(
    SIZES,
    "Held-out perplexity as the axis",
    needs=lambda study: len(set(study.params.values())) > 1,
    place=45,
    caption="Mean accuracy by the logarithms of held-out perplexity, parameters or FLOPs. Sizes "
    "count alike; each is predicted from the others, without the first tenth of a run. Intervals "
    "resample the tasks and hold for these runs. At most eight sizes are drawn.",
    method="Leave-one-size-out logistic regression above chance (Papke and Wooldridge 1996) with "
    "a bootstrap over tasks, for the figures of arXiv 2212.09803, section 5.",
)
def perplexity_axis(study: Study) -> list[Finding]:
    """Predict accuracies by held-out perplexity and by size and compute, within families.

    Returns:
      For each of the two families with most sizes: errors by predictor; accuracies by checkpoint;
      perplexities of right and wrong options; and held-out perplexities by checkpoint.
    """
    raw, own = study.raw_records, study.records
    points = (study.all_curves if raw is None or raw is own else curves(raw).directed()).points
    begun = points.run.map({run: tokens for run, (_, tokens) in study.parents.items()})
    points = points[(points.tokens > 0) & (points.flops > 0) & ~(points.tokens <= begun)]
    sizes = points.groupby("family").params.nunique().sort_values(ascending=False, kind="stable")
    families = sizes.index[sizes >= _FEWEST_SIZES][:_MOST_FAMILIES]
    if not len(families):
        return [Finding.refuse(f"no family has {_FEWEST_SIZES} sizes")]
    return [
        dataclasses.replace(one, title=one.title + f", {name}" * (len(families) > 1))
        for name in families
        for one in _of_family(points[points.family == name])
    ]


def held_out(points: pd.DataFrame) -> tuple[pd.Series, str]:
    """Log perplexity of held-out text by run and step, of `Curves.points`, and the text's name.

    A text is a task without an accuracy; where there is none, LAMBADA's last words stand for it.
    Read is the first of perplexity, loss, word or byte perplexity and bits per byte that all runs
    share, in nats; the mean over several texts, at checkpoints with all of them.
    """
    graded = set(points.task[of_metric(is_share, points.metric)])
    text, lambada = ~points.task.isin(graded), points.task.str.startswith("lambada")
    for rows in (points[text], points[lambada]):
        for metric in _LOSSES:
            wide = _shared(rows[rows.metric == metric], "score").dropna()
            if wide.size:
                unit = math.log(2) if metric == "bits_per_byte" else 1.0
                name = wide.columns[0] if wide.shape[1] == 1 else f"{wide.shape[1]} texts"
                return -unit * wide.mean(axis=1), name
    return pd.Series(dtype=float), ""


def _shared(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """Values by run and step, with a column for each task that all runs have."""
    wide = rows.pivot_table(value, ["run", "step"], "task", aggfunc="last")
    return wide.loc[:, wide.notna().groupby("run").any().all()]


def _of_family(points: pd.DataFrame) -> Iterator[Finding]:
    loss, text = held_out(points)
    title = "Held-out perplexity as the axis"
    if loss.empty:
        reason = "no held-out text was scored, as by the tasks heldout_<corpus>"
        yield dataclasses.replace(Finding.refuse(reason), title=title)
        return
    at = points.drop_duplicates(["run", "step"], keep="last")
    at = at[["run", "params", "step", "tokens", "flops"]].assign(size=at.params.map(amount))
    at = at.merge(np.exp(loss).rename("perplexity").reset_index()).sort_values(["params", "tokens"])
    main = Curves(points[points.task != text]).main().comparable()
    wide = _shared(main.points[of_metric(is_share, main.points.metric)], "value")
    complete, notes = wide.dropna() if wide.size else wide.iloc[:0], main.notes
    if lost := len(wide) - len(complete):
        notes += (f"{lost:,} checkpoints lack some of the tasks that all runs share: left out.",)
    scored = at.merge(complete.mean(axis=1).rename("accuracy").reset_index())
    if (sizes := scored.params.nunique()) < _FEWEST_SIZES:
        reason = f"{sizes} sizes have both accuracies and held-out perplexity"
        yield dataclasses.replace(Finding.refuse(reason, notes), title=title)
    else:
        accuracy = complete.loc[pd.MultiIndex.from_frame(scored[["run", "step"]])].to_numpy(float)
        chance = main.points.groupby("task").chance.last()[[*complete]].fillna(0).to_numpy()
        yield dataclasses.replace(fit(scored, accuracy, chance), notes=notes, title=title)
        apart = {name: 100 * spread(scored, clock) for clock, name in CLOCKS.items()}
        known = ", ".join(f"{sd:.2g} at equal {name}" for name, sd in apart.items() if sd >= 0)
        sentence = (
            f"The mean accuracies of the sizes differ by {known or 'an unknown amount'} (standard "
            f"deviation in points, where their curves overlap; perplexity of {text})."
        )
        yield Finding(sentence, scored, title="Accuracy by held-out perplexity")
    yield from _options(points, at)
    last = at.drop_duplicates("size", keep="last")
    ends = ", ".join(f"{row.perplexity:.3g} at {row.size}" for row in last.itertuples(index=False))
    sentence = f"The perplexity of {text} ends at {ends}."
    yield Finding(sentence, at, title="Held-out perplexity by FLOPs")


def fit(points: pd.DataFrame, accuracy: Array, chance: Array) -> Finding:
    """Predict the mean accuracy of each size from the others, by every one of `PREDICTORS`.

    Args:
      points: `run, params, tokens, flops, perplexity`, a row per checkpoint.
      accuracy: [P, T] of the tasks.
      chance: [T] their chance levels.

    Returns:
      A row per predictor: `r2` and `rmse` of the sizes left out, with 95% intervals.
    """
    late = (points.tokens >= _EARLY * points.groupby("run").tokens.transform("max")).to_numpy()
    points, tasks = points[late], accuracy.shape[1]
    drawn = np.random.default_rng(0).multinomial(tasks, np.full(tasks, 1 / tasks), _DRAWS)
    drawn = np.vstack([np.ones(tasks), drawn]).T / tasks  # [T, 1 + draws], all tasks first
    means = accuracy[late] @ drawn
    weights = 1 / points.groupby("params").params.transform("size").to_numpy(float)
    weights /= weights.sum()
    total = weights @ (means - weights @ means) ** 2
    rows, errors = [], {}
    for name, columns in PREDICTORS.items():
        logs, sizes = np.log(points[columns].to_numpy(float)), points.params.to_numpy()
        predicted = left_out(logs, sizes, weights, means, chance @ drawn)
        if predicted is None:
            continue
        squares = weights @ (means - predicted) ** 2
        row: dict[str, object] = {"predictor": name}
        errors[name] = 100 * np.sqrt(squares)
        measures = {"r2": 1 - squares / np.maximum(total, 1e-12), "rmse": errors[name] / 100}
        for measure, of in measures.items():
            low, high = np.quantile(of[1:], [0.025, 0.975]) if tasks > 1 else (np.nan, np.nan)
            row |= {measure: of[0], f"{measure}_low": low, f"{measure}_high": high}
        rows.append(row)
    if total[0] < 1e-12 or ALONE not in errors:
        return Finding.refuse("the accuracies, or the perplexities, of the sizes do not vary")
    table = pd.DataFrame(rows).set_index("predictor", drop=False)
    best = min((n for n in errors if "perplexity" not in n), key=lambda n: errors[n][0])
    gain = errors[best] - errors[ALONE]
    low, high = np.quantile(gain[1:], [0.025, 0.975])
    verdict = "better" if low > 0 else "worse" if high < 0 else "not clearly better or worse"
    ends = f"{low:+.2g} to {high:+.2g}" if tasks > 1 else "unknown, of one task"
    sentence = (
        f"With each of {points.params.nunique()} sizes predicted from the others, held-out "
        f"perplexity alone errs by {errors[ALONE][0]:.2g} points in the mean accuracy of {tasks} "
        f"task{'s' * (tasks > 1)} (R² {table.r2[ALONE]:.2f}), and the best predictor without it, "
        f"{best}, by {errors[best][0]:.2g} (R² {table.r2[best]:.2f}): perplexity is {verdict} "
        f"({gain[0]:+.2g} points; 95% interval {ends})."
    )
    return Finding(sentence, table.reset_index(drop=True))


def left_out(
    logs: Array, sizes: Array, weights: Array, values: Array, floor: Array
) -> Array | None:
    """Predictions [P, B] of the values [P, B] of each size from the other sizes.

    By a logistic function, between `floor` [B] and 1, that is linear in the predictors `logs`
    [P, V]. None where the other sizes do not determine its coefficients.
    """
    z = (logs - logs.mean(axis=0)) / np.maximum(logs.std(axis=0), 1e-12)
    design = np.hstack([np.ones((len(z), 1)), z])
    predicted = np.empty_like(values)
    for size in np.unique(sizes):
        out = sizes == size
        if np.linalg.matrix_rank(design[~out], tol=1e-6 * len(z)) < design.shape[1]:
            return None
        shares = (values[~out] - floor) / (1 - floor)
        fitted = fractional_logit(design[~out], weights[~out], shares)
        predicted[out] = floor + (1 - floor) * special.expit(design[out] @ fitted)
    return predicted


def fractional_logit(design: Array, weights: Array, shares: Array) -> Array:
    """Coefficients [V, B] of logistic regressions of shares [P, B] (Papke and Wooldridge 1996).

    By Newton's method with bounded steps; the first column is where the others start.
    """
    beta = np.zeros((design.shape[1], 1))
    for steps, y in ((60, shares[:, :1]), (8, shares)):
        beta = np.repeat(beta, y.shape[1], axis=1)
        for _ in range(steps):
            p = special.expit(design @ beta)
            gradient = design.T @ (weights[:, None] * (y - p))
            curvature = weights[:, None] * np.maximum(p * (1 - p), 1e-6)
            hessian = np.einsum("pi,pj,pb->bij", design, design, curvature, optimize=True)
            hessian += 1e-9 * np.eye(len(beta))
            beta = beta + np.clip(np.linalg.solve(hessian, gradient.T[..., None])[..., 0].T, -1, 1)
    return beta


def spread(scored: pd.DataFrame, clock: str) -> float:
    """Mean standard deviation of the sizes' accuracies where the curves of two or more overlap."""
    scored = scored[scored[clock] > 0]
    x = np.log(scored[clock].astype(float))
    grid = np.linspace(x.min(), x.max(), 100)
    ordered = scored.assign(x=x).sort_values("x")
    curves_of = [
        np.interp(grid, rows.x, rows.accuracy, left=np.nan, right=np.nan)
        for _, rows in ordered.groupby("params")
    ]
    return float(pd.DataFrame(curves_of).std().mean())  # NaN where one size alone has a value


def _options(points: pd.DataFrame, at: pd.DataFrame) -> Iterator[Finding]:
    """Perplexities of right and wrong options, geometric means over tasks."""
    rows = points[points.metric.isin(_OPTIONS)]
    wide = rows.pivot_table("score", ["run", "step"], ["task", "metric"], aggfunc="last").dropna()
    mean = np.exp(-wide.T.groupby("metric").mean().T).rename(columns=_OPTIONS)
    if set(mean) != set(_OPTIONS.values()) or (both := at.merge(mean.reset_index())).empty:
        return
    ends = both.sort_values("perplexity", ascending=False).iloc[[0, -1]]
    parts = [f"that of {name} " + " to ".join(map("{:.3g}".format, ends[name])) for name in mean]
    x = " to ".join(map("{:.3g}".format, ends.perplexity))
    sentence = f"As held-out perplexity goes from {x}, {', '.join(parts)}."
    long = both.melt([*at], [*mean], "options", "option_perplexity")
    yield Finding(sentence, long, title="Right and wrong options")
