"""The train step of a run compiled for a target: its memory, costs and traffic."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from tqdm import tqdm

from jaxllm.errors import UserError
from jaxllm.evaluation.scoring import scoring_program
from jaxllm.models.batch import Batch, TreeBatch
from jaxllm.models.decoder import abstract_params, hidden_states
from jaxllm.planning.hlo import Traffic, total, traffic
from jaxllm.sharding.rules import abstract_sharded, batch_sharding, partitioning
from jaxllm.sharding.xla_flags import mesh_options
from jaxllm.training.domain_weights import of_config
from jaxllm.training.experiment import Experiment
from jaxllm.training.learning_rate import make_schedule
from jaxllm.training.state import abstract_state
from jaxllm.training.step import abstract_batch, lower_train_step

_BEGAN = time.perf_counter()


def tell(what: str) -> None:
    """Say on stderr what is being done, with the seconds so far."""
    tqdm.write(f"{time.perf_counter() - _BEGAN:6.0f} s  {what}", file=sys.stderr)


class OutOfDeviceMemory(Exception):
    """A program does not fit into a device's memory: by `excess_bytes`, if the compiler tells."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # "Used 21.3G of 15.75G hbm", "HLO temporaries (34.41G) exceeds available HBM (15.75G)"
        found = re.findall(r"([\d.]+)([KMGT])\b", message)
        amounts = [float(number) * 1024 ** " KMGT".index(unit) for number, unit in found]
        self.excess_bytes = amounts[0] - amounts[1] if len(amounts) > 1 else None


class Program(NamedTuple):
    """A compiled program, per device. The compiler counts loops once, `traffic` in full."""

    arguments: int  # bytes of parameters, optimizer state (of an update) and batch
    temporaries: int  # bytes of temporary buffers
    activations: int  # bytes of saved activations among these (`saved_activations`)
    peak: int  # peak bytes in use, arguments included
    flops: float  # the compiler's count; kernels count as 0
    hbm_bytes: float  # bytes read and written, by the compiler's count
    seconds: float | None  # of compute and memory, by the compiler; None on CPUs and GPUs
    traffic: tuple[Traffic, ...]  # bytes sent over the links


def compile_update(
    experiment: Experiment, mesh: Mesh, slices: int = 1, loss_chunk_tokens: int | None = None
) -> Program:
    """Compile the train step that `jaxllm.train` would run on `mesh`; allocates nothing.

    OutOfDeviceMemory if a device has too little; UserError for configs that do not fit.
    """
    e, optimizer = experiment, experiment.make_optimizer()
    e.check(mesh)
    tell(f"compiling the update of {e.model.num_layers} layer(s) on {mesh.size} device(s)")
    lowered = lower_train_step(
        e.model, optimizer, make_schedule(e.schedule, e.train.steps), mesh,
        abstract_state(e.model, optimizer, mesh, 1 if e.reference else 0, e.train.skip),
        batch_size=e.data.batch_size, length=e.data.sequence_length, num_domains=1,
        accumulation=e.train.gradient_accumulation, z_loss=e.train.z_loss,
        loss_chunk_tokens=loss_chunk_tokens, skip=e.train.skip,
        domain_weights=of_config(e.train.domain_weights, [""], e.reference),
        reference=e.reference and abstract_sharded(mesh, abstract_params(e.reference)),
    )  # fmt: skip
    program = _compile(lowered, mesh, slices, {**mesh_options(mesh)})
    return program._replace(activations=saved_activations(e, mesh))


