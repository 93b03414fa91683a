"""A SeqIO task for t5x training, evaluation and inference offline: `jaxllm_additions`.

Inputs are `17+25=`, targets `42`, in bytes (ByT5's ids). A gin file that imports this module can
use it as MIXTURE_OR_TASK_NAME.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

SPLITS = {"train": range(2, 10), "validation": range(1, 2), "test": range(1)}
VOCABULARY = seqio.ByteVocabulary()


def sums(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """The additions of a split with sums below 100, as text; a + b and b + a share a split."""
    del shuffle_files, seed
    pairs = [
        (a, b)
        for a in range(100)
        for b in range(100 - a)
        if (7 * min(a, b) + max(a, b)) % 10 in SPLITS[split]
    ]
    return tf.data.Dataset.from_tensor_slices(
        {"inputs": [f"{a}+{b}=" for a, b in pairs], "targets": [str(a + b) for a, b in pairs]}
    )


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The fraction of predictions that equal the target, for t5x's `predict_batch`."""
    return {
        "exact_match": float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))
    }


def log_likelihood(targets: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """The mean log-likelihood of a target, for t5x's `score_batch`."""
    del targets
    return {"log_likelihood": float(np.mean(scores))}


seqio.TaskRegistry.add(
    "jaxllm_additions",
    seqio.FunctionDataSource(sums, splits=tuple(SPLITS)),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={
        "inputs": seqio.Feature(VOCABULARY, add_eos=False),
        "targets": seqio.Feature(VOCABULARY, add_eos=True),
    },
    metric_fns=[exact_match, log_likelihood],
)
