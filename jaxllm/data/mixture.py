"""The domain of sequence i of a run, and its index among the domain's sequences.

Sequence i has the point u_i = frac(i / golden ratio + offset), and comes from the domain whose
share of the unit interval contains u_i. These points are as evenly spread as possible (a Weyl
sequence with the golden ratio: Kuipers and Niederreiter, "Uniform Distribution of Sequences", 1974,
chapter 2.3), so in *every* window of n sequences a domain is within O(log n) of its share: batches
are alike, and the mixture adds no noise to the loss per domain.

The number of a domain's sequences before i is a sum of floors of a line, which Euclid's algorithm
evaluates in O(log i) steps: a resumed run seeks without a replay. All arithmetic is in integers
modulo 2^64, hence exact on every machine.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

MODULUS = 1 << 64
STEP = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, made odd


class Mixture:
    """Sequences of several domains, interleaved by weight."""

    def __init__(self, weights: Sequence[float], key: int = 0) -> None:
        shares = np.asarray(weights, dtype=np.float64)
        if shares.ndim != 1 or not shares.size or not np.all(shares > 0):
            raise ValueError(f"weights must be positive: {weights}")
        self.weights = shares / shares.sum()  # [D]
        self._offset = key % MODULUS
        edges = [round(float(edge) * 2**53) << 11 for edge in np.cumsum(self.weights)[:-1]]
        self._edges = [0, *edges, MODULUS]  # domain d owns [edges[d], edges[d + 1])
        self._inner = np.asarray(edges, dtype=np.uint64)

    def sequences(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The domain of sequences start .. start + count - 1, and their index in it, from 0.

        Both are int64 [count].
        """
        first = np.uint64((start * STEP + self._offset) % MODULUS)
        points = first + np.arange(count, dtype=np.uint64) * np.uint64(STEP)  # modulo 2^64
        domains = np.searchsorted(self._inner, points, side="right").astype(np.int64)
        indices = np.empty(count, dtype=np.int64)
        for domain in np.unique(domains):
            own = domains == domain
            indices[own] = self.count(int(domain), start) + np.arange(int(own.sum()))
        return domains, indices

    def count(self, domain: int, stop: int) -> int:
        """Number of the sequences 0 .. stop - 1 that come from `domain`."""
        low, high = self._edges[domain], self._edges[domain + 1]
        return self._points_below(high, stop) - self._points_below(low, stop)

    def sequence(self, domain: int, index: int) -> int:
        """The sequence with that index among the domain's: the inverse of `sequences`."""
        width = self._edges[domain + 1] - self._edges[domain]
        low, high = ((index + error) * MODULUS // width for error in (-64, 66))  # of O(log n)
        stops = range(max(0, low), high)
        count = lambda stop: self.count(domain, stop)
        return stops[bisect.bisect_left(stops, index + 1, key=count)] - 1

    def _points_below(self, edge: int, stop: int) -> int:
        """Number of the first `stop` points in [0, edge).

        x mod m < edge exactly where floor(x / m) - floor((x - edge) / m) is 1.
        """
        return floor_sum(stop, MODULUS, STEP, self._offset) - floor_sum(
            stop, MODULUS, STEP, self._offset - edge
        )


def floor_sum(count: int, modulus: int, slope: int, start: int) -> int:
    """Sum over i in [0, count) of floor((slope * i + start) / modulus), in O(log) steps.

    The lattice points below a line, by Euclid's algorithm: Graham, Knuth and Patashnik,
    "Concrete Mathematics", section 3.5.
    """
    total = 0
    if start < 0:
        shift = -(start // modulus)
        total -= count * shift
        start += shift * modulus
    while count > 0:
        total += (slope // modulus) * (count * (count - 1) // 2) + (start // modulus) * count
        slope, start = slope % modulus, start % modulus
        top = slope * count + start
        if top < modulus:
            break
        count, start = divmod(top, modulus)
        modulus, slope = slope, modulus
    return total
