"""python -m jaxllm.analyze RUN_DIR…: one page on what a run, or several, learned and when.

Writes RUN_DIR/report/index.html, or OUTPUT/index.html: a self-contained page with the capability
trajectories, losses and health of the runs, readable on a phone and without a network. It can be
run at any time, also while a run is still going.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jaxllm import cli
from jaxllm.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Builds the report, or exports its main figure, and says where it is."""
    flags = argparse.ArgumentParser(
        prog="python -m jaxllm.analyze",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="directory of a run")
    flags.add_argument(
        "--output", metavar="DIR", help="where to write; default: report/ in the run's directory"
    )
    flags.add_argument(
        "--format", choices=("html", "png"), default="html",
        help="html: the page; png: the trajectories as one picture, trajectories.png",
    )  # fmt: skip
    args = flags.parse_args(argv)

    from jaxllm.report import page, tables, terminal

    try:
        runs, output = page.open_runs(args.run_dirs, args.output)
        report = tables.gather(runs)
        for run in report.overviews:
            print(terminal.capability_table(report, run.run), end="\n\n")
        for note in report.notes:
            print(f"note: {note}")
        if args.format == "png":
            path = page.write(output / "trajectories.png", page.main_figure(report))
        else:
            path = page.write(output / "index.html", page.render(report).encode())
    except OSError as error:
        raise UserError(f"{error.filename or args.output}: {error.strerror or error}") from error
    print(f"{'Report' if args.format == 'html' else 'Picture'}: {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
