"""Metrics with standard errors, and per-example results, from log-likelihoods and answers.

The standard error of a mean over examples is s / sqrt(n), with the sample standard deviation s
(ddof = 1), as in lm-evaluation-harness. That of a ratio of sums (bits per byte) is the
delta-method standard error over documents (Cochran, Sampling Techniques, 6.3).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.evaluation.noise import AFTER, NOISY
from jaxllm.evaluation.tasks import Choice, Document, Example, Prompt, TaskDefinition
from jaxllm.run.records import OPTION_PERPLEXITIES

Columns = Mapping[str, Sequence]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A metric's value with its standard error."""

    value: float  # value of the metric
    stderr: float  # standard error over the examples; NaN for fewer than two
    n: int  # number of examples
    chance: float = math.nan  # expected value of a guess; NaN if undefined
    majority: float = math.nan  # value of the best constant answer; NaN if there is none
    unigram: float = math.nan  # value by token frequencies alone, see `scoring.unigram`


Result = tuple[dict[str, Measurement], Columns]


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """Model outputs of a log-likelihood task, for n examples."""

    # float64 [n], in nats; [n, m] for multiple choice, NaN beyond an example's options; [n, parts]
    # for noisy documents
    log_likelihood: np.ndarray
    tokens: np.ndarray  # int64, shaped as `log_likelihood`: number of scored tokens
    greedy: np.ndarray  # bool [n], whether every scored token was the argmax
    # float32, the log-likelihoods of the scored tokens of all examples, in their order
    each: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))


Texts = Sequence[Sequence[str]]  # generated answers to each example
Outputs = Likelihoods | Texts | np.ndarray  # generated tokens, int32 [n, L], for memorization


def measure(
    task: TaskDefinition, examples: Sequence[Example], outputs: Likelihoods | Texts
) -> Result:
    """The metrics of a task, and the columns of its per-example results, in their order.

    UserError if a log-likelihood is not finite.
    """
    of: Any = examples  # their type depends on the task's kind
    if not isinstance(outputs, Likelihoods):
        return generation(task, of, outputs)
    check_finite(examples, outputs)
    log_likelihood, tokens = outputs.log_likelihood, outputs.tokens
    if task.kind == "multiple_choice":
        return multiple_choice(of, log_likelihood, tokens, task.chance)
    if task.kind == "perplexity":
        return perplexity(of, log_likelihood, tokens)
    return cloze(of, log_likelihood, tokens, outputs.greedy, task.chance)


def check_finite(examples: Sequence[Example], outputs: Likelihoods) -> None:
    """Raise UserError if a log-likelihood of a scored token is not finite."""
    broken = ~np.isfinite(outputs.log_likelihood) & (outputs.tokens > 0)
    broken = broken.reshape(len(examples), -1).any(axis=1)
    if broken.any():
        first = examples[broken.argmax()].id or broken.argmax()
        raise UserError(
            f"log-likelihoods of {broken.sum()} of {len(examples)} examples are not finite, first "
            f"of example {first}: the model's activations overflow or its parameters are NaN"
        )


def mean(
    values: np.ndarray, chance: float | None = None, majority: float = math.nan
) -> Measurement:
    """The mean over examples, with its standard error."""
    values = np.asarray(values, np.float64)
    stderr = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    guess = math.nan if chance is None else chance
    return Measurement(float(np.mean(values)), stderr, len(values), guess, majority)


def best_constant(answers: Sequence[Iterable[str]]) -> float:
    """Share of examples that one text is right for, at best; `answers` are the right texts of each.

    The accuracy of the majority class, where the options of all examples are alike.
    """
    counts = Counter(text for right in answers for text in {text.strip() for text in right})
    return max(counts.values()) / len(answers)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Measurement:
    """sum(numerators) / sum(denominators), with its delta-method standard error."""
    x, y = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    value, n = float(x.sum() / y.sum()), len(x)
    if n < 2:
        return Measurement(value, math.nan, n)
    residual = x - value * y
    stderr = math.sqrt(n / (n - 1) * float(residual @ residual)) / float(y.sum())
    return Measurement(value, stderr, n)


def _exp(loss: Measurement) -> Measurement:
    """exp of a mean loss, with its delta-method standard error."""
    value = math.exp(min(loss.value, 700.0))
    return Measurement(value, value * loss.stderr, loss.n)


