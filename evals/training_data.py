"""Tasks on a run's own training sequences: how a checkpoint does on what it has and has not seen.

`training_loss`, the training re-evaluation curve (arXiv 2509.25380), is the loss on the batch of
each of many steps, exactly as it was trained on. `memorization` decodes greedily from the first 32
tokens of a sequence, and compares with the next 32 (Carlini et al. 2023, arXiv 2202.07646; so for
Pythia and Amber); `memorization_64_16` does so with 16 after 64. The batches are spread over the
whole run: those to come are the control, and per-example results have the step of each.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from jaxllm.errors import UserError
from jaxllm.evaluation.tasks import (
    Sample,
    TaskDefinition,
    TrainingSequence,
    memorization,
    training_loss,
)

PREFIX = "memorization_"


def sequences(sample: Sample | None = None, count: int = 4) -> Sequence[TrainingSequence]:
    """`count` sequences of each sampled batch; UserError without a run to have them from."""
    if sample is None:
        raise UserError("only a run of its own has training sequences to score")
    return sample(count)


def excerpts(
    sample: Sample | None = None, context: int = 32, continuation: int = 32, count: int = 16
) -> Iterator[TrainingSequence]:
    """The first tokens of each sequence, or of its first segment that has as many, if one has."""
    for one in sequences(sample, count):
        lengths = np.bincount(one.segment_ids)
        (long,) = np.nonzero(lengths[1:] >= context + continuation)
        if long.size:
            tokens = one.inputs[one.segment_ids == long[0] + 1][: context + continuation]
            yield dataclasses.replace(one, inputs=tokens[:context], targets=tokens[context:])


def declare(name: str, data_dir: epath.Path | None = None) -> TaskDefinition:
    """How much of a training sequence the model continues from its beginning."""
    del data_dir
    if not (match := re.fullmatch(PREFIX + r"([1-9]\d*)_([1-9]\d*)", name)):
        raise UserError(f"no evaluation task is called {name}: write {PREFIX}64_32, say")
    context, continuation = map(int, match.groups())
    own = functools.partial(excerpts, context=context, continuation=continuation)
    return memorization(name, own, domain="training data", max_new_tokens=continuation)


FAMILIES = {PREFIX: declare}
training_loss("training_loss", sequences, domain="training data")
memorization("memorization", excerpts, domain="training data", max_new_tokens=32)
