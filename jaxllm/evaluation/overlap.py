"""Contamination check: 13-gram overlap between evaluation examples and a corpus.

As in GPT-3's appendix C (Brown et al. 2020, arXiv 2005.14165), a gram is 13 consecutive words,
ignoring case and punctuation; each Chinese character counts as a word.

The grams of the examples are held as sorted 64-bit hashes (expect one collision in about 10^12
words against 20 million grams); a corpus is streamed one document at a time.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from jaxllm.errors import UserError
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.selection import data_dir, locate
from jaxllm.evaluation.tasks import Choice, Document, Example, Prompt
from jaxllm.io import atomic_write

GRAM = 13
SHOWN = 5  # matches of a task in the file
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_CHINESE = re.compile(r"([\u3400-\u9fff])")
_FACTORS = np.random.default_rng(13).integers(0, 2**64, GRAM, np.uint64) | np.uint64(1)


def words(text: str) -> list[str]:
    """The words of a text, in lower case and without punctuation."""
    plain = _PUNCTUATION.sub("", text.lower())
    return _CHINESE.sub(r" \1 ", plain).split()


def texts(example: Example) -> tuple[str, ...]:
    """The texts of an example: a document, or its question with each of its answers."""
    if isinstance(example, Document):
        return (example.text,)
    if isinstance(example, Choice):
        contexts = example.contexts or (example.context,) * len(example.options)
        return tuple(c + o for c, o in zip(contexts, example.options, strict=True))
    if isinstance(example, Prompt):
        return tuple(f"{example.context} {target}" for target in example.targets)
    return ()


@dataclasses.dataclass
class TaskOverlap:
    """Overlap of a corpus with a task."""

    examples: int  # number of the task's examples
    short: int = 0  # number of examples with fewer than 13 words, which cannot match
    # index of an example -> its id, the first document that overlaps with it, and their first
    # common gram
    matches: dict[int, tuple[str, str, str]] = dataclasses.field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of the examples that match."""
        return len(self.matches) / self.examples if self.examples else 0.0


class Overlap:
    """Search for the examples of tasks in documents; `tasks` has the overlap so far, by task."""

    def __init__(self, tasks: Mapping[str, Sequence[Example]]) -> None:
        self.tasks = {name: TaskOverlap(len(examples)) for name, examples in tasks.items()}
        self._ids: dict[str, int] = {}  # words of the examples; a gram with another cannot match
        self._examples: list[tuple[TaskOverlap, int, str]] = []
        grams, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
        learn = lambda word: self._ids.setdefault(word, len(self._ids))
        for name, examples in tasks.items():
            for number, example in enumerate(examples):
                own = [self._grams([*map(learn, words(t))])[0] for t in texts(example)]
                grams.append(np.unique(np.concatenate(own)))
                owners.append(np.full(len(grams[-1]), len(self._examples), np.int32))
                self.tasks[name].short += not len(grams[-1])
                self._examples.append((self.tasks[name], number, example.id or str(number)))
        every = np.concatenate(grams)
        order = np.argsort(every, kind="stable")
        self._sorted, self._owners = every[order], np.concatenate(owners)[order]

    def read(self, text: str, document: str) -> bool:
        """Check one document; return whether it shares a gram with any example."""
        document_words = words(text)
        grams, starts = self._grams([self._ids.get(word, -1) for word in document_words])
        first = np.searchsorted(self._sorted, grams, "left")
        last = np.searchsorted(self._sorted, grams, "right")
        hits = np.flatnonzero(last > first)
        for hit in hits:
            for owner in self._owners[first[hit] : last[hit]]:
                task, number, example = self._examples[owner]
                if number not in task.matches:
                    gram = " ".join(document_words[starts[hit] : starts[hit] + GRAM])
                    task.matches[number] = (example, document, gram)
        return len(hits) > 0

    @staticmethod
    def _grams(ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """uint64 hashes of the grams of word ids without unknown words (-1), and their starts."""
        known = np.append(0, np.cumsum(np.asarray(ids, np.int64) >= 0))
        starts = np.flatnonzero(known[GRAM:] - known[:-GRAM] == GRAM)
        mixed = pd.util.hash_array(np.asarray(ids, np.int64) + 1)
        hashes = np.zeros(len(starts), np.uint64)
        for place, factor in enumerate(_FACTORS):
            hashes += mixed[starts + place] * factor
        return hashes, starts


def table(tasks: Mapping[str, TaskOverlap]) -> Iterable[str]:
    """Yield a line for each task, by descending overlap."""
    width = max([4, *map(len, tasks)])
    yield f"{'task':<{width}} {'examples':>9} {'short':>6} {'overlap':>7} {'share':>7}"
    for name, task in sorted(tasks.items(), key=lambda item: (-item[1].share, item[0])):
        yield (
            f"{name:<{width}} {task.examples:>9,} {task.short:>6,} {len(task.matches):>7,} "
            f"{task.share:>7.2%}"
        )


def report(
    corpora: Mapping[str, Callable[[Callable[[str], None]], Iterable[Mapping[str, str]]]],
    config: EvalConfig,
    file: str,
) -> None:
    """Search corpora for the examples of the config's tasks, or of all tasks with files.

    Prints a line for each corpus and task, and writes the first matches to `file` as JSON. Each of
    `corpora`, by name, is a function that reads the documents (`text`, `id`), and passes a line for
    each unreadable one to its argument. UserError if a named task has no file, or a file is damaged
    or cannot be written.
    """
    examples, left_out = _examples(config)
    overlap = Overlap(examples)
    searched: dict[str, dict[str, int]] = {}
    for name, documents in corpora.items():
        unreadable: list[str] = []
        count = overlapping = 0
        with tqdm(desc=f"read {name}", unit="B", unit_scale=True, disable=None) as bar:
            for document in documents(unreadable.append):
                count += 1
                overlapping += overlap.read(document["text"], document["id"])
                bar.update(len(document["text"].encode()))
        searched[name] = {
            "documents": count, "overlapping": overlapping, "unreadable": len(unreadable),
        }  # fmt: skip
        print(f"{name}: {overlapping:,} of {count:,} documents overlap")
        if unreadable:
            print(f"  {len(unreadable)} could not be read, first {unreadable[0]}")
    print(*table(overlap.tasks), sep="\n")
    if left_out:
        print(f"{len(left_out)} tasks left out, as {next(iter(left_out.values()))}")
    tasks = {
        name: {
            "examples": task.examples, "short": task.short, "overlapping": len(task.matches),
            "share": task.share,
            "first": [
                {"example": example, "document": document, "gram": gram}
                for example, document, gram in list(task.matches.values())[:SHOWN]
            ],
        }
        for name, task in overlap.tasks.items()
    }  # fmt: skip
    content = {"gram": GRAM, "corpora": searched, "tasks": tasks, "left_out": left_out}
    atomic_write(file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    print(f"wrote {file}")


def _examples(config: EvalConfig) -> tuple[dict[str, Sequence[Example]], dict[str, str]]:
    """The examples of the tasks without shots, and the reasons for tasks left out."""
    registry = benchmarks(config.modules)
    examples: dict[str, Sequence[Example]] = {}
    left_out: dict[str, str] = {}
    for task in registry.load(config.tasks or registry.names(), data_dir(config)):
        try:
            files = locate(dataclasses.replace(task, shots=0), config)
        except UserError as error:
            if config.tasks:
                raise
            left_out[task.name] = str(error)
        else:
            examples[task.name] = list(task.examples(*files))
    return examples, left_out
