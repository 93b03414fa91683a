"""BIG-Bench-Hard, `bbh_fewshot_<task>` and `bbh_cot_fewshot_<task>` (Suzgun et al. 2022).

Files: EVAL_DIR/bbh/<task>.json and EVAL_DIR/bbh/cot-prompts/<task>.txt, the folders bbh and
cot-prompts of suzgunmirac/BIG-Bench-Hard at commit 9ee07bd481feebf959a6b59d61ea57bdcf30964d (arXiv
2210.09261); MIT. 27 tasks, 6,511 questions.
Prompt: the task in a sentence, three few-shot examples, "Q: …", "A:"; the second form adds "Let's
think step by step." and has its reasoning before the answers. All are in cot-prompts; the first
form shows only the text after "So the answer is". Generated up to an empty line or a "Q".
Metric: exact_match of the text, or of the text between "the answer is" and the full stop that ends
its line; chance 0. As lm-evaluation-harness' tasks of these names, except that spaces around an
answer do not count, and that a chain of thought has up to 512 tokens (the harness reserves 1,024,
half of a context of 2,048).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals._answers import extract
from jaxllm.evals.rows import field, objects, read_object, read_text
from jaxllm.evaluation.download import FileSource, github
from jaxllm.evaluation.tasks import FewShot, Prompt, generation

COMMIT = "9ee07bd481feebf959a6b59d61ea57bdcf30964d"
SOURCES = (
    FileSource("bbh/cot-prompts/", github("suzgunmirac/BIG-Bench-Hard", COMMIT, "cot-prompts/")),
    FileSource("bbh/", github("suzgunmirac/BIG-Bench-Hard", COMMIT, "bbh/")),
)

TASKS = tuple(
    """
    boolean_expressions, causal_judgement, date_understanding, disambiguation_qa, dyck_languages,
    formal_fallacies, geometric_shapes, hyperbaton, logical_deduction_five_objects,
    logical_deduction_seven_objects, logical_deduction_three_objects, movie_recommendation,
    multistep_arithmetic_two, navigate, object_counting, penguins_in_a_table,
    reasoning_about_colored_objects, ruin_names, salient_translation_error_detection, snarks,
    sports_understanding, temporal_sequences, tracking_shuffled_objects_five_objects,
    tracking_shuffled_objects_seven_objects, tracking_shuffled_objects_three_objects,
    web_of_lies, word_sorting,
    """.replace(",", " ").split()
)
THOUGHT = " Let's think step by step.\n"
_SHOT = re.compile(r"(?P<input>.*)\nA: Let's think step by step\.\s(?P<thought>.*)", re.DOTALL)
_ANSWER = re.compile(r"[Ss]o the answer is (.*?)\.?$", re.DOTALL)
_STATED = re.compile(r"(?<=the answer is )(.*)(?=.)")


def questions(path: epath.Path, prompts: epath.Path, *, thought: bool) -> Iterator[Prompt]:
    """The questions of a task, with or without the chain-of-thought cue."""
    description = _parts(prompts)[0] + "\n\n"
    for row in objects(read_object(path), "examples"):
        target = field(row, "target")
        if not target:
            raise UserError(f"{row.where}: field 'target' is empty")
        yield Prompt(
            _asked(field(row, "input"), thought), (target,), solution=f" {target}",
            description=description,
        )  # fmt: skip


def solved(prompts: epath.Path, *, thought: bool) -> Iterator[Prompt]:
    """The few-shot examples of a file in cot-prompts."""
    for number, text in enumerate(_parts(prompts)[1:], 1):
        shot = _SHOT.fullmatch(text)
        answer = _ANSWER.search(shot["thought"]) if shot else None
        if not shot or not answer:
            raise UserError(f"{prompts}: solved question {number} has no answer at its end")
        solution = shot["thought"] if thought else f" {answer[1]}"
        yield Prompt(_asked(shot["input"], thought), (answer[1],), solution=solution)


def _asked(question: str, thought: bool) -> str:
    return f"Q: {question}\nA:{THOUGHT if thought else ''}"


def _parts(path: epath.Path) -> list[str]:
    """The task description and its few-shot examples, without the contamination note above."""
    _, line, text = read_text(path).partition("-----\n")
    if not line:
        raise UserError(f"{path}: no line of dashes before the prompt")
    return text.strip().split("\n\nQ: ")


def stated(text: str, example: Prompt) -> Mapping[str, float]:
    """exact_match of the answer stated in the text."""
    return {"exact_match": float(extract(_STATED, text) == example.targets[0])}


def _declare(task: str, prefix: str, *, thought: bool) -> str:
    prompts = f"bbh/cot-prompts/{task}.txt"
    declared = generation(
        f"{prefix}_{task}",
        functools.partial(questions, thought=thought),
        domain="reasoning",
        max_new_tokens=512 if thought else 256,
        stop=("</s>", "Q", "\n\n"),
        files=(f"bbh/{task}.json", prompts),
        few_shot=FewShot(functools.partial(solved, thought=thought), (prompts,), order="first"),
        shots=3,
        **({"score": stated} if thought else {}),
    )
    return declared.name


MIXTURES = {
    "bbh_fewshot": tuple(_declare(task, "bbh_fewshot", thought=False) for task in TASKS),
    "bbh_cot_fewshot": tuple(_declare(task, "bbh_cot_fewshot", thought=True) for task in TASKS),
}
