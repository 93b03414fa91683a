"""From log-likelihoods to numbers with a standard error, and a row for every example.

A mean over examples carries the standard error s / sqrt(n) with the sample standard deviation
(ddof = 1), as in lm-evaluation-harness. Ratios of sums (bits per byte) carry the delta-method
standard error over documents (Cochran, Sampling Techniques, 6.3).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxllm.evaluation.tasks import Choice, Document, Prompt

Columns = Mapping[str, Sequence]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A metric's value with its doubt.

    Attributes:
      value: the metric.
      stderr: standard error over the examples; NaN for fewer than two.
      n: number of examples.
      chance: the value of a guess, NaN where there is none.
    """

    value: float
    stderr: float
    n: int
    chance: float = math.nan


Result = tuple[Mapping[str, Measurement], Columns]


def mean(values: np.ndarray, chance: float = math.nan) -> Measurement:
    """The mean of `values` over examples, and its standard error."""
    values = np.asarray(values, np.float64)
    stderr = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Measurement(float(np.mean(values)), stderr, len(values), chance)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Measurement:
    """sum(numerators) / sum(denominators), and its delta-method standard error."""
    x, y = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    value, n = float(x.sum() / y.sum()), len(x)
    if n < 2:
        return Measurement(value, math.nan, n)
    residual = x - value * y
    stderr = math.sqrt(n / (n - 1) * float(residual @ residual)) / float(y.sum())
    return Measurement(value, stderr, n)


def multiple_choice(
    examples: Sequence[Choice],
    log_likelihood: np.ndarray,
    tokens: np.ndarray,
    chance: float | None = None,
) -> Result:
    """Metrics of options scored as log p(option | context).

    accuracy: the most likely option is the answer (ties go to the first).
    accuracy_per_token, _per_char, _per_byte: the same after division by the option's length; one
      leading space does not count in characters and bytes, as in the harness' acc_norm.
    probability_correct: p(answer) / sum of p over the options.
    brier: sum over options of (that share - [is the answer])^2; 0 is perfect.
    margin: log p(answer) - log p(best other option), in nats.
    answer_bits_per_byte: -log2 p(answer) / bytes of the answer.

    Args:
      examples: n questions.
      log_likelihood: [n, m], NaN beyond the options of an example.
      tokens: [n, m], scored tokens of each option.
      chance: accuracy of a guess; None is the mean of 1 / number of options.
    """
    n = len(examples)
    exists = ~np.isnan(log_likelihood)
    ll = np.where(exists, log_likelihood, -np.inf)
    answer = np.asarray([e.answer for e in examples])
    chars, size = np.ones_like(ll), np.ones_like(ll)
    for row, example in enumerate(examples):
        for column, option in enumerate(example.options):
            text = option.removeprefix(" ") or option
            chars[row, column], size[row, column] = len(text), len(text.encode())
    of_answer = (np.arange(n), answer)
    lengths = {
        "accuracy": 1.0,
        "accuracy_per_token": np.maximum(tokens, 1),
        "accuracy_per_char": chars,
        "accuracy_per_byte": size,
    }
    predictions = {name: np.argmax(ll / length, axis=1) for name, length in lengths.items()}
    share = np.exp(ll - ll.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    is_answer = np.zeros_like(ll)
    is_answer[of_answer] = 1
    brier = np.sum(np.square(share - is_answer), axis=1)
    margin = ll[of_answer] - np.max(np.where(is_answer == 1, -np.inf, ll), axis=1)
    bits = -ll[of_answer] / math.log(2) / size[of_answer]
    guess = 1 / exists.sum(axis=1)
    guessed = float(guess.mean()) if chance is None else chance

    measured = {name: mean(p == answer, guessed) for name, p in predictions.items()}
    measured["probability_correct"] = mean(share[of_answer], float(guess.mean()))
    measured["brier"] = mean(brier, float(np.mean(1 - guess)))
    measured["margin"] = mean(margin)
    measured["answer_bits_per_byte"] = mean(bits)
    columns = {
        "target": answer.tolist(),
        "prediction": predictions["accuracy"].tolist(),
        "correct": (predictions["accuracy"] == answer).tolist(),
        "log_likelihoods": [row[e].tolist() for row, e in zip(ll, exists, strict=True)],
        "tokens": [row[e].tolist() for row, e in zip(tokens, exists, strict=True)],
        "probability_correct": share[of_answer].tolist(),
        "brier": brier.tolist(),
        "margin": margin.tolist(),
    }
    return measured, columns


def cloze(
    examples: Sequence[Prompt],
    log_likelihood: np.ndarray,
    tokens: np.ndarray,
    greedy: np.ndarray,
    chance: float | None = None,
) -> Result:
    """Metrics of one continuation per prompt.

    exact_match: every token of the target is the model's first choice.
    target_bits_per_byte: -log2 p(target) / bytes of the target, averaged over examples.
    """
    size = np.asarray([len(e.targets[0].encode()) for e in examples])
    bits = -log_likelihood / math.log(2) / size
    measured = {
        "exact_match": mean(greedy, math.nan if chance is None else chance),
        "target_bits_per_byte": mean(bits),
    }
    columns = {
        "target": [e.targets[0] for e in examples],
        "correct": greedy.astype(bool).tolist(),
        "log_likelihood": log_likelihood.tolist(),
        "tokens": tokens.tolist(),
    }
    return measured, columns


def perplexity(
    documents: Sequence[Document], log_likelihood: np.ndarray, tokens: np.ndarray
) -> Result:
    """Metrics of whole documents.

    bits_per_byte: -log2 p(all documents) / their UTF-8 bytes; vocabularies can be compared by it.
    perplexity: exp of the mean loss per token; they cannot be compared by this.
    loss: the mean loss per token, in nats.
    """
    size = np.asarray([len(d.text.encode()) for d in documents])
    loss = ratio(-log_likelihood, tokens)
    value = math.exp(min(loss.value, 700.0))
    measured = {
        "bits_per_byte": ratio(-log_likelihood / math.log(2), size),
        "perplexity": Measurement(value, value * loss.stderr, loss.n),
        "loss": loss,
    }
    columns = {
        "log_likelihood": log_likelihood.tolist(),
        "tokens": tokens.tolist(),
        "bytes": size.tolist(),
    }
    return measured, columns


def exact_match(
    examples: Sequence[Prompt],
    predictions: Sequence[str],
    stop: Sequence[str],
    chance: float | None = None,
) -> Result:
    """exact_match: the text up to the first of `stop`, stripped, is one of the targets."""
    ends = [min((p.find(s) for s in stop if s in p), default=len(p)) for p in predictions]
    answers = [p[:end].strip() for p, end in zip(predictions, ends, strict=True)]
    correct = [
        answer in {target.strip() for target in example.targets}
        for answer, example in zip(answers, examples, strict=True)
    ]
    columns: Columns = {
        "target": [e.targets[0] for e in examples],
        "prediction": answers,
        "correct": correct,
    }
    guessed = math.nan if chance is None else chance
    return {"exact_match": mean(np.asarray(correct), guessed)}, columns
