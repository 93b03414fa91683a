"""Average the checkpoints of a run, into a run directory that every command reads.

    python -m jaxllm.average runs/quickstart --last=4
    python -m jaxllm.average runs/quickstart --steps=1800,2100,2400 --to=runs/merged
    python -m jaxllm.average runs/quickstart --ema

With --last=N every checkpoint from the Nth on is averaged with the N - 1 before it, so that there
is a trajectory of averages: `python -m jaxllm.evaluate --model_dir=…` scores it, and
`python -m jaxllm.analyze RUN AVERAGES` draws it beside the run. --ema takes the moving average that
TrainConfig.ema_decay had the run keep.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxllm import cli
from jaxllm.errors import UserError
from jaxllm.io import location


def main(argv: Sequence[str] | None = None) -> int:
    """Write the averages that the flags state."""
    flags = cli.parser_without_gin(__doc__ or "")
    flags.add_argument("run", type=location, metavar="RUN", help="a run directory")
    flags.add_argument("--last", type=int, metavar="N", help="of each N consecutive checkpoints")
    flags.add_argument("--steps", metavar="N,N,…", help="of these checkpoints, into one")
    flags.add_argument("--ema", action="store_true", help="the moving averages in the checkpoints")
    flags.add_argument("--weights", choices=("uniform", "ema", "sqrt"),
                       help="of the members (default uniform, which emulates a linear decay; sqrt: "
                       "a decay by 1 - sqrt; ema: halved from member to member)")  # fmt: skip
    flags.add_argument("--to", type=location, metavar="DIR",
                       help="the new run directory (default: RUN with what it is)")  # fmt: skip
    args = flags.parse_args(argv)
    if sum((args.last is not None, args.steps is not None, args.ema)) != 1:
        raise UserError("give one of --last=N, --steps=N,N and --ema")
    if args.ema:
        cli.refuse_unread(args, ("weights",), "with --ema")

    from jaxllm.run import averages
    from jaxllm.run.run import Run

    run = Run.open(args.run)
    kind: averages.Weighting = args.weights or "uniform"
    what = "ema" if args.ema else f"average{args.last or ''}{'' if kind == 'uniform' else kind}"
    target = args.to or f"{str(run.path).rstrip('/')}_{what}"
    if args.ema:
        averages.extract_ema(run, run.select(None), target)
    else:
        chosen = run.select(args.steps)
        groups = [chosen] if args.steps else averages.windows(chosen, args.last)
        averages.average(run, groups, kind, target)
    print(f"python -m jaxllm.evaluate --model_dir={target}")
    return 0


if __name__ == "__main__":
    cli.run(main)
