"""How a tensor of Hugging Face's lies in memory, as views in the shape of our parameters.

A view serves both ways: an import reads through it, an export writes through it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

TILE = 256  # both sides of a tile of float32 stay in a core's cache


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where one parameter of ours lies in one tensor of theirs.

    Attributes:
      inputs: leading axes of our parameter (one layer of it) that a product sums over; the others
        are its outputs. Without inputs it is a vector.
      transposed: [outputs, inputs], as torch.nn.Linear; else [inputs, outputs], as GPT-2's Conv1D.
      part: which of the `parts` that their tensor holds along its outputs.
      parts: how many.
      by_head: the parts alternate with every head, (head, part, width), instead of following each
        other whole.
    """

    inputs: int = 1
    transposed: bool = False
    part: int = 0
    parts: int = 1
    by_head: bool = False

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of their tensor."""
        inputs = math.prod(ours[: self.inputs])
        outputs = math.prod(ours[self.inputs :]) * self.parts
        if not self.inputs:
            return (outputs,)
        return (outputs, inputs) if self.transposed else (inputs, outputs)

    def view(self, theirs: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
        """Our parameter, of shape `ours`, as a view of their contiguous tensor."""
        if self.transposed and self.inputs:
            theirs = theirs.T
        inputs, outputs = ours[: self.inputs], ours[self.inputs :]
        if self.by_head:
            heads, width = outputs
            view = theirs.reshape(*inputs, heads, self.parts, width)[..., self.part, :]
        else:
            view = theirs.reshape(*inputs, self.parts, *outputs)[
                (slice(None),) * len(inputs) + (self.part,)
            ]
        assert np.shares_memory(view, theirs)
        return view


TABLE = Layout(inputs=1)
VECTOR = Layout(inputs=0)
LINEAR = Layout(inputs=1, transposed=True)
LINEAR_OF_HEADS = Layout(inputs=2, transposed=True)
CONV = Layout(inputs=1)
CONV_OF_HEADS = Layout(inputs=2)


def copy(to: np.ndarray, source: np.ndarray) -> None:
    """`to[...] = source`, three times as fast as NumPy where one of them is transposed."""
    if source.ndim < 2 or source.flags.c_contiguous == to.flags.c_contiguous:
        to[...] = source
        return
    strided = source if to.flags.c_contiguous else to
    fast = int(np.argmin(strided.strides))  # the axis that is contiguous in the strided one
    if fast == strided.ndim - 1:
        to[...] = source
        return
    for i in range(0, to.shape[fast], TILE):
        rows = (slice(None),) * fast + (slice(i, i + TILE),)
        for j in range(0, to.shape[-1], TILE):
            tile = (*rows, ..., slice(j, j + TILE))
            to[tile] = source[tile]
