"""Suites of mixtures: a swarm of small proxies around a corpus' own shares, and the check of one.

Both are gin files that list their mixtures: what they train stays the same whatever draws them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
    """How mixtures are drawn; the defaults are RegMix's (arXiv 2407.01492, §3.1, and its code).

    Attributes:
      seed: of the draws.
      temperature: exponent of the shares; below 1 rare domains get more than they have.
      weakest, strongest: of the Dirichlet's strengths: from single domains to nearly the shares.
      floor: what a domain gets at least, or half of its share, as a run knows no share of 0.
      limits: domain -> its largest share, where data would be repeated too often.
    """

    seed: int = 0
    temperature: float = 0.5
    weakest: float = 0.1
    strongest: float = 5.0
    floor: float = 0.002
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        strengths = 0 < self.weakest <= self.strongest
        if not strengths or self.temperature < 0 or not 0 < self.floor < 1:
            raise UserError(
                f"a swarm of temperature {self.temperature:g}, strengths {self.weakest:g} to "
                f"{self.strongest:g} and floor {self.floor:g}: need 0 or more, two rising numbers "
                "above 0, and a share"
            )


def draw(
    shares: Mapping[str, float], count: int, how: Draw | None = None
) -> list[dict[str, float]]:
    """Draw mixtures around shares.

    A mixture r is from Dirichlet(s q), where q are the shares to the power of the temperature,
    normalised, and s is one of the strengths, equally spaced in their logarithm; it is drawn again
    if a domain has more than MOST times its share, or than its limit. RegMix drops domains below a
    minimum, and its rows miss 1 by rounding. Here each domain keeps its floor f, and the mixture is
    f + (1 - Σ f) r.

    Args:
      shares: domain -> its share of the corpus, on any scale.

    Returns:
      domain -> share, which sum to 1; a larger swarm begins with a smaller one's.

    Raises:
      UserError: the limits leave no room.
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
    """A name for each of `count` mixtures: the natural one, which is the shares, and drawn ones.

    Raises:
      UserError: no shares to draw around, or as `draw`.
    """
    if not shares or len(shares) < 2:
        raise UserError("mixtures are drawn around DataConfig.weights: name two domains there")
    if count < 2:
        raise UserError(f"a swarm of {count} mixtures: need two")
    total = sum(shares.values())
    natural = {name: share / total for name, share in shares.items()}
    drawn = {f"mix{n:03}": one for n, one in enumerate(draw(shares, count - 1, how), 1)}
    return {NATURAL: natural, **drawn}


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

    Args:
      directory: of the suite, and of the file.
      files, bindings: what has been bound, as the file binds it again.
      mixtures: name -> domain -> share.
      times: what the parameters and the tokens of the runs are multiplied by.
      seeds: number of seeds of each mixture; None leaves them alone.
      about: how the mixtures came about, for a comment.

    Raises:
      UserError: the bound axes are not of one size that could grow.
    """
    axes = {name: value for name, value in _axes(times).items() if name != WEIGHTS}
    axes |= {} if seeds is None else {SEED: tuple(range(1, seeds + 1))}
    several = [axis for axis, value in axes.items() if isinstance(value, tuple | list)]
    name = "_".join(f"{{{axis.rpartition('.')[2]}}}" for axis in (WEIGHTS, *several))
    lines = [f"# {about}"] if about else []
    lines += [f"include {file!r}" for file in dict.fromkeys(["suites/base.gin", *files])]
    lines += [*bindings, f"SUITE_DIR = {directory!r}", f"SuiteConfig.name = {name!r}"]
    lines += [
        "SuiteConfig.axes = {",
        *(f"    {axis!r}: {value!r}," for axis, value in axes.items()),
    ]
    lines.append(f"    {WEIGHTS!r}: {{")
    for label, mixture in mixtures.items():
        shares = ", ".join(f"{domain!r}: {share:.6g}" for domain, share in mixture.items())
        lines.append(f"        {label!r}: {{{shares}}},")
    file = SuiteLayout(directory).gin_file
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, "\n".join([*lines, "    },", "}", ""]))
    return file


def _axes(times: float) -> dict[str, Any]:
    """The bound axes, with `times` the parameters and tokens."""
    axes = SuiteConfig().axes
    if isinstance(axes, tuple) or not all(
        isinstance(axes.get(name, 1), int | float) for name in DIAL
    ):
        raise UserError(f"SuiteConfig.axes = {axes}: mixtures are compared at one size: name one")
    grown = {"params": times, "tokens": times, "flops": times**2}
    if times != 1 and not grown.keys() & axes.keys():
        raise UserError(
            "SuiteConfig.axes names neither params nor flops, of which --times could make more: "
            "check at the proxies' own size with --times=1"
        )
    return {name: value * grown[name] if name in grown else value for name, value in axes.items()}
