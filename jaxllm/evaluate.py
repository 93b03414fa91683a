"""Scores the checkpoints that a run has saved, as the run itself does.

    python -m jaxllm.evaluate --model_dir=runs/mine
    python -m jaxllm.evaluate --model_dir=runs/mine --steps=100,200 --tasks=lambada_openai,piqa \\
        --gin.EvalConfig.data_dir=data/evals
    python -m jaxllm.evaluate --model_dir=runs/mine --follow
    python -m jaxllm.evaluate --model_dir=hf:DIR --tasks=piqa --output=runs/theirs --step=1000 \\
        --tokens=2e9
    python -m jaxllm.evaluate --model_dir=hf:series.csv --tasks=piqa --output=runs/theirs
    python -m jaxllm.evaluate --download --tasks=piqa --gin.EvalConfig.data_dir=data/evals

The model, the data and the tasks are those of MODEL_DIR/config.gin, unless gin flags say
otherwise. Records go to MODEL_DIR/trajectory, in place of earlier ones of the same checkpoint and
task; for the run's own tasks they are bitwise the same. A Hugging Face directory, or a series of
them (see jaxllm.convert), is scored without converting it; its records go to --output.

--follow scores what has no records yet and then waits for new checkpoints, until the run has
saved its last one; a run that leaves its scoring to a follower has EvalConfig.every = 0.

--download fetches benchmark files into EvalConfig.data_dir (or JAXLLM_DATA_DIR) from where their
authors keep them, checks their SHA-256, and keeps what is there and right. It lists what has to be
got by hand.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllm import cli, runtime
from jaxllm.errors import UserError
from jaxllm.io import location

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxllm.evaluation.evaluator import Evaluator
    from jaxllm.models.config import ModelConfig
    from jaxllm.run.manifest import ManifestEntry


def main(argv: Sequence[str] | None = None) -> int:
    """Flags and gin in, records and the table of capabilities out."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument(
        "--model_dir", type=location, metavar="DIR", help="the run, hf:DIR or hf:FILE"
    )
    flags.add_argument(
        "--download", action="store_true",
        help="fetch the files of --tasks (default: of all tasks) and do nothing else",
    )  # fmt: skip
    flags.add_argument(
        "--steps", metavar="STEP,STEP",
        help="the checkpoints to score (default: all but those saved by a preemption)",
    )  # fmt: skip
    flags.add_argument(
        "--tasks", metavar="TASK,TASK", help="what to score them on (default: the run's tasks)"
    )
    flags.add_argument(
        "--missing", action="store_true", help="leave out what has been scored already"
    )
    flags.add_argument(
        "--follow", action="store_true", help="score new checkpoints until the run has ended"
    )
    flags.add_argument(
        "--poll_seconds", type=float, default=30, help="of --follow: how often to look"
    )
    flags.add_argument("--output", type=location, metavar="DIR",
                       help="of hf:DIR: where its records go (default: runs/<DIR>)")  # fmt: skip
    flags.add_argument("--step", type=int, default=0, help="of hf:DIR: its step")
    flags.add_argument("--tokens", type=float, default=0, help="of hf:DIR: tokens it has seen")
    runtime.add_host_flags(flags)
    args = cli.parse(flags, argv)
    if args.download:
        return download(args)
    if not args.model_dir:
        raise UserError("name what to score: --model_dir=DIR")
    published = open_published(args) if args.model_dir.startswith("hf:") else None
    cli.load_gin(args, args.model_dir)

    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.evaluation.resolve import resolve
    from jaxllm.run.manifest import select
    from jaxllm.run.run import Run
    from jaxllm.sharding.mesh import MeshConfig, make_mesh

    config = EvalConfig()
    if args.tasks:
        config = dataclasses.replace(config, tasks=tuple(args.tasks.split(",")))
    if not config.tasks:
        raise UserError("the run has no evaluation tasks: name some with --tasks=TASK,TASK")
    config = dataclasses.replace(config, tasks=tuple(resolve(config)))
    if args.follow and (published or args.steps):
        raise UserError("--follow is for a run that goes on: leave out --steps, and give no hf:")
    saved = published.entries if published else Run(args.model_dir).available()
    entries = [] if args.follow else select(saved, args.steps, args.model_dir)

    # Orbax warns about what it does not find in a checkpoint's item; errors come as errors.
    logging.getLogger("absl").setLevel(logging.ERROR)
    runtime.join_hosts(args)
    runtime.enable_compilation_cache()
    mesh = make_mesh(MeshConfig())
    scorer = CheckpointScorer(args.model_dir, config, mesh, published)
    failed = (
        scorer.follow(args.poll_seconds) if args.follow else scorer.score(entries, args.missing)
    )

    from jaxllm.report import terminal

    if runtime.is_first():
        print(terminal.of_run(args.model_dir))
    return 1 if failed else 0


def download(args: Any) -> int:
    """Fetches benchmark files, and says what cannot be fetched; 1 if something lacks then."""
    cli.load_gin(args, args.model_dir)

    from jaxllm.evaluation import resolve
    from jaxllm.evaluation.config import EvalConfig

    config = EvalConfig()
    if args.tasks:
        config = dataclasses.replace(config, tasks=tuple(args.tasks.split(",")))
    done = resolve.download_files(config)
    print(f"{len(done.new)} files fetched, {len(done.kept)} were there")
    for url in sorted(set(done.by_hand.values())):
        names = [name for name, where in done.by_hand.items() if where == url]
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"to get by hand: {names[0]}{others}, from {url or 'nowhere known'}")
    return 1 if done.by_hand else 0


