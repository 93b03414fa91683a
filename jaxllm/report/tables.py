"""Run directories and imported results -> the tidy tables of a report, with notes on gaps."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxllm.analysis.benchmarks import pooled
from jaxllm.analysis.curves import curves, is_share, of_metric
from jaxllm.analysis.finding import amount
from jaxllm.analysis.onsets import gain_share, trajectories
from jaxllm.analysis.registry import Study
from jaxllm.analysis.scaling.fit import finished
from jaxllm.analysis.stats import Z95
from jaxllm.errors import UserError
from jaxllm.report import differences, numbers
from jaxllm.report.charts.axes import CLOCKS
from jaxllm.report.notes import trajectory_notes
from jaxllm.report.theme import DISTINCT
from jaxllm.report.token_runs import RunData, token_studies
from jaxllm.run import stored_config
from jaxllm.run.records import Results, shown_name
from jaxllm.run.run import Run
from jaxllm.training.learning_rate import ScheduleConfig, make_schedule

LOGGED = {
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Tokens per second",
    "mfu": "Model FLOPs utilisation",
}
"""The quantities of metrics.jsonl that are charted beside the losses, and their titles."""

_POINTS_PER_CURVE = 1200


@dataclasses.dataclass(frozen=True)
class Overview:
    """Key figures of one run; NaN where unknown."""

    run: str
    family: str
    params: float
    tokens: float
    flops: float
    wall_seconds: float
    evaluation_share: float
    final_loss: float
    checkpoints: int
    restarts: float
    planned_tokens: float


@dataclasses.dataclass(frozen=True)
class Tables:
    """Data of a report."""

    overviews: tuple[Overview, ...]  # one per run, in the order of the sources
    # Charted trajectories with `low`, `high` (±1.96 stderr), `left_chance`, `series`, and the
    # training `loss` at the checkpoint.
    points: pd.DataFrame
    findings: pd.DataFrame  # when each task left chance; see `analysis.onsets.trajectories`
    shares: pd.DataFrame  # `points` with the share of each task's gain, as cells of the gain chart
    metrics: pd.DataFrame  # `run, step, tokens, flops, loss, name, value, series`, all logged
    series: tuple[str, ...]  # what colours mean: runs, size classes of more of them, or domains
    notes: tuple[str, ...]  # missing or inconsistent data, one sentence each
    study: Study  # input of the analyses
    colour_of: dict[str, str]  # series of each run, where there are several runs
    differing: dict[str, dict[str, str]]  # of each run, the settings that differ between the runs
    seeds: list[list[str]]  # runs that differ in their seed alone

    @property
    def several_runs(self) -> bool:
        """Whether there are several runs, so that colours stand for runs or sizes."""
        return len(self.overviews) > 1

    @property
    def many_runs(self) -> bool:
        """Whether there are more runs than colours, so that colours stand for size classes."""
        return len(self.overviews) > DISTINCT

    @property
    def palette(self) -> str:
        """Colour palette: "sizes", in the order of the sizes, or "series", distinct."""
        return "sizes" if self.many_runs else "series"

    def finals(self, task: str) -> Iterator[Any]:
        """Findings on one task, in the order of the runs."""
        order = [overview.run for overview in self.overviews]
        rows = self.findings[self.findings.task == task]
        return rows.sort_values("run", key=lambda run: run.map(order.index)).itertuples()

    def seed_means(self, task: str) -> Iterator[tuple[str, str]]:
        """Runs that differ in their seed alone, and the mean of their final values ± its spread."""
        rows = self.findings[self.findings.task == task].dropna(subset="final").set_index("run")
        for runs in self.seeds:
            ended = [run for run in runs if run not in self.study.planned_tokens]
            of_seeds = rows.final.reindex(ended).dropna()
            if len(of_seeds) > 1:
                text = numbers.with_error(of_seeds.mean(), of_seeds.std(), rows.metric.iloc[0])
                yield numbers.join(list(of_seeds.index)), text

    @functools.cached_property
    def domains(self) -> dict[str, list[str]]:
        """Tasks by domain, both ordered by when they left chance."""
        tasks = self.findings.drop_duplicates(["domain", "task"])
        return {name: list(rows.task) for name, rows in tasks.groupby("domain", sort=False)}


def gather(sources: Sequence[Run | Results]) -> Tables:
    """Read `sources` into the tables of one report; runs of the same name are numbered."""
    notes: list[str] = []
    runs = _read(sources, notes)
    settings = {run.name: run.settings for run in runs}
    seeds = differences.seeds(settings)
    runs = _families(runs, seeds)
    overviews = tuple(_overview(run) for run in runs)
    metrics = _joined([_long(run, notes) for run in runs])
    all_records = _joined([run.records for run in runs])
    tokens = token_studies(runs, notes)
    layers = [table for s in sources if isinstance(s, Run) for table in s.similarities(notes)]
    records, pooling = pooled(all_records)
    main = curves(records).main()
    points, findings = trajectories(main, records)
    # The notes on the trajectories list records without a value, by task and checkpoint.
    notes += [*pooling, *(note for note in main.notes if "have no value" not in note)]
    notes += trajectory_notes(records, points, findings, len(runs))
    colour_of: dict[str, str] = {}
    if len(runs) > 1:
        colour_of, series = _run_series(overviews)
        points = points.assign(series=points.run.map(colour_of))
        metrics = metrics.assign(series=metrics.run.map(colour_of))
    else:
        domains = metrics.name[metrics.name.str.startswith("loss/")].str.removeprefix("loss/")
        series = list(dict.fromkeys([*findings.domain, *domains]))
        points = points.assign(series=points.domain)
        metrics = metrics.assign(series=metrics.name.str.removeprefix("loss/"))
    losses = metrics[metrics.name == "loss"]
    parents = {run.name: run.parent for run in runs if run.parent}
    points = _charted(_own(points, parents), losses)
    losses = losses.assign(
        params=losses.run.map({o.run: o.params for o in overviews}), loss=losses.value
    )
    return Tables(
        overviews=overviews,
        points=points,
        findings=findings,
        shares=_cells(gain_share(points, findings)),
        metrics=metrics,
        series=tuple(series),
        notes=tuple(notes),
        study=Study(
            records=records,
            raw_records=all_records,
            logged=_joined([run.metrics.assign(run=run.name) for run in runs]),
            losses=losses[["run", "params", "tokens", "flops", "loss"]],
            planned_tokens={
                o.run: o.planned_tokens for o in overviews if o.tokens < 0.999 * o.planned_tokens
            },
            planned_rates={run.name: run.planned_rates for run in runs if len(run.planned_rates)},
            parents=parents,
            mixtures={run.name: run.mixture for run in runs if run.mixture},
            epochs={run.name: epochs for run in runs if (epochs := _epochs(run.checkpoints))},
            domain_weights={run.name: run.domain_weights for run in runs if run.domain_weights},
            token_studies=tokens,
            layers=tuple(layers),
        ),
        colour_of=colour_of,
        differing=differences.differences(settings),
        seeds=seeds,
    )


def _read(sources: Sequence[Run | Results], notes: list[str]) -> list[RunData]:
    """Runs of all sources under distinct names; adds to `notes` what is missing."""
    runs: dict[str, RunData] = {}
    for source in sources:
        notes += source.problems if isinstance(source, Results) else ()
        for run in _runs_of(source):
            numbered = (f"{run.name} ({number})" for number in itertools.count(2))
            name = next(n for n in itertools.chain([run.name], numbered) if n not in runs)
            if name != run.name:
                owner = f"{name} is {source.path}" if isinstance(source, Run) else name
                notes.append(
                    f"{owner}: another run is called {run.name} too; they are shown separately."
                )
            records = run.records.assign(run=name)
            if isinstance(source, Run):  # importers name tasks alike
                pairs = zip(records.task, records.shots, strict=True)
                records = records.assign(task=[shown_name(str(t), int(n)) for t, n in pairs])
            runs[name] = dataclasses.replace(run, name=name, records=records)
            if isinstance(source, Run):
                notes += _problems(name, source)
    return list(runs.values())


def _families(runs: list[RunData], seeds: list[list[str]]) -> list[RunData]:
    """The runs, with one family for those that differ in their seed alone and all others of it."""
    families = {run.name: str(run.records.family.iloc[-1]) for run in runs if len(run.records)}
    groups: list[set[str]] = []
    for seeded in seeds:
        names = {families[run] for run in seeded if run in families}
        names = names.union(*(group for group in groups if group & names))
        groups = [*(group for group in groups if not group & names), names]
    joined = {n: f"{min(group)}–{max(group)}" for group in groups if len(group) > 1 for n in group}
    return [
        dataclasses.replace(run, records=run.records.replace({"family": joined}))
        if families.get(run.name) in joined
        else run
        for run in runs
    ]


def _runs_of(source: Run | Results) -> Iterator[RunData]:
    if isinstance(source, Run):
        checkpoints = source.checkpoints()
        yield RunData(
            source.name, source.records(), source.metrics(), checkpoints, source.planned_tokens(),
            _parent(checkpoints), source.mixture(), _domain_weights(source), _planned_rates(source),
            source.settings(), [source.token_losses(name) for name in source.token_set_names()],
        )  # fmt: skip
        return
    grouped = source.records.groupby(["run", "family", "params"], sort=False, dropna=False)
    tables = [(str(name), records) for (name, _, _), records in grouped]
    unscored = sorted(set(source.metrics.run) - {name for name, _ in tables})
    tables += [(str(name), source.records.iloc[:0]) for name in unscored]
    for name, records in tables:
        metrics = source.metrics[source.metrics.run == name].drop(columns="run")
        yield RunData(name, records, metrics)


def _domain_weights(run: Run) -> dict[str, float]:
    """Domain -> share that a run learned by DoReMi; empty for any other."""
    file = run.layout.domain_weights
    return stored_config.mixture(file.read_text()) if file.exists() else {}


def _planned_rates(run: Run) -> np.ndarray:
    """The learning rate of each update by the run's config; none of stages or a damaged config."""
    known, steps = run.settings(), run.planned_steps()
    schedule = "ScheduleConfig."
    own = {k.removeprefix(schedule): v for k, v in known.items() if k.startswith(schedule)}
    if not steps or not own or known.get("TrainConfig.stages"):
        return np.zeros(0)
    try:
        return make_schedule(ScheduleConfig(**own), steps, np)(np.arange(steps))
    except (TypeError, ValueError, UserError):
        return np.zeros(0)


