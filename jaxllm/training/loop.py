"""The training loop: train, save at the scheduled steps, score the saved parameters.

A run is a function of its configs: whatever interrupts it (a signal, a crash, a lost machine), a
restart resumes from the newest checkpoint, with bitwise the same result.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax

from jaxllm.io import disk_errors
from jaxllm.run.times import GoodputTimer, TimeBreakdown
from jaxllm.training.experiment import Experiment
from jaxllm.training.metrics import Writer
from jaxllm.training.preemption import Preemption
from jaxllm.training.progress import Progress
from jaxllm.training.step import device_batch
from jaxllm.training.trainer import Trainer

if TYPE_CHECKING:
    from jaxllm.data.loader import Loader, SequenceSource
    from jaxllm.evaluation.evaluator import Evaluator

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class Outcome(NamedTuple):
    """The result of `train`."""

    step: int  # updates done
    finished: bool  # False if a signal stopped the run; a restart resumes it
    seconds: TimeBreakdown  # of this process
    run_seconds: TimeBreakdown  # of all processes of the run
    restarts: int


def train(
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    source: SequenceSource,
    open_batches: Callable[[int], Loader],
    evaluator: Evaluator | None = None,
    writers: Sequence[Writer] = (),
    config_text: str | None = None,
    progress: Progress | None = None,
    timer: GoodputTimer | None = None,
) -> Outcome:
    """Train to the last step, from the newest checkpoint if there is one.

    SIGTERM ends the current step or evaluation, saves, and returns with `finished=False`.

    Args:
      experiment: the run.
      mesh: the devices.
      source: the domains and the vocabulary of the data.
      open_batches: opens this host's sequences of the batches, from a global sequence index on.
      evaluator: scores the scheduled checkpoints; None scores nothing.
      writers: receive metrics and records besides metrics.jsonl; closed at the end.
      config_text: content of config.gin, written once the run is resumed.
      progress: the progress display, if a writer shares it.
      timer: started with the process; None excludes the time before this call.

    Raises:
      UserError: the configs do not fit the machine, the data or the checkpoints; the disk fails; or
        the loss or gradient norm is not finite.
    """
    timer = timer or GoodputTimer()
    experiment.check(mesh)
    source.check_vocabulary(experiment.model.vocab_size)
    steps, model_dir = experiment.train.steps, experiment.model_dir
    progress = progress or Progress(steps)
    with (
        disk_errors(
            f"write to MODEL_DIR {model_dir}", "; the saved checkpoints are whole", _DISK_ERRORS
        ),
        Preemption() as preemption,
        _closing(progress, *writers),
        Trainer(
            experiment, mesh, source, evaluator, writers, preemption.requested, progress, timer
        ) as run,
        contextlib.closing(open_batches(run.start.sequences)) as batches,
    ):
        run.write_config(config_text)
        state = run.restored_or_new_state()
        run.score_missing(state)
        if run.step < steps:
            update = run.compile_update()
        timer.begin_steps()
        while run.step < steps and not preemption.requested():
            with timer.measure("data"):
                batch = next(batches)
            state, metrics = update(state, device_batch(batch, mesh))
            run.step += 1
            run.log.add(run.step, metrics)
            if run.step in run.scheduled:
                run.save(state, "final" if run.step == steps else "scheduled")
                run.score(state)
        if run.saved != run.step:
            run.save(state, "preempted")
        run.finish()
        finished = run.step >= steps and not preemption.requested()
        return Outcome(run.step, finished, timer.total(), timer.run(), run.restarts)


@contextlib.contextmanager
def _closing(*outputs: Progress | Writer) -> Iterator[None]:
    """Close all `outputs` at the end; after an error, suppress further errors of closing."""
    with contextlib.ExitStack() as opened:
        for output in outputs:
            opened.enter_context(contextlib.closing(output))
        try:
            yield
        except BaseException:
            for output in outputs:
                with contextlib.suppress(Exception):
                    output.close()
            opened.pop_all()
            raise
