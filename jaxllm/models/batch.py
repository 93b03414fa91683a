"""The inputs of a model: one batch of packed sequences."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray


class Batch(NamedTuple):
    """Packed or concatenated documents: B sequences of T tokens.

    Attributes:
      inputs: int32 [B, T], input tokens.
      targets: int32 [B, T], next token of each input.
      weights: float32 [B, T], loss weight of each target; 0 masks it.
      positions: int32 [B, T], position of each token in its document.
      segment_ids: int32 [B, T], document of each token, which attends to no other; 0 is padding.
      domains: int32 [B], domain index of each sequence.
    """

    inputs: Array
    targets: Array
    weights: Array
    positions: Array
    segment_ids: Array
    domains: Array


class TreeBatch(NamedTuple):
    """Token trees for scoring: texts with a common prefix share its tokens.

    B sequences of T tokens, with at most S scored targets each.

    Attributes:
      inputs: int32 [B, T], input tokens, each prefix followed by its branches.
      positions: int32 [B, T], position of each token in its text.
      visible_until: int32 [B, T], replaces segments: a token is visible to itself and to later
        tokens before this index, the end of its continuations.
      target_index: int32 [B, S], indices into the sequence at which targets are predicted.
      targets: int32 [B, S], the scored targets.
    """

    inputs: Array
    positions: Array
    visible_until: Array
    target_index: Array
    targets: Array
