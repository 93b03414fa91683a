"""Task names: found without heavy imports, and a wrong one is answered with the nearest."""

import functools
import subprocess
import sys

import pytest

from jaxllm.errors import UserError
from jaxllm.evals import letters
from jaxllm.evaluation import tasks
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.tasks import Choice, Prompt
from jaxllm.interop.importers import known_tasks


def _examples():
    yield Choice("a", (" b", " c"), 0)


def test_declared_task_is_found_by_name():
    definition = tasks.multiple_choice("unit_names.task", _examples, domain="language")
    assert benchmarks().load(["unit_names.task"]) == (definition,)


def test_two_tasks_of_one_name_are_refused():
    exam = functools.partial(letters.exam, "unit_names.exam", "a.csv", description="", cue="")
    exam(few_shot_file="b.csv")
    exam(few_shot_file="b.csv")  # as when its module is reloaded
    with pytest.raises(ValueError, match=r"two tasks are called unit_names\.exam"):
        letters.exam("unit_names.exam", "other.csv", "b.csv", description="", cue="")
    with pytest.raises(ValueError, match=r"two tasks are called unit_names\.exam"):
        tasks.multiple_choice("unit_names.exam", _examples, domain="language", files=("a.csv",))


def test_unknown_name_offers_the_nearest():
    tasks.multiple_choice("unit_names.task", _examples, domain="language")
    with pytest.raises(UserError, match=r"unit_names.taks; did you mean unit_names.task"):
        benchmarks().load(["unit_names.taks"])


@pytest.mark.parametrize("name", ["", "a/b", "a b"])
def test_name_must_do_as_a_file_name(name):
    with pytest.raises(ValueError, match="only letters"):
        tasks.multiple_choice(name, _examples, domain="language")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Choice("a", ("b",), 0),
        lambda: Choice("a", ("b", "c"), 2),
        lambda: Choice("a", ("b", ""), 0),
        lambda: Prompt("a", ()),
    ],
)
def test_impossible_examples_are_refused(make):
    with pytest.raises(ValueError):
        make()


def test_listing_the_tasks_imports_neither_tensorflow_nor_jax():
    heavy = "{'tensorflow', 'seqio', 'jax'}"
    code = (
        "import sys; from jaxllm.evaluation.registry import benchmarks; benchmarks().names();"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_task_has_one_domain_whoever_scored_it():
    """Imported results take their domain from a table, ours from the benchmark's module."""
    known = {}
    families = ("bigbench_", "heldout_")  # have domains of their own for each task
    for task in benchmarks().load([n for n in benchmarks().names() if not n.startswith(families)]):
        known[task.name] = known_tasks.lookup(task.name).domain
        assert known[task.name] in (task.domain, known_tasks.OTHER), task.name
    assert known["arc_easy"] == known["openbookqa"] == "commonsense"
