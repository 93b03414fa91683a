"""What repeated data are worth.

Muennighoff et al., "Scaling Data-Constrained Language Models" (arXiv 2305.16264): D tokens of which
U are unique count in the loss as D' = U worth(D / U) unique ones; parameters beyond those optimal
for U tokens decay alike, at another rate.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

DATA_DECAY = 15.3878  # R_D*, fitted to 182 runs
MAX_EPOCHS = 4.0  # up to which repeated data are almost as good as new (section 6)


def worth(times: npt.ArrayLike, decay: float = DATA_DECAY) -> npt.NDArray[np.float64]:
    """How many times as much as once it is worth to have something so many times over."""
    have = np.asarray(times, np.float64)
    repeated = -decay * np.expm1(-np.maximum(have - 1, 0) / decay)
    return np.asarray(np.minimum(have, 1) + repeated)


def check_epochs(epochs: Mapping[str, float], steps: int) -> list[str]:
    """A warning for each domain, or source, that a run of so many steps reads too often."""
    return [
        f"warning: {name} is read {times:,.1f} times in {steps:,} steps, worth"
        f" {float(worth(times)):.1f} epochs of new tokens: beyond {MAX_EPOCHS:.0f} epochs repeated"
        " tokens bring much less than new ones (Muennighoff et al., 2023); give it more text or"
        " less weight"
        for name, times in epochs.items()
        if times > MAX_EPOCHS
    ]
