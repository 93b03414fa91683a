"""Laws of learning rate and batch size, by size and tokens of a run: the published ones.

They are advice: each was fitted in a range of sizes, with its own schedule and optimizer. Learning
rate and batch size of a law belong together. Sizes count parameters without embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxllm.models.config import ModelConfig


class Rule(NamedTuple):
    """A law of learning rate and batch size, published or from `jaxllm.training.sweep`."""

    source: str
    learning_rate: Callable[[float, float], float]  # peak, from parameters N and tokens D
    batch_tokens: Callable[[float, float], float]  # tokens per batch, alike
    params: tuple[float, float]  # the ranges in which it was fitted
    tokens: tuple[float, float]
    notes: tuple[str, ...] = ()  # what else is to be known of it, a line each

    def advice(self, params: float, tokens: float) -> str:
        """One line: what the law says, and whether it was fitted there."""
        rate, batch = self.learning_rate(params, tokens), self.batch_tokens(params, tokens)
        (least, most), (fewest, longest) = self.params, self.tokens
        inside = least <= params <= most and fewest <= tokens <= longest
        beyond = "" if inside else ", beyond the range in which it was fitted"
        return f"{self.source}: learning rate {rate:.2g}, batch {batch:,.0f} tokens{beyond}"


RULES: Mapping[str, Rule] = {
    "deepseek": Rule(
        "DeepSeek LLM (arXiv 2401.02954, §3.1)",
        lambda n, d: 0.3118 * (6 * n * d) ** -0.1250,
        lambda n, d: 0.2920 * (6 * n * d) ** 0.3271,
        (2e7, 7e9), (1e9, 1e11),
    ),
    "step_law": Rule(
        "Step Law (arXiv 2503.04715)",
        lambda n, d: 1.79 * n**-0.713 * d**0.307,
        lambda n, d: 0.58 * d**0.571,
        (6e7, 1e9), (2e9, 1e11),
    ),
    "olmo_ladder": Rule(
        "OLMo ladder (arXiv 2412.04403)",
        lambda n, d: 0.0047 * (n / 108e6) ** (-1 / 3),
        lambda n, d: 160 * 2048 * (n / 108e6) ** (2 / 3),
        (1.9e8, 1.3e9), (3.8e9, 2.6e11),
    ),
}  # fmt: skip


def advice(model: ModelConfig, tokens: float, own: Rule | None = None) -> list[str]:
    """Lines on learning rate and batch of a run, of the published laws and of an `own` one."""
    laws = [*RULES.values(), *([own] if own and own not in RULES.values() else [])]
    params = without_embeddings(model)
    return [line for law in laws for line in (law.advice(params, tokens), *law.notes)]


def without_embeddings(model: ModelConfig) -> int:
    """Parameters of a model without those of its token embeddings and head."""
    matrices = 1 if model.tie_embeddings else 2
    return model.num_params - matrices * model.vocab_size * model.embedding_dim
