"""A final value from all runs of a suite at once: kriging over model size and time.

The values of a task are taken as one Gaussian field over (log parameters, log share of training)
about an unknown constant, seen through noise. Its covariance says what runs share:

    time k(t, t') + (size + drift k(t, t')) B(s, s') + run [same run]

where k = exp(-(t - t')^2 / 2 l^2) and B = range - |s - s'| is Brownian motion in log parameters:
the closer two models in size, the more of their level (`size`) and of their course (`drift`) they
share; runs of one size share all but a constant of their own (`run`). All variances are in units of
the noise at one point. The final value of an unfinished run is then the best linear unbiased
prediction from its own recent values and from all points of the finished runs (Goldberger 1962;
ordinary kriging: Cressie 1993, "Statistics for Spatial Data", section 3.2). A task at chance is all
noise, its best forecast a mean over runs and time; a task that grows has hardly any, its forecast
follows the run's own level and the gain of its neighbours. So the covariance differs between tasks:
`KERNELS` spans the range coarsely, and `forecast_methods.combine` weighs them by their errors.

The weights of the points depend on sizes and times only, so tasks scored at the same checkpoints
share them.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Variances over the noise's: per unit of log parameters, and of a run; time in log units."""

    size: float
    drift: float
    run: float
    time: float


KERNELS = (
    Kernel(0.3, 0.2, 0.0, 1.0), Kernel(1.0, 0.5, 0.0, 1.0), Kernel(3.0, 2.0, 0.3, 1.0),
    Kernel(10.0, 1.0, 1.0, 1.5), Kernel(1e3, 4.0, 10.0, 2.0), Kernel(1e3, 20.0, 20.0, 2.0),
)  # fmt: skip
"""From tasks that are all noise to tasks that are hardly any."""
COURSE = 30.0
"""Variance of the course that all runs share: so large that the data decide."""


def kriged(
    own: np.ndarray,
    own_size: float,
    finished: np.ndarray,
    sizes: np.ndarray,
    times: np.ndarray,
) -> np.ndarray:
    """Final values by every kernel, [targets, kernels].

    Args:
      own: Values of runs of one size at the first of `times`, [targets, early times].
      own_size: Their log parameters.
      finished: Values of finished runs, [runs, times].
      sizes: Their log parameters, [runs].
      times: Shares of training, ascending to 1, [times].
    """
    early = own.shape[1]
    weights = _weights(round(own_size, 3), early, tuple(sizes.round(3)), tuple(times.round(6)))
    return own @ weights[:, :early].T + weights[:, early:] @ finished.ravel()


@functools.lru_cache(maxsize=4096)
def _weights(
    own_size: float, early: int, sizes: tuple[float, ...], times: tuple[float, ...]
) -> np.ndarray:
    """Weights of the own early points and of the finished runs' points, [kernels, points]."""
    moments = np.log(times)
    # The last row is what is wanted: the target's size at the end of training.
    s = np.concatenate([np.full(early, own_size), np.repeat(sizes, len(times)), [own_size]])
    t = np.concatenate([moments[:early], np.tile(moments, len(sizes)), [0.0]])
    run = np.concatenate([np.full(early, -1), np.repeat(np.arange(len(sizes)), len(times)), [-1]])
    apart = np.abs(s[:, None] - s)
    nearness, same = max(float(apart.max()), 1.0) - apart, run[:, None] == run
    since, count = (t[:, None] - t) ** 2, len(s) - 1
    found = []
    for kernel in KERNELS:
        course = np.exp(-since / (2 * kernel.time**2))
        field = COURSE * course + (kernel.size + kernel.drift * course) * nearness
        field += kernel.run * same
        # The border of ones makes the weights sum to 1, whatever the constant is.
        system = np.ones((count + 1, count + 1))
        system[:count, :count] = field[:count, :count] + np.eye(count)
        system[count, count] = 0.0
        wanted = np.append(field[:count, count], 1.0)
        found.append(np.linalg.solve(system, wanted)[:count])
    return np.stack(found)
