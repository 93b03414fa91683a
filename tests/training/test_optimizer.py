"""AdamW with clipping and mask against PyTorch's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxllm.errors import UserError
from jaxllm.models.decoder import abstract_params
from jaxllm.training.config import OptimizerConfig, ScheduleConfig
from jaxllm.training.optimizer import decay_mask, make_optimizer
from jaxllm.training.schedule import make_schedule
from tests.training.helpers import MODEL


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_updates_are_pytorchs(decay: str) -> None:
    """Ten updates of a matrix and a norm, stacked over layers, with a schedule and clipping."""
    random = np.random.Generator(np.random.PCG64(0))
    values = {"matrix": random.normal(size=(2, 4, 3)), "norm": random.normal(size=(2, 4))}
    names = {"matrix": ("layers", "embed", "mlp"), "norm": ("layers", "norm")}
    boxed = {k: nn.LogicallyPartitioned(jnp.asarray(v), names[k]) for k, v in values.items()}
    schedule = make_schedule(ScheduleConfig(peak=0.1, final=0.01, warmup_steps=3), 10)
    config = OptimizerConfig(b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3, decay=decay, clip=2.0)
    optimizer = make_optimizer(config, schedule, boxed)
    params = nn.unbox(boxed)
    state = optimizer.init(params)

    twins = {k: torch.nn.Parameter(torch.tensor(v, dtype=torch.float32)) for k, v in values.items()}
    groups = [
        {"params": [twins["matrix"]], "weight_decay": 0.3},
        {"params": [twins["norm"]], "weight_decay": 0.3 if decay == "all" else 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=1e-6)
    for count in range(10):
        grads = {k: random.normal(size=v.shape).astype(np.float32) for k, v in values.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = optax.apply_updates(params, updates)
        for k, twin in twins.items():
            twin.grad = torch.tensor(grads[k])
        torch.nn.utils.clip_grad_norm_(list(twins.values()), 2.0)
        for group in reference.param_groups:
            group["lr"] = float(schedule(count))
        reference.step()
    for k, twin in twins.items():
        np.testing.assert_allclose(params[k], twin.detach().numpy(), rtol=2e-5, atol=1e-6)


def test_matrices_decay_and_norms_do_not() -> None:
    mask = decay_mask(abstract_params(MODEL))
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    spared = {jax.tree_util.keystr(path) for path, decays in leaves if not decays}
    assert len(leaves) > len(spared) > 0
    assert all("norm" in name for name in spared)
    assert sum("norm" in jax.tree_util.keystr(path) for path, _ in leaves) == len(spared)


def test_an_unknown_mask_is_refused() -> None:
    with pytest.raises(UserError, match="biases"):
        OptimizerConfig(decay="biases")
