"""A SeqIO task that t5x trains, evaluates and infers on without a network: `jaxllm_additions`.

Inputs are `17+25=`, targets `42`, in bytes (ByT5's ids). A gin file that imports this module can
name the task in MIXTURE_OR_TASK_NAME.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from jaxllm.evals.probes.generated import SPLITS, additions

VOCABULARY = seqio.ByteVocabulary()


def sums(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """The additions of a split, as text."""
    del shuffle_files, seed
    pairs = additions(split)
    return tf.data.Dataset.from_tensor_slices(
        {"inputs": [f"{a}+{b}=" for a, b in pairs], "targets": [str(a + b) for a, b in pairs]}
    )


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The share of predictions that are the target, for t5x's `predict_batch`."""
    return {
        "exact_match": float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))
    }


def log_likelihood(targets: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """The mean log-likelihood of a target, for t5x's `score_batch`."""
    del targets
    return {"log_likelihood": float(np.mean(scores))}


seqio.TaskRegistry.add(
    "jaxllm_additions",
    seqio.FunctionDataSource(sums, splits=SPLITS),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={
        "inputs": seqio.Feature(VOCABULARY, add_eos=False),
        "targets": seqio.Feature(VOCABULARY, add_eos=True),
    },
    metric_fns=[exact_match, log_likelihood],
)
