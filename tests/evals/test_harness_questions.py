"""What the exams and HellaSwag ask is what lm-evaluation-harness and its kin ask."""

import itertools
from pathlib import Path

import pytest

import evals
from evals._latex import equivalent
from jaxllm.evaluation.shots import with_solved_examples
from jaxllm.evaluation.tasks import Choice
from tests.evals.adapters import rows

pytestmark = pytest.mark.slow


def test_every_subject_is_introduced_as_in_the_harness():
    _yaml_loader = pytest.importorskip("lm_eval.tasks._yaml_loader")
    folder = Path(_yaml_loader.__file__).parent
    forms = {
        "mmlu": ("mmlu/default", "mmlu_"), "cmmlu": ("cmmlu", "cmmlu_"),
        "ceval": ("ceval", "ceval-valid_"),
    }  # fmt: skip
    for name, (where, prefix) in forms.items():
        preambles = {}
        for path in (folder / where).glob(f"{prefix}*.yaml"):
            config = _yaml_loader.load_yaml(path, resolve_func=False)
            preambles[path.stem.replace(prefix, f"{name}_")] = config["description"]
        assert {task.name: task.preamble for task in evals.load([name])} == preambles


def test_answers_of_agieval_are_compared_as_in_the_harness(eval_dir):
    utils = pytest.importorskip("lm_eval.tasks.agieval.utils")
    answers = [row["answer"] for row in rows(eval_dir / "agieval/gaokao-mathcloze.jsonl.gz")]
    answers += [
        "so $x=\\frac12$", "the answer is \\boxed{\\dfrac{1}{2}}.", "x = 0.5", "1/2", "$1/2$",
        "$\\sqrt2$", "$\\sqrt{2}$", "$90^\\circ$", "$90$", "$3\\text{ cm}$", "$y = 3$", "$.5$",
        "nothing", "$\\left(1, 2\\right)$", "$(1,2)$", "$\\tfrac{1}{2}$", "12.0", "$ 12 $",
    ]  # fmt: skip
    for ours, theirs in itertools.product(answers, answers):
        assert equivalent(ours, theirs) == utils.is_equiv(ours, theirs), (ours, theirs)


def test_olmes_has_the_same_hellaswag(shared_data, eval_dir):
    """A thousand questions as another project's copy of the harness made them of the raw files.

    The text form that is at hand lost spaces, repeated stops and the capital of ctx_b, so that
    letters and digits are compared.
    """

    def letters(text):
        return "".join(filter(str.isalnum, text.lower()))

    (task,) = evals.load(["hellaswag"])
    by_options = {
        tuple(map(letters, example.options)): example
        for example in task.examples(eval_dir / "hellaswag/hellaswag_val.jsonl")
    }
    for row in rows(shared_data / "evals/hellaswag/validation_olmes1000.jsonl.gz"):
        example = by_options[tuple(map(letters, row["choices"]))]
        assert letters(example.context) == letters(row["query"])
        assert example.answer == row["gold"]


def test_definitions_without_shots_keep_their_preamble():
    (task,) = evals.load(["mmlu_anatomy_0shot"])
    (example,) = with_solved_examples(task, [Choice("q", (" A", " B"), 0)], [])
    assert example.preamble == task.preamble and not example.shots
