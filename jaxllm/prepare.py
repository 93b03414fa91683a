"""Tokenize a run's corpora into the cache, as `jaxllm.train` does if necessary.

    python -m jaxllm.prepare --gin_file=quickstart.gin
    python -m jaxllm.prepare --gin_file=quickstart.gin --report_overlap
    python -m jaxllm.prepare --gin_file=openllama.gin -- --runner=DataflowRunner --region=…

Takes the gin files and bindings of a run, and prints the size of each domain, and how many epochs
of it TRAIN_STEPS read. Started again, it goes on with what is missing; with --check it writes again
what is damaged. It runs in processes of this machine; or, given options of Apache Beam after `--`,
in the workers of Beam's runner, which need jaxllm and see DataConfig.cache_dir.

--report_overlap searches the corpora for evaluation sets instead: it prints for each task how many
examples share 13 consecutive words with a document (see jaxllm.evaluation.overlap), and writes the
first of them to a JSON file. The tasks are those of --tasks or EvalConfig.tasks, or all with files
in EvalConfig.data_dir.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from jaxllm import cli

if TYPE_CHECKING:
    from jaxllm.training.experiment import Experiment


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the corpora, or search them for evaluation sets."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument(
        "--report_overlap", nargs="?", const="overlap.json", metavar="FILE",
        help="list what the corpora share with evaluation sets (default: overlap.json)",
    )  # fmt: skip
    flags.add_argument(
        "--check", action="store_true",
        help="compare what is prepared with its digests, and write again what is damaged",
    )  # fmt: skip
    flags.add_argument("--tasks", metavar="TASK,TASK", help="of --report_overlap: which sets")
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index("--") if "--" in argv else len(argv)
    args = cli.parse(flags, argv[:end])
    cli.load_gin(args)

    from jaxllm.data.config import DataConfig
    from jaxllm.data.corpora import documents, resolve
    from jaxllm.data.prepare import SPLIT, prepare, summary

    experiment = _experiment()
    stages = experiment.stages if experiment else (None,)
    configs = [stage.data if stage else DataConfig() for stage in stages]
    weights = [resolve(config) for config in configs]
    if args.report_overlap:
        from jaxllm.evaluation import overlap
        from jaxllm.evaluation.config import EvalConfig

        evaluation = EvalConfig()
        if args.tasks:
            evaluation = dataclasses.replace(evaluation, tasks=tuple(args.tasks.split(",")))
        domains_of_run = {domain: None for of in weights for domain in of}
        sources = {f"{name} {SPLIT}": partial(documents, name, SPLIT) for name in domains_of_run}
        overlap.report(sources, evaluation, args.report_overlap)
        return 0

    from jaxllm.data.jobs import beam_runner, run_in_processes
    from jaxllm.data.loader import SequenceSource
    from jaxllm.data.packing import forget_plan
    from jaxllm.data.repetition import check_epochs
    from jaxllm.data.vocabularies import load_tokenizer  # by now SeqIO is imported, silently
    from jaxllm.training.stages import Stage, epochs

    run = beam_runner(argv[end + 1 :]) if end < len(argv) else run_in_processes
    tokenizer = load_tokenizer(configs[0], weights[0])
    read: list[Stage] = []
    for stage, config, of in zip(stages, configs, weights, strict=True):
        domains = prepare(config, of, tokenizer, run)
        if args.check:
            damaged = sum(domain.store.take_back_damaged() for domain in domains)
            print(f"{SPLIT}: {damaged} parts are damaged", file=sys.stderr)
            for domain in domains if config.layout == "pack" else ():
                forget_plan(domain.store, config.sequence_length)
            domains = prepare(config, of, tokenizer, run)
        if stage:
            read.append(Stage(stage, SequenceSource(config, tokenizer, domains)))
        title = f"{SPLIT}, stage {stage.number}" if stage and stage.number else SPLIT
        print(f"{title}\n{summary(domains, epochs(read))}")
    for warning in check_epochs(epochs(read), read[-1].experiment.train.steps if read else 0):
        print(warning, file=sys.stderr)
    return 0


def _experiment() -> Experiment | None:
    """The run; None where the gin files do not say its steps."""
    import gin

    from jaxllm.training.experiment import Experiment

    for name in ("TRAIN_STEPS/macro.value", "TrainConfig.steps", "TrainConfig.stages"):
        with contextlib.suppress(ValueError):
            if isinstance(gin.query_parameter(name), int | tuple | list):
                return Experiment.configured()
    return None


if __name__ == "__main__":
    cli.run(main)
