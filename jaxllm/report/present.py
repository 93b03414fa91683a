"""The present state of a run, as `jaxllm.health` prints it."""

from __future__ import annotations

import contextlib
import math
import time

import pandas as pd

from jaxllm.analysis.finding import amount
from jaxllm.analysis.health import loss
from jaxllm.analysis.health.checks import examine
from jaxllm.analysis.health.result import Check
from jaxllm.analysis.registry import Study
from jaxllm.report.alarms import RUN, active
from jaxllm.run.run import Run
from jaxllm.run.times import duration

DEAD = 600.0  # seconds without a logged step and a heartbeat


def present(run: Run) -> tuple[dict[str, str], bool]:
    """Ten lines by what they are about, and whether an alarm is active.

    Alarms are those of alarms.jsonl that were not cleared, what the checks of `analyze` find in the
    last doubling of tokens, and that a run is neither in progress nor at its last step.
    """
    metrics, saved, now, newest = run.metrics(), run.checkpoints(), time.time(), "none"
    study = Study(run.records(), logged=metrics.assign(run=run.name))
    checks = examine(study).get(run.name, ())
    alarms = {
        f"{name} {subject}" if name == RUN else name: row["reason"]
        for (name, subject), row in active(run.alarm_lines.read()[0]).items()
    }
    alarms |= {c.name: c.reason for c in checks if c.state == "alarm" and not _over(c, metrics)}
    age = speed = trend = "unknown: metrics.jsonl is missing or empty"
    step, tokens, planned = 0, math.nan, run.planned_steps()
    if len(saved):
        last = saved.iloc[-1]
        step, tokens = int(last.step), last.get("tokens", math.nan)
        newest = f"step {step:,}, {duration(now - last.get('wall_time', now))} ago"
    if len(metrics):
        last, line = metrics.iloc[-1], loss.recent_trend(metrics, "loss")
        step, tokens = max(step, int(last.step)), last.get("tokens", math.nan)
        age = f"{duration(now - run.layout.metrics.stat().mtime)} ago"
        speed = f"{amount(last.get('tokens_per_second', math.nan))} tokens/s"
        slope = line if isinstance(line, str) else f"{line.slope:+.3g} per doubling of tokens"
        trend = f"{last.get('loss', math.nan):.4g}, trend: {slope}"
    signs = []
    for path in (run.layout.metrics, run.layout.writer, run.layout.restarts):
        with contextlib.suppress(FileNotFoundError):
            signs.append(path.stat().mtime)
    quiet = now - max(signs, default=now)
    if step < (planned or 0) and quiet > DEAD:
        alarms[f"{RUN} ended"] = f"no step and no heartbeat for {duration(quiet)}, at step {step:,}"
    restarts = [row.get("restarts", 0) for row in run.restart_lines.read()[0]]
    effects = [row.get("effect") for row in run.skipped_lines.read()[0]]
    stretches = ", ".join(f"{one.first}:{one.last}" for one in run.rollbacks())
    refused = sum(check.state == "refused" for check in checks)
    return {
        "run": str(run.path),
        "progress": f"step {step:,} of {planned or 'unknown'}, {amount(float(tokens))} tokens",
        "last line": age, "speed": speed, "loss": trend, "checkpoint": newest,
        "alarms": "; ".join(f"{name}: {reason}" for name, reason in alarms.items()) or "none",
        "checks": f"{len(checks) - refused} made, {refused} could not be made",
        "restarts": str(max(restarts, default=0)),
        "skipped": f"{effects.count('skipped')} updates, {effects.count('clipped')} clipped; "
                   f"rolled back past steps: {stretches or 'none'}",
    }, bool(alarms)  # fmt: skip


def _over(check: Check, metrics: pd.DataFrame) -> bool:
    """Whether what a check has found in a log is over, and before the last doubling of tokens."""
    lasts = any(subject.startswith(loss.SINCE) for subject in check.subjects)
    newest = check.table.step.max() if "step" in check.table else check.step  # NaN: of a trend
    tokens = metrics.get("tokens", metrics.step)
    return bool(not lasts and newest < metrics.step[tokens >= tokens.max() / 2].min())
