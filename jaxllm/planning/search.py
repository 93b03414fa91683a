"""Meshes, remat policies and microbatches, tried and ranked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxllm.errors import UserError
from jaxllm.models.config import REMAT_POLICIES
from jaxllm.planning.estimate import Estimate, estimate
from jaxllm.planning.program import (
    GIB,
    DoesNotFit,
    Program,
    compile_update,
    kept_activations,
    measure_costs,
    mesh_of,
)
from jaxllm.planning.targets import Target
from jaxllm.sharding.mesh import MeshConfig
from jaxllm.training.experiment import Experiment


class Candidate(NamedTuple):
    """One way to run it."""

    mesh: MeshConfig
    remat: str
    accumulation: int

    def applied(self, experiment: Experiment) -> Experiment:
        """The experiment, run this way."""
        return dataclasses.replace(
            experiment,
            model=dataclasses.replace(experiment.model, remat=self.remat),
            train=dataclasses.replace(experiment.train, gradient_accumulation=self.accumulation),
        )

    def bindings(self) -> str:
        """The gin bindings that ask for it."""
        text = [
            f"--gin.MeshConfig.{axis}={size}"
            for axis, size in dataclasses.asdict(self.mesh).items()
            if size != 1
        ]
        text.append(f"--gin.ModelConfig.remat={self.remat}")
        text.append(f"--gin.TrainConfig.gradient_accumulation={self.accumulation}")
        return " ".join(text)


class Result(NamedTuple):
    """What became of a candidate: an estimate, or why there is none."""

    candidate: Candidate
    program: Program | None
    estimate: Estimate | None
    refused: str = ""


def meshes(experiment: Experiment, target: Target) -> list[MeshConfig]:
    """The meshes that divide devices, heads and batch, the most promising first.

    Those with the least to send come first: no tensor parallelism, then parameters cut over as
    many devices of a slice as there are.
    """
    devices, rows = len(target.devices), experiment.data.batch_size
    per_slice = devices // target.slices
    found = []
    for tensor in (1, 2, 4, 8):
        if per_slice % tensor or experiment.model.num_heads % tensor:
            continue
        for fsdp in reversed(_divisors(per_slice // tensor)):
            data = devices // (tensor * fsdp)
            if rows % (data * fsdp) == 0:
                found.append(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    return found


def search(
    experiment: Experiment,
    target: Target,
    tried: Sequence[MeshConfig],
    begun: Callable[[Candidate], None],
    done: Callable[[Result], None],
) -> list[Result]:
    """Compiles ways to run on each mesh; those that fit come first, the fastest in front.

    On a mesh, remat policies are tried from the one that computes least again to the one that
    keeps least, until one fits: those after it are slower. Then with the batch in 2 and in 4
    parts, as long as a lighter policy may fit.

    Args:
      experiment: the run.
      target: the devices.
      tried: meshes, from `meshes`.
      begun: is told what comes next.
      done: is told what became of it.
    """
    results: list[Result] = []

    def attempt(candidate: Candidate) -> None:
        begun(candidate)
        results.append(_tried(experiment, target, candidate))
        done(results[-1])

    for mesh in tried:
        lightest = len(REMAT_POLICIES)
        for parts in (1, 2, 4):
            if experiment.data.batch_size % (parts * mesh.data * mesh.fsdp):
                continue
            for place, remat in enumerate(REMAT_POLICIES[:lightest]):
                attempt(Candidate(mesh, remat, parts))
                if results[-1].estimate:
                    lightest = place
                    break
    return sorted(results, key=_step)


def _tried(experiment: Experiment, target: Target, candidate: Candidate) -> Result:
    way = candidate.applied(experiment)
    limit = (target.chip and target.chip.hbm_bytes) or math.inf
    try:
        mesh = mesh_of(target, candidate.mesh)
        kept = kept_activations(way, mesh)
        if kept > limit:
            return Result(candidate, None, None, f"does not fit: keeps {kept / GIB:.1f} GiB")
        program = compile_update(way, mesh, target.slices)
        if program.peak > limit:
            return Result(candidate, program, None, "does not fit")
        costs = measure_costs(way, mesh)
        return Result(candidate, program, estimate(way, target, program, costs))
    except DoesNotFit as error:
        by = "" if error.beyond is None else f" by {error.beyond / GIB:.1f} GiB"
        return Result(candidate, None, None, f"does not fit{by}")
    except UserError as error:
        return Result(candidate, None, None, str(error))


def _step(result: Result) -> float:
    return (result.estimate.step_seconds or 0.0) if result.estimate else float("inf")


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
