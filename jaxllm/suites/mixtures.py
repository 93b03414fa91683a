"""Mixtures around a corpus' own shares, for a swarm of small proxies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

TEMPERATURE = 0.5  # of the shares, so that rare domains are drawn more often than they occur
STRENGTHS = np.geomspace(0.1, 5.0, 15)  # of a Dirichlet: from single domains to nearly the shares
MOST = 15.0  # times its share: what a domain may get
FLOOR = 0.002  # what it gets at least, or half of its share, as a run knows no share of 0


def draw(shares: Mapping[str, float], count: int, seed: int = 0) -> list[dict[str, float]]:
    """Draw mixtures as RegMix does (arXiv 2407.01492, §3.1, with the constants of its code).

    A mixture r is from Dirichlet(s q), where q are the shares to the power TEMPERATURE, normalised,
    and s is one of STRENGTHS; it is drawn again if a domain has more than MOST times its share.
    RegMix drops domains below a minimum, and its rows miss 1 by rounding. Here each domain keeps
    its floor f, and the mixture is f + (1 - Σ f) r.

    Args:
      shares: domain -> its share of the corpus, on any scale.

    Returns:
      domain -> share, which sum to 1; a larger swarm begins with a smaller one's.
    """
    own = np.array(list(shares.values()), np.float64) / sum(shares.values())
    base = own**TEMPERATURE / (own**TEMPERATURE).sum()
    floor = np.minimum(FLOOR, own / 2)
    drawn = []
    for number in range(count):
        random = np.random.default_rng([seed, number])
        mixture = np.full(len(own), np.inf)
        while (mixture > MOST * own).any():
            mixture = random.dirichlet(random.choice(STRENGTHS) * base)
            mixture = floor + (1 - floor.sum()) * mixture
        drawn.append(dict(zip(shares, mixture.tolist(), strict=True)))
    return drawn
