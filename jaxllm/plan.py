"""Predict memory, speed and cost of a run before a pod is rented.

    python -m jaxllm.plan --gin_file=openllama.gin --topology=v4-512
    python -m jaxllm.plan --gin_file=openllama.gin --topology=v6e-256 --slices=2 --search
    python -m jaxllm.plan --gin_file=quickstart.gin --devices=cpu:8

The train step of `jaxllm.train` is compiled for the devices, which need not exist, and nothing is
allocated. Exit code 1 if it does not fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxllm import cli
from jaxllm.errors import UserError

if TYPE_CHECKING:
    from jaxllm.planning.estimate import Estimate
    from jaxllm.planning.program import Program
    from jaxllm.planning.search import Candidate, Result
    from jaxllm.planning.targets import Target
    from jaxllm.sharding.mesh import MeshConfig
    from jaxllm.training.experiment import Experiment

GIB = 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Parse flags and gin, and print a plan."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument("--topology", metavar="NAME", help="TPUs: v4-512, v5p-128, v6e-256, …")
    flags.add_argument("--slices", type=int, default=1, help="how many such slices (default 1)")
    flags.add_argument("--devices", metavar="NAME", help="or what is at hand: cpu:8, gpu, tpu")
    flags.add_argument("--json", action="store_true", help="print JSON")
    flags.add_argument(
        "--fit", action="store_true", help="only whether it fits: one compilation, not three"
    )
    flags.add_argument(
        "--search", nargs="?", type=int, const=3, metavar="N",
        help="try remat policies and microbatches on the N most promising "
        "meshes (default 3), and rank what fits",
    )  # fmt: skip
    args = cli.parse(flags, argv)
    if bool(args.topology) == bool(args.devices):
        raise UserError("give one of --topology=NAME and --devices=NAME")
    cli.load_gin(args)

    from jaxllm.planning import targets

    if args.topology:
        target = targets.tpu_target(args.topology, args.slices)
    else:
        target = targets.local_target(args.devices)

    from jaxllm.sharding.mesh import MeshConfig
    from jaxllm.training.experiment import Experiment

    experiment = Experiment.configured()
    if args.search:
        return searched(experiment, target, args.search, args.json)
    return planned(experiment, target, MeshConfig(), args.json, timed=not args.fit)


def planned(
    experiment: Experiment, target: Target, config: MeshConfig, as_json: bool, timed: bool
) -> int:
    """Compile and print one plan; without `timed` only its memory."""
    from jaxllm.planning.advice import suggestions
    from jaxllm.planning.estimate import estimate
    from jaxllm.planning.program import OutOfDeviceMemory, compile_update, measure_costs, mesh_of

    mesh = mesh_of(target, config)
    shape = dict(mesh.shape)
    limit = target.chip.hbm_bytes if target.chip and target.chip.hbm_bytes else None
    program = found = excess_bytes = None
    try:
        program = compile_update(experiment, mesh, target.slices)
        excess_bytes = program.peak - limit if limit and program.peak > limit else None
    except OutOfDeviceMemory as error:
        excess_bytes = error.excess_bytes
    if program and timed and not excess_bytes:
        with contextlib.suppress(OutOfDeviceMemory):  # unchunked loss may not fit
            found = estimate(experiment, target, program, measure_costs(experiment, mesh))
    fits = program is not None and excess_bytes is None
    helpful = [] if fits else suggestions(experiment, shape, target)
    if as_json:
        plan: dict[str, Any] = {
            "topology": target.name, "devices": len(target.devices), "slices": target.slices,
            "mesh": shape, "fits": fits, "missing_bytes": excess_bytes, "hbm_bytes": limit,
            "would_help": helpful,
            "program": program and _as_dict(program), "estimate": found and _as_dict(found),
        }  # fmt: skip
        print(json.dumps(plan, indent=2))
        return 0 if fits else 1
    print(header(experiment, target, shape))
    if program:
        print(memory(program, limit))
    if program and found:
        print(costs(program, found))
    elif fits and timed:
        print("\nno times: two layers with unchunked loss, which are what is timed, do not fit")
    if not fits:
        by = f" by {excess_bytes / GIB:.1f} GiB" if excess_bytes else ""
        print(f"\ndoes not fit{by}. What would help:")
        print("\n".join(f"  {tip}" for tip in helpful))
    return 0 if fits else 1


def searched(experiment: Experiment, target: Target, most: int, as_json: bool) -> int:
    """Try and print many candidates, the fastest that fits first."""
    from tqdm import tqdm

    from jaxllm.planning.search import meshes, search

    candidates = meshes(experiment, target)[:most]
    with tqdm(desc="compiled", unit=" candidates", file=sys.stderr) as bar:

        def on_start(candidate: Candidate) -> None:
            bar.set_postfix_str(candidate.bindings().replace("--gin.", ""))

        def on_result(result: Result) -> None:
            bar.write(candidate_line(result), file=sys.stderr)
            bar.update()

        results = search(experiment, target, candidates, on_start, on_result)
    fitting = [result for result in results if result.estimate]
    if as_json:
        print(json.dumps([_result(result) for result in results], indent=2))
    else:
        print(header(experiment, target, None))
        print(ranking(results))
    return 0 if fitting else 1


def header(experiment: Experiment, target: Target, shape: dict[str, int] | None) -> str:
    """Model, batch, devices and mesh, a line each."""
    e = experiment
    chip = f" {target.chip.name}" if target.chip else ""
    slices = f" in {target.slices} slices" if target.slices > 1 else ""
    lines = [
        f"model       {e.model.num_params:,} parameters, {e.model.num_layers} layers, "
        f"remat {e.model.remat}",
        f"batch       {e.data.batch_size:,} x {e.data.sequence_length:,} = "
        f"{e.tokens_per_step:,} tokens, {e.train.steps:,} steps, "
        f"{e.train.gradient_accumulation} microbatch(es) each",
        f"devices     {target.name}: {len(target.devices)}{chip}{slices}",
    ]
    if shape:
        sizes = " x ".join(f"{axis} {size}" for axis, size in shape.items() if size > 1)
        lines.append(f"mesh        {sizes or 'one device'}")
    return "\n".join(lines)


def memory(program: Program, limit: float | None) -> str:
    """Memory per device, in one line."""
    of = f" of {limit / GIB:.0f} GiB ({program.peak / limit:.0%})" if limit else ""
    return (
        f"memory      {program.peak / GIB:.2f} GiB{of}: state and batch "
        f"{program.arguments / GIB:.2f}, temporaries {program.temporaries / GIB:.2f} "
        f"(activations {program.activations / GIB:.2f})"
    )


def costs(program: Program, found: Estimate) -> str:
    """FLOPs, bytes and the time of each, then step time and the whole run."""

    def took(seconds: float | None) -> str:
        return "" if seconds is None else f"{seconds:9.4f} s"

    ratio = (found.compiler_flops + found.kernel_flops) / found.model_flops_causal
    lines = [
        "",
        f"compute     {found.model_flops:.3e} model FLOPs a step ({found.model_flops_causal:.3e} "
        f"causal); compiled {ratio:.2f} x these{took(found.compute_seconds):>16}",
        f"HBM         {'':56}{took(found.hbm_seconds):>16}",
    ]
    for link, seconds in (("ici", found.ici_seconds), ("dcn", found.dcn_seconds)):
        sent = [t for t in program.traffic if t.link == link]
        text = ", ".join(f"{t.kind} {t.bytes / 1e9:.2f} GB ({t.calls}x)" for t in sent)
        if sent:
            lines.append(f"{link.upper()}         {text:56}{took(seconds):>16}")
    if found.compiler_seconds is not None:
        text = "the compiler's own estimate of computing and memory, without kernels"
        lines.append(f"            {text:56}{took(found.compiler_seconds):>16}")
    if found.step_seconds is None:
        return "\n".join([*lines, "", "no peak figures of these devices: no times"])
    return "\n".join(
        [
            *lines,
            "",
            f"step        {found.step_seconds:.3f} s if all of it overlaps: MFU {found.mfu:.1%} "
            f"({found.mfu_causal:.1%} causal), {found.tokens_per_second_per_chip:,.0f} "
            "tokens/s/chip",
            f"run         {found.days:.1f} days, {found.chip_hours:,.0f} chip-hours",
        ]
    )


def ranking(results: Sequence[Result]) -> str:
    """A line per candidate, the fastest first, then those that do not fit."""
    return "\n".join(
        [f"\n{'step':>8} {'MFU':>6} {'memory':>10}  candidate", *map(candidate_line, results)]
    )


def candidate_line(result: Result) -> str:
    """One line of the ranking."""
    if not (result.estimate and result.program):
        return f"{'':>26}  {result.candidate.bindings()}: {result.refused}"
    step, mfu = result.estimate.step_seconds, result.estimate.mfu
    return (
        f"{'' if step is None else f'{step:.3f} s':>8} {'' if mfu is None else f'{mfu:.1%}':>6} "
        f"{result.program.peak / GIB:6.1f} GiB  {result.candidate.bindings()}"
    )


def _result(result: Result) -> dict[str, Any]:
    return {
        "bindings": result.candidate.bindings(),
        "refused": result.refused,
        "program": result.program and _as_dict(result.program),
        "estimate": result.estimate and _as_dict(result.estimate),
    }


def _as_dict(value: Program | Estimate) -> dict[str, Any]:
    found = dataclasses.asdict(value)
    if "traffic" in found:
        found["traffic"] = [t._asdict() for t in value.traffic]  # type: ignore[union-attr]
    return found


if __name__ == "__main__":
    cli.run(main)
