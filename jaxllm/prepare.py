"""Tokenize a run's corpora into the cache, as `jaxllm.train` does if necessary.

    python -m jaxllm.prepare --gin_file=quickstart.gin
    python -m jaxllm.prepare --gin_file=quickstart.gin --report_overlap

Takes the gin files and bindings of a run, and prints the size of each domain.

--report_overlap searches the corpora for evaluation sets instead: it prints for each task how many
examples share 13 consecutive words with a document (see jaxllm.evaluation.overlap), and writes the
first of them to a JSON file. The tasks are those of --tasks or EvalConfig.tasks, or all with files
in EvalConfig.data_dir.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxllm import cli
from jaxllm.errors import UserError

if TYPE_CHECKING:
    from jaxllm.evaluation.tasks import Example


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the requested splits, or search them for evaluation sets."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument(
        "--split", action="append", choices=("train", "validation", "test"),
        help="which split; repeatable (default: train)",
    )  # fmt: skip
    flags.add_argument(
        "--report_overlap", nargs="?", const="overlap.json", metavar="FILE",
        help="list what the corpora share with evaluation sets (default: overlap.json)",
    )  # fmt: skip
    flags.add_argument("--tasks", metavar="TASK,TASK", help="of --report_overlap: which sets")
    args = cli.parse(flags, argv)
    cli.load_gin(args)

    from jaxllm.data.config import DataConfig
    from jaxllm.data.corpora import Corpora
    from jaxllm.data.prepare import prepare, summary

    config = DataConfig()
    corpora = Corpora.resolve(config)
    splits = args.split or ["train"]
    if args.report_overlap:
        report_overlap([domain.name for domain in corpora.domains], splits, args)
        return 0
    from jaxllm.data.vocabularies import load_tokenizer  # by now SeqIO is imported, silently

    tokenizer = load_tokenizer(config, corpora)
    for split in splits:
        print(f"{split}\n{summary(prepare(config, corpora, tokenizer, split))}")
    return 0


def report_overlap(domains: Sequence[str], splits: Sequence[str], args: Any) -> None:
    """Print and write the overlap of `domains` with evaluation sets."""
    from etils import epath
    from tqdm import tqdm

    from jaxllm.data import corpora
    from jaxllm.evaluation import overlap

    examples, left_out = evaluation_sets(args.tasks.split(",") if args.tasks else ())
    sets = overlap.Overlap(examples)
    read: dict[str, dict[str, int]] = {}
    for name, split in ((name, split) for name in domains for split in splits):
        bad: list[str] = []
        documents = overlapping = 0
        bar = tqdm(desc=f"read {name} {split}", unit="B", unit_scale=True, disable=None)
        with bar:
            for document in corpora.documents(name, split, bad.append):
                documents += 1
                overlapping += sets.read(document["text"], document["id"])
                bar.update(len(document["text"].encode()))
        read[f"{name} {split}"] = {
            "documents": documents, "overlapping": overlapping, "unreadable": len(bad),
        }  # fmt: skip
        print(f"{name} {split}: {overlapping:,} of {documents:,} documents overlap")
        if bad:
            print(f"  {len(bad)} could not be read, first {bad[0]}")
    print(*overlap.table(sets.tasks), sep="\n")
    if left_out:
        print(f"{len(left_out)} tasks left out, as {next(iter(left_out.values()))}")
    found = {
        name: {
            "examples": task.examples, "short": task.short, "overlapping": len(task.matches),
            "share": task.share,
            "first": [dataclasses.asdict(one) for one in task.matches[: overlap.SHOWN]],
        }
        for name, task in sets.tasks.items()
    }  # fmt: skip
    whole = {"gram": overlap.GRAM, "corpora": read, "tasks": found, "left_out": left_out}
    try:
        path = epath.Path(args.report_overlap)
        partial = path.with_name(f".partial-{path.name}")
        partial.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"--report_overlap={args.report_overlap}: {error}") from error
    print(f"wrote {path}")


def evaluation_sets(
    tasks: Sequence[str],
) -> tuple[dict[str, Sequence[Example]], dict[str, str]]:
    """The examples of tasks, and the reasons for tasks left out.

    Raises:
      UserError: a named task has no file, or a file is damaged.
    """
    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.evaluation.registry import benchmarks
    from jaxllm.evaluation.selection import data_dir, locate

    config = EvalConfig()
    named = tuple(tasks) or config.tasks
    registry = benchmarks(config.modules)
    examples: dict[str, Sequence[Example]] = {}
    left_out: dict[str, str] = {}
    for task in registry.load(named or registry.names(), data_dir(config)):
        try:
            paths = locate(dataclasses.replace(task, shots=0), config)
        except UserError as error:
            if named:
                raise
            left_out[task.name] = str(error)
        else:
            examples[task.name] = list(task.examples(*paths))
    return examples, left_out


if __name__ == "__main__":
    cli.run(main)
