"""The inputs of a model: one batch of packed sequences."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray


class Batch(NamedTuple):
    """Packed or concatenated documents: B sequences of T tokens.

    Attributes:
      inputs: int32 [B, T], the tokens that are read.
      targets: int32 [B, T], the token that follows each of them.
      weights: float32 [B, T], each target's share in the loss; 0 leaves it out.
      positions: int32 [B, T], the position of each token in its document (for rotary embedding).
      segment_ids: int32 [B, T]. A token attends only to tokens of its own segment; 0 is padding.
      domains: int32 [B], the index of each sequence's domain.
    """

    inputs: Array
    targets: Array
    weights: Array
    positions: Array
    segment_ids: Array
    domains: Array


class TreeBatch(NamedTuple):
    """Token trees, to be scored: texts that begin alike share their beginning.

    B sequences of T tokens, of which at most S are followed by a target that counts.

    Attributes:
      inputs: int32 [B, T], the tokens that are read, a text and its branches one after another.
      positions: int32 [B, T], the position of each token in its text.
      visible_until: int32 [B, T]. A token is seen by itself and by later tokens of its sequence
        before this index, the end of its continuations.
      slots: int32 [B, S], where in the sequence the scored targets are predicted.
      targets: int32 [B, S], those targets.
    """

    inputs: Array
    positions: Array
    visible_until: Array
    slots: Array
    targets: Array
