"""Muon for the matrices of the blocks, AdamW for embedding, head and vectors."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import optax

from jaxllm.configs import Fraction, configurable
from jaxllm.training.config import AdamWConfig
from jaxllm.training.optimizer import clipped


@configurable
@dataclasses.dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    """Orthogonalized momentum (Jordan 2024), scaled to AdamW's RMS (arXiv 2502.16982, §2.2).

    Attributes:
      momentum: decay of the momentum of a matrix's gradients.
    """

    momentum: Fraction = 0.95

    def build(self, schedule: optax.Schedule, boxed_params: Any) -> optax.GradientTransformation:
        """Clipping by global norm, then Muon."""

        def axes(box: nn.LogicallyPartitioned) -> optax.contrib.MuonDimensionNumbers | None:
            if "embed" not in box.names or "vocab" in box.names:
                return None
            embed = (box.names.index("embed"),)
            others = tuple(i for i, n in enumerate(box.names) if n not in ("layers", "embed"))
            both = (others, embed) if box.names[-1] == "embed" else (embed, others)  # in, out
            return optax.contrib.MuonDimensionNumbers(*both)

        dims = jax.tree.map(axes, boxed_params, is_leaf=lambda x: hasattr(x, "names"))
        muon = optax.contrib.muon(
            schedule, beta=self.momentum, adam_b1=self.b1, adam_b2=self.b2, eps=self.eps,
            weight_decay=self.weight_decay, consistent_rms=0.2, muon_weight_dimension_numbers=dims,
        )  # fmt: skip
        return clipped(muon, self.max_grad_norm, self.state_dtype)
