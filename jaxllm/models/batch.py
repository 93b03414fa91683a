"""The inputs of a model: one batch of packed sequences."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray


class Batch(NamedTuple):
    """Packed or concatenated documents: B sequences of T tokens."""

    inputs: Array  # int32 [B, T], input tokens
    targets: Array  # int32 [B, T], next token of each input
    weights: Array  # float32 [B, T], loss weight of each target; 0 masks it
    positions: Array  # int32 [B, T], position of each token in its document
    segment_ids: Array  # int32 [B, T], document of each token, which attends to no other; 0 pads
    domains: Array  # int32 [B], domain index of each sequence


class TreeBatch(NamedTuple):
    """Token trees for scoring: texts with a common prefix share its tokens.

    B sequences of T tokens, with at most S scored targets each. `visible_until` replaces segments:
    a token is visible to itself and to later tokens before this index, the end of its
    continuations.
    """

    inputs: Array  # int32 [B, T], input tokens, each prefix followed by its branches
    positions: Array  # int32 [B, T], position of each token in its text
    visible_until: Array  # int32 [B, T], see above
    target_index: Array  # int32 [B, S], indices into the sequence at which targets are predicted
    targets: Array  # int32 [B, S], the scored targets
