"""Robust least squares for many weightings of one table at once: folds, bootstrap draws, starts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxllm.analysis.curves import Array

# Parameters [B, P] -> predictions [B, n] and their derivatives [B, n, P].
Model = Callable[[Array], tuple[Array, Array]]
_EASED = 10.0  # factor on the damping after a failed step; its square root after a good one


def levenberg_marquardt(
    model: Model,
    start: Array,
    y: Array,
    weights: Array,
    prior: Array,
    precision: Array,
    scale: float = np.inf,
    iterations: int = 80,
) -> tuple[Array, Array]:
    """Minimise Σ w ρ(y - f(θ)) + Σ precision (θ - prior)² for B problems at once.

    ρ(r) = 2 s² (√(1 + (r/s)²) - 1) is the soft L1 loss with `scale` s, by iterated weights.

    `start` is [B, P], and so are prior and precision or their rows [P]; y [n]; weights [B, n], of
    which 0 leaves a row out. Returns θ [B, P] and the minima [B].
    """
    theta, identity = start.copy(), np.eye(start.shape[1])

    def cost_of(theta: Array, predicted: Array) -> Array:
        square = (y - predicted) ** 2
        if np.isfinite(scale):
            square = 2 * scale**2 * (np.sqrt(1 + square / scale**2) - 1)
        total = (weights * square).sum(axis=1) + (precision * (theta - prior) ** 2).sum(axis=1)
        return np.where(np.isfinite(total), total, np.inf)

    with np.errstate(all="ignore"):
        predicted, slopes = model(theta)
        cost, damping = cost_of(theta, predicted), np.full(len(theta), 1e-2)
        for _ in range(iterations):
            residual = y - predicted
            w = weights / np.sqrt(1 + (residual / scale) ** 2)
            weighted = (slopes * w[:, :, None]).swapaxes(1, 2)
            gradient = (weighted @ residual[:, :, None])[..., 0] - precision * (theta - prior)
            curvature = weighted @ slopes + precision * identity
            diagonal = np.einsum("bpp->bp", curvature) + 1e-12
            damped = curvature + (damping[:, None] * diagonal)[:, :, None] * identity
            step = np.linalg.solve(damped, gradient[:, :, None])[..., 0]
            trial = theta + step
            new_predicted, new_slopes = model(trial)
            new = cost_of(trial, new_predicted)
            better = new < cost
            gain = float(np.max(np.where(better, (cost - new) / cost, 0.0)))
            theta[better], cost = trial[better], np.where(better, new, cost)
            predicted[better], slopes[better] = new_predicted[better], new_slopes[better]
            damping = np.clip(damping * np.where(better, _EASED**-0.5, _EASED), 1e-9, 1e9)
            if gain < 1e-7 and (better | (damping > 1e3)).all():
                break
    return theta, cost
