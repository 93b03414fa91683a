"""The present state of a run, as `jaxllm.health` prints it."""

from __future__ import annotations

import math
import time

from jaxllm.analysis.finding import amount
from jaxllm.analysis.health import loss
from jaxllm.analysis.health.checks import examine
from jaxllm.analysis.registry import Study
from jaxllm.report.alarms import active
from jaxllm.run.run import Run
from jaxllm.run.times import duration


def present(run: Run) -> tuple[dict[str, str], bool]:
    """Ten lines by what they are about, and whether an alarm is active.

    Alarms are those of alarms.jsonl that were not cleared, and what the checks of `analyze` find.
    """
    metrics, saved, now, newest = run.metrics(), run.checkpoints(), time.time(), "none"
    study = Study(run.records(), logged=metrics.assign(run=run.name))
    checks = examine(study).get(run.name, ())
    alarms = {key[0]: row["reason"] for key, row in active(run.alarm_lines.read()[0]).items()}
    alarms |= {check.name: check.reason for check in checks if check.state == "alarm"}
    age = speed = trend = "unknown: metrics.jsonl is missing or empty"
    step, tokens, planned = 0, math.nan, run.planned_steps()
    if len(saved):
        last = saved.iloc[-1]
        step, tokens = int(last.step), last.get("tokens", math.nan)
        newest = f"step {step:,}, {duration(now - last.get('wall_time', now))} ago"
    if len(metrics):
        last, line = metrics.iloc[-1], loss.recent_trend(metrics, "loss")
        step, tokens = int(last.step), last.get("tokens", math.nan)
        age = f"{duration(now - run.layout.metrics.stat().mtime)} ago"
        speed = f"{amount(last.get('tokens_per_second', math.nan))} tokens/s"
        slope = line if isinstance(line, str) else f"{line.slope:+.3g} per doubling of tokens"
        trend = f"{last.get('loss', math.nan):.4g}, trend: {slope}"
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
