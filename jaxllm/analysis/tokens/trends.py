"""Trends of tokens: stagnated, upward (forgotten), downward (still learned), by rule and by test.

Xia et al. 2023 (arXiv 2212.09803, equation 1) sort tokens by an ordinary line through their
perplexity after p % of training: `PAPER`; their code does it otherwise: `CODE`. Both call a token
upward in up to a third of the series that only wander. So a second answer stands beside theirs: a
line through the loss in nats with its change over the window, tested under autoregressive noise
(`noise`) and corrected for the number of tokens (Benjamini and Hochberg 1995). `trend_table` gives
both for a run, and for surrogates of it that have no trend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from jaxllm.analysis.stats import false_discovery
from jaxllm.analysis.tokens import noise
from jaxllm.errors import UserError

Floats = npt.NDArray[np.floating]
Classes = npt.NDArray[np.int8]
TRENDS = ("unclassified", "stagnated", "upward", "downward")  # a class is the index of its name
AFTER = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
FEWEST = 4  # checkpoints of a window
LEVEL = 0.05  # of the rules' p-values, and of false discoveries
_CHUNK = 4096  # tokens at once
_PRIOR_TOKENS = 20_000  # tokens that tell the distribution of φ


@dataclasses.dataclass(frozen=True)
class Rule:
    """How tokens are sorted by the ordinary line through their perplexity."""

    axis: Literal["index", "log step"]  # x of the line
    start: Literal["first after", "nearest"]  # checkpoint at which the line starts
    stagnated: Literal["equation 1", "code"]

    def starts(self, steps: Sequence[int], after: float) -> tuple[int, int]:
        """Indices at which the line and the test for stagnation start.

        Raises:
          UserError: less than four checkpoints follow.
        """
        at = np.asarray(steps, float) - after * steps[-1]
        first = int(np.argmax(at >= -1e-6 * steps[-1]))
        line = first if self.start == "first after" else int(np.argmin(abs(at)))
        flat = int(after * len(at) + 1e-6) if self.stagnated == "code" else first
        if (left := len(at) - max(line, flat)) < FEWEST:
            raise UserError(
                f"trends after {after:.0%} of step {steps[-1]}: {left} of {len(at)} checkpoints "
                f"follow, and a line needs {FEWEST}: choose a smaller share or score more of them"
            )
        return line, flat

    def design(self, steps: Sequence[int]) -> Floats:
        """Columns 1 and x [S, 2] of the line; x is centered and 1 wide: the slope is the change."""
        x = np.arange(len(steps), dtype=float)
        if self.axis == "log step":
            x = np.log(np.maximum(steps, 1))
        x = (x - x.mean()) / np.ptp(x)
        return np.stack([np.ones(len(steps)), x], axis=1)


PAPER = Rule("index", "first after", "equation 1")
CODE = Rule("log step", "nearest", "code")  # the axis as intended: the code's is one number


def classify(
    losses: Floats, steps: Sequence[int], after: float, rule: Rule = PAPER, level: float = LEVEL
) -> Classes:
    """Class [n] of each token by a rule, from its losses [S, n] in nats; not finite: unclassified.

    Raises:
      UserError: less than four checkpoints after the share `after` of the last step.
    """
    line, flat = rule.starts(steps, after)
    x = rule.design(steps[line:])[:, 1].astype(np.float32)
    spread, dof = float(x @ x), len(x) - 2
    critical = stats.t.isf(level / 2, dof)
    low, high = np.log(1 - 0.05), np.log(1 + 0.05)
    classes = np.zeros(losses.shape[1], np.int8)
    for part in _chunks(losses.shape[1]):
        chunk = losses[:, part].astype(np.float32)
        with np.errstate(all="ignore"):
            ratio = np.exp(chunk[line:] - chunk[line])
            ratio -= ratio.mean(axis=0)
            slope = x @ ratio / spread
            rss = np.maximum(np.einsum("sn,sn->n", ratio, ratio) - slope**2 * spread, 0)
            t = slope / np.sqrt(rss / dof / spread)
            mean = chunk[flat:].mean(axis=0)
            first, last = chunk[flat] - mean, chunk[-1] - mean
            if rule.stagnated == "equation 1":
                stagnated = (low <= np.minimum(first, last)) & (np.maximum(first, last) <= high)
            else:  # the code's ratios are the inverse, and the perplexity's variance is bounded
                stagnated = (low < -np.maximum(first, last)) & (-np.minimum(first, last) < high)
                stagnated &= np.exp(chunk[flat:]).var(axis=0) < np.exp(mean)
        classes[part] = np.select([t > critical, t < -critical, stagnated], [2, 3, 1])
    return classes


@dataclasses.dataclass(frozen=True)
class TokenTrends:
    """Trends of n tokens from the checkpoint `start` on."""

    after: float
    start: int
    classes: Classes  # [n], by the rule
    change: Floats  # [n], nats over the window, along the line
    stderr: Floats  # [n], of `change`
    p_value: Floats  # [n], of no trend under autoregressive noise
    q_value: Floats  # [n], adjusted over the tokens

    def controlled(self, level: float = LEVEL) -> Classes:
        """Classes [n] with at most a share `level` of false ones among the upward and downward.

        A token that the rule calls upward or downward and the test does not is unclassified.
        """
        trend = np.where(self.change > 0, 2, 3)
        rest = np.where(self.classes == 1, 1, 0)
        return np.where(self.q_value < level, trend, rest).astype(np.int8)


def token_trends(
    losses: Floats, steps: Sequence[int], after: float, rule: Rule = PAPER
) -> TokenTrends:
    """Sort tokens by a rule, and test the line through their losses [S, n] in nats.

    Raises:
      UserError: less than four checkpoints after the share `after` of the last step.
    """
    classes = classify(losses, steps, after, rule)
    start = rule.starts(steps, after)[0]
    design, prior = _noise(losses, steps, start, rule)
    change, stderr, p_value = np.full((3, len(classes)), np.nan, np.float32)
    for part in _chunks(len(classes)):
        fit = noise.fit(losses[start:, part].astype(np.float32), design)
        change[part], stderr[part], p_value[part] = fit.test(prior)
    q_value = false_discovery(p_value).astype(np.float32)
    return TokenTrends(after, start, classes, change, stderr, p_value, q_value)


def surrogate(
    losses: Floats,
    steps: Sequence[int],
    after: float,
    kind: Literal["permuted", "autoregressive"],
    rule: Rule = PAPER,
    seed: int = 0,
) -> Floats:
    """Losses [S, n] without trend: every token's own from p % on permuted, or redrawn.

    Permuted checkpoints keep a token's values and make its noise white. Autoregressive ones keep
    its mean, and the φ and variance of its noise, drawn from what its losses tell of them.
    """
    start = min(rule.starts(steps, after))
    rng = np.random.default_rng(seed)
    result = losses.astype(np.float32)
    if kind == "permuted":
        rng.permuted(result[start:], axis=0, out=result[start:])
        return result
    design, prior = _noise(losses, steps, start, rule)
    for part in _chunks(losses.shape[1]):
        window = result[start:, part]
        phi, scale = noise.fit(window, design).draw(prior, rng)
        drawn = noise.simulate(phi, scale, len(window), rng)
        result[start:, part] = window.mean(axis=0) + drawn - drawn.mean(axis=0)
    return result


def trend_table(
    losses: Floats,
    steps: Sequence[int],
    afters: Sequence[float] = AFTER,
    rule: Rule = PAPER,
    surrogate_tokens: int = 20_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Shares of the classes at every p, with what noise alone would give.

    Returns:
      A row per `after` and `trend`: `checkpoints` of the window, `tokens` of the class by the rule,
      their `share`, the share in two kinds of surrogates, `permuted` and `autoregressive`, that
      have no trend, and the same three of classes with controlled false discoveries
      (`controlled`, …); `change`, the median change in nats of the controlled class. Surrogates are
      of at most so many tokens, evenly spaced: a share of 5 % in 20,000 has a stderr of 0.15 %.
    Raises:
      UserError: less than four checkpoints after one of the shares of training.
    """
    rows = []
    every = max(1, -(-losses.shape[1] // surrogate_tokens))
    for after in afters:
        seen = token_trends(losses, steps, after, rule)
        controlled = seen.controlled()
        columns = {"share": _shares(seen.classes), "controlled": _shares(controlled)}
        for kind in ("permuted", "autoregressive"):
            drawn = surrogate(losses[:, ::every], steps, after, kind, rule, seed)
            trends = token_trends(drawn, steps, after, rule)
            columns[kind] = _shares(trends.classes)
            columns[f"controlled_{kind}"] = _shares(trends.controlled())
        for index, name in enumerate(TRENDS):
            own = seen.change[controlled == index]
            rows.append({
                "after": after,
                "trend": name,
                "checkpoints": len(steps) - seen.start,
                "tokens": int((seen.classes == index).sum()),
                **{column: shares[index] for column, shares in columns.items()},
                "change": float(np.nanmedian(own)) if np.isfinite(own).any() else np.nan,
            })  # fmt: skip
    return pd.DataFrame(rows)


def common_checkpoints(
    axes: Mapping[str, Sequence[float]], tolerance: float = 0.1
) -> dict[str, npt.NDArray[np.int64]]:
    """Indices of the checkpoints at which all models were scored, for equal windows and power.

    `axes` holds each model's tokens, steps or shares of training, increasing. The model with the
    fewest sets the grid; of it stay the points at which each other has a checkpoint of its own
    within the relative `tolerance`.

    Raises:
      UserError: fewer than four points remain.
    """
    grid = np.asarray(min(axes.values(), key=len), float)
    nearest = {}
    keep = np.ones(len(grid), bool)
    for name, axis in axes.items():
        distance = np.abs(np.asarray(axis, float)[:, None] - grid)
        nearest[name] = distance.argmin(axis=0)
        keep &= distance.min(axis=0) <= tolerance * np.abs(grid)
        keep &= distance[nearest[name]].argmin(axis=1) == np.arange(len(grid))
    if keep.sum() < FEWEST:
        raise UserError(
            f"{', '.join(axes)} share {keep.sum()} checkpoints within {tolerance:.0%}, and trends "
            f"need {FEWEST}: widen the tolerance or score more checkpoints"
        )
    return {name: index[keep] for name, index in nearest.items()}


def _chunks(count: int) -> Iterator[slice]:
    return (slice(at, min(at + _CHUNK, count)) for at in range(0, count, _CHUNK))


def _noise(losses: Floats, steps: Sequence[int], start: int, rule: Rule) -> tuple[Floats, Floats]:
    """Design of the line, and distribution of φ, told by evenly spaced tokens."""
    design = rule.design(steps[start:])
    some = losses[start:, :: max(1, -(-losses.shape[1] // _PRIOR_TOKENS))]
    return design, noise.fit(some.astype(np.float32), design).prior()


def _shares(classes: Classes) -> Floats:
    return np.bincount(classes, minlength=len(TRENDS)) / max(len(classes), 1)
