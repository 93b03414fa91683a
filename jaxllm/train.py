"""Train a model, score its checkpoints, and show how its capabilities grow.

    python -m jaxllm.train --gin_file=quickstart.gin --gin.MODEL_DIR=runs/mine

The same command resumes an interrupted run from its newest checkpoint. SIGTERM and SIGHUP save and
exit with code 0, Ctrl-C with 130; a second Ctrl-C exits at once. One process trains a run: another
one on the same MODEL_DIR is refused.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from functools import partial
from signal import SIGHUP, SIGINT, SIGTERM
from typing import TYPE_CHECKING

from jaxllm import cli, runtime
from jaxllm.errors import UserError
from jaxllm.io import location
from jaxllm.run.times import GoodputTimer

if TYPE_CHECKING:
    import argparse

INTERRUPTED = 130
# Exit codes outside the loop, where there is nothing to save.
CODES: dict[int, int] = {SIGTERM: 0, SIGHUP: 0, SIGINT: INTERRUPTED}


@runtime.exit_by_signals(CODES, seconds=5.0)
def main(argv: Sequence[str] | None = None) -> int:
    """Train and score the run that flags and gin define."""
    timer = GoodputTimer(runtime.process_age() if argv is None else 0.0)
    flags = cli.parser(__doc__ or "")
    flags.add_argument("--branch_from", metavar="RUN@STEP",
                       help="begin at a checkpoint of another run, with its settings, or at hf:DIR"
                       )  # fmt: skip
    flags.add_argument("--stack", metavar="FILE", help="train the runs of a file in one program; "
                       "`jaxllm.suite --stack=N` writes it")  # fmt: skip
    flags.add_argument("--skip_steps", metavar="FIRST:LAST", help="pass over the data of these "
                       "steps, from the last good checkpoint before them")  # fmt: skip
    runtime.add_host_flags(flags)
    argv = sys.argv[1:] if argv is None else argv
    args = cli.parse(flags, argv)
    load_settings(args)
    if args.stack and args.skip_steps:
        raise UserError("--skip_steps: train the run alone, and not in a --stack")

    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.training.experiment import Experiment

    if not args.stack:
        from jaxllm.data.corpora import resolve
        from jaxllm.evaluation.selection import select
        from jaxllm.run.manifest import program
        from jaxllm.sharding.mesh import MeshConfig

        # Report every mistake that does not depend on data before preparing the data.
        experiment, scoring, _ = Experiment.configured(), EvalConfig(), MeshConfig()
        select(scoring)
        weights = resolve(experiment.stages[0].data)
        runtime.join_hosts(args)
        runtime.check_hosts_agree(program())
    runtime.enable_compilation_cache()

    from jaxllm.report.alarms import HealthWriter, watching
    from jaxllm.report.tensorboard import TensorBoardWriter
    from jaxllm.run.run import Run
    from jaxllm.training.launch import Outputs, train_run, train_stack

    outputs = Outputs(HealthWriter, TensorBoardWriter, watching)
    with contextlib.ExitStack() as leases:
        if args.stack:
            configure = partial(reload, flags, argv)
            stack, failed = train_stack(args.stack, configure, outputs, timer, leases)
            for model_dir, reason in failed.items():
                print(f"error: {model_dir}: {reason}")
            ended = 0 if stack.finished and not failed else 1
            return INTERRUPTED if ended and stack.interrupted else ended
        outcome = train_run(experiment, scoring, weights, outputs, timer, leases, args.skip_steps)
        if runtime.is_first():
            print(outcome.timing())
            if outcome.finished:
                from jaxllm.report.terminal import show_run

                binding = Run(experiment.model_dir).write_domain_weights()  # the report reads them
                show_run(experiment.model_dir, scored=bool(scoring.names))
                if binding:
                    print(f"domain weights: {binding}", end="")
            else:
                at = f"stopped at step {outcome.step} and saved"
                print(f"{at}: the same command goes on from there")
    return INTERRUPTED if outcome.interrupted else 0


def reload(flags: argparse.ArgumentParser, shared: Sequence[str], own: Sequence[str]) -> None:
    """Load the settings of one run of a stack, in place of those of another."""
    import gin

    gin.clear_config()
    load_settings(cli.parse(flags, [*shared, *own]))


def load_settings(args: argparse.Namespace) -> None:
    """Load gin; for a branch on top of its parent's config; UserError if there is no such one.

    Where the parent is hf:DIR, it is imported into MODEL_DIR.
    """
    import gin

    from jaxllm.run.branch import PARAMS, Branch
    from jaxllm.run.layout import Layout
    from jaxllm.training.experiment import Experiment

    at = args.branch_from
    if not at:
        cli.load_gin(args)
        return
    if at.startswith("hf:"):
        from jaxllm.interop.huggingface.importing import import_run

        cli.load_gin(args)
        parent = Layout(Experiment.configured().model_dir).parent
        if not parent.exists():
            if args.coordinator_address:  # each host would write it
                first = f"python -m jaxllm.convert --from={at} --to={parent}"
                raise UserError(f"{at} is imported by one process: {first}, then start again")
            import_run(location(at).removeprefix("hf:"), str(parent))
        at = f"{parent}@0{PARAMS}"
        gin.clear_config()
    own = re.search(r"^MODEL_DIR = '(.*)'$", "\n".join(args.gin_bindings), re.MULTILINE)
    begun = own and Layout(location(own[1])).config.exists()  # its parent may be gone by now
    cli.load_gin(args, location(own[1]) if own and begun else str(Branch.open(at).parent.path))
    gin.bind_parameter("TrainConfig.branch_from", at)


if __name__ == "__main__":
    cli.run(main)
