"""The losses of a token set in several runs: the input of the analyses of tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from jaxllm.run.token_losses import TokenSet


@dataclasses.dataclass(frozen=True)
class TokenRun:
    """The losses of one run on the n tokens of a set."""

    run: str
    params: float  # NaN if unknown
    steps: npt.NDArray[np.int64]  # [S], the scored checkpoints, ascending
    tokens: npt.NDArray[np.float64]  # [S], read until then; the steps where that is unknown
    flops: npt.NDArray[np.float64]  # [S], of training; NaN where unknown
    losses: npt.NDArray[np.float32]  # [S, n], in nats, finite
    label: str = ""  # its size, or its name where sizes repeat or are unknown
    clock: str = "tokens"  # what `tokens` are: "tokens" or "steps"

    def at(self, rows: npt.NDArray[np.integer]) -> TokenRun:
        """The run at some of its checkpoints."""
        clocks = {name: getattr(self, name)[rows] for name in ("steps", "tokens", "flops")}
        return dataclasses.replace(self, **clocks, losses=self.losses[rows])


@dataclasses.dataclass(frozen=True)
class TokenStudy:
    """A token set and the runs that were scored on it, by size."""

    token_set: TokenSet
    runs: tuple[TokenRun, ...]

    @property
    def name(self) -> str:
        """Name of the token set."""
        return self.token_set.name
