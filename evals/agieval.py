"""AGIEval, `agieval_<set>`: 20 entrance and qualification exams and logiqa (Zhong et al. 2023).

Files: EVAL_DIR/agieval/<set>.jsonl, the folder data/v1 of ruixiangcui/AGIEval at commit
5c77d073fda993f1652eaae3cf5d04cc5fd21d40 (arXiv 2304.06364); licences by set in data/v1/LICENSE:
Gaokao, SAT and LSAT MIT, AQuA-RAT Apache-2.0, LogiQA CC BY-NC-SA 4.0, JEC-QA academic research
only, MATH unclear.
Prompt: the authors' zero-shot one (passage, "Q: … Answer Choices: …", "A: Among A through D, the
answer is", or the same in Chinese); scored on the texts of the options; with several correct ones,
any counts. Metrics: accuracy, accuracy_per_char (the harness' acc_norm); chance 1 / options.
`agieval_math` and `agieval_gaokao_mathcloze` are generated (32 tokens, up to "Q:") and compared by
`_latex.equivalent`. As lm-evaluation-harness' tasks of these names at 0 shots; with few-shot
examples, the harness may include the question itself, which we exclude.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals._latex import equivalent
from jaxllm.evals.letters import LETTERS
from jaxllm.evals.rows import Row, field, question, read_rows, texts
from jaxllm.evaluation.download import FileSource, github
from jaxllm.evaluation.tasks import Choice, FewShot, Prompt, generation, multiple_choice

SOURCES = (
    FileSource(
        "agieval/",
        github("ruixiangcui/AGIEval", "5c77d073fda993f1652eaae3cf5d04cc5fd21d40", "data/v1/"),
    ),
)

ENGLISH = (
    "aqua-rat", "gaokao-english", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en",
    "sat-en-without-passage", "sat-math",
)  # fmt: skip
CHINESE = (
    "gaokao-biology", "gaokao-chemistry", "gaokao-chinese", "gaokao-geography", "gaokao-history",
    "gaokao-mathqa", "gaokao-physics", "jec-qa-ca", "jec-qa-kd", "logiqa-zh",
)  # fmt: skip
ENGLISH_FORM = "{}Q: {} Answer Choices: {}\nA: Among A through {}, the answer is"
CHINESE_FORM = "{}问题：{} 选项：{}\n答案：从A到{}, 我们应选择"
CLOZES = {"math": "{}Q: {}\nA: The answer is", "gaokao-mathcloze": "{}问题：{}\n答案："}


def choices(path: epath.Path, *, form: str) -> Iterator[Choice]:
    """The questions of one file, formatted with `form`."""
    for row in read_rows(path):
        options = texts(row, "options")
        right = _right(row, len(options))
        last = LETTERS[len(options) - 1]
        context = form.format(_passage(row), field(row, "question"), " ".join(options), last)
        yield question(
            row, context, [f" {option}" for option in options], right[0],
            also_correct=tuple(right[1:]),
        )  # fmt: skip


def _passage(row: Row) -> str:
    return field(row, "passage", (str, type(None))) or ""


def _right(row: Row, options: int) -> list[int]:
    """Indices of the correct options, from `B`, `A C`, `ACD` or a list of letters."""
    label = field(row, "label", (str, list))
    right = sorted({LETTERS.find(str(letter)) for letter in label if letter != " "})
    if not right or right[0] < 0 or right[-1] >= options:
        raise UserError(f"{row.where}: field 'label' is {label!r}, not among {options} options")
    return right


def clozes(path: epath.Path, *, form: str) -> Iterator[Prompt]:
    """The questions of one file without options."""
    for row in read_rows(path):
        answer = field(row, "answer")
        if not answer:
            raise UserError(f"{row.where}: field 'answer' is empty")
        context = form.format(_passage(row), field(row, "question"))
        yield Prompt(context, (answer,), solution=f" {answer}")


def score(prediction: str, example: Prompt) -> Mapping[str, float]:
    """exact_match: 1 if the final answer in the text is equivalent to the target."""
    return {"exact_match": float(equivalent(prediction, example.targets[0]))}


def name(exam: str) -> str:
    """The task name of a set."""
    return f"agieval_{exam.replace('-', '_')}"


for exam in (*ENGLISH, *CHINESE):
    multiple_choice(
        name(exam),
        functools.partial(choices, form=ENGLISH_FORM if exam in ENGLISH else CHINESE_FORM),
        domain="examination",
        files=(f"agieval/{exam}.jsonl",),
        few_shot=FewShot(),
    )
for exam, cloze_form in CLOZES.items():
    generation(
        name(exam),
        functools.partial(clozes, form=cloze_form),
        domain="examination",
        max_new_tokens=32,
        stop=("Q:",),
        files=(f"agieval/{exam}.jsonl",),
        few_shot=FewShot(),
        score=score,
    )
TASKS = tuple(name(exam) for exam in (*ENGLISH, *CHINESE, *CLOZES))
