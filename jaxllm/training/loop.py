"""The loop: train, save at the scheduled steps, score what was saved, go on.

A run is a function of its configs: whatever stops it (a signal, a crash, the end of a machine),
starting it again goes on from the newest checkpoint and gives bitwise what it would have given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from jaxllm.run.times import TimeBreakdown
from jaxllm.training.experiment import Batches, Evaluator, Experiment, Source
from jaxllm.training.preemption import Preemption
from jaxllm.training.progress import Progress
from jaxllm.training.step import device_batch
from jaxllm.training.trainer import Session
from jaxllm.training.writers import Writer


class Outcome(NamedTuple):
    """How a call of `train` ended.

    Attributes:
      step: updates done.
      finished: False when a signal stopped the run, which goes on when it is started again.
      seconds: where the time of this process went.
      run_seconds: where that of the run went, with all its processes.
      restarts: how often it has been taken up.
    """

    step: int
    finished: bool
    seconds: TimeBreakdown
    run_seconds: TimeBreakdown
    restarts: int


def train(
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    source: Source,
    open_batches: Callable[[int], Batches],
    evaluator: Evaluator | None = None,
    writers: Sequence[Writer] = (),
    config_text: str | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Trains to the last step, from the newest checkpoint if there is one.

    SIGTERM ends the step or the evaluation under way, saves, and returns with `finished=False`.

    Args:
      experiment: the run.
      mesh: the devices.
      source: the domains and the vocabulary of the data.
      open_batches: gives this host's rows of the batches, from a global sequence index on.
      evaluator: scores every scheduled checkpoint; None scores nothing.
      writers: receive metrics and records besides metrics.jsonl; closed at the end.
      config_text: what MODEL_DIR/config.gin shall say, once the run is taken up.
      progress: where lines are shown, when a writer shows some too.

    Raises:
      UserError: the configs do not fit the machine, the data or the checkpoints; the disk fails;
        or the loss is not a finite number any more.
    """
    experiment.check(mesh, source)
    steps = experiment.train.steps
    with (
        Preemption() as preemption,
        Session(
            experiment, mesh, source, evaluator, writers, preemption.requested, progress
        ) as run,
        contextlib.closing(open_batches(run.position.sequences)) as batches,
    ):
        run.write_config(config_text)
        state = run.restored_or_new_state()
        run.catch_up(state)
        if run.step < steps:
            update = run.compile_update()
        while run.step < steps and not preemption.requested():
            with run.clock.measure("data"):
                rows = next(batches)
            state, metrics = update(state, device_batch(rows, mesh))
            run.step += 1
            run.log.add(run.step, metrics)
            if run.step in run.scheduled:
                run.save(state, "final" if run.step == steps else "scheduled")
                run.score(state)
        if run.saved != run.step:
            run.save(state, "preempted")
        with run.clock.measure("checkpoint"):
            run.checkpoints.wait()
        finished = run.step >= steps and not preemption.requested()
        return Outcome(run.step, finished, run.clock.total(), run.clock.run(), run.restarts)
