"""Double descent of a subset of tokens: does its loss rise and later fall by more than noise?"""

from typing import NamedTuple

import numpy as np

from jaxllm.analysis.stats import Z95
from jaxllm.analysis.tokens import noise
from jaxllm.analysis.tokens.subsets import clustered_mean
from jaxllm.analysis.tokens.trends import Floats, Ints, Steps
from jaxllm.errors import UserError

FEWEST, _DEGREE, _DRAWS = 12, 5, 2000  # checkpoints; of the polynomial; of noise


class DoubleDescent(NamedTuple):
    """The largest rise that a fall follows, in nats of the subset's mean loss."""

    steps: tuple[int, ...]  # where the rise starts, the peak, where the fall ends
    rise: tuple[float, float, float]  # and its 95 % interval over documents, between these steps
    fall: tuple[float, float, float]
    p_value: float  # of the dip, the smaller of rise and fall


def double_descent(losses: Floats, steps: Steps, documents: Ints, seed: int = 0) -> DoubleDescent:
    """Test the mean of losses [S, n] for a rise and a later fall, against autoregressive noise.

    The statistic is the dip, the largest min(L_j − L_i, L_j − L_k) over i < j < k; the p-value is
    the share of flat curves with noise that reach it. Noise is what a polynomial of degree 5 and
    the log of the step do not follow, its φ and variance drawn from their restricted likelihood: at
    most 5 % of flat, falling and falling-then-rising curves have p < 0.05 for φ up to 0.8
    (simulated). A subset chosen by a rise in this very curve is significant by selection. UserError
    for fewer than 12 checkpoints with a finite mean.
    """
    finite = np.isfinite(losses).all(axis=1) & (losses.shape[1] > 0)
    if finite.sum() < FEWEST:
        raise UserError(
            f"double descent of {losses.shape[1]} tokens at {finite.sum()} checkpoints with finite "
            f"losses: score {FEWEST} or more, and choose a subset that is not empty"
        )
    losses, steps = losses[finite], np.asarray(steps)[finite].tolist()
    curve = losses.mean(axis=1, dtype=float)
    peak = int(np.argmax(_prominence(curve)))
    at = [int(np.argmin(curve[: peak + 1])), peak, peak + int(np.argmin(curve[peak:]))]
    moves, stderr = clustered_mean(losses[peak] - losses[[at[0], at[2]]], documents)
    low, high = (moves - Z95 * stderr).tolist(), (moves + Z95 * stderr).tolist()
    polynomial = np.polynomial.legendre.legvander(np.linspace(-1, 1, len(curve)), _DEGREE)
    design = np.column_stack([polynomial, np.log(np.maximum(steps, 1))])
    fit = noise.fit(np.repeat(curve[:, None], _DRAWS, axis=1), design)
    rng = np.random.default_rng(seed)
    phi, scale = fit.draw(np.ones(len(noise.PHIS)), rng)
    null = _prominence(noise.simulate(phi, scale, len(curve), rng)).max(axis=0)
    p_value = (1 + int((null >= moves.min()).sum())) / (1 + _DRAWS)
    rise, fall = zip(moves.tolist(), low, high, strict=True)
    return DoubleDescent(tuple(int(steps[index]) for index in at), rise, fall, p_value)


def _prominence(curves: Floats) -> Floats:
    """How far each point of curves [S, ...] lies above the lowest before it, and that after it."""
    before, after = (np.minimum.accumulate(c) for c in (curves, curves[::-1]))
    return np.asarray(curves - np.maximum(before, after[::-1]))
