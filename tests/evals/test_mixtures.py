"""A mixture's name stands for its tasks, in a list of tasks and in the settings of a run."""

import collections

import pytest

from jaxllm.errors import UserError
from jaxllm.evals import mixtures
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.selection import select


@pytest.mark.parametrize(
    ("name", "count"), [("mmlu", 57), ("cmmlu", 67), ("ceval", 52), ("agieval", 21)]
)
def test_exams_are_named_together(name, count):
    found = benchmarks().load([name])
    assert len(found) == count
    assert {task.domain for task in found} == {"examination"}
    if name != "agieval":
        assert {(task.shots, task.chance) for task in found} == {(5, 0.25)}


def test_a_task_that_is_named_twice_is_there_once():
    found = benchmarks().load(["mmlu", "mmlu_anatomy", "piqa", "amber", "piqa"])
    names = [task.name for task in found]
    assert len(names) == len(set(names)) == 57 + 1 + 3
    assert names[-3:] == ["arc_challenge_25shot", "hellaswag_10shot", "truthfulqa_mc2"]


def test_a_mixture_is_there_at_any_number_of_shots():
    found = {task.name: task for task in benchmarks().load(["mmlu_0shot"])}
    assert len(found) == 57 and found["mmlu_virology_0shot"].shots == 0
    with pytest.raises(UserError, match="truthfulqa_mc2 has no few-shot examples"):
        benchmarks().load(["amber_2shot"])


def test_amber_has_its_papers_shots():
    shots = collections.Counter(task.shots for task in benchmarks().load(["amber"]))
    assert shots == {25: 1, 10: 1, 5: 57, 0: 1}


def test_open_llama_has_the_tasks_of_its_table():
    assert {task.name for task in benchmarks().load(["open_llama"])} == {
        "anli_r1", "anli_r2", "anli_r3", "arc_challenge", "arc_easy", "boolq", "hellaswag",
        "openbookqa", "piqa", "record", "rte", "truthfulqa_mc1", "truthfulqa_mc2", "wic",
        "winogrande",
    }  # fmt: skip
    assert {task.shots for task in benchmarks().load(["open_llama"])} == {0}


def test_the_fine_lines_domains_are_those_of_its_tasks():
    for domain, names in mixtures.FINE_LINE.items():
        assert {task.domain for task in benchmarks().load(names)} == {domain}


def test_every_mixture_expands():
    for name in benchmarks().mixtures:
        assert len(benchmarks().load([name])) > 1


def test_a_misspelt_mixture_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="open_lama; did you mean open_llama"):
        benchmarks().load(["open_lama"])


def test_a_run_may_name_a_mixture(eval_dir):
    config = EvalConfig(tasks=("mmlu", "piqa"), data_dir=str(eval_dir))
    found = select(config)
    assert len(found) == 58
    task = found["mmlu_virology"].definition
    assert [path.name for path in found["mmlu_virology"].files] == [
        "virology_test.csv",
        "virology_dev.csv",
    ]
    assert task.description.endswith("about virology.\n\n")
