"""Search over meshes, remat policies and microbatches, ranked by step time."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

from jaxllm.errors import UserError
from jaxllm.models.config import REMAT_POLICIES, Remat
from jaxllm.planning.estimate import Estimate, estimate
from jaxllm.planning.program import (
    OutOfDeviceMemory,
    Program,
    compile_update,
    measure_costs,
    saved_activations,
)
from jaxllm.planning.targets import Target
from jaxllm.sharding.chips import GIB
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.experiment import Experiment


class Candidate(NamedTuple):
    """One configuration of mesh, remat policy and microbatches."""

    mesh: MeshConfig
    remat: Remat
    accumulation: int

    def applied(self, experiment: Experiment) -> Experiment:
        """The experiment with this configuration."""
        return dataclasses.replace(
            experiment,
            model=dataclasses.replace(experiment.model, remat=self.remat),
            train=dataclasses.replace(experiment.train, gradient_accumulation=self.accumulation),
        )

    def bindings(self) -> str:
        """Its gin bindings, as command-line flags."""
        sizes = {f"MeshConfig.{axis}": n for axis, n in dataclasses.asdict(self.mesh).items()}
        bound: dict[str, object] = {axis: size for axis, size in sizes.items() if size != 1}
        bound["ModelConfig.remat"] = self.remat
        bound["TrainConfig.gradient_accumulation"] = self.accumulation
        return " ".join(f"--gin.{name}={value}" for name, value in bound.items())


class Result(NamedTuple):
    """The estimate of a candidate, or why there is none."""

    candidate: Candidate
    program: Program | None
    estimate: Estimate | None
    refused: str = ""

    def line(self) -> str:
        """One line of the ranking: step time, MFU, memory and bindings."""
        if not (self.estimate and self.program):
            return f"{'':>26}  {self.candidate.bindings()}: {self.refused}"
        step, mfu = self.estimate.step_seconds, self.estimate.mfu
        return (
            f"{'' if step is None else f'{step:.3f} s':>8} {'' if mfu is None else f'{mfu:.1%}':>6}"
            f" {self.program.peak / GIB:6.1f} GiB  {self.candidate.bindings()}"
        )


def meshes(experiment: Experiment, target: Target) -> list[MeshConfig]:
    """Meshes that divide devices, heads and batch, those with the least communication first: no
    tensor parallelism, then parameters sharded over most devices of a slice.
    """
    devices, rows = len(target.devices), experiment.data.batch_size
    per_slice = devices // target.slices
    found = []
    for tensor in (1, 2, 4, 8):
        shards, rest = divmod(per_slice, tensor)
        if rest or experiment.model.num_heads % tensor or rows % (devices // tensor):
            continue
        for fsdp in range(shards, 0, -1):
            if shards % fsdp == 0:
                found.append(MeshConfig(data=devices // tensor // fsdp, fsdp=fsdp, tensor=tensor))
    return found


def search(
    experiment: Experiment, target: Target, candidates: Sequence[MeshConfig]
) -> list[Result]:
    """Compile configurations on each mesh; those that fit come first, the fastest in front.

    Remat policies are tried from the least recomputation on until one fits; then again with 2 and 4
    microbatches, as long as a policy with less recomputation may fit.
    """
    results: list[Result] = []
    bar = tqdm(desc="compiled", unit=" candidates", file=sys.stderr, disable=None)
    for mesh in candidates:
        lightest = len(REMAT_POLICIES)
        for microbatches in (1, 2, 4):
            if experiment.data.batch_size % (microbatches * mesh.data * mesh.fsdp):
                continue
            for place, remat in enumerate(REMAT_POLICIES[:lightest]):
                candidate = Candidate(mesh, remat, microbatches)
                bar.set_postfix_str(candidate.bindings().replace("--gin.", ""))
                results.append(_try(experiment, target, candidate))
                bar.write(results[-1].line(), file=sys.stderr)
                bar.update()
                if results[-1].estimate:
                    lightest = place
                    break
    bar.close()
    step = lambda result: (result.estimate.step_seconds or 0.0) if result.estimate else math.inf
    return sorted(results, key=step)


def _try(experiment: Experiment, target: Target, candidate: Candidate) -> Result:
    applied = candidate.applied(experiment)
    limit = (target.chip and target.chip.hbm_bytes) or math.inf
    try:
        mesh = make_mesh(candidate.mesh, target.devices)
        saved = saved_activations(applied, mesh)
        if saved > limit:
            return Result(candidate, None, None, f"does not fit: saves {saved / GIB:.1f} GiB")
        program = compile_update(applied, mesh, target.slices)
        if program.peak > limit:
            return Result(candidate, program, None, "does not fit")
        costs = measure_costs(applied, mesh, target.slices)
        return Result(candidate, program, estimate(applied, target, program, costs))
    except OutOfDeviceMemory as error:
        by = "" if error.excess_bytes is None else f" by {error.excess_bytes / GIB:.1f} GiB"
        return Result(candidate, None, None, f"does not fit{by}")
    except UserError as error:
        return Result(candidate, None, None, str(error))
