"""`seqio.Evaluator` runs our tasks with our model functions, and measures what `Evaluator` does."""

import dataclasses
import functools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from jaxllm.errors import UserError
from jaxllm.evaluation import tasks
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.evaluator import Evaluator
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.scoring import Scorer
from jaxllm.evaluation.selection import SelectedTask, file_names, select
from jaxllm.evaluation.seqio_adapter import (
    SPLIT,
    EvalTask,
    TextFeatureConverter,
    add_to_seqio,
    examples_of,
    model_functions,
)
from jaxllm.evaluation.tasks import Choice, Document, Prompt
from jaxllm.run.records import RunInfo
from jaxllm.run.trajectory import TrajectoryStore
from tests.evaluation.helpers import TINY, Bytes, mesh, sharded_params

OF_THE_BATCHES = {"truncated", "padding", "shots_dropped"}


def questions():
    for number in range(6):
        yield Choice(f"{number} is", (" odd", " even", " neither")[: 2 + number % 2], number % 2)


def documents():
    yield from (Document("word " * n) for n in (3, 30))


def prompts():
    yield from (Prompt(f"say {n}:", (f" {n}",)) for n in range(4))


CHOICE = tasks.multiple_choice("seqio_choice", questions, domain="reading")
tasks.perplexity("seqio_text", documents, domain="language")
tasks.cloze("seqio_cloze", prompts, domain="language")
tasks.generation("seqio_generate", prompts, domain="math", max_new_tokens=5)
KINDS = ("seqio_choice", "seqio_text", "seqio_cloze", "seqio_generate")


@functools.cache
def without_files():
    """The benchmarks that need neither files nor the run's corpora or training data."""
    return tuple(
        task.name
        for task in benchmarks().load(benchmarks().names())
        if not file_names(task) and task.examples.__module__.startswith("jaxllm.evals.")
        and not task.name.startswith(("heldout_", "held_out_")) and task.kind not in tasks.OF_RUN
    )  # fmt: skip


def by_seqio(config, params, directory):
    """What SeqIO's own evaluator hands to its logger, by task."""
    logged = {}

    class Logger(seqio.loggers.Logger):
        def __call__(self, task_name, step, metrics, dataset, inferences, targets):
            logged[task_name] = {name: value.value for name, value in metrics.items()}

    for task in select(config).values():
        add_to_seqio(EvalTask(task))
    scorer = Scorer(TINY, mesh(), Bytes(), config.tokens_per_batch)
    for name in config.tasks:
        evaluator = seqio.Evaluator(
            name, TextFeatureConverter(), eval_split=SPLIT, logger_cls=(Logger,),
            log_dir=str(directory), async_compute_metrics=False,
        )  # fmt: skip
        evaluator.evaluate(compute_metrics=True, step=1, model_fns=model_functions(scorer, params))
    return logged


def test_seqios_evaluator_measures_what_ours_does(tmp_path):
    names = (*KINDS, *without_files())
    assert len(names) > 15
    config = EvalConfig(tasks=names, max_examples=3, tokens_per_batch=512)
    params = sharded_params(TINY, mesh())
    store, run = TrajectoryStore(tmp_path), RunInfo(run="tiny", family="tinies", params=1)
    records = Evaluator(config, TINY, Bytes(), mesh(), store, run).evaluate(params, 1, 2, 3.0)
    assert {r.status for r in records} == {"ok"}
    theirs = by_seqio(config, params, tmp_path)
    assert theirs.keys() == set(names)
    for record in records:
        if record.metric not in OF_THE_BATCHES:
            np.testing.assert_equal(theirs[record.task][record.metric], record.value)


def test_the_task_is_a_seqio_task_at_text_level():
    task = add_to_seqio(EvalTask(SelectedTask(CHOICE)))
    assert seqio.TaskRegistry.get("seqio_choice") is task
    rows = task.get_dataset(None, SPLIT, shuffle=False).as_numpy_iterator()
    named = [dataclasses.replace(e, id=str(n)) for n, e in enumerate(questions())]
    assert examples_of(CHOICE, rows) == named


def test_a_name_that_seqio_uses_for_something_else_is_refused():
    text = seqio.Feature(seqio.PassThroughVocabulary(0), dtype=tf.string)
    source = seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=("train",))
    seqio.TaskRegistry.add("unit_corpus", source, output_features={"text": text})
    clash = dataclasses.replace(CHOICE, name="unit_corpus")
    with pytest.raises(UserError, match="SeqIO has another task of that name"):
        add_to_seqio(EvalTask(SelectedTask(clash)))