def multiple_choice(
    examples: Sequence[Choice],
    log_likelihood: np.ndarray,
    tokens: np.ndarray,
    chance: float | None = None,
) -> Result:
    """Metrics of options scored as log p(option | context), arrays [n, m] as in `Likelihoods`.

    accuracy: the most likely option is the answer (ties go to the first). Its chance level is
      `chance`; None is the mean of 1 / number of options.
    balanced_accuracy: the mean recall of the classes, where all examples have the same options.
    accuracy_per_token, _per_char, _per_byte: the same with log p divided by the option's length;
      one leading space does not count in characters and bytes, as in the harness' acc_norm.
    probability_correct: p normalized over the options, summed over the correct ones (TruthfulQA's
      mc2).
    probability_raw: p(answer).
    brier: sum over options of (normalized p - [is the answer])^2; 0 is perfect.
    margin: log p(answer) - log p(best wrong option), in nats.
    answer_bits_per_byte: -log2 p(answer) / bytes of the answer.
    pooled_perplexity_correct, _incorrect: exp of the mean loss per token of all answers, and of all
      wrong options (arXiv 2212.09803, section 4); their n counts tokens.

    With several correct options, an accuracy accepts any of them; p(answer) is that of the first.
    """
    n = len(examples)
    exists = ~np.isnan(log_likelihood)
    ll = np.where(exists, log_likelihood, -np.inf)
    answer = np.asarray([e.answer for e in examples])
    chars, size = np.ones_like(ll), np.ones_like(ll)
    is_answer = np.zeros(ll.shape, bool)
    for row, example in enumerate(examples):
        is_answer[row, [example.answer, *example.also_correct]] = True
        for column, option in enumerate(example.options):
            text = option.removeprefix(" ") or option
            chars[row, column], size[row, column] = len(text), len(text.encode())
    of_answer = (np.arange(n), answer)
    token_counts = np.maximum(tokens, 1)
    lengths = {"": 1.0, "_per_token": token_counts, "_per_char": chars, "_per_byte": size}
    predictions = {suffix: np.argmax(ll / length, axis=1) for suffix, length in lengths.items()}
    correct = {suffix: is_answer[np.arange(n), p] for suffix, p in predictions.items()}
    share = np.exp(ll - ll.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    probability = np.sum(np.where(is_answer, share, 0.0), axis=1)
    wrong = exists & ~is_answer
    brier = np.sum(np.square(share - is_answer / is_answer.sum(axis=1, keepdims=True)), axis=1)
    margin = np.max(np.where(is_answer, ll, -np.inf), axis=1)
    margin = margin - np.max(np.where(wrong, ll, -np.inf), axis=1)
    wrong_loss, wrong_tokens = (np.where(wrong, of, 0).sum(axis=1) for of in (-ll, tokens))
    guess = 1 / exists.sum(axis=1)
    guessed = float(guess.mean()) if chance is None else chance
    gold = [[_option(e, i) for i in (e.answer, *e.also_correct)] for e in examples]
    constant = best_constant(gold)

    measured = {f"accuracy{key}": mean(hits, guessed, constant) for key, hits in correct.items()}
    if len({frozenset(_option(e, i) for i in range(len(e.options))) for e in examples}) == 1:
        measured |= balanced(correct[""], [right[0] for right in gold])
    by_chance = float(np.mean(is_answer.sum(1) * guess))
    measured["probability_correct"] = mean(probability, by_chance, constant)
    measured["probability_raw"] = mean(np.exp(ll[of_answer]))
    measured["brier"] = mean(brier, float(np.mean(1 / is_answer.sum(1) - guess)))
    measured["margin"] = mean(margin)
    measured["answer_bits_per_byte"] = mean(-ll[of_answer] / math.log(2) / size[of_answer])
    pairs = (-ll[of_answer], tokens[of_answer]), (wrong_loss, wrong_tokens)
    for name, (loss, count) in zip(OPTION_PERPLEXITIES, pairs, strict=True):
        measured[name] = dataclasses.replace(_exp(ratio(loss, count)), n=int(count.sum()))
    return measured, {
        "target": answer.tolist(),
        "prediction": predictions[""].tolist(),
        "correct": correct[""].tolist(),
        "log_likelihoods": [row[e].tolist() for row, e in zip(ll, exists, strict=True)],
        "tokens": [row[e].tolist() for row, e in zip(tokens, exists, strict=True)],
        "probability_correct": probability.tolist(),
        "brier": brier.tolist(),
        "margin": margin.tolist(),
    }


def _option(example: Choice, index: int) -> str:
    """What is scored as an option: its text, after the context where that differs."""
    return (example.contexts[index] if example.contexts else "") + example.options[index]


def balanced(correct: np.ndarray, gold: Sequence[str]) -> dict[str, Measurement]:
    """Balanced accuracy, the mean recall of the classes; a constant answer has 1 / classes."""
    by_class = [correct[np.array(gold) == label] for label in sorted(set(gold))]
    recalls = [mean(hits) for hits in by_class]
    stderr = math.hypot(*(recall.stderr for recall in recalls)) / len(recalls)
    value = float(np.mean([recall.value for recall in recalls]))
    return {"balanced_accuracy": Measurement(value, stderr, len(gold), 1 / len(recalls))}


def cloze(
    examples: Sequence[Prompt],
    log_likelihood: np.ndarray,
    tokens: np.ndarray,
    greedy: np.ndarray,
    chance: float | None = None,
) -> Result:
    """Metrics of one continuation per prompt, arrays [n] as in `Likelihoods`.

    exact_match: every token of the target is the argmax.
    target_bits_per_byte: -log2 p(target) / bytes of the target, averaged over examples.
    perplexity: exp of the mean of -log p(target) per target, not per token, as the harness computes
      it for LAMBADA.
    """
    size = np.asarray([len(e.targets[0].encode()) for e in examples])
    measured = {
        "exact_match": mean(greedy, chance, best_constant([e.targets[:1] for e in examples])),
        "target_bits_per_byte": mean(-log_likelihood / math.log(2) / size),
        "perplexity": _exp(mean(-log_likelihood)),
    }
    return measured, {
        "target": [e.targets[0] for e in examples],
        "correct": greedy.astype(bool).tolist(),
        "log_likelihood": log_likelihood.tolist(),
        "tokens": tokens.tolist(),
    }


def perplexity(
    documents: Sequence[Document], log_likelihood: np.ndarray, tokens: np.ndarray
) -> Result:
    """Metrics of whole documents, arrays [n] or [n, parts] as in `Likelihoods`.

    bits_per_byte: -log2 p(all documents) / their UTF-8 bytes; comparable between tokenizers.
    perplexity: exp of the mean loss per token; not comparable between tokenizers.
    loss: the mean loss per token, in nats.
    perplexity_noise, perplexity_after: of noisy documents, that of the noise alone, and of the
      text's own tokens after some; they have no bits per byte.
    """
    measured: dict[str, Measurement] = {}
    size = np.asarray([len(d.text.encode()) for d in documents])
    if not documents[0].noise:
        measured["bits_per_byte"] = ratio(-log_likelihood / math.log(2), size)
    else:
        parts = [(-values, of) for values, of in zip(log_likelihood.T, tokens.T, strict=True)]
        for name, part in (("noise", NOISY), ("after", AFTER)):
            if part < len(parts) and parts[part][1].any():
                measured[f"perplexity_{name}"] = _exp(ratio(*parts[part]))
        log_likelihood, tokens = log_likelihood.sum(axis=1), tokens.sum(axis=1)
    loss = ratio(-log_likelihood, tokens)
    measured |= {"perplexity": _exp(loss), "loss": loss}
    return measured, {
        "log_likelihood": log_likelihood.tolist(),
        "tokens": tokens.tolist(),
        "bytes": size.tolist(),
    }


def generation(task: TaskDefinition, examples: Sequence[Prompt], answers: Texts) -> Result:
    """Metrics of generated answers: `task.score` of each text up to its first stop string.

    A metric called `pass` becomes pass@k: the probability that one of k answers passes, by the
    unbiased estimator 1 - C(n - c, k) / C(n, k) for c passes of n (Chen et al. 2021, equation 1).
    Other metrics are averaged over the answers of an example.
    """
    texts = [[_before_stop(text, task.stop) for text in several] for several in answers]
    pairs = [(text, e) for e, several in zip(examples, texts, strict=True) for text in several]
    # Programs run in their own processes; the threads only wait.
    with ThreadPoolExecutor(os.cpu_count() if task.runs_code else 1) as pool:
        scores = list(pool.map(task.score, *zip(*pairs, strict=True)))
    measured: dict[str, Measurement] = {}
    columns: dict[str, Sequence] = {
        "target": [e.targets[0] for e in examples],
        "prediction": [several[0] for several in texts],
    }
    # A right answer has an F1 of 1, too: there it is a lower bound.
    constant = best_constant([e.targets for e in examples])
    for name in scores[0]:
        values = np.asarray([float(score[name]) for score in scores]).reshape(len(examples), -1)
        columns[name] = values.mean(axis=1).tolist()
        if name != "pass":
            measured[name] = mean(values.mean(axis=1), task.chance, constant)
            continue
        columns["correct"] = values[:, 0].astype(bool).tolist()
        n, passed = values.shape[1], values.sum(axis=1).astype(int)
        for k in (k for k in (1, 10, 100) if k <= n):
            estimates = [1 - math.comb(n - int(c), k) / math.comb(n, k) for c in passed]
            measured[f"pass@{k}"] = mean(np.asarray(estimates), task.chance)
    if "exact_match" in columns:
        columns["correct"] = [value == 1.0 for value in columns["exact_match"]]
    return measured, columns


def _before_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]