@dataclasses.dataclass(frozen=True)
class Published:
    """Checkpoints in the Hugging Face format, by step."""

    entries: Sequence[ManifestEntry]
    sources: Mapping[int, Any]

    def read(self, entry: ManifestEntry, model: ModelConfig, mesh: Mesh) -> Any:
        """The parameters of one of them on `mesh`."""
        from jaxllm.interop.huggingface.load import place

        return place(self.sources[entry.step], model, mesh)


def open_published(args: Any) -> Published:
    """Opens hf:DIR or a series, and sets args.model_dir to the run directory of its records.

    Raises:
      UserError: something is wrong with it, or that directory belongs to another model.
    """
    from jaxllm.convert import open_run
    from jaxllm.interop.huggingface import run_import

    where = args.model_dir.removeprefix("hf:")
    revisions = run_import.series(where, args.step, int(args.tokens))
    sources = run_import.open_series(revisions)
    args.model_dir = args.output or os.path.join("runs", Path(where).absolute().stem)
    open_run(Path(args.model_dir).absolute(), sources[-1])
    return Published(
        [run_import.entry(s, r) for s, r in zip(sources, revisions, strict=True)],
        {revision.step: source for revision, source in zip(revisions, sources, strict=True)},
    )


class CheckpointScorer:
    """Scores saved checkpoints on the tasks of `config`, into the trajectory of `model_dir`.

    `published` brings checkpoints that are not in the run directory.
    """

    def __init__(
        self, model_dir: str, config: Any, mesh: Mesh, published: Published | None = None
    ) -> None:
        from jaxllm.models.config import ModelConfig
        from jaxllm.run.run import Run

        self._run, self._mesh = Run(model_dir), mesh
        self._model, self._published = ModelConfig(), published
        self._evaluator = make_evaluator(model_dir, config, mesh)
        self._tasks = tuple(self._evaluator.definitions)  # those of a mixture one by one

    def score(self, entries: Sequence[ManifestEntry], missing_only: bool) -> int:
        """Scores checkpoints, with a bar; returns how many (checkpoint, task) failed."""
        todo = [
            (entry, self._evaluator.missing(entry.step) if missing_only else self._tasks)
            for entry in entries
        ]
        return self._score(todo)

    def _score(self, todo: Sequence[tuple[ManifestEntry, Sequence[str]]]) -> int:
        import tqdm

        failed = 0
        total = sum(len(tasks) for _, tasks in todo)
        shown = None if runtime.is_first() else True  # on a terminal, of one host
        with tqdm.tqdm(total=total, unit="task", disable=shown, leave=False) as bar:
            for entry, tasks in todo:
                params = self._params(entry) if tasks else None
                for task in tasks:
                    records = self._evaluator.evaluate(
                        params, entry.step, entry.tokens, entry.flops, tasks=(task,)
                    )
                    main = next(record for record in records if record.primary)
                    failed += main.status != "ok"
                    bar.update()
                    if runtime.is_first():
                        bar.write(describe(main))
        return failed

    def follow(self, poll_seconds: float) -> int:
        """Scores what has no records as it is saved, until the run's last checkpoint has its own.

        Returns how many (checkpoint, task) failed; a failure is a record, and not tried again.
        """
        failed, waiting = 0, False
        while True:
            step, missing, ended = self._next()
            if missing:
                failed += self._score([(self._entry(step), missing)])
                waiting = False
            elif ended:
                return failed
            else:
                if not waiting and runtime.is_first():
                    print(f"waiting for the next checkpoint of {self._run.path}", flush=True)
                waiting = True
                time.sleep(poll_seconds)

    def _next(self) -> tuple[int, list[str], bool]:
        """The first checkpoint that lacks records, which, and whether the run has saved its last.

        As process 0 sees the directory: another host may see a file later.
        """
        import numpy as np
        from jax.experimental import multihost_utils

        saved = [entry for entry in self._run.available() if entry.kind != "preempted"]
        todo = [(e.step, m) for e in saved if (m := self._evaluator.missing(e.step))]
        step, missing = todo[0] if todo else (-1, ())
        seen = [step, any(e.kind == "final" for e in saved), *(t in missing for t in self._tasks)]
        step, ended, *flags = multihost_utils.broadcast_one_to_all(np.asarray(seen)).tolist()
        return step, [task for task, flag in zip(self._tasks, flags, strict=True) if flag], ended

    def _entry(self, step: int) -> ManifestEntry:
        """The checkpoint of a step that process 0 sees."""
        while True:
            for entry in self._run.available():
                if entry.step == step:
                    return entry
            time.sleep(0.1)

    def _params(self, entry: ManifestEntry) -> Any:
        if self._published:
            return self._published.read(entry, self._model, self._mesh)
        return self._run.restore_params(entry.step, self._model, self._mesh)


def describe(record: Any) -> str:
    """One line for what a task gave at a checkpoint."""
    head = f"step {record.step}  {record.task}"
    if record.status != "ok":
        return f"{head}  failed: {record.status}"
    return (
        f"{head}  {record.metric} {record.value:.4f} ± {record.stderr:.4f}  "
        f"n {record.n}  {record.seconds:.1f} s"
    )


def make_evaluator(model_dir: str, config: Any, mesh: Mesh) -> Evaluator:
    """The evaluator that the run in `model_dir` has."""
    from jaxllm.data import corpora
    from jaxllm.training.evaluator import make_evaluator as evaluator_of
    from jaxllm.training.experiment import Experiment

    experiment = Experiment.configured(model_dir)
    corpora.resolve(experiment.data)  # tasks on the run's own corpora look for them there
    return evaluator_of(experiment, mesh, config)


if __name__ == "__main__":
    cli.run(main)
