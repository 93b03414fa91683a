"""HumanEval and MBPP: the published solutions pass, others do not, prompts are the harness'."""

import ast
import functools
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxllm.errors import UserError
from jaxllm.evaluation import metrics, sandbox
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.selection import add_few_shot, locate, select
from jaxllm.evaluation.tasks import Prompt


def read(name, directory):
    (task,) = benchmarks().load([name])
    paths = locate(task, EvalConfig(data_dir=str(directory)))
    own = list(task.examples(*paths[: len(task.files)]))
    pool = list(task.few_shot.pool(*paths[len(task.files) :])) if task.few_shot else []
    return task, own, pool


def solution(example):
    return example.solution.removesuffix("\n[DONE]")


def passed(task, examples, text_of):
    with ThreadPoolExecutor(2) as pool:
        return [s["pass"] for s in pool.map(lambda e: task.score(text_of(e), e), examples)]


@pytest.mark.parametrize(("name", "size"), [("humaneval", 164), ("mbpp", 500)])
def test_every_problem_is_read(name, size, shared_data):
    task, examples, _ = read(name, shared_data / "evals")
    assert (len(examples), task.domain, task.chance) == (size, "code", 0.0)
    assert task.primary_metric == "pass@1"
    assert not any(end in solution(e) for e in examples for end in task.stop)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("humaneval", 164), ("mbpp", 500)])
def test_every_published_solution_passes(name, size, shared_data, monkeypatch):
    # One of MBPP's computes for five seconds on a busy core; the limit has tests of its own.
    limits = functools.partial(sandbox.Limits, cpu_seconds=20)
    monkeypatch.setattr(sandbox, "Limits", limits)
    task, examples, _ = read(name, shared_data / "evals")
    assert sum(passed(task, examples, solution)) == size


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_a_wrong_program_does_not_pass(name, shared_data):
    task, examples, _ = read(name, shared_data / "evals")
    few = examples[:6]
    assert passed(task, few, solution) == [1.0] * 6
    others = dict(zip(few, map(solution, [*few[1:], few[0]]), strict=True))
    assert passed(task, few, lambda e: others[e]) == [0.0] * 6
    leaves = "    import sys; sys.exit(0)\n" if name == "humaneval" else "import sys; sys.exit(0)"
    assert passed(task, few, lambda e: leaves) == [0.0] * 6
    assert passed(task, few, lambda e: "") == [0.0] * 6


def harness(name):
    """A folder of the harness' tasks; its modules would load a metric from the network."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None:
        pytest.skip("lm-evaluation-harness is not installed")
    return Path(spec.origin).parent / "tasks" / name


def test_prompts_of_humaneval_are_the_files_own(shared_data):
    task, examples, _ = read("humaneval", shared_data / "evals")
    assert examples[0].context.startswith("from typing import List\n\n\ndef has_close_elements(")
    assert examples[0].targets[0].endswith("\ncheck(has_close_elements)")
    import yaml

    theirs = (harness("humaneval") / "humaneval.yaml").read_text().replace("!function", "")
    said = yaml.safe_load(theirs)
    assert said["doc_to_text"] == "{{prompt}}"
    assert tuple(said["generation_kwargs"]["until"]) == task.stop


def test_prompts_and_shots_of_mbpp_are_the_harness(shared_data):
    jinja2, yaml = pytest.importorskip("jinja2"), pytest.importorskip("yaml")
    folder = harness("mbpp")
    said = yaml.safe_load((folder / "mbpp.yaml").read_text().replace("!function", ""))
    module = ast.parse((folder / "utils.py").read_text())
    function = next(n for n in module.body if getattr(n, "name", "") == "list_fewshot_samples")
    samples = ast.literal_eval(function.body[0].value)
    text, target = (jinja2.Template(said[f"doc_to_{key}"]) for key in ("text", "target"))
    # Jinja drops the line end that closes a template; the harness' own environment keeps it.
    theirs = [text.render(**row) + "\n" + target.render(**row) for row in samples]

    task, examples, pool = read("mbpp", shared_data / "evals")
    assert [shot.as_shot for shot in pool] == theirs
    assert tuple(said["generation_kwargs"]["until"]) == task.stop
    assert (said["num_fewshot"], said["target_delimiter"]) == (task.shots, "")
    first = add_few_shot(task, examples, pool)[0]
    assert "".join(first.shots) == "".join(f"{solved}\n\n" for solved in theirs)
    assert examples[0].id == "11"


def test_programs_do_not_run_unless_asked_for(shared_data):
    config = EvalConfig(tasks=("humaneval",), data_dir=str(shared_data / "evals"))
    with pytest.raises(UserError, match=r"humaneval runs .*--gin.EvalConfig.run_code=True"):
        select(config)


def test_files_of_the_wrong_shape_are_named(tmp_path):
    for name, line, message in (
        (
            "humaneval/HumanEval.jsonl",
            '{"prompt": "def f():"}',
            "HumanEval.jsonl:1: no field 'test'",
        ),
        ("mbpp/mbpp.jsonl", '{"task_id": 11, "test_list": ["assert f()"]}', "1 tests, a task has"),
    ):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(line)
        (task,) = benchmarks().load([path.parent.name])
        with pytest.raises(UserError, match=message):
            list(task.examples(path))


def test_pass_at_k_counts_programs():
    """Two of four programs pass: 1 - C(2, k) / C(4, k), here for k = 1."""
    (task,) = benchmarks().load(["mbpp"])
    example = Prompt("…", ("\nassert f() == 1",))
    right, wrong = "def f(): return 1", "def f(): return 2"
    answers = [[right, wrong, f"{right}[DONE]nonsense", wrong], [wrong] * 4]
    measured, columns = metrics.generation(task, [example, example], answers)
    assert measured["pass@1"].value == pytest.approx(0.25)
    assert (columns["pass"], columns["correct"]) == ([0.5, 0.0], [True, False])
