"""python -m jaxllm.analyze SOURCE…: a report on the capabilities, forecasts and health of runs.

A source is a run directory, a suite's directory, or imported results: pythia:PATH, harness:PATH,
csv:PATH?columns, tensorboard:PATH or wandb:PATH; several are compared. Writes
RUN_DIR/report/index.html, or OUTPUT/index.html: a self-contained page on the health of the runs,
their capabilities and forecasts, the tasks that tell early and the comparison of sizes, readable
offline and on a phone. It can be run at any time, also during training.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING

# Threads of the BLAS cost more than they bring on the many small matrices of the analyses; this
# has no effect once NumPy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from jaxllm import cli
from jaxllm.errors import UserError, one_line

if TYPE_CHECKING:
    from etils import epath

    from jaxllm.report.tables import Tables

_MOST_NOTES = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Build the report, or export its figures or tables, and print the path."""
    flags = cli.parser_without_gin(__doc__ or "")
    add = flags.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="run directory or KIND:PATH")
    add("--output", metavar="DIR", help="where to write; default: report/ in the run's directory")
    backtest = "also score the forecasts over the finished runs, each size left out in turn"
    add("--backtest", action="store_true", help=backtest)
    register = (
        "write the forecasts of the runs in progress to FILE; where FILE exists they are scored, "
        "and so is preregistered*.json in a run's directory or beside the report"
    )
    add("--preregister", metavar="FILE", help=register)
    formats = (
        "html: the page; png, pdf: a file per figure; csv: a file per table; tensorboard: the "
        "figures as images in the run's tensorboard/"
    )
    choices = ("html", "png", "pdf", "csv", "tensorboard")
    add("--format", choices=choices, default="html", help=formats)
    add("--choose", action="store_true", help="print the tasks to decide by, and write nothing")
    size = "parameters of the runs to decide with, such as 150M; default: the smallest"
    add("--size", type=_count, default=math.nan, metavar="N", help=f"with --choose: {size}")
    budget = "with --choose: their training tokens, such as 3B; default: all they have seen"
    add("--tokens", type=_count, default=math.nan, metavar="N", help=budget)
    args = flags.parse_args(argv)
    if not args.choose and (args.size > 0 or args.tokens > 0):
        flags.error("--size and --tokens go with --choose")
    began = time.monotonic()

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {line}", file=sys.stderr, flush=True)

    import pandas as pd

    # Grouping by run and task names, which is frequent, is slower with Arrow's strings.
    with pd.option_context("mode.string_storage", "python"):
        path = _write(args, progress)
    if path is None:
        return 0
    progress("written")
    print(f"{'Report' if args.format == 'html' else 'Files'}: {path}")
    return 0


def _count(text: str) -> float:
    """The number of "150M" or "3e9"."""
    unit = "KMBT".find(text[-1:].upper()) + 1 if text else 0
    try:
        number = float(text[: -1 if unit else None]) * 1000.0**unit
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number such as 150M or 3e9")
    return number


def _with_proposal(report: Tables, directory: str) -> Tables:
    """The report with the proposal in a swarm's directory and its check, or a note on them."""
    from jaxllm.interop.proposals import beside

    try:
        proposal, checked = beside(directory)
    except UserError as error:
        return dataclasses.replace(report, notes=(*report.notes, f"{error}."))
    if proposal is None:
        return report
    study = dataclasses.replace(report.study, proposal=proposal, checked=checked)
    return dataclasses.replace(report, study=study)


def _with_registered(report: Tables, name: str | None, places: Sequence[epath.Path]) -> Tables:
    """The report with the forecasts registered in a file, written if it is new, and in `places`."""
    from etils import epath

    from jaxllm.analysis.preregistration import FILES, read, registration
    from jaxllm.io import atomic_write
    from jaxllm.run.manifest import code_version

    paths = [each for place in places if place.exists() for each in sorted(place.glob(FILES))]
    if name and not (file := epath.Path(name)).exists():
        if not report.study.planned_tokens:
            raise UserError("--preregister: no run is in progress, so there is nothing to forecast")
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        atomic_write(file, registration(report.study, date, code_version()))
    paths += [file] if name else []
    registered = tuple(read(path.read_bytes(), str(path)) for path in dict.fromkeys(paths))
    study = dataclasses.replace(report.study, registered=registered)
    return dataclasses.replace(report, study=study)


def _write(args: argparse.Namespace, progress: Callable[[str], None]) -> PathLike[str] | None:
    """Write the requested format and return its path, or print the tasks to decide by."""
    from etils import epath

    from jaxllm.analysis import annealed, early
    from jaxllm.interop.importers import is_import, open_source
    from jaxllm.report import files, tables, tensorboard, terminal
    from jaxllm.report.items import items
    from jaxllm.run.layout import Layout
    from jaxllm.run.suite_layout import runs_in

    opened = [[open_source(spec)] if is_import(spec) else runs_in(spec) for spec in args.sources]
    directories = [spec for spec in args.sources if not is_import(spec)]
    output = epath.Path(args.output or "report")
    if len(args.sources) == 1 and directories and not args.output:
        layout = Layout(directories[0])  # a suite's report lies as that of a run
        output = layout.tensorboard if args.format == "tensorboard" else layout.report
    report = tables.gather([source for part in opened for source in part])
    for directory in directories:
        report = _with_proposal(report, directory)
    runs, read = len(report.overviews), report.study.raw_records
    progress(f"read {0 if read is None else len(read):,} records of {runs} run{'s' * (runs != 1)}")
    if args.choose:
        print(terminal.choice(early.choose(report.study, args.size, args.tokens)))
        return None
    report = _with_registered(report, args.preregister, [output, *map(epath.Path, directories)])
    shown = items(report, backtested=args.backtest, progress=progress)
    if not report.many_runs:
        for run in report.overviews:
            print(terminal.capability_table(report, run.run), end="\n\n")
    for item in shown:
        if item.title.startswith(annealed.TITLE) and not item.refused:
            print(one_line(item.sentence), end="\n\n")
    for note in report.notes[:_MOST_NOTES]:
        print(f"note: {one_line(note)}")
    if len(report.notes) > _MOST_NOTES:
        print(f"note: {len(report.notes) - _MOST_NOTES} more notes stand in the report")
    if args.format == "html":
        return files.write_page(output, report, shown)
    if args.format == "tensorboard":
        tensorboard.write_report(output, report, shown)
        return output
    return files.write(output, report, shown, args.format)


if __name__ == "__main__":
    cli.run(main)
