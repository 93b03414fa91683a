"""Tell the present state of a run in ten lines.

    python -m jaxllm.health runs/quickstart

Exit code 0: healthy; 1: an alarm is active, or the run has died; 2: bad input.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxllm import cli
from jaxllm.errors import one_line
from jaxllm.io import location


def main(argv: Sequence[str] | None = None) -> int:
    """Print the state of a run directory, in progress or finished."""
    flags = cli.parser_without_gin(__doc__ or "")
    flags.add_argument("run", type=location, metavar="RUN", help="a run directory")
    args = flags.parse_args(argv)

    from jaxllm.report.present import present
    from jaxllm.run.run import Run

    lines, alarmed = present(Run.open(args.run))
    for name, text in lines.items():
        print(f"{name:12}{one_line(text)}")
    return int(alarmed)


if __name__ == "__main__":
    cli.run(main)
