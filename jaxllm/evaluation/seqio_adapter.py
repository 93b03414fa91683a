"""A declared task as a SeqIO task: a text data source, a metric, and a logger for its results.

Features stay text (`inputs`, `targets`): a SeqIO task says what is asked, and the run that scores
it brings its own vocabulary and context length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import flax.struct
import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from jaxllm.errors import UserError
from jaxllm.evaluation import metrics
from jaxllm.evaluation.metrics import Columns, Measurement, Result
from jaxllm.evaluation.shots import with_solved_examples
from jaxllm.evaluation.tasks import Choice, Document, Example, Prompt, TaskDefinition

SPLIT = "validation"
Sink = Callable[[str, Mapping[str, Measurement], Sequence[Example], Columns], None]

_SPEC = {
    "inputs": tf.TensorSpec([None], tf.string),
    "targets": tf.TensorSpec([None], tf.string),
    "answer": tf.TensorSpec([None], tf.int32),
    "shots": tf.TensorSpec([None], tf.string),
    "id": tf.TensorSpec([], tf.string),
}


class EvalTask(seqio.Task):
    """A SeqIO task with what a trajectory record says about it.

    Args:
      definition: the declared task.
      files: where the files of the definition are (`resolve.files`).
      max_examples: at most so many examples, drawn once and for all; None is all.
    """

    def __init__(
        self,
        definition: TaskDefinition,
        files: Sequence[epath.Path] = (),
        max_examples: int | None = None,
    ):
        self.definition = definition

        def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
            del split, shuffle_files, seed
            examples = _subset(_examples(definition, files), max_examples)
            return tf.data.Dataset.from_generator(
                lambda: map(_features, examples), output_signature=_SPEC
            )

        # Text needs no vocabulary here, and SeqIO asks for one.
        text = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string)
        super().__init__(
            definition.name,
            source=seqio.FunctionDataSource(dataset, splits=(SPLIT,)),
            output_features={"inputs": text, "targets": text},
            preprocessors=(),
            metric_objs=(_metric(definition),),
            shuffle_buffer_size=None,
        )


def register(task: EvalTask) -> EvalTask:
    """Puts `task` into SeqIO's registry, in place of an earlier one of its kind.

    Raises:
      UserError: another SeqIO task or mixture has the name.
    """
    registry = seqio.TaskRegistry
    if task.name in seqio.MixtureRegistry.names() or (
        task.name in registry.names() and not isinstance(registry.get(task.name), EvalTask)
    ):
        raise UserError(f"evaluation task {task.name}: SeqIO has another task of that name")
    if task.name in registry.names():
        registry.remove(task.name)
    registry.add_provider(task.name, task)
    return task


def examples_of(task: TaskDefinition, dataset: Iterable[Mapping[str, Any]]) -> list[Example]:
    """The examples in a dataset with the features of an `EvalTask`."""
    found: list[Example] = []
    for row in dataset:
        texts = lambda key, row=row: tuple(text.decode() for text in row[key])
        contexts, targets, name = texts("inputs"), texts("targets"), row["id"].decode()
        if task.kind == "perplexity":
            found.append(Document(targets[0], name))
            continue
        preamble, *shots = texts("shots")
        before = {"preamble": preamble, "shots": tuple(shots)}
        if task.kind == "multiple_choice":
            answer, *others = (int(number) for number in row["answer"])
            several = contexts if len(contexts) > 1 else ()
            found.append(
                Choice(contexts[0], targets, answer, name, several, tuple(others), **before)
            )
        else:
            found.append(Prompt(contexts[0], targets, name, **before))
    return found


class TextFeatureConverter(seqio.PassThroughFeatureConverter):
    """Leaves the text alone; the scorer turns it into token spans."""

    TASK_FEATURES: ClassVar[dict] = {}  # SeqIO's evaluator looks here for sequence dimensions
    _pack = False


class TrajectoryLogger(seqio.loggers.Logger):
    """Hands a task's measurements and per-example columns to `sink`."""

    def __init__(self, output_dir: str, sink: Sink):
        super().__init__(output_dir)
        self._sink = sink

    def __call__(
        self,
        task_name: str,
        step: int | None,
        metrics: Mapping[str, seqio.metrics.MetricValue],
        dataset: tf.data.Dataset | None,
        inferences: Mapping[str, Sequence[Any]] | None,
        targets: Sequence[Any] | None,
    ) -> None:
        """Passes on what SeqIO computed."""
        measured = {k: v.measurement for k, v in metrics.items() if isinstance(v, Measured)}
        self._sink(task_name, measured, list(targets or ()), inferences or {})


