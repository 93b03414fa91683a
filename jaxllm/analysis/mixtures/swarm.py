"""Swarm: runs that differ in their mixture alone, and what was measured of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from jaxllm.analysis.curves import Array, lower_is_better
from jaxllm.errors import UserError
from jaxllm.run.records import OK

NATURAL = "natural"  # name of the run on the natural mixture
TOLERANCE = 0.02  # by which shares may miss 1; published tables are rounded


@dataclasses.dataclass(frozen=True)
class Swarm:
    """Runs on mixtures; see `of`."""

    names: tuple[str, ...]  # of the runs [n]
    domains: tuple[str, ...]  # of the corpus [k]
    targets: tuple[str, ...]  # measured [t]: losses, or task metrics of which less is better
    shares: Array  # [n, k], rows on the simplex
    values: Array  # [n, t], finite
    params: Array  # [n], NaN where not known
    steps: Array  # [n], NaN where not known
    notes: tuple[str, ...] = ()  # what was left out or corrected

    @classmethod
    def of(
        cls,
        shares: pd.DataFrame,
        values: pd.DataFrame,
        params: Sequence[float] | None = None,
        steps: Sequence[float] | None = None,
    ) -> Swarm:
        """A swarm from a table of shares and one of values, a row for each run in both.

        Runs without a finite value of every target are left out and counted. UserError for shares
        that are negative or do not sum to 1, a domain that no run trained on, a target that no run
        measured, or no run at all.
        """
        domains, targets = tuple(map(str, shares)), tuple(map(str, values))
        x, y = shares.to_numpy("float64"), values.to_numpy("float64")
        names = tuple(map(str, shares.index))
        if not len(x) or not domains or not targets:
            raise UserError(f"{len(x)} runs, {len(domains)} domains and {len(targets)} targets")
        total = x.sum(axis=1)
        wrong = ~((np.abs(total - 1) <= TOLERANCE) & (x >= 0).all(axis=1))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            negative = (x[row] < 0).any()
            what = "are below 0 in part" if negative else f"sum to {total[row]:.4g}"
            raise UserError(f"shares of run {names[row]} {what} ({wrong.sum()} such runs)")
        for target, measured in zip(targets, np.isfinite(y).any(axis=0), strict=True):
            if not measured:
                raise UserError(f"no run measured the target {target}")
        good, notes = np.isfinite(y).all(axis=1), []
        if not good.all():
            first = names[int(np.flatnonzero(~good)[0])]
            notes.append(
                f"{(~good).sum()} of {len(good)} runs lack a finite value of some target and are "
                f"left out (first: {first})"
            )
        if not good.any():
            raise UserError("no run measured all of the targets: name fewer targets")
        x, total = x[good], total[good]
        for name, share in zip(domains, x.max(axis=0), strict=True):
            if not share > 0:
                raise UserError(f"no run trained on the domain {name}: leave it out of the shares")
        if (off := np.abs(total - 1) > 1e-6).any():
            notes.append(f"shares of {off.sum()} runs miss 1 by up to {np.abs(total - 1).max():.2g}"
                         ": scaled")  # fmt: skip
        unknown = np.full(len(good), np.nan)
        return cls(
            tuple(name for name, keep in zip(names, good, strict=True) if keep), domains, targets,
            x / total[:, None], y[good],
            unknown[good] if params is None else np.asarray(params, "float64")[good],
            unknown[good] if steps is None else np.asarray(steps, "float64")[good],
            tuple(notes),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, which: npt.NDArray[Any]) -> Swarm:
        """The runs that a mask or indices select."""
        keep = np.arange(len(self))[which]
        return dataclasses.replace(
            self, names=tuple(self.names[i] for i in keep), shares=self.shares[keep],
            values=self.values[keep], params=self.params[keep], steps=self.steps[keep],
        )  # fmt: skip

    def only(self, targets: Sequence[str]) -> Swarm:
        """The swarm with some of its targets; UserError for one that it lacks."""
        for name in targets:
            if name not in self.targets:
                raise UserError(f"no proxy measured {name}; targets: {', '.join(self.targets)}")
        columns = [self.targets.index(name) for name in targets]
        return dataclasses.replace(self, targets=tuple(targets), values=self.values[:, columns])

    def check_alike(self) -> None:
        """Raise UserError if the runs differ in size or in steps."""
        for what, numbers in (("params", self.params), ("steps", self.steps)):
            known = np.unique(numbers[np.isfinite(numbers)])
            if len(known) > 1 and known[-1] > known[0] * 1.001:
                raise UserError(
                    f"the runs differ in {what} ({known[0]:g} to {known[-1]:g}): select one of "
                    f"them, or extrapolate to --at_{what}=N"
                )

    @property
    def natural(self) -> Array | None:
        """Shares [k] of the run named natural, whatever else its name says; None without one."""
        rows = [i for i, name in enumerate(self.names) if name.split("_")[0] == NATURAL]
        return self.shares[rows[0]] if rows else None

    def size(self, axis: str) -> float:
        """What all runs have along an axis, "params" or "steps"; NaN where it is not known."""
        known = np.unique(getattr(self, axis))
        return float(known[0]) if len(known) == 1 else float("nan")


def swarm_of(records: pd.DataFrame, mixtures: Mapping[str, Mapping[str, float]]) -> Swarm:
    """The swarm of runs with their mixtures, by their last records; UserError as `Swarm.of`.

    What was measured is the bits per byte of all tasks that have them, or else each task's main
    metric, as its negative where more is better. Of runs that differ in size or steps, those of the
    commonest.
    """
    known = records[(records.status == OK) & records.run.isin(list(mixtures))]
    bits = known.metric == "bits_per_byte"
    known = known[bits] if bits.any() else known[known.primary.astype(bool)]
    known = known[known.step == known.groupby("run").step.transform("max")]
    up = ~known.metric.map(lower_is_better).astype(bool)
    named = known.task + "/" + known.metric
    known = known.assign(
        target=named.where(~up, "-" + named), value=known.value.where(~up, -known.value)
    )
    ends = known.groupby("run", sort=False)[["params", "step"]].max()
    if ends.empty:
        raise UserError("no run with a known mixture has been scored")
    alike = (ends == ends.value_counts().index[0]).all(axis=1)
    values = known.pivot_table(index="run", columns="target", values="value", sort=False)
    values = values.loc[ends.index[alike]]
    shares = pd.DataFrame({run: mixtures[run] for run in values.index}).T.fillna(0.0)
    ends = ends.loc[values.index]
    found = Swarm.of(shares, values, list(ends.params), list(ends.step))
    left = (
        f"{(~alike).sum()} of {len(alike)} runs are of another size or number of steps and are "
        "left out"
    )
    return found if alike.all() else dataclasses.replace(found, notes=(*found.notes, left))
