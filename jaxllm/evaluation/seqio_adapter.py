"""Adapter to SeqIO: `seqio.Evaluator` can run every task.

    select(config) -> EvalTask, registered -> seqio.Evaluator(name, TextFeatureConverter(), …)
        .evaluate(model_fns=model_functions(scorer, params), …)

Features stay text (`inputs`, `targets`, and `example`, all of it as JSON): a SeqIO task defines the
questions, and the scoring run has its own vocabulary and context length.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import flax.struct
import numpy as np
import seqio
import tensorflow as tf

from jaxllm.errors import UserError
from jaxllm.evaluation.metrics import Likelihoods, Texts, measure
from jaxllm.evaluation.scoring import Scorer
from jaxllm.evaluation.selection import SelectedTask
from jaxllm.evaluation.tasks import Choice, Document, Example, Prompt, TaskDefinition
from jaxllm.models.decoder import Params

SPLIT = "validation"

_TYPES: Mapping[str, Any] = {"multiple_choice": Choice, "perplexity": Document}  # else Prompt
_OUTPUTS = seqio.metrics.ModelOutputType
_SPEC = {
    "task": tf.TensorSpec([], tf.string),
    "inputs": tf.TensorSpec([None], tf.string),
    "targets": tf.TensorSpec([None], tf.string),
    "example": tf.TensorSpec([], tf.string),
}


class EvalTask(seqio.Task):
    """A SeqIO task with a text data source and one metric object."""

    def __init__(self, selected: SelectedTask):
        self.definition = selected.definition

        def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
            del split, shuffle_files, seed
            features = [_features(self.name, example) for example in selected.read_examples()]
            return tf.data.Dataset.from_generator(lambda: features, output_signature=_SPEC)

        # SeqIO requires a vocabulary, even for text.
        text = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string)
        super().__init__(
            self.definition.name,
            source=seqio.FunctionDataSource(dataset, splits=(SPLIT,)),
            output_features={"inputs": text, "targets": text},
            preprocessors=(),
            metric_objs=(_metric(self.definition),),
            shuffle_buffer_size=None,
        )


def add_to_seqio(task: EvalTask) -> EvalTask:
    """Add `task` to SeqIO's registry, in place of an earlier `EvalTask` of its name.

    UserError if the name belongs to another SeqIO task or mixture.
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


class TextFeatureConverter(seqio.PassThroughFeatureConverter):
    """Pass text through; the scorer tokenizes it."""

    TASK_FEATURES: ClassVar[dict] = {}  # SeqIO's evaluator reads sequence dimensions from it
    _pack = False


def model_functions(
    scorer: Scorer, params: Params
) -> Mapping[seqio.metrics.ModelOutputType, Callable[[tf.data.Dataset], Any]]:
    """The `model_fns` of `seqio.Evaluator.evaluate` for registered `EvalTask`s.

    Scores are (index, log-likelihoods), plus {"tokens": …, "greedy": …}; predictions are
    (index, texts); both in the order of the examples.
    """

    def outputs(dataset: tf.data.Dataset) -> Any:
        rows = [row for _, row in dataset.as_numpy_iterator()]
        task = seqio.TaskRegistry.get(rows[0]["task"].decode()).definition
        return scorer.run(params, scorer.prepare(task, examples_of(task, rows)))

    def score(dataset: tf.data.Dataset) -> tuple[list[tuple[int, Any]], dict[str, list]]:
        result: Likelihoods = outputs(dataset)
        auxiliary = {"tokens": list(result.tokens), "greedy": list(result.greedy)}
        return list(enumerate(result.log_likelihood)), auxiliary

    def predict(dataset: tf.data.Dataset) -> list[tuple[int, Any]]:
        result: Texts = outputs(dataset)
        return list(enumerate(result))

    return {_OUTPUTS.SCORE: score, _OUTPUTS.PREDICTION: predict}


def examples_of(task: TaskDefinition, rows: Iterable[Mapping[str, Any]]) -> list[Example]:
    """Rebuild the examples from dataset elements of an `EvalTask`."""
    build = _TYPES.get(task.kind, Prompt)
    names = {field.name for field in dataclasses.fields(build)}
    as_tuple = lambda value: tuple(value) if isinstance(value, list) else value
    examples = [json.loads(row["example"]) for row in rows]
    return [build(**{k: as_tuple(v) for k, v in e.items() if k in names}) for e in examples]


def _features(task: str, example: Example) -> dict[str, Any]:
    fields = dataclasses.asdict(example)
    targets = fields.get("options") or fields.get("targets") or [fields["text"]]
    strings = lambda texts: np.asarray([text.encode() for text in texts], object)
    return {
        "task": task.encode(),
        "inputs": strings(fields.get("contexts") or [fields.get("context", "")]),
        "targets": strings(targets),
        "example": json.dumps(fields).encode(),
    }


def _metric(task: TaskDefinition) -> seqio.metrics.CollectingMetric:
    """The SeqIO metric object of a task: its model output type, and `measure`."""
    output_type = _OUTPUTS.PREDICTION if task.kind == "generation" else _OUTPUTS.SCORE

    @flax.struct.dataclass
    class TaskMetric(seqio.metrics.CollectingMetric):
        model_output_type: seqio.metrics.ModelOutputType = output_type

        def actual_compute(
            self,
            task_dataset_as_numpy: Iterable[Mapping[str, Any]],
            task_output_features: Any,
            target_field_name: str = "targets",
            cached_targets: list[Example] | None = None,
        ) -> tuple[dict[str, seqio.metrics.Scalar], dict[str, Any]]:
            del task_output_features, target_field_name
            examples = cached_targets or examples_of(task, task_dataset_as_numpy)
            outputs = self.values["model_output"]
            if output_type == _OUTPUTS.SCORE:
                log_likelihood, auxiliary = outputs
                arrays = (log_likelihood, auxiliary["tokens"], auxiliary["greedy"])
                outputs = Likelihoods(*(np.asarray(array) for array in arrays))
            measured, columns = measure(task, examples, outputs)
            scalars = {name: seqio.metrics.Scalar(m.value) for name, m in measured.items()}
            return scalars, {"targets": examples, **columns}

    return TaskMetric.empty()
