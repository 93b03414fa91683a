"""Checks for jumps of the loss to another level, as when the data are switched, and dead layers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxllm.analysis.finding import Finding
from jaxllm.analysis.health.loss import PLATEAU_SHARE, logged
from jaxllm.analysis.health.result import Check
from jaxllm.analysis.registry import HEALTH, Study, analysis
from jaxllm.analysis.stats import Array, line_fit

BLOCK, FITTED, NEW = 16, 16, 2  # logged steps of a block; blocks before a jump, and after it
LINES = BLOCK * (FITTED + NEW)  # logged steps that a test takes
JUMP_SIGMAS = 4.5  # the medians of blocks have no outliers, and are hardly correlated
NAME = "loss level"
LAYERS = "grad_norm/layer_"  # prefix of metrics
# A layer whose gradient norm is below this share of the median layer's gets none.
DEAD_SHARE = 1e-3


def jumps(metrics: pd.DataFrame) -> Check:
    """Detect jumps of the loss to another level, up or down.

    A line over log2 tokens through the medians of `FITTED` blocks predicts the next two. The alarm
    is raised when both are more than `JUMP_SIGMAS` standard errors of a prediction and the share
    `PLATEAU_SHARE` of the loss off, on one side, and nearer to each other than to the line. An
    upward jump must exceed all of the blocks, as a convex curve leaves its line without rising; a
    downward one counts only where the learning rate does not fall there by more than a tenth.
    """
    entries, rates = logged(metrics, "loss"), logged(metrics, "learning_rate")
    count = len(entries) // BLOCK
    if count < FITTED + NEW or not (entries.tokens > 0).all():
        return Check(NAME, refused=f"it takes {LINES} logged losses")
    columns = (entries[c].to_numpy()[-count * BLOCK :] for c in ("step", "tokens", "value"))
    steps, tokens, values = (np.median(c.reshape(-1, BLOCK), axis=1) for c in columns)
    rate = np.interp(steps, rates.step, rates.value) if len(rates) else np.ones(count)
    x, found = np.log2(tokens), 0.0
    for at in range(FITTED, count - NEW + 1):
        old, new = slice(at - FITTED, at), slice(at, at + NEW)
        jump = _jump(x[old], values[old], x[new], values[new])
        if jump > 0 or (jump < 0 and rate[at + NEW - 1] >= 0.9 * rate[at - NEW]):
            found, step, now = jump, steps[at], values[new].mean()
    if not found:
        return Check(NAME, number=0, reason="The loss does not jump to another level.")
    reason = f"The loss jumped by {found:+.3g} to {now:.3g} at about step {step:,.0f}, and stayed."
    advice = "Look at what changed there: the data and their order, the code, the hardware."
    return Check(NAME, True, found, reason, advice, step, subjects=(f"step {step:.0f}",))


def _jump(x: Array, y: Array, new_x: Array, new_y: Array) -> float:
    """The mean distance of two new points from a line through the old ones; 0 if no jump."""
    if (line := line_fit(x, y)) is None:
        return 0.0
    off, spread = new_y - line.at(new_x), ((x - line.center[0]) ** 2).sum()
    leverage = 1 + 1 / len(x) + (new_x - line.center[0]) ** 2 / spread
    error, size = max(line.scatter, 1e-6 * abs(line.end)) * np.sqrt(leverage), float(off.mean())
    far = (np.sign(size) * off > np.maximum(JUMP_SIGMAS * error, PLATEAU_SHARE * line.end)).all()
    stays = abs(new_y[1] - new_y[0]) < abs(size) / 2
    return size if far and stays and (size < 0 or new_y.min() > y.max()) else 0.0


def dead_layers(metrics: pd.DataFrame) -> Check:
    """Find layers whose gradient norm is below `DEAD_SHARE` of the median layer's."""
    columns = [name for name in metrics if name.startswith(LAYERS)]
    rows = metrics.dropna(subset=columns)
    if not columns or rows.empty:
        return Check("dead layers", refused="no TrainConfig.monitor_every logs norms per layer")
    norms, step = rows[columns].iloc[-1].astype(float), float(rows.step.iloc[-1])
    dead = norms[norms <= DEAD_SHARE * np.median(norms)]
    reason = f"{len(dead)} of {len(columns)} layers have hardly any gradient at step {step:,.0f}."
    advice = "Look at their activations and norms: they may be saturated, masked or zero."
    subjects = tuple(name.partition("/")[2] for name in dead.index)
    count = len(dead)
    return Check("dead layers", count > 0, count, reason, advice, step, subjects=subjects)


@analysis(
    HEALTH,
    "Norms per layer",
    needs=lambda study: any(str(name).startswith(LAYERS) for name in study.logged),
    caption="Gradient norm of each layer and logged step, darker for larger ones (logarithmic).",
    method="TrainConfig.monitor_every; the table has the other metrics of each layer, too.",
)
def layer_norms(study: Study) -> list[Finding]:
    """`step, metric, layer, value` of each run with monitors."""
    findings = []
    for run in study.runs:
        log = study.log_of(run)
        table = log.melt("step", [n for n in log if "/layer_" in n], "name").dropna()
        table[["metric", "layer"]] = table.pop("name").str.extract("(.+)/layer_(.+)")
        last = table[(table.metric == "grad_norm") & (table.step == table.step.max())]
        if not last.empty:
            of = last.set_index("layer").value.astype(float)
            says = [f"{of[layer]:.3g} in layer {layer}" for layer in (of.idxmin(), of.idxmax())]
            sentence = f"The gradient norms at step {table.step.max():,} are {' to '.join(says)}."
            findings.append(Finding(sentence, table, title=f"Norms per layer, {run}"))
    return findings
