"""Program synthesis, scored by unit tests: `humaneval` and `mbpp`.

humaneval (Chen et al. 2021, arXiv 2107.03374): EVAL_DIR/humaneval/HumanEval.jsonl, the folder data
  of openai/human-eval at commit 6d43fb980f9fee3c892a914eda09951f772ad10d; MIT. 164 functions.
  Prompt: a function's head and docstring; 0 shots. Generated up to the next "class", "def", "#",
  "if" or "print" at the beginning of a line, or 512 tokens. Run: prompt, text, the hidden tests.
mbpp (Austin et al. 2021, arXiv 2108.07732): EVAL_DIR/mbpp/mbpp.jsonl, the folder mbpp of
  google-research/google-research; CC BY 4.0. Tasks 11 to 510 of 974 are the test set. Prompt: "You
  are an expert Python programmer, and here is your task: …", its three tests, "[BEGIN]"; 3 shots:
  tasks 2, 3 and 4. Generated up to "[DONE]" or 256 tokens. Run: text, the test's set-up code (one
  task has it), the three tests.

Metric: pass@k of EvalConfig.samples programs, by the unbiased estimator of Chen et al.; a single
one is decoded greedily, several are sampled. Domain code; chance 0. Programs run in
`jaxllm.evaluation.sandbox`, and only if EvalConfig.run_code allows it. As lm-evaluation-harness'
tasks of these names, which generate up to 1,024 tokens for humaneval and do not run the set-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals.rows import field, read_rows, texts
from jaxllm.evaluation import sandbox
from jaxllm.evaluation.download import FileSource, github
from jaxllm.evaluation.tasks import FewShot, Prompt, generation

SOURCES = (
    FileSource(
        "humaneval/",
        github("openai/human-eval", "6d43fb980f9fee3c892a914eda09951f772ad10d", "data/"),
    ),
    FileSource("mbpp/", "https://github.com/google-research/google-research/tree/master/mbpp"),
)

MBPP_SHOTS, MBPP_TEST = range(2, 5), range(11, 511)
MBPP_FORM = (
    "You are an expert Python programmer, and here is your task: {} Your code should pass these "
    "tests:\n\n{}\n[BEGIN]\n"
)


def humaneval(path: epath.Path) -> Iterator[Prompt]:
    """The functions of one file; the target is the test code to append."""
    for row in read_rows(path):
        test = f"\n{field(row, 'test')}\ncheck({field(row, 'entry_point')})"
        solution = field(row, "canonical_solution")
        yield Prompt(field(row, "prompt"), (test,), field(row, "task_id"), solution)


def _mbpp(path: epath.Path, numbers: range) -> Iterator[Prompt]:
    for row in read_rows(path):
        number = field(row, "task_id", int)
        tests = texts(row, "test_list")
        if len(tests) < 3:
            raise UserError(f"{row.where}: {len(tests)} tests, a task has three")
        if number in numbers:
            asked = "\n".join(tests[:3])
            yield Prompt(
                MBPP_FORM.format(field(row, "text"), asked),
                (f"\n{field(row, 'test_setup_code')}\n{asked}",),
                str(number),
                solution=f"{field(row, 'code')}\n[DONE]",
            )


def mbpp(path: epath.Path) -> Iterator[Prompt]:
    """The test set of one file; the target is the test code to append."""
    yield from _mbpp(path, MBPP_TEST)


def mbpp_shots(path: epath.Path) -> Iterator[Prompt]:
    """The few-shot examples of one file."""
    yield from _mbpp(path, MBPP_SHOTS)


def completes(text: str, example: Prompt) -> Mapping[str, float]:
    """pass: 1 if prompt and text together pass the tests."""
    return {"pass": float(sandbox.run(example.context + text + example.targets[0]).passed)}


def stands_alone(text: str, example: Prompt) -> Mapping[str, float]:
    """pass: 1 if the text alone passes the tests."""
    return {"pass": float(sandbox.run(text + example.targets[0]).passed)}


generation(
    "humaneval",
    humaneval,
    domain="code",
    max_new_tokens=512,
    stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
    files=("humaneval/HumanEval.jsonl",),
    score=completes,
    runs_code=True,
)
generation(
    "mbpp",
    mbpp,
    domain="code",
    max_new_tokens=256,
    stop=("[DONE]",),
    files=("mbpp/mbpp.jsonl",),
    few_shot=FewShot(mbpp_shots, ("mbpp/mbpp.jsonl",), order="first"),
    shots=3,
    score=stands_alone,
    runs_code=True,
)
