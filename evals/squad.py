"""SQuAD 1.1, `squad`: extractive question answering (Rajpurkar et al. 2016).

Files: EVAL_DIR/squad/{train,dev}-v1.1.json of rajpurkar.github.io/SQuAD-explorer (arXiv
1606.05250); CC BY-SA 4.0. The dev split, 10,570 questions; shots drawn from train.
Prompt: "Title: …", "Background: …", "Question: …", "Answer:" with empty lines between; generated
up to a line end (256 tokens). Metrics: exact_match and f1, the best over the annotators' answers,
normalized as in the authors' evaluate-v1.1.py; chance 0.
The prompt is that of lm-evaluation-harness' `squadv2`, which reads version 2 of the set, with
questions that have no answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals import _answers
from jaxllm.evals.rows import field, objects, read_object
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import FewShot, Prompt, generation

SOURCES = (FileSource("squad/", "https://rajpurkar.github.io/SQuAD-explorer/dataset/"),)


def examples(path: epath.Path) -> Iterator[Prompt]:
    """The questions of one file."""
    for article in objects(read_object(path), "data"):
        for paragraph in objects(article, "paragraphs"):
            title, passage = field(article, "title"), field(paragraph, "context")
            for row in objects(paragraph, "qas"):
                answers = tuple(field(answer, "text") for answer in objects(row, "answers"))
                if not answers or not all(answers):
                    raise UserError(f"{row.where}: no answer, or an empty one")
                asked = field(row, "question")
                context = f"Title: {title}\n\nBackground: {passage}\n\nQuestion: {asked}\n\nAnswer:"
                yield Prompt(context, answers, field(row, "id"), solution=f" {answers[0]}")


def score(prediction: str, example: Prompt) -> Mapping[str, float]:
    """exact_match and f1, each the best over the references."""
    return {
        "exact_match": max(_answers.exact_match(prediction, t) for t in example.targets),
        "f1": max(_answers.f1(prediction, t) for t in example.targets),
    }


generation(
    "squad",
    examples,
    domain="reading",
    max_new_tokens=256,
    files=("squad/dev-v1.1.json",),
    few_shot=FewShot(examples, ("squad/train-v1.1.json",), exclude_self=True),
    score=score,
    primary_metric="f1",
)
