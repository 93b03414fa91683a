"""Spans and metrics of the tasks on a run's training data (`jaxllm.evals.training_data`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.evaluation.metrics import Likelihoods, Measurement, Result, check_finite, mean, ratio
from jaxllm.evaluation.spans import Span
from jaxllm.evaluation.tasks import TrainingSequence


def context_span(example: TrainingSequence, _: object, max_length: int) -> tuple[list[Span], int]:
    """The context of an excerpt as a prompt; UserError if it does not fit."""
    if len(example.inputs) > max_length:
        raise UserError(f"contexts of {len(example.inputs)} tokens do not fit {max_length}")
    return [Span(example.inputs, 0)], 0


def training_spans(example: TrainingSequence, _: object, max_length: int) -> tuple[list[Span], int]:
    """The spans of a sequence that score its targets of weight 1, each after its whole segment."""
    spans = []
    for segment in range(1, example.segment_ids.max() + 1):
        (own,) = np.nonzero(example.segment_ids == segment)
        tokens = np.append(example.inputs[own], example.targets[own[-1]])
        weights = example.weights[own[:max_length]] > 0
        edges = np.flatnonzero(np.diff(weights, prepend=False, append=False)).reshape(-1, 2)
        for start, stop in edges.tolist():
            spans.append(Span(tokens[: stop + 1], stop - start, len(own) > max_length))
    return spans, 0


def measure_training(
    examples: Sequence[TrainingSequence], outputs: Any, step: int, passed_over: Collection[int] = ()
) -> Result:
    """Metrics of all sampled batches, of those read until `step`, and of those not read.

    trained_at: the step of a sequence; infinite if the run has `passed_over` it.
    loss: the mean per token, in nats; `outputs` are Likelihoods [n].
    extractible: all L tokens of a greedy continuation, `outputs` int32 [n, L], are the sequence's.
    score: share of them that are, at their own place (Biderman et al. 2023, arXiv 2304.11158).
    UserError if a loss is not finite.
    """
    if isinstance(outputs, Likelihoods):
        check_finite(examples, outputs)
        loss, tokens = -outputs.log_likelihood, outputs.tokens
        columns = {"loss": loss / np.maximum(tokens, 1), "tokens": tokens}
        metrics = lambda of: {"loss": ratio(loss[of], tokens[of])}
    else:
        same = outputs == np.stack([example.targets for example in examples])
        columns = {"extractible": same.all(axis=1), "score": same.mean(axis=1)}
        metrics = lambda of: {name: mean(values[of]) for name, values in columns.items()}
    trained = np.array([e.step if e.step not in passed_over else np.inf for e in examples])
    measured = dict[str, Measurement]()
    for suffix, of in ("", trained >= 0), ("_seen", trained <= step), ("_unseen", trained > step):
        if of.any():
            measured |= {f"{name}{suffix}": value for name, value in metrics(of).items()}
    named = {name: values.tolist() for name, values in columns.items()}
    domains = [example.domain for example in examples]
    return measured, {"trained_at": trained.tolist(), "domain": domains, **named}