class Measured(seqio.metrics.Scalar):
    """A SeqIO scalar that keeps its standard error, n and chance level."""

    def __init__(self, measurement: Measurement):
        super().__init__(measurement.value)
        self.measurement = measurement


def _features(example: Example) -> dict[str, Any]:
    contexts: tuple[str, ...] = ()
    shots: tuple[str, ...] = ()
    answers: tuple[int, ...] = ()
    if isinstance(example, Document):
        targets: tuple[str, ...] = (example.text,)
    else:
        shots = (example.preamble, *example.shots)
        if isinstance(example, Choice):
            contexts = example.contexts or (example.context,)
            targets, answers = example.options, (example.answer, *example.also_correct)
        else:
            contexts, targets = (example.context,), example.targets
    strings = lambda texts: np.asarray([text.encode() for text in texts], object)
    return {
        "inputs": strings(contexts),
        "targets": strings(targets),
        "answer": np.asarray(answers, np.int32),
        "shots": strings(shots),
        "id": example.id.encode(),
    }


def _examples(task: TaskDefinition, files: Sequence[epath.Path]) -> list[Example]:
    """All examples of a task, with their solved examples before them."""
    own, shared = files[: len(task.reads)], files[len(task.reads) :]
    pool = task.few_shot.pool if task.few_shot and task.shots else None
    return with_solved_examples(
        task, list(task.examples(*own)), list(pool(*shared)) if pool else []
    )


def _subset(examples: list[Example], limit: int | None) -> list[Example]:
    """The same random `limit` examples every time, in their own order (files are often sorted)."""
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.random.RandomState(0).permutation(len(examples))[:limit]
    return [examples[i] for i in sorted(chosen)]


def _metric(task: TaskDefinition) -> seqio.metrics.CollectingMetric:
    """The metric object that SeqIO asks for: what it needs of the model, and what it makes of it.

    Scores come as (log-likelihoods, {"tokens": …, "greedy": …}), predictions as texts.
    """
    types = seqio.metrics.ModelOutputType
    output_type = types.PREDICTION if task.kind == "generation" else types.SCORE

    @flax.struct.dataclass
    class TaskMetric(seqio.metrics.CollectingMetric):
        model_output_type: seqio.metrics.ModelOutputType = output_type

        @classmethod
        def from_model_output(
            cls, inputs: Any, model_output: Any, *args: Any, **kwargs: Any
        ) -> TaskMetric:
            del inputs, args, kwargs  # actual_compute gets them too
            return cls(values={"model_output": model_output})

        def actual_compute(
            self,
            task_dataset_as_numpy: Iterable[Mapping[str, Any]],
            task_output_features: Any,
            target_field_name: str = "targets",
            cached_targets: list[Example] | None = None,
        ) -> tuple[dict[str, Measured], dict[str, Any]]:
            del task_output_features, target_field_name
            examples = cached_targets or examples_of(task, task_dataset_as_numpy)
            measured, columns = _measure(task, examples, self.values["model_output"])
            return {k: Measured(m) for k, m in measured.items()}, {"targets": examples, **columns}

    return TaskMetric.empty()


def _measure(task: TaskDefinition, examples: list[Any], output: Any) -> Result:
    if task.kind == "generation":
        return metrics.generation(task, examples, output)
    log_likelihood, auxiliary = output
    tokens = auxiliary["tokens"]
    if task.kind == "multiple_choice":
        return metrics.multiple_choice(examples, log_likelihood, tokens, task.chance)
    if task.kind == "perplexity":
        return metrics.perplexity(examples, log_likelihood, tokens)
    return metrics.cloze(examples, log_likelihood, tokens, auxiliary["greedy"], task.chance)
