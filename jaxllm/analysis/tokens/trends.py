"""Trends of tokens: stagnated, upward (forgotten), downward (still learned), by rule and by test.

Xia et al. 2023 (arXiv 2212.09803, equation 1) sort tokens by an ordinary line through their
perplexity after p % of training: `PAPER`; their code does it otherwise: `CODE`. Both call up to a
third of the series that only wander upward, as many downward. Beside them stands a line through the
loss, tested under autoregressive noise (`noise`) and corrected for the number of tokens (Benjamini
and Hochberg 1995). `trend_table` has both for a run, and for surrogates of it without trend.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from jaxllm.analysis.stats import false_discovery
from jaxllm.analysis.tokens import noise
from jaxllm.analysis.tokens.noise import Floats
from jaxllm.errors import UserError

Ints = npt.NDArray[np.integer]
Classes = npt.NDArray[np.int8]
Flags = npt.NDArray[np.bool_]
Steps = Sequence[int]
_Fit = tuple[noise.NoiseFit, Floats, slice]
Kind = Literal["permuted", "autoregressive"]
TRENDS = ("unclassified", "stagnated", "upward", "downward")  # a class is the index of its name
AFTER = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # p, as a share of the last step
FEWEST = 4  # checkpoints of a window
LEVEL = 0.05  # of the rules' p-values, and of false discoveries
_CHUNK, _PRIOR_TOKENS = 4096, 20_000  # tokens at once; tokens that tell the distribution of φ


@dataclasses.dataclass(frozen=True)
class Rule:
    """How tokens are sorted by the ordinary line through their perplexity."""

    axis: Literal["index", "log step"]  # x of the line
    start: Literal["first after", "nearest"]  # checkpoint at which the line starts
    stagnated: Literal["equation 1", "code"]

    def starts(self, steps: Steps, after: float) -> tuple[int, int]:
        """Indices where line and test for stagnation start; UserError for fewer than four after."""
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

    def design(self, steps: Steps) -> Floats:
        """Columns 1 and x [S, 2] of the line; x is centered and 1 wide: the slope is the change."""
        log = self.axis == "log step"
        x = np.log(np.maximum(steps, 1)) if log else np.arange(len(steps), dtype=float)
        return np.stack([np.ones(len(steps)), (x - x.mean()) / np.ptp(x)], axis=1)


PAPER = Rule("index", "first after", "equation 1")
CODE = Rule("log step", "nearest", "code")  # the axis as intended: the code's is one number


def classify(losses: Floats, steps: Steps, after: float, rule: Rule = PAPER) -> Classes:
    """Class [n] of each token by a rule, from its losses [S, n] in nats; NaN: unclassified.

    `after` is a share of the last step; raises UserError if fewer than four checkpoints follow.
    """
    return _by_rule(losses, steps, after, rule)[0]


def _by_rule(losses: Floats, steps: Steps, after: float, rule: Rule) -> tuple[Classes, Flags]:
    """Classes [n] as in `classify`, and whether each token is flat, with or without a trend."""
    (line, flat), code = rule.starts(steps, after), rule.stagnated == "code"
    x = rule.design(steps[line:])[:, 1].astype(np.float32)
    spread, dof = float(x @ x), len(x) - 2
    critical, (low, high) = stats.t.isf(LEVEL / 2, dof), np.log([0.95, 1.05])
    classes = np.zeros(losses.shape[1], np.int8)
    flat_tokens = np.zeros(len(classes), bool)
    for at in range(0, len(classes), _CHUNK):
        part = slice(at, at + _CHUNK)
        chunk = losses[:, part].astype(np.float32)
        with np.errstate(all="ignore"):
            ratio = np.exp(chunk[line:] - chunk[line])
            ratio -= ratio.mean(axis=0)
            slope = x @ ratio / spread
            rss = np.maximum(np.einsum("sn,sn->n", ratio, ratio) - slope**2 * spread, 0)
            t = slope / np.sqrt(rss / dof / spread)
            mean = chunk[flat:].mean(axis=0)
            ends = (chunk[[flat, -1]] - mean) * (-1 if code else 1)  # its ratios are the inverse
            stagnated = ((low <= ends) & (ends <= high)).all(axis=0)
            if code:
                stagnated &= np.exp(chunk[flat:]).var(axis=0) < np.exp(mean)
        flat_tokens[part] = stagnated
        classes[part] = np.select([t > critical, t < -critical, stagnated], [2, 3, 1])
    return classes, flat_tokens


@dataclasses.dataclass(frozen=True)
class TokenTrends:
    """Trends of n tokens from the checkpoint with index `start` on."""

    start: int
    classes: Classes  # [n], by the rule
    flat: Flags  # [n], by the rule's test of stagnation, whatever its line says
    change: Floats  # [n], nats over the window, along the line
    stderr: Floats  # [n], of `change`
    p_value: Floats  # [n], of no trend under autoregressive noise
    q_value: Floats  # [n], adjusted over the tokens

    def controlled(self) -> Classes:
        """Classes [n] by the test, at most 5 % of the trends false; of the others `flat` ones."""
        trend = np.where(self.change > 0, 2, 3)
        return np.where(self.q_value < LEVEL, trend, self.flat).astype(np.int8)


def token_trends(losses: Floats, steps: Steps, after: float, rule: Rule = PAPER) -> TokenTrends:
    """Sort tokens by a rule as `classify` does, and test the line through their losses [S, n]."""
    by_rule = _by_rule(losses, steps, after, rule)
    start = rule.starts(steps, after)[0]
    tested = [fit.test(prior) for fit, prior, _ in _fits(losses, steps, start, rule)]
    change, stderr, p_value = np.concatenate(tested, axis=1).astype(np.float32)
    return TokenTrends(start, *by_rule, change, stderr, p_value, false_discovery(p_value))


def surrogate(
    losses: Floats, steps: Steps, after: float, kind: Kind, rule: Rule = PAPER, seed: int = 0
) -> Floats:
    """Losses [S, n] without trend: each token's after p % permuted, which makes its noise white,
    or redrawn as AR(1) around its mean, φ and variance drawn from what its losses tell of them.
    """
    start = min(rule.starts(steps, after))
    rng = np.random.default_rng(seed)
    result = losses.astype(np.float32)
    if kind == "permuted":
        rng.permuted(result[start:], axis=0, out=result[start:])
        return result
    for fit, prior, part in _fits(losses, steps, start, rule):
        drawn = noise.simulate(*fit.draw(prior, rng), len(steps) - start, rng)
        result[start:, part] = result[start:, part].mean(axis=0) + drawn - drawn.mean(axis=0)
    return result


def trend_table(
    losses: Floats, steps: Steps, afters: Sequence[float] = AFTER, rule: Rule = PAPER,
    surrogate_tokens: int = 20_000, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Shares of the classes at every p, with what noise alone would give.

    A row per `after` and `trend`: `checkpoints` of the window, `tokens` of the class by the rule,
    their `share`, its null rates in surrogates without trend, `permuted` and `autoregressive`;
    `controlled`, …, the same with controlled false discoveries; `change`, their median in nats.
    Surrogates are of at most so many evenly spaced tokens: 5 % of 20,000 has a stderr of 0.15 %.
    """
    rows = []
    some = losses[:, :: -(-losses.shape[1] // surrogate_tokens)]
    for after in afters:
        seen = token_trends(losses, steps, after, rule)
        nulls = {
            kind: token_trends(surrogate(some, steps, after, kind, rule, seed), steps, after, rule)
            for kind in ("permuted", "autoregressive")
        }
        for index, name in enumerate(TRENDS):
            by_rule, chosen = seen.classes == index, seen.controlled() == index
            rows.append({
                "after": after, "trend": name, "checkpoints": len(steps) - seen.start,
                "tokens": by_rule.sum(), "share": by_rule.mean(), "controlled": chosen.mean(),
                **{kind: (null.classes == index).mean() for kind, null in nulls.items()},
                **{f"controlled_{k}": (v.controlled() == index).mean() for k, v in nulls.items()},
                "change": np.nanmedian(seen.change[chosen]) if chosen.any() else np.nan,
            })  # fmt: skip
    return pd.DataFrame(rows)


def common_checkpoints(
    axes: Mapping[str, Sequence[float]], tolerance: float = 0.1
) -> dict[str, Ints]:
    """Indices of the checkpoints that all models have, so that windows and power are equal.

    `axes` holds each model's tokens, steps or shares of training. Of the shortest those stay that
    each other has a checkpoint of its own for, within `tolerance`; UserError for fewer than four.
    """
    grid = np.asarray(min(axes.values(), key=len), float)
    nearest, common = {}, np.ones(len(grid), bool)
    for name, axis in axes.items():
        distance = abs(np.asarray(axis, float)[:, None] - grid)
        nearest[name] = distance.argmin(axis=0)
        common &= distance.min(axis=0) <= tolerance * abs(grid)
        common &= distance[nearest[name]].argmin(axis=1) == np.arange(len(grid))
    if common.sum() < FEWEST:
        raise UserError(
            f"{', '.join(axes)} share {common.sum()} checkpoints within {tolerance:.0%}, and "
            f"trends need {FEWEST}: widen the tolerance or score more checkpoints"
        )
    return {name: index[common] for name, index in nearest.items()}


def _fits(losses: Floats, steps: Steps, start: int, rule: Rule) -> Iterator[_Fit]:
    """Fits of the tokens by chunks, with the prior of φ that evenly spaced tokens tell."""
    design = rule.design(steps[start:])
    some = losses[start:, :: -(-losses.shape[1] // _PRIOR_TOKENS)]
    prior = noise.fit(some.astype(np.float32), design).prior()
    for at in range(0, losses.shape[1], _CHUNK):
        part = slice(at, at + _CHUNK)
        yield noise.fit(losses[start:, part].astype(np.float32), design), prior, part
