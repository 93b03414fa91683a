"""The losses of a token set in several runs: the input of the analyses of tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from jaxllm.run.token_losses import TokenSet


@dataclasses.dataclass(frozen=True)
class TokenRun:
    """The losses of one run on the n tokens of a set.

    Attributes:
      run: name of the run.
      family: its suite; runs of one differ in size or seed.
      label: its size, or its name where sizes repeat or are unknown.
      params: number of parameters; NaN if unknown.
      steps: int [S], the scored checkpoints, ascending.
      tokens: float [S], training tokens seen at each; the steps where those are unknown.
      clock: what `tokens` are: "tokens" or "steps".
      flops: float [S], training FLOPs at each; NaN where unknown.
      losses: float32 [S, n], in nats, finite.
    """

    run: str
    family: str
    params: float
    steps: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.float64]
    flops: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float32]
    label: str = ""
    clock: str = "tokens"

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
