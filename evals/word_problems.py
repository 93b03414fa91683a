"""Math word problems: `gsm8k`, `gsm8k_cot`, `svamp_cot`, `mgsm_native_cot_zh`.

gsm8k (Cobbe et al. 2021, arXiv 2110.14168): EVAL_DIR/gsm8k/{train,test}.jsonl, the folder
  grade_school_math/data of openai/grade-school-math at commit
  3101c7d5072418e28b9008a6636bde82a006892c; MIT. 1,319 problems. `gsm8k`: "Question: …", "Answer:",
  5 shots drawn from train, and the answer after "####". `gsm8k_cot`: "Q: …", "A:", and the 8
  few-shot examples of Wei et al. 2022 (arXiv 2201.11903) in their order, from
  EVAL_DIR/gsm8k/gsm8k-cot.yaml, lm_eval/tasks/gsm8k of EleutherAI/lm-evaluation-harness at commit
  b8d1d4fd057f6223c4490613f0a38cb5d75a3183; MIT.
svamp_cot (Patel et al. 2021, arXiv 2103.07191): EVAL_DIR/svamp/SVAMP.json of arkilpatel/SVAMP; MIT.
  1,000 problems. Prompt, shots and scoring of `gsm8k_cot`, as in Wei et al.; the harness has no
  such task.
mgsm_native_cot_zh (Shi et al. 2022, arXiv 2210.03057): EVAL_DIR/mgsm/{mgsm_zh.tsv,exemplars.py},
  the folder mgsm of google-research/url-nlp at commit 4b1e7a43efb517abadd16041e8b47f3be975c76e;
  CC BY-SA 4.0. 250 problems of GSM8K in Chinese; 8 shots in random order, with Chinese reasoning
  (complete: the harness drops its first character).

All are generated greedily, up to the next question or 256 tokens. Metrics: exact_match_strict_match
(the number after the phrase used in the shots), exact_match_flexible_extract (the last number);
chance 0. As lm-evaluation-harness' tasks of these names, mgsm_native_cot_zh with --num_fewshot 8.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals._answers import number_score
from jaxllm.evals.rows import Row, field, objects, read_json, read_rows, read_text
from jaxllm.evaluation.download import FileSource, github
from jaxllm.evaluation.tasks import FewShot, Prompt, generation

SOURCES = (
    FileSource(
        "gsm8k/gsm8k-cot.yaml",
        github(
            "EleutherAI/lm-evaluation-harness",
            "b8d1d4fd057f6223c4490613f0a38cb5d75a3183",
            "lm_eval/tasks/gsm8k/gsm8k-cot.yaml",
        ),
    ),
    FileSource(
        "gsm8k/",
        github(
            "openai/grade-school-math",
            "3101c7d5072418e28b9008a6636bde82a006892c",
            "grade_school_math/data/",
        ),
    ),
    FileSource(
        "svamp/", github("arkilpatel/SVAMP", "689d7ccac74b9983a2ac7cc3b264f441b99e7c53", "")
    ),
    FileSource(
        "mgsm/",
        github("google-research/url-nlp", "4b1e7a43efb517abadd16041e8b47f3be975c76e", "mgsm/"),
    ),
)

ENDS = ("</s>", "<|im_end|>")
IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")  # regular expressions to remove from English numbers
_HASHES = re.compile(r"#### (\-?[0-9\.\,]+)")
_ENGLISH = re.compile(r"The answer is (\-?[0-9\.\,]+).")
_CHINESE = re.compile(r"答案是 (\-?[0-9\.\,]+)。")
PLAIN_FORM, THOUGHT_FORM = "Question: {}\nAnswer:", "Q: {}\nA:"


def gsm8k(path: epath.Path, *, form: str) -> Iterator[Prompt]:
    """The problems of one file, formatted with `form`."""
    for row in read_rows(path):
        answer = field(row, "answer")
        _, hashes, number = answer.partition("####")
        if not hashes or not number.strip():
            raise UserError(f"{row.where}: field 'answer' has no number after '####'")
        context = form.format(field(row, "question"))
        yield Prompt(context, (number.strip(),), solution=f" {answer}")


def thoughts(path: epath.Path) -> Iterator[Prompt]:
    """The few-shot examples in the harness' task file."""
    import yaml

    try:
        whole = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: broken YAML ({error})") from error
    top = Row(whole if isinstance(whole, dict) else {}, str(path))
    for row in objects(field(top, "fewshot_config", dict), "samples"):
        solution = field(row, "target")
        context = THOUGHT_FORM.format(field(row, "question"))
        yield Prompt(context, (solution,), solution=f" {solution}")