def _epochs(checkpoints: pd.DataFrame) -> dict[str, float]:
    """Domain -> times that it was read until the last checkpoint of a mixture with it."""
    read: dict[str, float] = {}
    for epochs in checkpoints.get("domain_epochs", pd.Series(dtype=object)).dropna():
        read |= epochs
    return read


def _parent(checkpoints: pd.DataFrame) -> tuple[str, float] | None:
    """The run that a branch left, and its tokens then; None of a run that began anew."""
    named = checkpoints.reindex(columns=["parent", "tokens"]).dropna()
    for parent, tokens in named[named.tokens > 0].itertuples(index=False):
        return str(parent).rpartition("@")[0].rpartition("/")[2], float(tokens)
    return None


def _problems(name: str, run: Run) -> Iterator[str]:
    yield from (problem.replace(f"{run.path}/", f"{name}: ", 1) for problem in run.problems())
    if run.records().empty:
        yield f"{name}: no checkpoint has been scored yet."
    if run.metrics().empty:
        yield f"{name}: metrics.jsonl is missing or empty, so no loss and no health is shown."


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate frames, ignoring the column types of empty ones."""
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def _run_series(overviews: Sequence[Overview]) -> tuple[dict[str, str], list[str]]:
    """Series (run or size class) of each run, and all series, smaller sizes first."""
    if len(overviews) <= DISTINCT:
        return {o.run: o.run for o in overviews}, [o.run for o in overviews]
    known = sorted({o.params for o in overviews if o.params > 0})
    classes = [[params] for params in known]
    while len(classes) > DISTINCT - any(o.params not in known for o in overviews):
        spans = [larger[-1] / smaller[0] for smaller, larger in itertools.pairwise(classes)]
        nearest = spans.index(min(spans))
        classes[nearest : nearest + 2] = [classes[nearest] + classes[nearest + 1]]
    class_of: dict[float, str] = {}
    for sizes in classes:
        ends = dict.fromkeys(amount(float(f"{p:.2g}")) for p in (sizes[0], sizes[-1]))
        class_of |= dict.fromkeys(sizes, "–".join(ends))
    series_of = {o.run: class_of.get(o.params, "size unknown") for o in overviews}
    return series_of, list(dict.fromkeys([*class_of.values(), *series_of.values()]))


def _own(points: pd.DataFrame, parents: Mapping[str, tuple[str, float]]) -> pd.DataFrame:
    """Without what a branch has from a parent that is shown, too: it starts where it left it."""
    shown = {run for run, (parent, _) in parents.items() if (points.run == parent).any()}
    begins = points.run.map({run: parents[run][1] for run in shown}).fillna(0.0)
    return points[~(points.tokens < 0.999 * begins)]


def _charted(points: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Points with their band, and the interpolated training loss; NaN where none is logged."""
    low, high = points.value - Z95 * points.stderr, points.value + Z95 * points.stderr
    share = of_metric(is_share, points.metric)
    loss = pd.Series(math.nan, index=points.index)
    for run, logged in losses.dropna(subset="value").sort_values("step").groupby("run"):
        own = points.run == run
        loss[own] = np.interp(points.step[own], logged.step, logged.value)
    return points.assign(
        low=low.where(~share, low.clip(0, 1)), high=high.where(~share, high.clip(0, 1)), loss=loss
    )


