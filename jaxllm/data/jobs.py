"""Run independent jobs: in processes of this machine, or on a cluster through Beam.

A job writes its result to the store and returns nothing, so that a runner need not carry results,
and a killed run goes on with the jobs whose results are missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from jaxllm.errors import UserError, nearest
from jaxllm.kvstore import traffic

INLINE_BYTES = 16e6  # less than this is done before another process has started
Item = Any  # the argument of a job; `size` is the bytes it reads
Task = Callable[[Any], None]
Runner = Callable[[Task, Sequence[Item], str], None]


def run_in_processes(task: Task, items: Sequence[Item], description: str) -> None:
    """Call `task`, which can be pickled, with every item, on all cores.

    Says how many requests to buckets had to be repeated, if any.
    """
    from tqdm import tqdm

    before = _repeated()
    repeated: dict[int, int] = {}  # requests of each process
    total = sum(item.size for item in items)
    workers = min(len(items), len(os.sched_getaffinity(0)))
    with tqdm(
        desc=description, total=total, unit="B", unit_scale=True, disable=None, leave=False
    ) as bar:
        if workers < 2 or total < INLINE_BYTES:
            for item in items:
                task(item)
                bar.update(item.size)
            repeated[0] = _repeated() - before
        else:
            with ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), _start_worker, (task, os.getpid())
            ) as pool:
                sizes = {pool.submit(_run, item): item.size for item in items}
                try:
                    for future in as_completed(sizes):
                        process, count = future.result()
                        repeated[process] = max(count, repeated.get(process, 0))
                        bar.update(sizes[future])
                except BaseException as error:
                    pool.shutdown(wait=False, cancel_futures=True)
                    if isinstance(error, BrokenProcessPool):
                        raise UserError(
                            f"{description}: one of {workers} processes was killed, as where memory"
                            " is short; the same command goes on (`taskset -c 0` gives it one core)"
                        ) from error
                    raise
    if count := sum(repeated.values()):
        print(f"{description}: {count:,} requests to buckets were repeated", file=sys.stderr)


def _repeated() -> int:
    return traffic().get("requests/repeated", 0)


def run_on_every_host(task: Task, items: Sequence[Item], description: str) -> None:
    """Do small jobs in this process, as every other host does; UserError if they are not small."""
    total = sum(item.size for item in items)
    if total >= INLINE_BYTES:
        raise UserError(
            f"{total / 1e6:,.0f} MB of corpora are not prepared, which every host would do by"
            " itself: run `python -m jaxllm.prepare` with the same gin files and bindings once,"
            " with DataConfig.cache_dir in a place that all hosts see, as gs://bucket/cache"
        )
    for item in items:
        task(item)


_task: list[Task] = []  # of a worker process


def _start_worker(task: Task, parent: int) -> None:
    # The libraries' own threads would be as many as cores in each process.
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is its parent's
    # A worker ends with its parent, even a killed one (PR_SET_PDEATHSIG), or one that was too fast.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _task.append(task)


def _run(item: Item) -> tuple[int, int]:
    _task[0](item)
    return os.getpid(), _repeated()


def beam_runner(options: Sequence[str]) -> Runner:
    """A runner that gives jobs to Beam, with its own command-line options.

    UserError if Beam is not installed or refuses the options.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
        from apache_beam.runners.runner import create_runner
    except ImportError as error:
        raise UserError("Beam is not installed: pip install 'jaxllm[beam]'") from error

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # argparse lists a hundred options
            given = PipelineOptions(list(options))
            # A runner's module may have options of its own; whether it exists is said later.
            with contextlib.suppress(ValueError, ImportError):
                create_runner(given.view_as(StandardOptions).runner or "direct")
            known, every = (
                given.get_all_options(retain_unknown_options=unknown) for unknown in (False, True)
            )
        if unknown := every.keys() - known.keys():
            nearby = nearest(min(unknown), known)
            raise UserError(f"Beam does not know the option --{min(unknown)}{nearby}")
    except SystemExit as error:
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise UserError(f"Beam refuses {' '.join(options)}: {reason}") from error

    def run(task: Task, items: Sequence[Item], description: str) -> None:
        try:
            with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
                (pipeline | beam.Create(items, reshuffle=True) | description >> beam.Map(task))
        except (SystemExit, ValueError, ImportError) as error:
            raise UserError(f"Beam refuses {' '.join(options)}: {error}") from error

    return run
