"""What the TPU compiler says of our flags, as JSON: `compile_flags.py`, with libtpu and no TPU.

A program of its own, because libtpu reads its environment when JAX is imported.
"""

import json
import logging
import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v4-8",
)

import jax
import numpy as np
from jax.experimental.topologies import get_topology_desc
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.models.decoder import abstract_params
from jaxllm.sharding import xla_flags
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.learning_rate import make_schedule
from jaxllm.training.state import abstract_state
from jaxllm.training.step import compile_train_step
from tests.training.helpers import LENGTH, MODEL, ROWS, experiment

NAMES = {
    "v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "7x": "tpu7x:2x2x1",
}  # fmt: skip


def devices(generation: str, slices: int = 1) -> list[jax.Device]:
    megacore = {"chip_config_name": "megacore"} if generation in ("v4", "v5p") else {}
    topology = get_topology_desc(
        platform="tpu", topology_name=NAMES[generation], chips_per_host_bounds=(2, 2, 1),
        num_slices=slices, **megacore,
    )  # fmt: skip
    return topology.devices


def lowered(mesh: Mesh) -> jax.stages.Lowered:
    """Two matrix products, their rows and matrices sharded, so that there is something to send."""
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    matrix = jax.ShapeDtypeStruct((1024, 1024), "bfloat16", sharding=rows)
    product = jax.jit(lambda x, w: jax.numpy.tanh(x @ w) @ w, out_shardings=rows)
    return product.lower(matrix, matrix)


def train_step_options(mesh: Mesh) -> dict[str, str]:
    """What `compile_train_step` gives to the compiler; the step itself is compiled, too."""
    e = experiment("unused")
    schedule = make_schedule(e.schedule, 10)
    optimizer = e.train.optimizer.build(schedule, abstract_params(MODEL))
    given = {}
    compile_ = jax.stages.Lowered.compile

    def spy(self: jax.stages.Lowered, compiler_options: dict | None = None) -> jax.stages.Compiled:
        given.update(compiler_options or {})
        return compile_(self, compiler_options)

    jax.stages.Lowered.compile = spy
    try:
        compile_train_step(
            MODEL, optimizer, schedule, mesh, abstract_state(MODEL, optimizer, mesh),
            batch_size=ROWS, length=LENGTH, num_domains=2,
        )  # fmt: skip
    finally:
        jax.stages.Lowered.compile = compile_
    return given


def main() -> None:
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger(xla_flags.__name__).addHandler(handler)
    found: dict = {}
    for generation in xla_flags.FLAGS:
        for slices in (1, 2):
            mesh = Mesh(np.array(devices(generation, slices)), ("all",))
            options = xla_flags.compiler_options(generation, slices)
            program = lowered(mesh)
            texts = {program.compile(compiler_options=o).as_text() for o in ({}, options)}
            found[f"{generation} x {slices}"] = {
                "table": options,
                "changes the program": len(texts) == 2,
                "used": xla_flags.mesh_options(mesh),
                "warnings": list(warnings),
            }
            warnings.clear()
    mesh = make_mesh(MeshConfig(), devices("v5e"))
    found["train step"] = train_step_options(mesh)
    options = {"xla_tpu_bogus": "true", **xla_flags.compiler_options("v5e"), "xla_bad": "1"}
    found["bogus"] = {"used": xla_flags.accepted(options, mesh), "warnings": list(warnings)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
