"""What the loss of a run would be if its learning rate decayed now, and at its planned end."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd

from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.registry import AHEAD, Study, analysis
from jaxllm.analysis.scaling.fit import finished
from jaxllm.analysis.scaling.schedule_law import LEVEL, LossCurve, ScheduleLaw, fit
from jaxllm.analysis.stats import Array
from jaxllm.errors import UserError

TITLE = "If annealed now"
_DECAY = 0.1  # share of the steps that a decay takes, as of 'wsd'
_MOST_RUNS = 4
_SIBLINGS = 8
_POINTS = 40  # of a curve on the chart
_EARLIEST = 0.1  # share of the steps so far where the curves of the law begin
_SAME = 0.01  # relative difference up to which sizes, peaks and batches are equal
_NEAR = 0.1  # share of the peak up to which two rates are about equal
_COMMON = 5  # steps that two runs must share, at equal rates, for their levels to be compared
_LATE = 0.05  # a log that begins after this share of it lacks its beginning


@dataclasses.dataclass(frozen=True)
class _Logged:
    curve: LossCurve
    per_step: float  # tokens


@analysis(
    AHEAD,
    TITLE,
    place=5,
    needs=lambda study: "learning_rate" in study.logged,
    caption="The law is fitted to the run, its branches and runs of the same size, batch and peak "
    "rate. Annealed: had the rate fallen linearly over the last tenth of the tokens, to the lowest "
    "rate that the fitted curves reach. Bands: 90% intervals of the mean loss, not of batches.",
    method="Multi-power law of the learning-rate schedule (Luo et al. 2025, arXiv 2503.12811).",
)
def annealed(study: Study) -> list[Finding]:
    """Fit a schedule law to each run in progress, or to the largest size, and anneal it.

    A run alone is fitted with its branches; siblings are added where these do not tell what a decay
    gives, scaled to the run's level. Rows are `run, kind, step, tokens, value, low, high`, of the
    kinds measured, law, annealed and, at the planned end, planned.
    """
    logged = dict(_logged(study))
    targets = _targets(study, logged)
    if not targets:
        return [Finding.refuse("no run has logged loss and learning rate from its beginning")]
    findings = []
    for run in targets:
        title = f"{TITLE}: {run}" if len(targets) > 1 else TITLE
        try:
            law = _law(study, run, logged)
        except UserError as error:
            findings.append(dataclasses.replace(Finding.refuse(str(error)), title=title))
            continue
        planned = study.planned_rates.get(run, np.zeros(0))
        rates = logged[run].curve.rates
        decays = len(planned) > len(rates) or bool(rates[-1] > law.lowest_rate + _NEAR * law.peak)
        going_on = run in study.planned_tokens or decays
        table = _table(run, logged[run], law, planned, going_on)
        sentence = _sentence(run, table, logged[run], going_on)
        notes: tuple[str, ...] = ()
        if "planned" in set(table.kind) and planned[-1] < law.lowest_rate - _NEAR * law.peak:
            notes = (
                f"The plan ends at a learning rate of {planned[-1]:.2g}; the curves that the law "
                f"is fitted to go down to {law.lowest_rate:.2g} only.",
            )
        findings.append(Finding(sentence, table, notes=notes, title=title))
    return findings


def _logged(study: Study) -> Iterator[tuple[str, _Logged]]:
    """The curve of every run whose rates are known from the first step; parents come first."""
    curves: dict[str, _Logged] = {}
    for run in sorted(study.runs, key=lambda run: run in study.parents):
        log = study.log_of(run).reindex(columns=["step", "tokens", "loss", "learning_rate"])
        log = log.apply(pd.to_numeric, errors="coerce").dropna().drop_duplicates("step")
        log = log[(log.step > 0) & (log.tokens > 0) & (log.loss > 0)].sort_values("step")
        if len(log) < 2:
            continue
        per_step = float(log.tokens.iloc[-1] / log.step.iloc[-1])
        steps, rates, begun = log.step.to_numpy(int), log.learning_rate.to_numpy(float), 0
        before: Array = np.zeros(0)
        if run in study.parents:
            name, tokens = study.parents[run]
            begun = round(tokens / per_step)
            if name not in curves or len(curves[name].curve.rates) < begun:
                continue
            before = curves[name].curve.rates[:begun]
        elif steps[0] > _LATE * steps[-1]:
            continue
        own = steps > begun
        first = before[-1] if begun else 0.0
        known, values = [begun, *steps[own]], [first, *rates[own]]
        after = np.interp(np.arange(begun + 1, steps[-1] + 1), known, values)
        curve = LossCurve(np.concatenate([before, after]), steps[own], log.loss.to_numpy()[own])
        curves[run] = _Logged(curve, per_step)
        yield run, curves[run]


def _targets(study: Study, logged: dict[str, _Logged]) -> list[str]:
    """Runs in progress; else those of the largest size that are no branches."""
    running = [run for run in logged if run in study.planned_tokens]
    unbranched = [run for run in logged if run not in study.parents]
    largest = max((study.params.get(run, 0.0) for run in unbranched), default=0.0)
    ended = [run for run in unbranched if study.params.get(run, 0.0) == largest]
    return (running or ended)[:_MOST_RUNS]


def _law(study: Study, run: str, logged: dict[str, _Logged]) -> ScheduleLaw:
    """The law of a run; UserError where no curve tells what a decay gives."""

    def root(name: str) -> str:
        return root(study.parents[name][0]) if name in study.parents else name

    family = [name for name in logged if root(name) == root(run)]
    own = [logged[name].curve for name in family]
    if len(own) > 1:
        try:
            return fit(own)
        except UserError:
            pass
    others = _siblings(study, run, [n for n in logged if n not in family], logged)
    return fit([*own, *itertools.islice(others, _SIBLINGS)])


def _siblings(
    study: Study, run: str, others: list[str], logged: dict[str, _Logged]
) -> Iterator[LossCurve]:
    """Curves of runs of the same size, data, batch and peak, at the level of `run`."""
    own = logged[run]
    for other in others:
        its = logged[other]
        pairs = [
            (study.params.get(run, 0.0), study.params.get(other, 0.0)),
            (own.per_step, its.per_step),
            (own.curve.rates.max(), its.curve.rates.max()),
        ]
        alike = all(a > 0 and abs(a - b) <= _SAME * a for a, b in pairs)
        if alike and study.mixtures.get(run) == study.mixtures.get(other):
            steps = own.curve.steps[own.curve.steps <= its.curve.steps[-1]]
            difference = own.curve.rates[steps - 1] - its.curve.rates[steps - 1]
            same = np.abs(difference) <= _SAME * own.curve.rates.max()
            shared = steps[same & (steps >= its.curve.steps[0])]
            if len(shared) >= _COMMON:
                ours = np.interp(shared, own.curve.steps, own.curve.losses)
                ratio = ours / np.interp(shared, its.curve.steps, its.curve.losses)
                yield dataclasses.replace(
                    its.curve, losses=its.curve.losses * float(np.median(ratio))
                )


def _annealed(rates: Array, end: int, lowest: float) -> Array:
    """The first `end` rates, of which the last tenth falls linearly to the lowest; or holds."""
    decay = max(round(_DECAY * end), 1)
    before = rates[: max(end - decay, 1)]
    return np.append(before, np.linspace(before[-1], min(lowest, before[-1]), decay + 1)[1:])


def _table(
    run: str, logged: _Logged, law: ScheduleLaw, planned: Array, in_progress: bool
) -> pd.DataFrame:
    curve, rates = logged.curve, logged.curve.rates
    now, top = len(rates), int(np.argmax(rates >= 0.999 * rates.max())) + 1
    parts = [pd.DataFrame({"step": curve.steps, "value": curve.losses}).assign(kind="measured")]

    def add(kind: str, schedule: Array) -> None:
        end = np.array([len(schedule)])
        low, high = law.interval(schedule, end)
        value = law.predict(schedule, end)
        part = pd.DataFrame({"step": end, "value": value, "low": low, "high": high})
        parts.append(part.assign(kind=kind))

    first = max(top, round(_EARLIEST * now), int(curve.steps[0]))
    steps = np.unique(np.linspace(first, now, _POINTS).astype(int))
    fitted = pd.DataFrame({"step": steps, "value": law.predict(rates, steps)})
    parts.append(fitted.assign(kind="law"))
    begins = steps if in_progress else steps[steps <= (1 - _DECAY) * now]
    for end in np.unique((begins / (1 - _DECAY)).round().astype(int)):
        add("annealed", _annealed(rates, int(end), law.lowest_rate))
    if len(planned) > now:
        add("planned", np.append(rates, planned[now:]))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(run=run, tokens=table.step * logged.per_step)


def _sentence(run: str, table: pd.DataFrame, logged: _Logged, in_progress: bool) -> str:
    def loss(row: pd.Series) -> str:
        return f"{row.value:.3f} ({LEVEL:.0%} interval {row.low:.3f} to {row.high:.3f})"

    of = dict(list(table.groupby("kind")))
    latest = finished(of["measured"], "value").value.iloc[0]
    if not in_progress:
        end, early = of["law"].iloc[-1], of["annealed"]
        half = early.iloc[int(np.argmin(np.abs(early.step - 0.5 * end.step)))]
        return (
            f"{run} ended at a training loss of {latest:.3f}, the law at {end.value:.3f}; annealed "
            f"by {amount(half.tokens)} tokens it would have reached {loss(half)}."
        )
    end = of["annealed"].iloc[-1]
    more = end.tokens - len(logged.curve.rates) * logged.per_step
    text = (
        f"Annealed now, over {amount(more)} tokens more, {run} would reach a training loss of "
        f"{loss(end)}, from {latest:.3f}"
    )
    if "planned" in of:
        last = of["planned"].iloc[-1]
        text += f"; at its planned end, {amount(last.tokens)} tokens, {loss(last)}"
    return f"{text}."
