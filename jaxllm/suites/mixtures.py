"""Suites of mixtures: a swarm of small proxies around a corpus' own shares, and the check of one.

Both are gin files that list their mixtures: what they train stays the same whatever draws them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from etils import epath

from jaxllm.analysis.mixtures.swarm import NATURAL
from jaxllm.errors import UserError
from jaxllm.io import atomic_write
from jaxllm.run.suite_layout import SuiteLayout
from jaxllm.suites.config import SuiteConfig
from jaxllm.suites.design import DIAL

MOST = 15.0  # times its share: what a domain may get
TRIES = 10_000  # draws after which limits leave no room
STRENGTHS = 15  # values from the least to the largest
WEIGHTS, SEED = "DataConfig.weights", "SEED"  # axes


@dataclasses.dataclass(frozen=True)
class Draw:
    """How mixtures are drawn; the defaults are RegMix's (arXiv 2407.01492, §3.1, and its code)."""

    seed: int = 0
    temperature: float = 0.5  # exponent of the shares; below 1 rare domains get more than they have
    weakest: float = 0.1  # of the Dirichlet's strengths: single domains
    strongest: float = 5.0  # nearly the shares
    floor: float = 0.002  # of a domain, or half of its share, as a run knows no share of 0
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)  # largest shares

    def __post_init__(self) -> None:
        strengths = 0 < self.weakest <= self.strongest
        if not strengths or self.temperature < 0 or not 0 < self.floor < 1:
            need = "need a temperature from 0, rising strengths above 0, and a share as floor"
            raise UserError(f"{self}: {need}")


def draw(
    shares: Mapping[str, float], count: int, how: Draw | None = None
) -> list[dict[str, float]]:
    """Draw mixtures, domain -> share, around shares of any scale; UserError if there is no room.

    A mixture r is from Dirichlet(s q), where q are the shares to the power of the temperature,
    normalised, and s is one of the strengths, equally spaced in their logarithm; it is drawn again
    if a domain has more than MOST times its share, or than its limit. Each domain keeps its floor
    f: f + (1 - Σ f) r, where RegMix drops domains below a minimum. A larger swarm begins with a
    smaller one's.
    """
    how = how or Draw()
    own = np.array(list(shares.values()), np.float64) / sum(shares.values())
    base = own**how.temperature / (own**how.temperature).sum()
    most = np.minimum(MOST * own, [how.limits.get(name, 1.0) for name in shares])
    floor = np.minimum(how.floor, np.minimum(own, most) / 2)
    strengths = np.geomspace(how.weakest, how.strongest, STRENGTHS)
    drawn: list[dict[str, float]] = []
    for number in range(count):
        random = np.random.default_rng([how.seed, number])
        for _ in range(TRIES):
            mixture = random.dirichlet(random.choice(strengths) * base)
            mixture = floor + (1 - floor.sum()) * mixture
            if (mixture <= most).all():
                break
        else:
            tight = ", ".join(f"{n} {s:.2g}" for n, s in zip(shares, most, strict=True) if s < 1)
            raise UserError(
                f"none of {TRIES:,} mixtures is within the largest shares {tight}: allow more "
                "repetition, or lower the budget"
            )
        drawn.append(dict(zip(shares, mixture.tolist(), strict=True)))
    return drawn


def swarm(
    shares: Mapping[str, float] | None, count: int, how: Draw | None = None
) -> dict[str, dict[str, float]]:
    """A name for each of `count` mixtures: the natural one, which is the shares, and drawn ones."""
    if not shares or len(shares) < 2:
        raise UserError("mixtures are drawn around DataConfig.weights: name two domains there")
    if count < 2:
        raise UserError(f"a swarm of {count} mixtures: need two")
    total = sum(shares.values())
    natural = {name: share / total for name, share in shares.items()}
    drawn = {f"mix{n:03}": one for n, one in enumerate(draw(shares, count - 1, how), 1)}
    return {NATURAL: natural, **drawn}


def spread(mixtures: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """The shares of each domain in a `swarm`: `domain, min, median, max, natural`."""
    shares = pd.DataFrame(mixtures).T
    found = shares.agg(["min", "median", "max"]).T.assign(natural=shares.loc[NATURAL])
    return found.reset_index(names="domain")


def write_suite(
    directory: str,
    files: Sequence[str],
    bindings: Sequence[str],
    mixtures: Mapping[str, Mapping[str, float]],
    times: float = 1.0,
    seeds: int | None = None,
    about: str = "",
) -> epath.Path:
    """Write the gin file of a suite of mixtures on top of the gin that is bound; return its path.

    `files` and `bindings` have been bound, as the file binds them again; `times` multiplies the
    parameters and tokens of the runs; `seeds` is their number for each mixture, None leaves them
    alone; `about` is a comment. UserError if the bound axes are not of one size that could grow.
    """
    axes = SuiteConfig().axes
    sizes = {} if isinstance(axes, tuple) else {name: axes[name] for name in DIAL if name in axes}
    if isinstance(axes, tuple) or not all(isinstance(n, int | float) for n in sizes.values()):
        raise UserError(f"SuiteConfig.axes = {axes}: mixtures are compared at one size: name one")
    grown = {"params": times, "tokens": times, "flops": times**2}
    if times != 1 and not grown.keys() & sizes.keys():
        raise UserError(
            "SuiteConfig.axes names neither params nor flops, of which --times could make more: "
            "check at the proxies' own size with --times=1"
        )
    axes = {n: v * grown.get(n, 1) if n in sizes else v for n, v in axes.items() if n != WEIGHTS}
    axes |= {} if seeds is None else {SEED: tuple(range(1, seeds + 1))}
    several = [axis for axis, value in axes.items() if isinstance(value, tuple | list)]
    name = "_".join(f"{{{axis.rpartition('.')[2]}}}" for axis in (WEIGHTS, *several))
    lines = [f"# {about}"] if about else []
    lines += [f"include {file!r}" for file in dict.fromkeys(["suites/base.gin", *files])]
    lines += [*bindings, f"SUITE_DIR = {directory!r}", f"SuiteConfig.name = {name!r}"]
    own = (f"    {axis!r}: {value!r}," for axis, value in axes.items())
    lines += ["SuiteConfig.axes = {", *own, f"    {WEIGHTS!r}: {{"]
    for label, mixture in mixtures.items():
        shares = ", ".join(f"{domain!r}: {share:.6g}" for domain, share in mixture.items())
        lines.append(f"        {label!r}: {{{shares}}},")
    file = SuiteLayout(directory).gin_file
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, "\n".join([*lines, "    },", "}", ""]))
    return file
