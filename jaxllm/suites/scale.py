"""One dial for the size of a model, parameters without embeddings: the rest follows from it.

The width is 64 times the depth (nanochat's dial; Kaplan et al. 2020, arXiv 2001.08361, §3.1 find
the loss nearly independent of it), the MLP about 8/3 of the width (LLaMA), adjusted so that the
number of parameters is as asked, within 2 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxllm.errors import UserError
from jaxllm.training.rules import Rule

TOKENS_PER_PARAM = 20.0  # Hoffmann et al. 2022, arXiv 2203.15556, approach 1
SMALLEST = 50_000  # parameters without embeddings


class Shape(NamedTuple):
    """The sizes of a decoder."""

    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int


def shape(params: float) -> Shape:
    """The shape of a gated decoder (LLaMA's) with so many parameters without embeddings; UserError
    for too few.

    Widths are multiples of TPU tiles where that costs no accuracy of the size, and the head size,
    an even divisor of the width, is that nearest to the usual one.
    """
    if params < SMALLEST:
        raise UserError(
            f"a model of {params:,.0f} parameters without embeddings: need {SMALLEST:,}"
        )
    by_width = lambda width, *sizes: sizes[(width >= 512) + (width >= 2048)]
    layers = max(2, round((params / (12 * 64**2)) ** (1 / 3)))
    grain = by_width(math.sqrt(params / (12 * layers)), 16, 64, 128)

    def mlp(width: int) -> int:  # that makes up the parameters
        grain = 4 if width < 128 else by_width(width, 8, 32, 128)
        others = layers * (4 * width**2 + 2 * width) + width
        return round((params - others) / (3 * width * layers) / grain) * grain

    widths = range(grain, round(2 * math.sqrt(params / (8 * layers))) + grain, grain)
    fitting = [width for width in widths if mlp(width) > 0]
    width = min(fitting, key=lambda width: abs(math.log(mlp(width) / width / (8 / 3))))
    heads = [n for n in range(1, width) if width % n == 0 and width // n % 2 == 0]
    usual = by_width(width, 32, 64, 128)
    return Shape(
        layers, width, mlp(width), min(heads, key=lambda n: abs(math.log(width / n / usual)))
    )


def budget(dial: Mapping[str, float]) -> tuple[float, float]:
    """Parameters and tokens from two of params, tokens_per_param, tokens and flops (6 N D, nearly
    so, as they count the embeddings, too), or params alone (20 tokens each); else UserError.
    """
    known = dict(dial)
    if set(known) == {"params"}:
        known["tokens_per_param"] = TOKENS_PER_PARAM
    match sorted(known):
        case ["params", "tokens"]:
            return known["params"], known["tokens"]
        case ["params", "tokens_per_param"]:
            return known["params"], known["params"] * known["tokens_per_param"]
        case ["flops", "params"]:
            return known["params"], known["flops"] / 6 / known["params"]
        case ["flops", "tokens_per_param"]:
            params = math.sqrt(known["flops"] / 6 / known["tokens_per_param"])
            return params, params * known["tokens_per_param"]
        case ["flops", "tokens"]:
            return known["flops"] / 6 / known["tokens"], known["tokens"]
    raise UserError(
        f"a size is given by {', '.join(sorted(known))}: give two of params, tokens_per_param, "
        "tokens and flops, or params alone"
    )


def shape_bindings(params: float) -> dict[str, Any]:
    """gin bindings of a model of this size."""
    return {f"ModelConfig.{name}": size for name, size in shape(params)._asdict().items()}


def settings(
    params: float, tokens: float, length: int, rule: Rule, checkpoints: int | None = None
) -> dict[str, Any]:
    """gin bindings of a run of this size, on top of `gin/runs/base.gin`.

    The batch is the power of two nearest to the rule's. Warmup takes N tokens (the OLMo ladder's;
    a twentieth of 20 tokens per parameter).
    """
    sequences = 2 ** max(0, round(math.log2(rule.batch_tokens(params, tokens) / length)))
    steps = max(1, round(tokens / (sequences * length)))
    bindings: dict[str, Any] = {
        **shape_bindings(params),
        "BATCH_SIZE": sequences,
        "TRAIN_STEPS": steps,
        "ScheduleConfig.peak_lr": float(f"{rule.learning_rate(params, tokens):.3g}"),
        "ScheduleConfig.warmup_steps": min(steps // 5, round(params / (sequences * length))),
    }
    if checkpoints:
        every = max(1, steps // checkpoints)
        bindings |= {
            "CheckpointConfig.every_steps": every,
            "CheckpointConfig.early": every // 8 or 1,
        }
    return bindings
