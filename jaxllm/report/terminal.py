"""What commands print of runs: tasks by domain x a selection of checkpoints, and more."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from jaxllm.analysis.curves import is_share
from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.onsets import AT_CHANCE, STANDARD_ERRORS
from jaxllm.errors import one_line, printable
from jaxllm.report import numbers
from jaxllm.report.tables import Tables, gather
from jaxllm.run.run import Run

MARK = "*"
_CELL, _CHANCE = 8, 9  # column widths
_UNITS = {"bits_per_byte": "bits/B", "perplexity": "ppl"}


def show_run(model_dir: str, scored: bool) -> None:
    """Print the capabilities over the checkpoints, and the paths of the report and TensorBoard.

    A failure here is reported in one line: the run itself has ended well.
    """
    from jaxllm.report import files, items, tensorboard

    run = Run.open(model_dir)
    failed = f"could not be made (`python -m jaxllm.analyze {model_dir}` tries again)"
    with _reported(f"the report {failed}"):
        report = gather([run])
        cards = items.items(report)
        if scored:
            with _reported("no table of the capabilities"):
                print(f"\n{capability_table(report, report.overviews[0].run)}\n")
        with _reported("no images of the report in TensorBoard"):
            tensorboard.write_report(run.layout.tensorboard, report, cards)
        print(f"report       {files.write_page(run.layout.report, report, cards)}")
    print(f"TensorBoard  tensorboard --logdir {run.layout.tensorboard}")


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    """Report a failure inside as one line that begins with `what`."""
    try:
        yield
    except Exception as error:
        print(f"{what}: {type(error).__name__}: {one_line(error)}")
        logging.debug(what, exc_info=True)


def of_run(model_dir: str | os.PathLike[str], width: int = 100) -> str:
    """Capability table of one run directory; see `capability_table`."""
    tables = gather([Run.open(model_dir)])
    return capability_table(tables, tables.overviews[0].run, width)


def capability_table(tables: Tables, run: str, width: int = 100) -> str:
    """Capability table of one run, at most `width` characters wide; values above a guess are
    marked.

    Of too many checkpoints an even selection is shown, with the first and the last.
    """
    points = tables.points[tables.points.run == run]
    if points.empty:
        return printable(f"{run}: no checkpoint has been scored yet.")
    lines = [run] if tables.several_runs else []
    lines += _table(points, tables.domains, width)
    judged = tables.findings[(tables.findings.run == run) & tables.findings.guess.notna()]
    if len(judged):
        lines.append(f"{MARK} above a guess by {STANDARD_ERRORS:.1f} standard errors")
    if at_chance := int((judged.state == AT_CHANCE).sum()):
        lines.append(f"{at_chance} of {len(judged)} not above chance")
    return "\n".join(printable(line.rstrip()) for line in lines)


def _table(points: pd.DataFrame, domains: dict[str, list[str]], width: int) -> Iterator[str]:
    label = min(max(points.task.str.len().max() + 2, 12), 36)
    tokens = points.groupby("step")["tokens"].max()
    last = points.drop_duplicates("task", keep="last").set_index("task")
    guesses = points.groupby("task")[["chance", "chance_score"]].max()
    ends = {}  # the level of a guess, or else what the numbers are
    for task, metric in last.metric.items():
        guess = guesses.at[task, "chance_score" if is_share(metric) else "chance"]
        unit = "" if is_share(metric) else _UNITS.get(metric, metric)
        ends[task] = unit if pd.isna(guess) else numbers.value(guess, metric)
    end_width = max(_CHANCE, *(len(end) + 1 for end in ends.values()))
    room = min(max((width - label - end_width) // _CELL, 2), len(tokens))
    steps = tokens.index[np.linspace(0, len(tokens) - 1, room).round().astype(int)]

    def line(name: str, cells: Sequence[str], end: str = "") -> str:
        return "".join(
            [f"{name:<{label}}", *(f"{c:>{_CELL}}" for c in cells), f"{end:>{end_width}}"]
        )

    shown = [f"{step:,} " if step < 1e6 else f"{amount(step)} " for step in steps]
    yield line("step", shown, "guess")
    yield line("tokens", [f"{amount(tokens[step])} " for step in steps])
    texts = {
        (row.task, row.step): numbers.value(row.value, row.metric) + (MARK if row.above else " ")
        for row in points.itertuples()
    }
    for domain, tasks in domains.items():
        own = [task for task in tasks if task in last.index and last.domain[task] == domain]
        yield from [domain] if own else []
        for task in own:
            name = f"  {task}" if len(task) + 2 <= label else f"  {task[: label - 3]}…"
            cells = [texts.get((task, s), f"{numbers.UNKNOWN} ") for s in steps]
            yield line(name, cells, ends[task])
    if len(steps) < len(tokens):
        yield f"{len(steps)} of {len(tokens)} checkpoints shown"


def table(frame: pd.DataFrame) -> str:
    """A table of names and numbers, with four digits of each."""
    return frame.to_string(index=False, float_format=lambda x: f"{x:.4g}", na_rep="–")


def scores(fitted: pd.DataFrame) -> Iterator[str]:
    """The law of each target by `mixtures.choice.Fit.scores`, and why others are refused."""
    if fitted.chosen.any():
        yield table(fitted[fitted.chosen].drop(columns=["chosen", "refused"]))
    for law, rows in fitted[fitted.refused != ""].groupby("law", sort=False):
        of = f"{len(rows)} of {fitted.target.nunique()}"
        yield f"{law} refused for {of}: {rows.refused.iloc[0]}"


def choice(finding: Finding) -> str:
    """The tasks of `early.choose` with what speaks for them, and why others are left out."""
    used = finding.table[finding.table.why == ""]
    columns = {
        "task": used.task,
        "metric": used.metric,
        "mean of last": used.averaged.map("{:.0f}".format),
        "pairs told (95%)": [
            f"{row.accuracy:.0%} ({row.low:.0%} to {row.high:.0%})" if row.pairs > 0 else "–"
            for row in used.itertuples()
        ],
        "SNR": used.snr_detrended.map(lambda ratio: f"{ratio:.1f}" if ratio < math.inf else "–"),
        "moves at": used.moved.map(amount),
    }
    shown = pd.DataFrame(columns).to_string(index=False).splitlines()
    lines = [finding.sentence]
    lines += ["", *shown, "", "Tasks: " + ",".join(used.task)] if len(used) else []
    for why, rows in finding.table[finding.table.why != ""].groupby("why", sort=False):
        lines.append(f"Left out ({why}): {', '.join(rows.task)}.")
    return "\n".join(map(printable, lines))
