"""Train a family of runs that one gin file declares.

    python -m jaxllm.suite --gin_file=suites/ladder.gin --gin.SUITE_DIR=runs/ladder

Prints what the runs cost, then trains them, the cheapest first: here, or where `--launcher` says.
A run that fails stops only its own branches; the same command goes on with what is not finished.
Exit code 1 if a run failed; 130, 143 or 129 after Ctrl-C, SIGTERM or a lost terminal, upon which
runs here save and end.
`python -m jaxllm.analyze SUITE_DIR` reads all of them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jaxllm import cli, runtime
from jaxllm.errors import UserError

if TYPE_CHECKING:
    from jaxllm.suites.launchers import Launcher, Options

LAUNCHERS = ("local", "slurm", "tpu_vm", "xpk")


def main(argv: Sequence[str] | None = None) -> int:
    """Train the suite that flags and gin define, or say what it costs or how far it is."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs (or stacks) at a time"
    )
    flags.add_argument(
        "--stack", type=int, default=1, metavar="N",
        help="train up to N runs of equal shapes in one program",
    )  # fmt: skip
    flags.add_argument("--dry_run", action="store_true", help="only print what the runs cost")
    flags.add_argument("--status", action="store_true", help="only print how far the runs are")
    flags.add_argument("--launcher", choices=LAUNCHERS, default="local", help="where runs train")
    flags.add_argument(
        "--launcher_option", action="append", default=[], metavar="NAME[=VALUE]",
        help="of sbatch, xpk workload create or tpu_scripts/keep_running.sh; repeatable",
    )  # fmt: skip
    args = cli.parse(flags, argv)
    cli.load_gin(args)

    from tqdm import tqdm

    from jaxllm.sharding.mesh import MeshConfig, make_mesh
    from jaxllm.suites.cost import costs
    from jaxllm.suites.suite import Suite, table
    from jaxllm.suites.training import train
    from jaxllm.training.rules import advice
    from jaxllm.training.sweep import rule_of

    for name in ("jobs", "stack"):
        if (number := getattr(args, name)) < 1:
            raise UserError(f"--{name}={number}: must be at least 1")
    launcher = launcher_of(args.launcher, args.launcher_option)
    suite = Suite.configured(functools.partial(cli.load_gin, args), cli.gin_words(args))
    runs = suite.members
    if args.status:
        print(table(suite))
        return 0
    runtime.enable_compilation_cache()
    if launcher.here:
        known = costs(runs, make_mesh(MeshConfig()), lambda line: print(line, file=sys.stderr))
        print(table(suite, known))
        print("time: of training steps on the devices here; scoring and starting come on top")
    else:
        print(table(suite))
    largest = max(runs, key=lambda one: one.flops).experiment
    print("advice on learning rate and batch of the largest:")
    print(*advice(largest.model, largest.tokens, rule_of(suite.rule)), sep="\n")
    if args.dry_run:
        return 0
    suite.begin()
    with runtime.exit_by_signals():
        failed = train(suite, launcher, args.jobs, args.stack, tqdm.write)
    if failed:
        print(f"{len(failed)} of {len(runs)} runs are not finished: {', '.join(failed)}")
        return 1
    print(f"all {len(runs)} runs are finished: python -m jaxllm.analyze {suite.layout.root}")
    return 0


def launcher_of(name: str, options: Sequence[str]) -> Launcher:
    """The launcher of that name; UserError if an option is missing or not read."""
    from jaxllm.suites.google_cloud import TpuVm, Xpk
    from jaxllm.suites.launchers import Local
    from jaxllm.suites.slurm import Slurm

    pairs = {key.lstrip("-"): value for key, _, value in (one.partition("=") for one in options)}
    if name == "local":
        if pairs:
            raise UserError("--launcher_option is not read with --launcher=local: leave it out")
        return Local()
    known: dict[str, Callable[[Options], Launcher]] = {"slurm": Slurm, "tpu_vm": TpuVm, "xpk": Xpk}
    return known[name](pairs)


if __name__ == "__main__":
    cli.run(main)
