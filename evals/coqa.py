"""CoQA, `coqa` and `coqa_turns`: conversations about a story (Reddy et al. 2019, arXiv 1808.07042).

Files: EVAL_DIR/coqa/coqa-{train,dev}-v1.0.json of stanfordnlp.github.io/coqa; licences by source
(Wikipedia and literature CC BY-SA 4.0, others by their own terms). The dev split: 500
conversations with 7,983 turns; shots are conversations drawn from train.
Prompt: the story, "Q: …" and "A: …" of the earlier turns with the reference answers, the question,
"A:"; generated up to "Q:" on a new line (256 tokens); the first line is the answer.
Metrics: exact_match (the harness' em) and f1 of words, normalized as in SQuAD; with several
references, the mean over leaving each of them out, as in the authors' script; chance 0.
`coqa` has the last question of each conversation, as lm-evaluation-harness' task of this name;
`coqa_turns` has all of them, as in the paper.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals import _answers
from jaxllm.evals.rows import Row, field, objects, read_object
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import FewShot, Prompt, generation

SOURCES = (FileSource("coqa/", "https://stanfordnlp.github.io/coqa/"),)


def examples(path: epath.Path, *, every_turn: bool) -> Iterator[Prompt]:
    """The last turn, or every turn, of the conversations in one file."""
    for row in objects(read_object(path), "data"):
        questions = [field(turn, "input_text") for turn in objects(row, "questions")]
        answers = _answers_of(row, "answers", len(questions))
        more = Row(row.get("additional_answers") or {}, f"{row.where}: additional_answers")
        others = [_answers_of(more, name, len(questions)) for name in more]
        text = f"{field(row, 'story')}\n\n"
        for turn, asked in enumerate(questions):
            context = f"{text}Q: {asked}\n\nA:"
            text = f"{context} {answers[turn]}\n\n"
            if every_turn or turn == len(questions) - 1:
                accepted = _distinct([answers[turn], *(other[turn] for other in others)])
                name = f"{field(row, 'id')}_turn{turn}"
                yield Prompt(context, accepted, name, solution=f" {accepted[0]}")


def _answers_of(row: Row, name: str, turns: int) -> list[str]:
    """One annotator's answers, turn by turn."""
    answers = [field(answer, "input_text") for answer in objects(row, name)]
    if len(answers) != turns or not all(answers):
        raise UserError(f"{row.where}: {len(answers)} {name} to {turns} questions, or an empty one")
    return answers


def _distinct(answers: list[str]) -> tuple[str, ...]:
    """Drop duplicates, ignoring case, and keep the order."""
    first = {answer.lower(): answer for answer in reversed(answers)}
    return tuple(first[key] for key in dict.fromkeys(map(str.lower, answers)))


def score(text: str, example: Prompt) -> Mapping[str, float]:
    """exact_match and f1 of the first line of the text."""
    prediction = text.strip().split("\n")[0]
    return {
        "exact_match": _leaving_one_out(_answers.exact_match, prediction, example.targets),
        "f1": _leaving_one_out(_answers.f1, prediction, example.targets),
    }


def _leaving_one_out(
    metric: Callable[[str, str], float], prediction: str, targets: tuple[str, ...]
) -> float:
    """Mean over the targets of the best score against the others, as for human performance."""
    values = [metric(prediction, target) for target in targets]
    if len(values) == 1:
        return values[0]
    return sum(max(values[:i] + values[i + 1 :]) for i in range(len(values))) / len(values)


for _name, _every in (("coqa", False), ("coqa_turns", True)):
    generation(
        _name,
        functools.partial(examples, every_turn=_every),
        domain="reading",
        max_new_tokens=256,
        stop=("\nQ:",),
        files=("coqa/coqa-dev-v1.0.json",),
        few_shot=FewShot(
            functools.partial(examples, every_turn=False),
            ("coqa/coqa-train-v1.0.json",),
            exclude_self=True,
        ),
        score=score,
        primary_metric="f1",
    )
