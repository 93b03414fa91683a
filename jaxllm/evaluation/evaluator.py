"""Scores the tasks of a run on live parameters and writes their records.

`seqio.Evaluator` drives: it holds each task's examples, asks for model outputs in their order,
computes the metrics and calls the logger. What is ours is how the outputs are made: the token
spans of a task are packed into device batches once, and kept for the run.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxllm.errors import UserError
from jaxllm.evaluation import sandbox
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.metrics import Columns, Measurement
from jaxllm.evaluation.resolve import resolve
from jaxllm.evaluation.scoring import Interrupted, Scorer, ShouldStop, never
from jaxllm.evaluation.spans import Tokenizer
from jaxllm.evaluation.tasks import Example, TaskDefinition
from jaxllm.evaluation.work import Work, prepare
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params
from jaxllm.models.sampling import GREEDY, Sampling
from jaxllm.run.records import Record, RunInfo
from jaxllm.run.trajectory import TrajectoryStore

__all__ = ["Evaluator", "Interrupted"]

NUCLEUS = 0.95

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Moment:
    """Which checkpoint is being scored, and since when the task at hand."""

    step: int
    tokens: int
    flops: float
    began: float


class Evaluator:
    """Evaluation of one run, held for its whole life.

    Args:
      config: which tasks.
      model: the model's shape.
      vocabulary: the run's `seqio.Vocabulary`.
      mesh: the mesh that the parameters are on.
      store: where records go (written by process 0).
      run: what all records have in common.

    Raises:
      UserError: a task that does not exist, or a file of one that does not; or a task that runs
        code, where it may not or cannot.
    """

    def __init__(
        self,
        config: EvalConfig,
        model: ModelConfig,
        vocabulary: Tokenizer,
        mesh: Mesh,
        store: TrajectoryStore,
        run: RunInfo,
    ):
        resolved = resolve(config)
        self.definitions = {name: task for name, (task, _) in resolved.items()}
        self._files = {name: files for name, (_, files) in resolved.items()}
        self._config, self._vocabulary = config, vocabulary
        self._store, self._run = store, run
        if any(task.runs_code for task in self.definitions.values()):
            sandbox.choose(isolate=config.run_code != "unisolated")
        self._scorer = Scorer(model, mesh, config.rows_per_batch, config.shortest_row)
        self._drivers: dict[str, Any] = {}
        self._work: dict[str, Work] = {}
        self._moment = _Moment(0, 0, 0.0, 0.0)
        self._records: list[Record] = []
        self._failed: set[str] = set()

    def due(self, scheduled: Sequence[int]) -> tuple[int, ...]:
        """Which of a run's scheduled checkpoints it scores: every k-th, and the last."""
        every = self._config.every
        return tuple(sorted({*scheduled[::every], *scheduled[-1:]})) if every else ()

    def missing(self, step: int) -> tuple[str, ...]:
        """The tasks without records at `step`."""
        return tuple(name for name in self.definitions if not self._store.has(step, name))

    def evaluate(
        self,
        params: Params,
        step: int,
        tokens: int,
        flops: float,
        *,
        tasks: Sequence[str] | None = None,
        should_stop: ShouldStop = never,
    ) -> list[Record]:
        """Scores `tasks` (default: all) and stores each one's records as soon as it is done.

        A task that fails leaves a record whose status says why, and the others go on.

        Args:
          params: parameters, boxed or plain, on the mesh.
          step: the checkpoint.
          tokens: training tokens that it has seen.
          flops: training FLOPs that it has cost.
          tasks: names among the run's tasks.
          should_stop: asked between device batches.

        Returns:
          All records, in the order of the tasks.

        Raises:
          Interrupted: `should_stop()` was true; the task at hand left nothing behind.
        """
        found: list[Record] = []
        for name in self.definitions if tasks is None else tasks:
            self._moment = _Moment(step, tokens, flops, time.perf_counter())
            self._records = []
            try:
                self._evaluate(name, params, should_stop)
            except Interrupted:
                raise
            except Exception as error:
                self._fail(name, error)
            found += self._records
        return found

    def _evaluate(self, name: str, params: Params, should_stop: ShouldStop) -> None:
        import seqio

        driver = self._driver(name)
        types = seqio.metrics.ModelOutputType
        driver.evaluate(
            compute_metrics=True,
            step=self._moment.step,
            model_fns={
                types.SCORE: functools.partial(self._score, name, params, should_stop),
                types.PREDICTION: functools.partial(self._predict, name, params, should_stop),
            },
        )

    def _driver(self, name: str) -> Any:
        """The `seqio.Evaluator` of a task; reads its examples on the first call."""
        if name not in self._drivers:
            import seqio

            from jaxllm.evaluation import seqio_adapter

            task = self.definitions[name]
            seqio_adapter.register(
                seqio_adapter.EvalTask(task, self._files[name], self._config.max_examples)
            )
            driver = seqio.Evaluator(
                name,
                seqio_adapter.TextFeatureConverter(),
                eval_split=seqio_adapter.SPLIT,
                logger_cls=(functools.partial(seqio_adapter.TrajectoryLogger, sink=self._log),),
                log_dir=str(self._store.path),
                async_compute_metrics=False,
            )
            rows = driver.cached_task_datasets[name].as_numpy_iterator()
            examples = seqio_adapter.examples_of(task, rows)
            self._work[name] = prepare(
                task, examples, self._vocabulary, self._scorer, self._samples(task)
            )
            self._drivers[name] = driver
        return self._drivers[name]

    def _score(
        self, name: str, params: Params, should_stop: ShouldStop, dataset: Any
    ) -> tuple[list[tuple[int, Any]], dict[str, list]]:
        """SeqIO's score function: (index, log-likelihoods) and what goes with them."""
        del dataset  # its spans are in self._work
        work = self._work[name]
        scores = self._scorer.score(params, work.packed, should_stop)
        if self.definitions[name].kind == "multiple_choice":
            first = np.searchsorted(work.owners, np.arange(work.examples))
            column = np.arange(len(work.owners)) - first[work.owners]
            shape = (work.examples, int(column.max()) + 1)
            log_likelihood, tokens = np.full(shape, np.nan), np.zeros(shape, np.int64)
            log_likelihood[work.owners, column] = scores.log_likelihood
            tokens[work.owners, column] = work.scored
        else:
            count = work.examples
            log_likelihood = np.bincount(work.owners, scores.log_likelihood, count)
            tokens = np.bincount(work.owners, work.scored, count).astype(np.int64)
        greedy = np.bincount(work.owners, ~scores.greedy, work.examples) == 0
        return list(enumerate(log_likelihood)), {"tokens": list(tokens), "greedy": list(greedy)}

    def _predict(
        self, name: str, params: Params, should_stop: ShouldStop, dataset: Any
    ) -> list[tuple[int, list[str]]]:
        """SeqIO's predict function: (index, generated texts)."""
        del dataset
        task, config = self.definitions[name], self._config
        samples = self._samples(task)
        texts = self._scorer.generate(
            params,
            self._work[name].prompts,
            self._vocabulary,
            task.max_new_tokens,
            task.stop,
            should_stop,
            GREEDY if samples == 1 else Sampling(config.temperature, top_p=NUCLEUS),
            lambda number: (config.seed, *divmod(number, samples)),
        )
        return [(n // samples, texts[n : n + samples]) for n in range(0, len(texts), samples)]

    def _samples(self, task: TaskDefinition) -> int:
        return self._config.samples if task.runs_code else 1

    def _log(
        self,
        name: str,
        measured: Mapping[str, Measurement],
        examples: Sequence[Example],
        columns: Columns,
    ) -> None:
        """The logger's sink: records and per-example rows go to the store."""
        work, task = self._work[name], self.definitions[name]
        measured = {
            **measured,
            "truncated": Measurement(float(work.truncated.mean()), math.nan, work.examples),
            "padding": Measurement(work.padding, math.nan, work.examples),
        }
        if task.shots:
            measured["shots_dropped"] = Measurement(
                float(work.dropped.mean()), math.nan, work.examples
            )
        seconds = self._seconds()
        self._records = [self._record(task, k, m, seconds) for k, m in measured.items()]
        names = [example.id or str(number) for number, example in enumerate(examples)]
        table = pd.DataFrame({"id": names, **columns, "truncated": work.truncated})
        self._write(name, table)

    def _fail(self, name: str, error: Exception) -> None:
        task = self.definitions[name]
        nothing = Measurement(math.nan, math.nan, 0)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        known = isinstance(error, UserError) or name in self._failed
        _log.error("task %s failed: %s", name, reason, exc_info=None if known else error)
        self._failed.add(name)
        record = self._record(task, task.primary_metric, nothing, self._seconds())
        self._records = [dataclasses.replace(record, status=reason)]
        self._write(name, None)

    def _record(
        self, task: TaskDefinition, metric: str, measured: Measurement, seconds: float
    ) -> Record:
        return Record(
            **dataclasses.asdict(self._run),
            step=self._moment.step,
            tokens=self._moment.tokens,
            flops=self._moment.flops,
            task=task.name,
            domain=task.domain,
            shots=task.shots,
            metric=metric,
            **dataclasses.asdict(measured),
            task_version=task.version,
            seconds=seconds,
            primary=metric == task.primary_metric,
        )

    def _seconds(self) -> float:
        return time.perf_counter() - self._moment.began

    def _write(self, name: str, examples: pd.DataFrame | None) -> None:
        if jax.process_index() == 0:
            self._store.write(self._moment.step, name, self._records, examples)