def svamp(path: epath.Path) -> Iterator[Prompt]:
    """The problems of one file, each a story and a question."""
    for row in objects(Row({"problems": read_json(path)}, str(path)), "problems"):
        number = field(row, "Answer", (int, float))
        target = str(int(number) if number == int(number) else number)
        asked = f"{field(row, 'Body').strip()} {field(row, 'Question').strip()}"
        yield Prompt(THOUGHT_FORM.format(asked), (target,), field(row, "ID"))


def mgsm(path: epath.Path) -> Iterator[Prompt]:
    """The problems of one table, with a problem and its answer per line."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        columns = line.split("\t")
        if len(columns) != 2 or not all(columns):
            raise UserError(f"{path}:{number}: {len(columns)} columns, not a problem and a number")
        yield Prompt(f"问题： {columns[0]}\n逐步解答:", (columns[1].replace(",", ""),))


def exemplars(path: epath.Path) -> Iterator[Prompt]:
    """The Chinese few-shot examples in the authors' Python file, which is parsed, not run."""
    languages = Row(_constant(path, "MGSM_EXEMPLARS"), str(path))
    problems = field(languages, "zh", dict)
    for number in problems:
        row = field(problems, number, dict)
        solution = field(row, "a").removeprefix("逐步解答：")
        yield Prompt(f"{field(row, 'q')}\n逐步解答:", (solution,), solution=f" {solution}")


def _constant(path: epath.Path, name: str) -> Any:
    """The value of a module's constant."""
    try:
        for statement in ast.parse(read_text(path)).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
                return ast.literal_eval(statement.value)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be parsed ({error})") from error
    raise UserError(f"{path}: no constant {name}")


def _declare(name: str, examples: Any, file: str, few_shot: FewShot, **details: Any) -> None:
    generation(
        name,
        examples,
        domain="math",
        max_new_tokens=256,
        files=(file,),
        few_shot=few_shot,
        primary_metric="exact_match_strict_match",
        **details,
    )


_plain = functools.partial(gsm8k, form=PLAIN_FORM)
_thought = functools.partial(gsm8k, form=THOUGHT_FORM)
_eight = FewShot(thoughts, ("gsm8k/gsm8k-cot.yaml",), order="first")
_english = functools.partial(number_score, strict=_ENGLISH, ignore=IGNORED)

_declare(
    "gsm8k", _plain, "gsm8k/test.jsonl", FewShot(_plain, ("gsm8k/train.jsonl",)),
    shots=5, stop=("Question:", *ENDS),
    score=functools.partial(number_score, strict=_HASHES, ignore=IGNORED),
)  # fmt: skip
_declare(
    "gsm8k_cot", _thought, "gsm8k/test.jsonl", _eight,
    shots=8, stop=("Q:", *ENDS), score=_english,
)  # fmt: skip
_declare(
    "svamp_cot", svamp, "svamp/SVAMP.json", _eight,
    shots=8, stop=("Q:", *ENDS), score=_english,
)  # fmt: skip
_declare(
    "mgsm_native_cot_zh", mgsm, "mgsm/mgsm_zh.tsv", FewShot(exemplars, ("mgsm/exemplars.py",)),
    shots=8, stop=("问题：", *ENDS),
    score=functools.partial(number_score, strict=_CHINESE, punctuation=False),
)  # fmt: skip
