"""Predict memory, speed and cost of a run before a pod is rented.

    python -m jaxllm.plan --gin_file=openllama.gin --topology=v4-512
    python -m jaxllm.plan --gin_file=openllama.gin --topology=v6e-256 --slices=2 --search
    python -m jaxllm.plan --gin_file=quickstart.gin --devices=cpu:8

The train step of `jaxllm.train` and its scorer are compiled for the devices, which need not exist,
and nothing is allocated. Exit code 1 if the train step does not fit.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxllm import cli
from jaxllm.errors import UserError

if TYPE_CHECKING:
    from jaxllm.training.experiment import Experiment


def main(argv: Sequence[str] | None = None) -> int:
    """Parse flags and gin, and print a plan."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument("--topology", metavar="NAME", help="TPUs: v4-512, v5p-128, v6e-256, …")
    flags.add_argument("--slices", type=int, default=1, help="how many such slices (default 1)")
    flags.add_argument("--devices", metavar="NAME", help="or what is at hand: cpu:8, gpu, tpu")
    flags.add_argument(
        "--fit", action="store_true", help="only whether it fits: one compilation, not five"
    )
    flags.add_argument("--price", type=float, metavar="DOLLARS", help="of a chip-hour")
    flags.add_argument(
        "--bandwidth", type=float, default=1.0, metavar="GB/s",
        help="at which all hosts together write a checkpoint (default 1, an assumption: less than "
        "any TPU host's share of the network)",
    )  # fmt: skip
    flags.add_argument(
        "--search", nargs="?", type=int, const=3, metavar="N",
        help="try remat policies and microbatches on the N most promising "
        "meshes (default 3), and rank what fits",
    )  # fmt: skip
    args = cli.parse(flags, argv)
    if bool(args.topology) == bool(args.devices):
        raise UserError("give one of --topology=NAME and --devices=NAME")
    for name in ("price", "bandwidth"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise UserError(f"--{name}={value}: write a number above 0")
    cli.load_gin(args)

    from jaxllm.planning import targets

    if args.topology:
        target = targets.tpu_target(args.topology, args.slices)
    else:
        target = targets.local_target(args.devices)  # both before JAX starts

    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.planning import search, summary
    from jaxllm.sharding.mesh import MeshConfig
    from jaxllm.suites.config import SuiteConfig
    from jaxllm.training.experiment import Experiment
    from jaxllm.training.sweep import rule_of

    experiment, timed = with_reference(Experiment.configured().with_vocabulary()), not args.fit
    if not args.search:
        rest = (MeshConfig(), timed, EvalConfig(), args.bandwidth * 1e9, args.price)
        rule = rule_of(SuiteConfig().rule)
        plans = [summary.Plan.of(stage, target, *rest, rule) for stage in experiment.stages]
        print(summary.plan_text(plans, timed))
        return 0 if all(plan.fits for plan in plans) else 1
    # of several stages, that with the largest microbatches
    experiment = max(
        experiment.stages, key=lambda one: one.tokens_per_step / one.train.gradient_accumulation
    )
    meshes = search.meshes(experiment, target)[: args.search]
    results = search.search(experiment, target, meshes)
    print(f"{summary.header(experiment, target)}\n\n    step    MFU     memory  candidate")
    print(*(result.line() for result in results), sep="\n")
    return 0 if any(result.estimate for result in results) else 1


def with_reference(experiment: Experiment) -> Experiment:
    """With the reference model of DoReMi; of the run's own size where it is not at hand."""
    from jaxllm.training.reference import Reference

    try:
        found = Reference.of(experiment)
        model = found and found.model
    except UserError as error:
        print(f"note: {error}: counted as of this run's own size", file=sys.stderr)
        model = experiment.model
    return dataclasses.replace(experiment, reference=model)


if __name__ == "__main__":
    cli.run(main)