def _overview(run: RunData) -> Overview:
    tables = (run.records, run.metrics, run.checkpoints)
    largest = pd.concat([_finite(table, ["params", "tokens", "flops"]) for table in tables]).max()
    final = ["wall_seconds", "time/evaluation", "restarts"]
    last = _finite(run.metrics, final).ffill().tail(1).max()
    losses = _finite(run.metrics, ["tokens", "loss"]).dropna().assign(run=run.name)
    return Overview(
        run=run.name,
        family=str(run.records.family.iloc[-1]) if len(run.records) else "",
        **largest,
        wall_seconds=last.wall_seconds,
        evaluation_share=last["time/evaluation"],
        final_loss=finished(losses, "loss").loss.max(),
        checkpoints=run.records.step.nunique(),
        restarts=last.restarts,
        planned_tokens=run.planned_tokens,
    )


def _finite(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Columns as finite floats; NaN for everything else, and for missing columns."""
    floats = frame.reindex(columns=columns).apply(pd.to_numeric, errors="coerce")
    return floats.astype("float64").replace([math.inf, -math.inf], math.nan)


def _long(run: RunData, notes: list[str]) -> pd.DataFrame:
    """Charted columns of metrics.jsonl in long form (name, value), thinned where dense."""
    names = [c for c in run.metrics if c == "loss" or c.startswith("loss/") or c in LOGGED]
    clocks = [*CLOCKS, "loss"]
    finite = _finite(run.metrics, [*dict.fromkeys([*clocks, *names])])
    rows = [pd.DataFrame(columns=["run", *clocks, "name", "value"])]
    for name in names:
        logged = finite[clocks].assign(value=finite[name])
        logged = logged[run.metrics[name].notna() | (name == "loss")]
        wrong = logged.step[logged.value.isna()]
        if len(wrong):
            notes.append(
                f"{run.name}: {name} is not a finite number at {len(wrong)} logged "
                f"{'steps' if len(wrong) > 1 else 'step'} (first: {wrong.iloc[0]:.0f})."
            )
        if len(logged) > _POINTS_PER_CURVE and name == "loss":
            notes.append(
                f"{run.name}: {len(logged):,} steps were logged; the curves of loss and health "
                f"show means of neighbouring steps, {_POINTS_PER_CURVE:,} at most."
            )
        rows.append(_thinned(logged).assign(run=run.name, name=name))
    return _joined(rows)


def _thinned(logged: pd.DataFrame) -> pd.DataFrame:
    """Thin by means over bins, half of them equal in steps and half in log steps."""
    total = len(logged)
    if total <= _POINTS_PER_CURVE:
        return logged
    half = _POINTS_PER_CURVE // 2
    edges = [*np.linspace(0, total, half + 1), *np.geomspace(1, total, half)]
    bins = np.searchsorted(np.unique(np.array(edges).astype(int)), np.arange(total), side="right")
    return logged.groupby(bins).mean()


def _cells(shares: pd.DataFrame) -> pd.DataFrame:
    """Cells of the gain chart, from the previous checkpoint; the first is as wide as the next."""
    shares = shares.sort_values("step", ignore_index=True)
    grouped = shares.groupby(["run", "task"], sort=False)
    cells = {}
    for clock in CLOCKS:
        first = 2 * shares[clock] - grouped[clock].shift(-1).fillna(math.inf)
        cells[f"{clock}_from"] = grouped[clock].shift().fillna(first).clip(0.0).fillna(0.0)
    cells["loss_from"] = grouped["loss"].shift().fillna(grouped["loss"].transform("max"))
    final = grouped["step"].transform("max")
    text = [numbers.value(v, m) for v, m in zip(shares.value, shares.metric, strict=True)]
    return shares.assign(**cells, is_last=shares.step == final, final_text=text)
