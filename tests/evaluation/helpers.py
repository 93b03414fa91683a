"""A tiny decoder, and a byte vocabulary with a document start."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import init_params
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.sharding.rules import param_shardings

TINY = ModelConfig(
    vocab_size=259, num_layers=2, embed_dim=32, mlp_dim=64, num_heads=4, num_kv_heads=2,
    max_length=64, init_stddev=0.2,
)  # fmt: skip


class Bytes:
    """UTF-8 bytes, shifted by three; 1 starts a document, 2 ends it."""

    bos_id, eos_id, vocab_size = 1, 2, 259

    def encode(self, s: str) -> list[int]:
        return [byte + 3 for byte in s.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - 3 for i in ids if i >= 3).decode(errors="replace")


class Signs(Bytes):
    """One character for each token, so that a text says which tokens it was made of."""

    def __init__(self, eos_id: int = -1):
        self.eos_id = eos_id

    def encode(self, s: str) -> list[int]:
        return [ord(sign) - 0x400 for sign in s]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(0x400 + i) for i in ids)


def mesh(**axes: int):
    """A mesh of exactly as many virtual devices as `axes` name (default: one)."""
    config = MeshConfig(**{"fsdp": 1, **axes})
    size = config.data * config.fsdp * config.tensor
    return make_mesh(config, jax.devices()[:size])


def sharded_params(config: ModelConfig, on, seed: int = 0):
    """Random parameters of `config` on the mesh `on`."""
    boxed = jax.jit(init_params, static_argnums=0)(config, jax.random.key(seed))
    return jax.device_put(nn.unbox(boxed), param_shardings(on, boxed))
