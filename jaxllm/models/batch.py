"""What a model reads: one batch of packed rows."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray


class Batch(NamedTuple):
    """Rows of packed or concatenated documents. B rows, T tokens each.

    Attributes:
      inputs: int32 [B, T], the tokens that are read.
      targets: int32 [B, T], the token that follows each of them.
      weights: float32 [B, T], each target's share in the loss; 0 leaves it out.
      positions: int32 [B, T], the position of each token in its document (for rotary embedding).
      segment_ids: int32 [B, T]. A token attends only to tokens of its own segment; 0 is padding.
      domains: int32 [B], the index of the domain that each row comes from.
    """

    inputs: Array
    targets: Array
    weights: Array
    positions: Array
    segment_ids: Array
    domains: Array


class TreeBatch(NamedTuple):
    """Rows of token trees, to be scored: texts that begin alike share their beginning.

    B rows, T tokens each, of which at most S are followed by a target that counts.

    Attributes:
      inputs: int32 [B, T], the tokens that are read, a text and its branches one after another.
      positions: int32 [B, T], the position of each token in its text.
      visible_until: int32 [B, T]. A token is seen by itself and by the tokens of its row after it
        that lie before this index: the end of what goes on from it.
      slots: int32 [B, S], where in the row the scored targets are predicted.
      targets: int32 [B, S], those targets.
    """

    inputs: Array
    positions: Array
    visible_until: Array
    slots: Array
    targets: Array
