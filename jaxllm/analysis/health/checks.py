"""All health checks of all runs, as far as the data allow."""

from __future__ import annotations

import pandas as pd

from jaxllm.analysis.collapse import leaves_collapse
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.health import level, loss, tasks
from jaxllm.analysis.health.result import ALPHA, Check
from jaxllm.analysis.registry import HEALTH, Study, analysis


@analysis(
    HEALTH,
    "Checks",
    place=10,
    caption="p: how often a healthy run would look at least as bad by chance.",
    method="t-tests of trends in the last doubling of tokens, of tasks at a false-discovery rate "
    "(Benjamini and Hochberg 1995); spikes by a robust z-score and a Poisson test.",
)
def checks(study: Study) -> Finding:
    """Run the health checks of all runs, as `examine`: rows of `run, check, state` (refused, alarm
    or fine), `number, p_value, step, says`.
    """
    every = examine(study)
    rows = [
        (run, c.name, c.state, c.number, c.p_value, c.step, c.sentence)
        for run, of_run in every.items()
        for c in of_run
    ]
    columns = ["run", "check", "state", "number", "p_value", "step", "says"]
    table = pd.DataFrame(rows, columns=columns)
    made, alarms = int((table.state != "refused").sum()), table[table.state == "alarm"]
    if not made:
        lines = tuple(table.says[:8])
        return Finding(
            "Nothing could be checked.", table, "no run has what a check takes", (), lines
        )
    if len(every) == 1:
        (run,) = every
        left = len(table) - made
        state = "looks healthy" if made > left else "can hardly be judged"
        sentence = f"{run} {state}: {made} check{'s' * (made > 1)} found nothing"
        if len(alarms):
            sentence = (
                f"{run}: {len(alarms)} of {made} checks raise alarm: {', '.join(alarms.check)}"
            )
        sentence += f"; {left} could not be made." if left else "."
        return Finding(sentence, table, lines=tuple(table.says))
    alarmed = list(alarms.run.unique())
    names = ", ".join(alarmed[:6]) + " and others" * (len(alarmed) > 6)
    sentence = (
        f"{len(alarmed)} of {len(every)} runs raise an alarm, of {made:,} checks"
        f"{': ' * bool(alarmed)}{names}. At the tests' level, about {ALPHA * made:.2g} alarms "
        "would be raised if all were healthy."
    )
    return Finding(sentence, table, lines=tuple(alarms.run + ": " + alarms.says))


def examine(study: Study) -> dict[str, tuple[Check, ...]]:
    """Run every check of each run; without enough data one is refused. Only runs with siblings to
    be compared with have a check of the collapse.
    """
    curves = list(study.curves)
    return {
        run: (
            *loss.loss_checks(study.log_of(run)),
            level.jumps(study.log_of(run)),
            level.dead_layers(study.log_of(run)),
            tasks.falling([curve for curve in curves if curve.run == run]),
            *filter(None, [leaves_collapse(study, run)]),
        )
        for run in study.runs
    }
