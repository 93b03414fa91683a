"""RACE, `race`: English exams for Chinese high schools (Lai et al. 2017, arXiv 1704.04683).

Files: EVAL_DIR/race/test/high/*.txt, the folder RACE/test of the authors' RACE.tar.gz
(cs.cmu.edu/~glai1/data/race); for research only. 1,045 articles with 3,498 questions of four
options.
Prompt: "Article: …", all its questions except the last with their answers, the last question;
scored on the texts of the options. With one question per article, the score is not comparable with
the paper's accuracy over all questions without the others' answers. Metric: accuracy; chance 1/4.
As lm-evaluation-harness' `race` at 0 shots; with few-shot examples, the harness may include the
article itself, which we exclude.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals.rows import Row, field, index_of, question, read_object, texts
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

SOURCES = (
    FileSource(
        "race/",
        "http://www.cs.cmu.edu/~glai1/data/race/RACE.tar.gz",
        sha256="b2769cc9fdc5c546a693300eb9a966cec6870bd349fbc44ed5225f8ad33006e5",
        inside="RACE/",
    ),
)

LETTERS = ("A", "B", "C", "D")
BLANK = "  _  ."  # end of a fill-in-the-blank question


def examples(folder: epath.Path) -> Iterator[Choice]:
    """The last question of every article, by number; UserError if none, or a malformed one."""
    paths = [path for path in folder.iterdir() if path.name.endswith((".txt", ".txt.gz"))]
    if not paths:
        raise UserError(f"{folder}: no articles (*.txt) in this folder")
    for path in sorted(paths, key=lambda path: (len(path.name), path.name)):
        yield _article(read_object(path), path.name.split(".")[0])


def _article(row: Row, name: str) -> Choice:
    questions, answers = texts(row, "questions"), texts(row, "answers")
    lists = field(row, "options", list)
    if not questions or not len(questions) == len(answers) == len(lists):
        raise UserError(f"{row.where}: questions, options and answers differ in number")
    solved = ""
    for number, (asked, listed) in enumerate(zip(questions, lists, strict=True)):
        where = f"{row.where}: question {number + 1}"
        problem = Row({"options": listed, "answer": answers[number]}, where)
        options = texts(problem, "options")
        right = index_of(problem, "answer", LETTERS[: len(options)])
        if number < len(questions) - 1:
            solved += _solved(asked, options[right])
    context = f"Article: {field(row, 'article')}\n\n{solved}{asked}"
    return question(problem, context, [f" {option}" for option in options], right, id=name)


def _solved(text: str, answer: str) -> str:
    if text.endswith(BLANK):
        return f"{text[:-5]}{answer}\n"
    return f"Question: {text}\nAnswer: {answer}\n"


multiple_choice(
    "race",
    examples,
    domain="reading",
    files=("race/test/high",),
    few_shot=FewShot(),
    chance=1 / 4,
)
