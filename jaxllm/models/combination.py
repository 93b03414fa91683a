"""The next token of several models of one vocabulary, combined by a linear rule.

probabilities:w1,w2   sum of w_k p_k, its positive entries normalized ("Training Trajectories",
                      arXiv 2212.09803, equations 2 and 3)
logits:w1,w2          softmax(sum of w_k z_k), a product of powers of the models
contrastive:s,a       LARGE, SMALL: log p_L - s log p_S of the tokens with p_L >= a max p_L
                      (arXiv 2210.15097, equations 1 and 2; s = 1, a = 0.1)
emulated:s            BASE, TUNED, SMALL: z_B + s (z_T - z_S), where TUNED is the fine-tuned
                      SMALL (arXiv 2310.12962, equation 4; s = 1)
value:s               BASE, VALUE: z_B + s z_V, where the logits of VALUE are a learned
                      difference (s = 1)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxllm.errors import UserError, nearest
from jaxllm.models.config import ModelConfig

RULES = ("probabilities", "logits", "contrastive", "emulated", "value")


@dataclasses.dataclass(frozen=True)
class Combination:
    """A linear combination of distributions over the next token."""

    space: Literal["probabilities", "logits"]  # what is combined
    weights: tuple[float, ...]  # of each model
    plausibility: float = 0.0  # least share of the first model's highest probability

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.weights)) or not any(self.weights):
            raise UserError(f"weights {self.weights}: must be finite, and not all 0")
        if self.space == "probabilities" and math.fsum(self.weights) < 0:
            raise UserError(f"weights {self.weights}: have a sum below 0, and may leave no token")
        if not 0 <= self.plausibility <= 1:
            raise UserError(f"plausibility {self.plausibility}: must be from 0 to 1")

    @classmethod
    def parse(cls, text: str, models: int) -> Combination:
        """The combination of `models` models that RULE:NUMBER,… states; UserError if none does."""
        rule, _, listed = text.partition(":")
        try:
            numbers = [float(number) for number in filter(None, listed.split(","))]
        except ValueError:
            raise UserError(f"{text}: write {rule}:NUMBER,NUMBER") from None
        if rule not in RULES:
            raise UserError(f"no rule {rule}{nearest(rule, RULES)}: one of {', '.join(RULES)}")
        if rule in ("probabilities", "logits"):
            found = cls("logits" if rule == "logits" else "probabilities", (*numbers,))
        else:
            defaults = [1.0, 0.1] if rule == "contrastive" else [1.0]
            if len(numbers) > len(defaults):
                raise UserError(f"{text}: {rule} has at most {len(defaults)} numbers")
            s, *floor = numbers + defaults[len(numbers) :]
            weights = {"contrastive": (1.0, -s), "emulated": (1.0, s, -s), "value": (1.0, s)}
            found = cls("logits", weights[rule], *floor)
        if len(found.weights) != models:
            raise UserError(f"{text}: combines {len(found.weights)} models, and there are {models}")
        return found

    def __call__(self, logits: Sequence[jax.Array]) -> jax.Array:
        """The combined logits, float32 [B, V], of each model's; -inf where a token is left out.

        V is the smallest vocabulary: what larger ones have beyond it is padding. Where one model
        alone has a weight, its own logits are returned, unrounded.
        """
        size = min(one.shape[-1] for one in logits)
        first, *_ = logits = [one[..., :size] for one in logits]
        terms = [(w, one) for w, one in zip(self.weights, logits, strict=True) if w]
        if self.space == "probabilities":
            mixed = sum(w * jax.nn.softmax(one) for w, one in terms)
            combined = jnp.log(jnp.maximum(mixed, 0.0))
        else:
            combined = jnp.asarray(sum(w * one for w, one in terms))
        if len(terms) == 1 and (self.space == "probabilities" or terms[0][0] == 1):
            combined = terms[0][1]
        if self.plausibility:
            least = jnp.max(first, axis=-1, keepdims=True) + math.log(self.plausibility)
            combined = jnp.where(first >= least, combined, -jnp.inf)
        return combined


@dataclasses.dataclass(frozen=True)
class CombinedModel:
    """Models that choose every token together; its parameters are a tuple."""

    models: tuple[ModelConfig, ...]
    combination: Combination

    @property
    def max_length(self) -> int:
        """The shortest context length."""
        return min(model.max_length for model in self.models)
