"""The train step of a run compiled for a target: its memory, costs and traffic."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from jaxllm.errors import UserError
from jaxllm.models.batch import Batch
from jaxllm.models.decoder import abstract_params, hidden_states
from jaxllm.planning.hlo import Traffic, traffic
from jaxllm.planning.targets import Target
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.sharding.rules import partitioning
from jaxllm.sharding.xla_flags import mesh_options
from jaxllm.training.experiment import Experiment
from jaxllm.training.schedule import make_schedule
from jaxllm.training.state import abstract_state
from jaxllm.training.step import abstract_batch, lower_train_step

GIB = 2**30


class OutOfDeviceMemory(Exception):
    """The program does not fit into a device's memory.

    Attributes:
      excess_bytes: missing bytes; None where the compiler's message has no amounts.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        amounts = [float(n) * 1024 ** " KMGT".index(unit) for n, unit in _AMOUNT.findall(message)]
        self.excess_bytes = amounts[0] - amounts[1] if len(amounts) > 1 else None


# "Used 21.3G of 15.75G hbm", "HLO temporaries (34.41G) exceeds available HBM (15.75G)"
_AMOUNT = re.compile(r"([\d.]+)([KMGT])\b")


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled update, per device. The compiler counts loops once; `traffic` counts them fully.

    Attributes:
      arguments: bytes of parameters, optimizer state and batch.
      temporaries: bytes of temporary buffers.
      activations: bytes of saved activations among these (`saved_activations`).
      peak: peak bytes in use, arguments included.
      flops: the compiler's count; kernels count as 0.
      hbm_bytes: bytes read and written, by the compiler's count.
      seconds: the compiler's estimate of compute and memory time; None on CPUs and GPUs.
      traffic: bytes sent over the links.
      compile_seconds: compilation time.
    """

    arguments: int
    temporaries: int
    activations: int
    peak: int
    flops: float
    hbm_bytes: float
    seconds: float | None
    traffic: tuple[Traffic, ...]
    compile_seconds: float


def mesh_of(target: Target, config: MeshConfig) -> jax.sharding.Mesh:
    """The run's mesh over the target's devices."""
    return make_mesh(config, target.devices)


def compile_update(
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    slices: int = 1,
    loss_chunk_tokens: int | None = None,
) -> Program:
    """Compile the train step that `jaxllm.train` would run on `mesh`; allocates nothing.

    Raises:
      OutOfDeviceMemory: the program needs more memory than a device has.
      UserError: the configs do not fit each other or the mesh.
    """
    e = experiment
    e.check(mesh)
    schedule = make_schedule(e.schedule, e.train.steps)
    optimizer = e.optimizer.build(schedule, abstract_params(e.model))
    start = time.perf_counter()
    lowered = lower_train_step(
        e.model,
        optimizer,
        schedule,
        mesh,
        abstract_state(e.model, optimizer, mesh),
        batch_size=e.data.batch_size,
        length=e.data.sequence_length,
        num_domains=1,
        accumulation=e.train.gradient_accumulation,
        z_loss=e.train.z_loss,
        loss_chunk_tokens=loss_chunk_tokens,
    )
    try:
        compiled = lowered.compile(compiler_options={**mesh_options(mesh)})
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfDeviceMemory(str(error)) from error
        raise UserError(f"the compiler refuses: {' '.join(str(error).split())[:300]}") from error
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    costs: Any = compiled.cost_analysis() or {}
    arguments = memory.argument_size_in_bytes
    excess_bytes = memory.output_size_in_bytes - memory.alias_size_in_bytes
    needed = arguments + memory.temp_size_in_bytes + max(0, excess_bytes)
    return Program(
        arguments=arguments,
        temporaries=memory.temp_size_in_bytes,
        activations=saved_activations(e, mesh),
        peak=needed,
        flops=costs.get("flops", 0.0),
        hbm_bytes=costs.get("bytes accessed", 0.0),
        seconds=known_seconds(costs.get("optimal_seconds")),
        traffic=traffic(compiled.as_text() or "", mesh.size // slices, slices),
        compile_seconds=seconds,
    )


def known_seconds(thought: float | None) -> float | None:
    """The compiler's `optimal_seconds` without instructions of unknown time.

    Each of these counts as -1 s: transfers between slices, and all-reduces on v4. A shallow program
    takes less than a second, so the fractional part is its known time.
    """
    if not thought or thought > 0:
        return thought or None
    return thought - math.floor(thought)


def saved_activations(experiment: Experiment, mesh: jax.sharding.Mesh) -> int:
    """Bytes per device of activations saved for the backward pass, over all layers.

    From the traced program, in a second: residuals that the remat policy saves, stacked by the
    scan over layers. A lower bound on the update's memory; 0 where no scan stacks them.
    """
    model = experiment.model
    rows = experiment.data.batch_size // experiment.train.gradient_accumulation
    batch = abstract_batch(rows, experiment.data.sequence_length)

    def backward_pass(params: Any, batch: Batch) -> Any:
        return jax.vjp(lambda p: hidden_states(model, p, batch), params)[1]

    with partitioning(mesh):
        saved = jax.tree.leaves(jax.eval_shape(backward_pass, abstract_params(model), batch))
    by_layer = [x for x in saved if x.shape[:2] == (model.num_layers, rows)]
    return sum(x.size * x.dtype.itemsize for x in by_layer) // mesh.size


@dataclasses.dataclass(frozen=True)
class Costs:
    """The compiler's cost of a step per device, loops counted in full.

    Attributes:
      flops: FLOPs without kernels.
      hbm_bytes: bytes read and written.
      seconds: the compiler's estimate of compute and memory time, overlapped, or None.
      layer_seconds: the part of each layer.
    """

    flops: float
    hbm_bytes: float
    seconds: float | None
    layer_seconds: float | None


def measure_costs(
    experiment: Experiment, mesh: jax.sharding.Mesh, depths: Sequence[int] = (1, 2)
) -> Costs:
    """Measure the cost of a step from two shallow programs.

    The compiler counts a loop's body once. So two depths are compiled without a loop over layers
    and with unchunked loss; their difference is the cost of the layers, and the rest is the same at
    any depth. One microbatch is measured, and multiplied by their number.

    Raises:
      OutOfDeviceMemory: not even these few layers fit.
    """
    parts = experiment.train.gradient_accumulation
    rows = experiment.data.batch_size // parts
    cut = dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, batch_size=rows),
        train=dataclasses.replace(experiment.train, gradient_accumulation=1),
    )

    def at(depth: int) -> Program:
        model = dataclasses.replace(cut.model, num_layers=depth, scan_layers=False)
        tokens = rows * experiment.data.sequence_length
        return compile_update(dataclasses.replace(cut, model=model), mesh, loss_chunk_tokens=tokens)

    few, more = (at(depth) for depth in depths)
    between = depths[1] - depths[0]

    def whole(first: float, second: float) -> tuple[float, float]:
        layer = (second - first) / between
        outside = first - depths[0] * layer
        return parts * (outside + experiment.model.num_layers * layer), parts * layer

    seconds = layer_seconds = None
    if few.seconds and more.seconds:
        seconds, layer_seconds = whole(few.seconds, more.seconds)
    return Costs(
        whole(few.flops, more.flops)[0],
        whole(few.hbm_bytes, more.hbm_bytes)[0],
        seconds,
        layer_seconds,
    )
