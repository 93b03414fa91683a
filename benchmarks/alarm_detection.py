"""How well the alarms of a run in progress detect what they are for, and how often they are false.

    python benchmarks/alarm_detection.py

Faults are planted in simulated logs, healthy otherwise: a loss that falls with the logarithm of the
tokens, with AR(1) noise of standard deviation 0.03 at correlation 0, 0.5 and 0.9 of neighbouring
lines, and a log-normal gradient norm. `jaxllm.analysis.health.watch.Watch` reads each line by line.
A fault is detected if one of the alarms named for it is raised after its beginning; the delay is in
logged steps. False alarms are those of logs without a fault, per 10,000 logged steps, with the
exact interval of a Poisson rate (Garwood 1936); recall has that of a share (Clopper, Pearson 1934).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import signal, stats

from jaxllm.analysis.health.result import Check
from jaxllm.analysis.health.watch import Watch

LINES, BEGIN = 1600, 800  # logged steps, and the one at which a fault begins
CORRELATIONS = (0.0, 0.5, 0.9)
NOISE = 0.03
OLMO = Path(__file__).parents[1] / "../shared/data/reference/olmo_trajectories/olmo-1b.csv.gz"
# Steps around which the published evaluations have bumps.
OLMO_BUMPS = (82_000, 90_000, 189_000, 202_000, 237_000, 335_000)


def healthy(seed: int, correlation: float, lines: int = LINES) -> pd.DataFrame:
    """A log without a fault."""
    rng = np.random.default_rng([seed, int(100 * correlation)])
    innovations = rng.normal(0, NOISE * math.sqrt(1 - correlation**2), lines + 200)
    noise = signal.lfilter([1.0], [1.0, -correlation], innovations)[200:]
    step = np.arange(1, lines + 1)
    log = pd.DataFrame({"step": step, "tokens": step * 1000.0})
    log["loss"] = 3 - 0.1 * np.log2(step / lines) + noise
    log["grad_norm"] = rng.lognormal(0, 0.2, lines)
    log["learning_rate"] = 1e-3 * np.minimum(step / 50, 1) * (1 - 0.5 * step / lines)
    return log


def _since(log: pd.DataFrame) -> np.ndarray:
    return (log.step - BEGIN).clip(lower=0).to_numpy(float)


def _recovering(log: pd.DataFrame) -> None:
    since = _since(log)
    log["loss"] += np.where(since > 0, 1.5 * np.exp(-(since - 1) / 15), 0)


def _lasting(log: pd.DataFrame) -> None:
    log["loss"] += np.where(_since(log) > 0, 1.0, 0)


def _drift(log: pd.DataFrame) -> None:
    log["loss"] += 0.2 * _since(log) / 1000


def _gradient_drift(log: pd.DataFrame) -> None:
    log["grad_norm"] *= np.exp(_since(log) / 500)


def _plateau(log: pd.DataFrame) -> None:
    log["loss"] += 0.1 * np.log2(log.step.clip(lower=BEGIN) / BEGIN)


def _switch(size: float) -> Callable[[pd.DataFrame], None]:
    def plant(log: pd.DataFrame) -> None:
        log["loss"] += np.where(_since(log) > 0, size, 0)

    return plant


def _nan(log: pd.DataFrame) -> None:
    log.loc[log.step == BEGIN, "loss"] = math.nan


def _dead(log: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    for layer in range(4):
        log[f"grad_norm/layer_{layer}"] = rng.lognormal(0, 0.5, len(log))
    log["grad_norm/layer_2"] *= np.where(_since(log) > 0, 1e-6, 1)


class Kind(NamedTuple):
    """A kind of fault: how it is planted, and the checks that may detect it."""

    plant: Callable[[pd.DataFrame], None]
    checks: tuple[str, ...]
    lines: int = LINES


_LOSS = ("loss spikes", "loss level", "plateau")
KINDS: Mapping[str, Kind] = {
    "spike that recovers": Kind(_recovering, ("loss spikes",)),
    "spike that does not": Kind(_lasting, ("loss spikes",)),
    "slow drift of the loss": Kind(_drift, _LOSS),
    "slow drift of the gradient norm": Kind(_gradient_drift, ("gradient norm",)),
    "plateau": Kind(_plateau, ("plateau",)),
    "plateau, of two doublings": Kind(_plateau, ("plateau",), 2 * LINES),
    "data switch, loss +0.12": Kind(_switch(0.12), _LOSS),
    "data switch, loss -0.12": Kind(_switch(-0.12), ("loss level",)),
    "NaN": Kind(_nan, ("finite loss",)),
    "dead layer": Kind(_dead, ("dead layers",)),
}


def follow(log: pd.DataFrame) -> Iterator[tuple[int, Check]]:
    """The messages of a run, alarms and all-clears, with their logged step."""
    watch = Watch()
    for row in log.to_dict("records"):
        for check in watch.on_metrics(row):
            yield int(row["step"]), check


def detected(kind: Kind, seed: int, correlation: float) -> tuple[float, bool]:
    """The delay of the first alarm, infinite without one; and whether it was cleared."""
    log = healthy(seed, correlation, kind.lines)
    kind.plant(log)
    delay = math.inf
    for step, check in follow(log):
        if check.name in kind.checks and step >= BEGIN:
            delay = min(delay, step - BEGIN)
            if not check.raised or kind.plant is not _recovering:
                return delay, not check.raised
    return delay, False


def share(hits: int, tries: int) -> tuple[float, float]:
    """The exact 95 % interval of a share."""
    interval = stats.binomtest(hits, tries).proportion_ci()
    return float(interval.low), float(interval.high)


def rate(events: int, steps: int) -> tuple[float, float, float]:
    """Events per 10,000 steps, with the exact 95 % interval."""
    low = stats.chi2.ppf(0.025, 2 * events) / 2 if events else 0.0
    high = stats.chi2.ppf(0.975, 2 * events + 2) / 2
    return events / steps * 1e4, float(low) / steps * 1e4, float(high) / steps * 1e4


def false_alarms(logs: Iterator[pd.DataFrame]) -> tuple[dict[str, int], int]:
    """The alarms of healthy logs by check, and the logged steps."""
    found: dict[str, int] = {}
    steps = 0
    for log in logs:
        steps += len(log)
        for _, check in follow(log):
            if check.raised:
                found[check.name] = found.get(check.name, 0) + 1
    return found, steps


def olmo(path: Path = OLMO) -> Iterator[pd.DataFrame]:
    """The validation losses of OLMo 1B, without the evaluations around its bumps."""
    table = pd.read_csv(path)
    table = table[table.metric == "CrossEntropyLoss"]
    near = np.zeros(len(table), bool)
    for bump in OLMO_BUMPS:
        near |= (table.step - bump).abs().to_numpy() <= 3000
    for _, rows in table[~near].groupby("task"):
        yield rows.rename(columns={"value": "loss"})[["step", "tokens", "loss"]].sort_values("step")


def main(argv: list[str] | None = None) -> int:
    """Print both tables; exit code 1 if a rate of false alarms is above 1 in 10,000."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    flags.add_argument("--tries", type=int, default=20, help="logs of a kind and correlation")
    flags.add_argument("--part", choices=("all", "faults", "healthy"), default="all")
    args = flags.parse_args(argv)
    tries, part = args.tries, args.part
    print(f"{'fault':34}{'recall':>10}  {'95 %':14}{'median (90 %) delay':>20}  cleared")
    for name, kind in KINDS.items() if part != "healthy" else ():
        every = [detected(kind, seed, c) for c in CORRELATIONS for seed in range(tries)]
        delays = np.sort([delay for delay, _ in every if delay < math.inf])
        low, high = share(len(delays), len(every))
        middle, long = np.quantile(delays, [0.5, 0.9]) if len(delays) else (math.nan, math.nan)
        hits, interval = f"{len(delays)} of {len(every)}", f"{low:.2f} to {high:.2f}"
        cleared = sum(end for _, end in every)
        told = f"{middle:.0f} ({long:.0f})"
        print(f"{name:34}{hits:>10}  {interval:14}{told:>20}  {cleared}", flush=True)
    if part == "faults":
        return 0
    series: dict[str, Any] = {
        f"AR(1), {c}": (healthy(seed, c, 3 * LINES) for seed in range(1000, 1000 + tries))
        for c in CORRELATIONS
    }
    if OLMO.exists():
        series["OLMo 1B, validation losses"] = olmo()
    worst = 0.0
    print(f"\n{'healthy':34}{'steps':>9}{'alarms':>8}{'per 10,000':>12}  95 %")
    for name, logs in series.items():
        found, steps = false_alarms(logs)
        per, low, high = rate(sum(found.values()), steps)
        worst = max(worst, per)
        count, interval = sum(found.values()), f"{low:.2f} to {high:.2f}"
        print(f"{name:34}{steps:9,}{count:8}{per:12.2f}  {interval}  {found or ''}", flush=True)
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
