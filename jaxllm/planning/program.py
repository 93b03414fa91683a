"""The real update of a run, compiled for a target, and what the compiler says of it."""

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
    """The compiler found no way to fit the program into the memory of a device.

    Attributes:
      excess_bytes: bytes that are missing; None where the compiler did not say.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        amounts = [float(n) * 1024 ** " KMGT".index(unit) for n, unit in _AMOUNT.findall(message)]
        self.excess_bytes = amounts[0] - amounts[1] if len(amounts) > 1 else None


# "Used 21.3G of 15.75G hbm", "HLO temporaries (34.41G) exceeds available HBM (15.75G)"
_AMOUNT = re.compile(r"([\d.]+)([KMGT])\b")


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled update, per device. Loops count once in the compiler's costs, except `traffic`.

    Attributes:
      arguments: bytes of parameters, optimizer state and batch.
      temporaries: bytes that the update needs besides.
      activations: of these, what `saved_activations` counts.
      peak: bytes in use at the worst moment, arguments included.
      flops: by the compiler; kernels count as nothing.
      hbm_bytes: read and written, by the compiler.
      seconds: the compiler's own estimate of computing and moving these; None on CPUs and GPUs.
      traffic: of the links.
      compile_seconds: how long the compiler took.
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
    """Compiles what `jaxllm.train` would run on `mesh`; allocates nothing.

    Raises:
      OutOfDeviceMemory: the compiler says that it needs more memory than a device has.
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
    """The compiler's `optimal_seconds` without what it does not know.

    An instruction that it has no time for counts as -1 s: what goes between slices, and all-reduces
    on v4. What is left of a shallow program is less than a second, the fraction.
    """
    if not thought or thought > 0:
        return thought or None
    return thought - math.floor(thought)


def saved_activations(experiment: Experiment, mesh: jax.sharding.Mesh) -> int:
    """Bytes per device that the forward pass leaves to the backward pass, layer by layer.

    From the traced program, in a second: what the remat policy keeps, stacked by the loop over
    layers. An update cannot do with less; 0 without such a loop, where the compiler may choose.
    """
    model = experiment.model
    rows = experiment.data.batch_size // experiment.train.gradient_accumulation
    batch = abstract_batch(rows, experiment.data.sequence_length)

    def backward_pass(params: Any, batch: Batch) -> Any:
        return jax.vjp(lambda p: hidden_states(model, p, batch), params)[1]

    with partitioning(mesh):
        kept = jax.tree.leaves(jax.eval_shape(backward_pass, abstract_params(model), batch))
    by_layer = [x for x in kept if x.shape[:2] == (model.num_layers, rows)]
    return sum(x.size * x.dtype.itemsize for x in by_layer) // mesh.size


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the compiler says that a step costs each device, every loop counted in full.

    Attributes:
      flops: without what kernels compute.
      hbm_bytes: read and written.
      seconds: of computing and moving them, overlapped by the compiler's estimate, or None.
      layer_seconds: of these, each layer's.
    """

    flops: float
    hbm_bytes: float
    seconds: float | None
    layer_seconds: float | None


def measure_costs(
    experiment: Experiment, mesh: jax.sharding.Mesh, depths: Sequence[int] = (1, 2)
) -> Costs:
    """The costs of a step, from two shallow programs.

    The compiler counts a loop's body once. So two depths are compiled without a loop over layers
    and with the loss in one piece; their difference is what layers cost, and the rest is the
    same at any depth. Gradient accumulation is left out: it costs what one batch does.

    Raises:
      OutOfDeviceMemory: not even so few layers fit.
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
