"""False skips of two rules on healthy AR(1) noise, and planted spikes that each misses.

    python benchmarks/skip_rules.py [--series=200] [--steps=2500]

A series is x[t] = phi x[t-1] + e[t], with normal, Student t (5 degrees) or log-normal noise, as of
losses and gradient norms. A value is skipped above mean + k sigma, or median + k 1.4826 MAD, of the
last `window` accepted values; ten consecutive skips empty the window. A spike is a value of 12
standard deviations of the series above it. Results: docs/resume.md.
"""

from __future__ import annotations

import argparse

import numpy as np

LONGEST = 10


def noise(kind: str, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Independent noise of mean 0 and variance 1."""
    if kind == "normal":
        return random.standard_normal(shape)
    if kind == "t5":
        return random.standard_t(5, shape) / np.sqrt(5 / 3)
    raw = np.exp(0.5 * random.standard_normal(shape))
    return (raw - np.exp(0.125)) / np.sqrt((np.exp(0.25) - 1) * np.exp(0.25))


def limit(rule: str, window: np.ndarray, k: float) -> np.ndarray:
    """The largest accepted value, [series]."""
    if rule == "mean":
        return np.nanmean(window, 1) + k * np.nanstd(window, 1)
    middle = np.nanmedian(window, 1)
    return middle + k * 1.4826 * np.nanmedian(np.abs(window - middle[:, None]), 1)


def skips(rule: str, k: float, size: int, values: np.ndarray) -> np.ndarray:
    """Which values [series, steps] are skipped."""
    window = np.full((len(values), size), np.nan)
    run, skipped = np.zeros(len(values), int), np.zeros(values.shape, bool)
    for step in range(values.shape[1]):
        new = values[:, step]
        out = step >= size // 2
        over = np.zeros(len(values), bool)
        if out:
            known = np.isfinite(window).sum(1) >= size // 2
            over = known & (new > np.nan_to_num(limit(rule, window, k), nan=np.inf))
        forced = over & (run >= LONGEST)
        skip = over & ~forced
        window[forced] = np.nan
        pushed = np.concatenate([window[:, 1:], new[:, None]], 1)
        window = np.where(skip[:, None], window, pushed)
        run = np.where(skip, run + 1, 0)
        skipped[:, step] = skip
    return skipped


def main() -> None:
    """Print a table: false skips per 10,000 steps, and the share of spikes found."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--series", type=int, default=200)
    flags.add_argument("--steps", type=int, default=2500)
    flags.add_argument("--window", type=int, default=128)
    args = flags.parse_args()
    random, shape = np.random.default_rng(0), (args.series, args.steps)
    print("noise  phi   rule    k   false/10,000   spikes found")
    for kind in ("normal", "t5", "lognormal"):
        for phi in (0.0, 0.5, 0.9, 0.99):
            values = np.sqrt(1 - phi**2) * noise(kind, shape, random)
            for step in range(1, args.steps):
                values[:, step] += phi * values[:, step - 1]
            spiked = values.copy()
            spiked[:, args.window + 50 :: 50] += 12.0
            places = np.zeros(shape, bool)
            places[:, args.window + 50 :: 50] = True
            for rule in ("mean", "median"):
                for k in (6.0, 8.0, 10.0):
                    false = skips(rule, k, args.window, values)[:, args.window :].mean()
                    found = skips(rule, k, args.window, spiked)[places].mean()
                    print(
                        f"{kind:9} {phi:4} {rule:6} {k:4g} {1e4 * false:10.3f} {found:12.3f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
