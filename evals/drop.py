"""DROP, `drop`: discrete reasoning over a passage: count, add, compare (Dua et al. 2019).

Files: EVAL_DIR/drop/drop_dataset_{train,dev}.json of AI2's drop_dataset.zip (arXiv 1903.00161);
CC BY-SA 4.0. The dev split, 9,536 questions; shots drawn from train.
Prompt: the passage and the question; generated up to a full stop (256 tokens). Metrics: exact_match
(the harness' em) and f1 of bags of words, the best over the annotators' answers, normalized as in
the authors' drop_eval.py, with the text as one span; chance 0.
As lm-evaluation-harness' `drop` at 0 shots. Its few-shot examples show the field names of the
answer instead of the answer; ours show its spans, separated by commas.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals.rows import Row, field, objects, read_object, texts
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import FewShot, Prompt, generation

SOURCES = (
    FileSource(
        "drop/", "https://s3-us-west-2.amazonaws.com/allennlp/datasets/drop/drop_dataset.zip"
    ),
)

BETWEEN = "\n"  # separates the spans of an answer within a target
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def examples(path: epath.Path) -> Iterator[Prompt]:
    """The questions of one file."""
    whole = read_object(path)
    for name in whole:
        story = field(whole, name, dict)
        story.where = f"{path}: {name}"
        for row in objects(story, "qa_pairs"):
            given = [field(row, "answer", dict)]
            if "validated_answers" in row:
                given += objects(row, "validated_answers")
            found = (spans(answer) for answer in given)
            answers = tuple(dict.fromkeys(BETWEEN.join(s) for s in found if s and s[0].strip()))
            if not answers:
                raise UserError(f"{row.where}: field 'answer' has no number, span or date")
            yield Prompt(
                f"{field(story, 'passage')} {field(row, 'question')}",
                answers,
                field(row, "query_id"),
                solution=f" {answers[0].replace(BETWEEN, ', ')}",
            )


def spans(answer: Row) -> tuple[str, ...]:
    """The spans of an answer, which is a number, spans or a date."""
    if number := str(answer.get("number", "")):
        return (number,)
    if answer.get("spans"):
        return texts(answer, "spans")
    date = answer.get("date") or {}
    return (" ".join(date.get(part, "") for part in ("day", "month", "year")).strip(),)


def score(text: str, example: Prompt) -> Mapping[str, float]:
    """exact_match and f1, each the best over the references."""
    pairs = [_compare(text, target.split(BETWEEN)) for target in example.targets]
    return {"exact_match": max(em for em, _ in pairs), "f1": max(f1 for _, f1 in pairs)}


def _compare(text: str, gold: list[str]) -> tuple[float, float]:
    """exact_match and f1 of the text, as one span, against the spans of an answer.

    A predicted span matches at most one; the others count as missed.
    """
    found, wanted = normalise(text), [normalise(span) for span in gold]
    exact = float(wanted == [found])
    best = max(_f1(set(found.split()), set(span.split())) for span in wanted)
    return exact, round(best / len(wanted) * 100) / 100


def _f1(found: set[str], wanted: set[str]) -> float:
    """F1 of two sets of words; 0 if `wanted` has numbers and `found` has none of them."""
    numbers = {word for word in wanted if _is_number(word)}
    if numbers and not numbers & found:
        return 0.0
    if not found or not wanted:
        return float(found == wanted)
    return 2 * len(found & wanted) / (len(found) + len(wanted))


def normalise(text: str) -> str:
    """Normalize words (split at hyphens too): case, punctuation, articles, number format."""
    words = (_word(word) for word in re.split(r" |-", text.lower()))
    return " ".join(word for word in words if word)


def _word(word: str) -> str:
    if not _is_number(word):
        word = "".join(letter for letter in word if letter not in string.punctuation)
    if _is_number(word):
        word = str(float(word))
    return " ".join(_ARTICLES.sub(" ", word).split())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


generation(
    "drop",
    examples,
    domain="reading",
    max_new_tokens=256,
    stop=(".",),
    files=("drop/drop_dataset_dev.json",),
    few_shot=FewShot(examples, ("drop/drop_dataset_train.json",), exclude_self=True),
    score=score,
    primary_metric="f1",
)
