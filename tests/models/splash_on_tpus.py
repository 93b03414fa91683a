"""Compiles the splash kernel, forward and backward, with the tiles of every chip; run as a script.

Prints a JSON object: device kind -> why it does not compile, or null.
"""

import json

import jax
import jax.numpy as jnp

from jaxllm.models.attention import splash
from jaxllm.planning.targets import tpu_target
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.sharding.rules import partitioning
from jaxllm.sharding.xla_flags import mesh_options

LENGTHS = (2048,)


def refusal(name: str, length: int) -> tuple[str, str | None]:
    target = tpu_target(name)
    mesh = make_mesh(MeshConfig(fsdp=-1, tensor=2), target.devices)
    heads = lambda n: jax.ShapeDtypeStruct((8, length, n, 128), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((8, length), jnp.int32)

    def loss(query, key, value, segments):
        with partitioning(mesh):
            return splash.splash_attention(query, key, value, segments).astype(jnp.float32).sum()

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    function = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), in_shardings=everywhere)
    try:
        lowered = function.lower(heads(8), heads(4), heads(4), segments)
        lowered.compile(compiler_options=mesh_options(mesh))
    except jax.errors.JaxRuntimeError as error:
        return target.devices[0].device_kind, str(error)[:400]
    return target.devices[0].device_kind, None


if __name__ == "__main__":
    found: dict[str, str | None] = {}
    for name in ("v2-8", "v3-8", "v4-8", "v5e-4", "v5p-8", "v6e-4", "7x-8"):
        for length in LENGTHS:
            kind, why = refusal(name, length)
            found[f"{kind} {length}"] = why
    print(json.dumps(found))
