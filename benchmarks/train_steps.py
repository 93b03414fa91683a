"""One training step of jaxllm and of Hugging Face Transformers, for benchmarks that time them.

Forward, backward and AdamW of the same LLaMA on the same tokens; nothing else. Both have parameters
in `config.param_dtype`, compute in `config.dtype`, and use remat unless `config.remat` is 'none'.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from jaxllm.models.config import ModelConfig

Step = Callable[[], float]


def random_tokens(config: ModelConfig, rows: int, length: int) -> np.ndarray:
    """Random tokens, int32 [rows, length + 1]."""
    return np.random.default_rng(0).integers(0, config.vocab_size, (rows, length + 1), np.int32)


def jaxllm_step(config: ModelConfig, tokens: np.ndarray) -> Step:
    """Build a function that runs one training step on JAX's default device and returns its loss."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from jaxllm.models.batch import Batch
    from jaxllm.models.decoder import init_params
    from jaxllm.models.scoring import token_loss

    rows, length = tokens.shape[0], tokens.shape[1] - 1
    batch = Batch(
        inputs=jnp.asarray(tokens[:, :-1]),
        targets=jnp.asarray(tokens[:, 1:]),
        weights=jnp.ones((rows, length), jnp.float32),
        positions=jnp.broadcast_to(jnp.arange(length), (rows, length)),
        segment_ids=jnp.ones((rows, length), jnp.int32),
        domains=jnp.zeros(rows, jnp.int32),
    )
    optimizer = optax.adamw(3e-4, weight_decay=0.1)

    @partial(jax.jit, donate_argnums=0)
    def step(state: tuple, batch: Batch) -> tuple[tuple, jax.Array]:
        params, moments = state

        def mean_loss(params: dict) -> jax.Array:
            return token_loss(config, params, batch)[0] / jnp.sum(batch.weights)

        loss, gradients = jax.value_and_grad(mean_loss)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    @jax.jit
    def start() -> tuple:
        params = nn.unbox(init_params(config, jax.random.key(0)))
        return params, optimizer.init(params)

    state = start()

    def run() -> float:
        nonlocal state
        state, loss = step(state, batch)
        jax.block_until_ready(state)
        return float(loss)

    return run


def transformers_step(
    config: ModelConfig, tokens: np.ndarray, device: str = "cpu", backend: str = ""
) -> Step:
    """The same with Transformers' LLaMA, SDPA attention, and PyTorch's fused AdamW.

    Args:
      config: of a LLaMA.
      tokens: int32 [rows, length + 1].
      device: PyTorch's name of the device.
      backend: of torch.compile; empty runs the model eagerly.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.embed_dim,
                intermediate_size=config.mlp_dim,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=config.max_length,
                attn_implementation="sdpa",
                use_cache=False,
            )
        ).to(getattr(torch, config.param_dtype))
    if config.remat != "none":
        model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
    inputs = torch.tensor(tokens[:, :-1], dtype=torch.long, device=device)
    targets = torch.tensor(tokens[:, 1:], dtype=torch.long, device=device)
    narrow = torch.autocast(
        device.partition(":")[0], torch.bfloat16, enabled=config.dtype != config.param_dtype
    )

    def mean_loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with narrow:
            logits = model(inputs).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    if backend:
        mean_loss = torch.compile(mean_loss, backend=backend)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = mean_loss(inputs, targets)
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for the loss, not for the update

    def run_to_the_end() -> float:
        loss = run()
        torch.cuda.synchronize()
        return loss

    return run_to_the_end if device.startswith("cuda") else run
