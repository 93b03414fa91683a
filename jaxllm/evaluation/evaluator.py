"""Score the tasks of a run on live parameters and write their records.

A task's examples are tokenized and packed once per run; at each checkpoint the model scores or
answers them, `measure` computes metrics from its outputs, and the store writes records and
per-example results. `jaxllm.evaluation.seqio_adapter` runs the same tasks in SeqIO's evaluator.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import pandas as pd
from jax.sharding import Mesh

from jaxllm.errors import UserError, one_line
from jaxllm.evaluation import sandbox
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.metrics import Measurement, Outputs, measure
from jaxllm.evaluation.scoring import Interrupted, PreparedTask, Scorer, ShouldStop, never
from jaxllm.evaluation.selection import select
from jaxllm.evaluation.spans import Tokenizer
from jaxllm.evaluation.stacked import StackScores
from jaxllm.evaluation.tasks import OF_RUN, Sample
from jaxllm.evaluation.token_sets import read_examples
from jaxllm.evaluation.training_data import measure_training
from jaxllm.io import is_remote
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params
from jaxllm.run.records import OK, Record, RunInfo
from jaxllm.run.run import Run
from jaxllm.run.token_losses import TokenLosses, TokenSet
from jaxllm.run.trajectory import TrajectoryStore

_log = logging.getLogger(__name__)


class Evaluator:
    """Evaluation of one run; create it once, to prepare each task once.

    `mesh` is that of the parameters; process 0 writes to `store`; all records have the fields of
    `run`; `sample` draws from its training data. `definitions` are the run's tasks by name,
    mixtures expanded. UserError for an unknown task, a missing file, or a task that executes code
    where that is not allowed or not possible.
    """

    def __init__(
        self,
        config: EvalConfig,
        model: ModelConfig,
        vocabulary: Tokenizer,
        mesh: Mesh,
        store: TrajectoryStore,
        run: RunInfo,
        sample: Sample | None = None,
    ):
        self._tasks = {name: task.of_run(sample) for name, task in select(config).items()}
        self.definitions = {name: task.definition for name, task in self._tasks.items()}
        self.config, self._model, self._vocabulary = config, model, vocabulary
        self._store, self._run = store, run
        if any(task.runs_code for task in self.definitions.values()):
            sandbox.choose(isolate=config.run_code != "unisolated")
        self._scorer = Scorer(
            model, mesh, vocabulary, config.tokens_per_batch, config.samples, config.temperature
        )
        self._outputs: Callable[[Params, PreparedTask, ShouldStop], Outputs] = self._scorer.run
        self._prepared: dict[str, PreparedTask] = {}
        self._token_sets: dict[str, TokenSet] = {}
        sets = (name for name, task in self._tasks.items() if task.max_tokens)
        self._losses = {name: TokenLosses(store.layout, name) for name in sets}
        self._traced: set[str] = set()

    def for_member(
        self, store: TrajectoryStore, run: RunInfo, scores: StackScores, index: int
    ) -> Evaluator:
        """The evaluator of a run of a stack, which shares the prepared tasks."""
        other = copy.copy(self)
        other._store, other._run = store, run
        other._outputs = functools.partial(scores.run, index)
        other._losses = {name: TokenLosses(store.layout, name) for name in self._losses}
        return other

    def stack_scores(self, mesh: Mesh) -> StackScores:
        """The scores of a stack of models, for `for_member`."""
        return StackScores(self._model, mesh, self._scorer)

    def check(self) -> tuple[str, ...]:
        """Prepare all tasks before the first checkpoint, and count what scoring one takes.

        Returns a line for each name in EvalConfig.tasks, and for shortened examples and dropped
        tasks. UserError if some tasks cannot be scored, and EvalConfig.on_unrunnable does not drop
        them.
        """
        failures: dict[str, str] = {}
        groups: dict[str, list[PreparedTask]] = {}
        for name, task in self._tasks.items():
            try:
                prepared = self._prepare(name)
                groups.setdefault(task.group, []).append(prepared)
            except Exception as error:
                failures[name] = one_line(error if isinstance(error, UserError) else repr(error))
        if failures and self.config.on_unrunnable == "refuse":
            raise UserError(
                f"{len(failures)} of {len(self._tasks)} evaluation tasks cannot be scored (go on "
                "without them: --gin.EvalConfig.on_unrunnable=\"'skip'\"): "
                + "; ".join(f"{name}: {reason}" for name, reason in failures.items())
            )
        for name in failures:
            del self._tasks[name], self.definitions[name]
        return (
            *(f"skipped task {name}: {reason}" for name, reason in failures.items()),
            *_contents(groups, self._model.max_length),
        )

    def missing(self, step: int, checkpoint: float | None = None) -> tuple[str, ...]:
        """The tasks without records at `step`, of the checkpoint with this `wall_time`."""
        lacking = {name for name, of in self._losses.items() if not of.holds(step, checkpoint)}
        stored = self._store.scored(step, checkpoint) - lacking
        return tuple(name for name in self.definitions if name not in stored)

    def evaluate(
        self,
        params: Params,
        step: int,
        tokens: int,
        flops: float,
        *,
        tasks: Sequence[str] | None = None,
        should_stop: ShouldStop = never,
        checkpoint: float | None = None,
    ) -> list[Record]:
        """Score `tasks` (default: all) and store the records of each as soon as it is done.

        A failed task gives a record with the error as its status; the others continue. Raises
        Interrupted if `should_stop()`, checked between device batches, was true; the current task
        has written nothing. `params` are boxed or plain, on the mesh; `checkpoint` is the
        `wall_time` in the manifest, if the checkpoint is in one.
        """
        records: list[Record] = []
        for name in self.definitions if tasks is None else tasks:
            task, began, status = self.definitions[name], time.perf_counter(), OK
            table = None
            try:
                measured, table = self._score(params, name, should_stop, step, checkpoint)
            except Interrupted:
                raise
            except Exception as error:
                measured = {task.primary_metric: Measurement(math.nan, math.nan, 0)}
                status = self._failure(name, error)
            seconds = time.perf_counter() - began
            scored = [
                Record(
                    **dataclasses.asdict(self._run), step=step, tokens=tokens, flops=flops,
                    task=task.name, domain=task.domain, shots=task.shots, metric=metric,
                    **dataclasses.asdict(measurement), task_version=task.version, seconds=seconds,
                    primary=metric == task.primary_metric, status=status,
                )
                for metric, measurement in measured.items()
            ]  # fmt: skip
            records += self._write(step, name, scored, table, checkpoint)
        return records

    def _score(
        self,
        params: Params,
        name: str,
        should_stop: ShouldStop,
        step: int,
        checkpoint: float | None,
    ) -> tuple[dict[str, Measurement], pd.DataFrame]:
        """The metrics of one task, and the per-example results, a row for each example."""
        task, prepared = self.definitions[name], self._prepare(name)
        outputs: Any = self._outputs(params, prepared, should_stop)
        examples: Any = prepared.examples
        if task.kind in OF_RUN:
            passed_over = Run(self._store.layout.root).passed_over()
            measured, columns = measure_training(examples, outputs, step, passed_over)
        else:
            measured, columns = measure(task, examples, outputs)
        if prepared.unigram:
            levels = measure(task, examples, prepared.by_example(prepared.unigram))[0]
            at = lambda name: dataclasses.replace(measured[name], unigram=levels[name].value)
            measured = {name: at(name) for name in measured}
        if name in self._losses and jax.process_index() == 0:  # all of them are finite
            self._losses[name].write_set(self._token_sets[name])
            self._losses[name].write(step, -outputs.each, checkpoint)
        of_preparation = {"truncated": prepared.truncated.mean(), "padding": prepared.padding}
        if task.shots:
            of_preparation["shots_dropped"] = prepared.shots_dropped.mean()
        n = len(prepared.examples)
        for metric, value in of_preparation.items():
            measured[metric] = Measurement(float(value), math.nan, n)
        ids = [example.id or str(number) for number, example in enumerate(prepared.examples)]
        return measured, pd.DataFrame({"id": ids, **columns, "truncated": prepared.truncated})

    def _prepare(self, name: str) -> PreparedTask:
        """The device batches of a task, cached from the first call."""
        if name not in self._prepared:
            examples, token_set = read_examples(self._tasks[name], self._vocabulary)
            if token_set is not None:
                self._losses[name].check(token_set)
                self._token_sets[name] = token_set
            self._prepared[name] = self._scorer.prepare(self.definitions[name], examples)
        return self._prepared[name]

    def _failure(self, name: str, error: Exception) -> str:
        """Log a task's failure, with a stack trace the first time; return its record's status."""
        status = f"{type(error).__name__}: {one_line(error)}"[:500]
        known = isinstance(error, UserError) or name in self._traced
        _log.error("task %s failed: %s", name, status, exc_info=None if known else error)
        self._traced.add(name)
        return status

    def _write(
        self,
        step: int,
        name: str,
        records: list[Record],
        examples: pd.DataFrame | None,
        checkpoint: float | None,
    ) -> list[Record]:
        """Store records on process 0; set their status if that fails.

        A write to a disk that fails must not end process 0, for which the other hosts would wait:
        the task stays missing, and is scored again at the next start or by `evaluate --missing`.
        """
        if jax.process_index() != 0:
            return records
        try:
            self._store.write(step, name, records, examples, checkpoint)
            return records
        except Exception as error:
            if is_remote(self._store.path):  # it has been repeated for minutes
                raise
            failure = f"not stored ({type(error).__name__}: {one_line(error)})"[:500]
        _log.error("records of task %s at step %d: %s", name, step, failure)
        return [dataclasses.replace(record, status=failure) for record in records]


def _contents(groups: Mapping[str, Sequence[PreparedTask]], max_length: int) -> Iterator[str]:
    """Yield a line per group of tasks, then the numbers of shortened examples."""
    for name, tasks in groups.items():
        of = f" ({len(tasks)} tasks)" if len(tasks) > 1 else ""
        yield (
            f"{name}{of}: {sum(len(task.examples) for task in tasks):,} examples in "
            f"{sum(rows for task in tasks for rows, _ in task.shapes):,} sequences"
        )
    every = [task for tasks in groups.values() for task in tasks]
    limit = f"{max_length} tokens"
    for field, what in (
        ("shots_dropped", f"hold fewer few-shot examples than asked for, to fit {limit}"),
        ("truncated", f"do not fit {limit} and are cut on the left"),
    ):
        counts = {t.definition.name: int((getattr(t, field) > 0).sum()) for t in every}
        counts = {name: count for name, count in counts.items() if count}
        if counts:
            first = next(iter(counts))
            of = f"{len(counts)} tasks, first {first}" if len(counts) > 1 else first
            yield f"{sum(counts.values()):,} examples of {of}, {what}"