def _compile(
    lowered: jax.stages.Lowered, mesh: Mesh, slices: int, options: dict[str, Any]
) -> Program:
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfDeviceMemory(str(error)) from error
        raise UserError(f"the compiler refuses: {' '.join(str(error).split())[:300]}") from error
    memory: Any = compiled.memory_analysis()
    costs: Any = compiled.cost_analysis() or {}
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    not_in_place = memory.output_size_in_bytes - memory.alias_size_in_bytes
    # of unknown time, as transfers between slices and all-reduces on v4, an instruction counts as
    # -1 s; a shallow program takes less than a second: the fractional part is its known time
    optimal = costs.get("optimal_seconds") or None
    return Program(
        arguments=arguments,
        temporaries=temporaries,
        activations=0,
        peak=arguments + temporaries + max(0, not_in_place),
        flops=costs.get("flops", 0.0),
        hbm_bytes=costs.get("bytes accessed", 0.0),
        seconds=optimal % 1 if optimal and optimal < 0 else optimal,
        traffic=traffic(compiled.as_text() or "", mesh.size // slices, slices),
    )


def saved_activations(experiment: Experiment, mesh: Mesh) -> int:
    """Bytes per device of activations saved for the backward pass, over all layers: residuals of
    the traced program, stacked by the scan over layers. A lower bound on the update's memory; 0
    without a scan.
    """
    model = experiment.model
    sequences = experiment.data.batch_size // experiment.train.gradient_accumulation
    batch = abstract_batch(sequences, experiment.data.sequence_length)

    def backward_pass(params: Any, batch: Batch) -> Any:
        return jax.vjp(lambda p: hidden_states(model, p, batch), params)[1]

    with partitioning(mesh):
        saved = jax.tree.leaves(jax.eval_shape(backward_pass, abstract_params(model), batch))
    by_layer = [x for x in saved if x.shape[:2] == (model.num_layers, sequences)]
    return sum(x.size * x.dtype.itemsize for x in by_layer) // mesh.size


class Costs(NamedTuple):
    """The compiler's cost of a step per device, loops counted in full."""

    flops: float  # without kernels
    hbm_bytes: float  # read and written
    seconds: float | None  # of compute and memory, overlapped
    ici_bytes: float  # sent within a slice
    dcn_bytes: float  # sent between slices

    @classmethod
    def of_layers(cls, one: Program, *deeper: tuple[int, Program], times: int = 1) -> Costs:
        """`times` the cost of models of one layer each, made linearly as deep as they are: for each
        its number of layers, and the program in which it has two.
        """

        def linear(cost: Callable[[Program], float]) -> float:
            more = [(layers - 1) * (cost(two) - cost(one)) for layers, two in deeper]
            return times * (cost(one) + sum(more))

        known = all(program.seconds for program in (one, *(two for _, two in deeper)))
        return cls(
            linear(lambda program: program.flops),
            linear(lambda program: program.hbm_bytes),
            linear(lambda program: program.seconds or 0.0) if known else None,
            linear(lambda program: total(program.traffic, "ici")),
            linear(lambda program: total(program.traffic, "dcn")),
        )


def measure_scorer(
    experiment: Experiment, mesh: Mesh, slices: int, rows: int, length: int, targets: int
) -> Costs:
    """The cost of scoring token trees [rows, length] with [rows, targets], as `measure_costs`.

    Of its loops, that over blocks of attention stays, where a layer's scores are large.
    """

    def array(width: int) -> Any:
        return jax.ShapeDtypeStruct((rows, width), jnp.int32, sharding=batch_sharding(mesh))

    batch = TreeBatch(*[array(length)] * 3, *[array(targets)] * 2)

    def at(depth: int) -> Program:
        tell(f"compiling the scorer of {depth} layer(s) on {mesh.size} device(s)")
        model = dataclasses.replace(experiment.model, num_layers=depth, scan_layers=False)
        params = abstract_sharded(mesh, abstract_params(model))
        lowered = scoring_program(model, mesh, chunk_tokens=rows * targets).lower(params, batch)
        return _compile(lowered, mesh, slices, {})

    return Costs.of_layers(at(1), (experiment.model.num_layers, at(2)))


def measure_costs(experiment: Experiment, mesh: Mesh, slices: int = 1) -> Costs:
    """The cost of a step from shallow programs; OutOfDeviceMemory if they do not fit.

    The compiler counts a loop's body once. So one layer and two, also of DoReMi's reference, are
    compiled without a loop over layers and with unchunked loss; their difference is the cost of a
    layer. One microbatch is measured; with DoReMi as one of two, as it scores each once more.
    """
    e, reference, count = experiment, experiment.reference, experiment.train.gradient_accumulation
    measured = min(2, count) if reference else 1
    data = dataclasses.replace(e.data, batch_size=e.data.batch_size // count * measured)
    train = dataclasses.replace(e.train, gradient_accumulation=measured)
    tokens = data.batch_size * data.sequence_length
    of = lambda model, depth: dataclasses.replace(model, num_layers=depth, scan_layers=False)

    def at(depth: int, of_reference: int = 1) -> Program:
        models = of(e.model, depth), reference and of(reference, of_reference)
        shallow = dataclasses.replace(
            e, model=models[0], reference=models[1], data=data, train=train
        )
        return compile_update(shallow, mesh, slices, loss_chunk_tokens=tokens)

    one, deeper = at(1), [(e.model.num_layers, at(2))]
    deeper += [(reference.num_layers, at(1, 2))] if reference else []
    return Costs.of_layers(one, *deeper, times=count)
