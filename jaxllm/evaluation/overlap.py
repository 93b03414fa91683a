"""Contamination check: 13-gram overlap between evaluation examples and a corpus.

As in GPT-3's appendix C (Brown et al. 2020, arXiv 2005.14165), a gram is 13 consecutive words,
ignoring case and punctuation. Each Chinese character counts as a word, because no spaces separate
them.

The grams of the examples are held as sorted 64-bit hashes; a corpus is streamed one document at a
time. A gram with a word that occurs in no example cannot match, so the corpus' vocabulary is not
stored. (Expect one hash collision in about 10^12 words against 20 million grams.)
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxllm.errors import UserError
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.selection import data_dir, locate
from jaxllm.evaluation.tasks import Choice, Document, Example
from jaxllm.io import atomic_write

GRAM = 13
SHOWN = 5
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_CHINESE = re.compile(r"([\u3400-\u9fff])")
_FACTORS = np.random.default_rng(13).integers(0, 2**64, GRAM, np.uint64) | np.uint64(1)
_UNKNOWN = -1


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
    return tuple(f"{example.context} {target}" for target in example.targets)


@dataclasses.dataclass(frozen=True)
class Match:
    """The first overlap of an example with a document.

    Attributes:
      example: id of the example, or its index.
      document: id of the document.
      gram: the first common gram.
    """

    example: str
    document: str
    gram: str


@dataclasses.dataclass
class TaskOverlap:
    """Overlap of a corpus with a task.

    Attributes:
      examples: number of the task's examples.
      short: number of examples with fewer than 13 words, which cannot match.
      matches: the matching examples, in the order of the corpus.
    """

    examples: int
    short: int
    matches: list[Match]

    @property
    def share(self) -> float:
        """Share of the examples that match."""
        return len(self.matches) / self.examples if self.examples else 0.0


class Overlap:
    """Search for the examples of tasks in documents.

    Args:
      tasks: task name -> examples.

    Attributes:
      tasks: task name -> overlap so far.
    """

    def __init__(self, tasks: Mapping[str, Sequence[Example]]) -> None:
        self._ids: dict[str, int] = {}
        self._names: list[tuple[str, str]] = []
        self.tasks: dict[str, TaskOverlap] = {}
        grams, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
        for task, examples in tasks.items():
            short = 0
            for number, example in enumerate(examples):
                own = np.unique(np.concatenate([self._learn(t) for t in texts(example)]))
                short += not own.size
                grams.append(own)
                owners.append(np.full(own.size, len(self._names), np.int32))
                self._names.append((task, example.id or str(number)))
            self.tasks[task] = TaskOverlap(len(examples), short, [])
        joined = np.concatenate(grams)
        order = np.argsort(joined, kind="stable")
        self._grams, first = np.unique(joined[order], return_index=True)
        self._owners = np.concatenate(owners)[order]
        self._bounds = np.append(first, len(order))
        self._done = np.zeros(len(self._names), bool)

    def read(self, text: str, document: str) -> bool:
        """Check one document; return whether it shares a gram with any example."""
        document_words = words(text)
        get = self._ids.get
        ids = np.fromiter(
            (get(word, _UNKNOWN) for word in document_words), np.int64, len(document_words)
        )
        hashes, starts = _hashes(ids)
        place = np.searchsorted(self._grams, hashes)
        place[place == len(self._grams)] = 0
        hits: Sequence[int] = ()
        if len(self._grams):
            hits = np.flatnonzero(self._grams[place] == hashes).tolist()
        for hit in hits:
            slot, start = place[hit], starts[hit]
            for owner in self._owners[self._bounds[slot] : self._bounds[slot + 1]]:
                if not self._done[owner]:
                    self._done[owner] = True
                    task, example = self._names[owner]
                    gram = " ".join(document_words[start : start + GRAM])
                    self.tasks[task].matches.append(Match(example, document, gram))
        return len(hits) > 0

    def _learn(self, text: str) -> np.ndarray:
        ids = [self._ids.setdefault(word, len(self._ids)) for word in words(text)]
        return _hashes(np.asarray(ids, np.int64))[0]


def _hashes(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint64 hashes of the grams without unknown words, and the start index of each."""
    count = len(ids) - GRAM + 1
    if count < 1:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    unknown = np.concatenate([[0], np.cumsum(ids == _UNKNOWN)])
    starts = np.flatnonzero(unknown[GRAM:] == unknown[:-GRAM])
    mixed = _mix(ids.astype(np.uint64))
    total = np.zeros(len(starts), np.uint64)
    for place, factor in enumerate(_FACTORS):
        total += mixed[starts + place] * factor
    return total, starts


def _mix(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele et al. 2014), which decorrelates consecutive integers."""
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def table(tasks: Mapping[str, TaskOverlap]) -> Iterable[str]:
    """Yield a line for each task, by descending overlap."""
    width = max([4, *map(len, tasks)])
    yield f"{'task':<{width}} {'examples':>9} {'short':>6} {'found':>6} {'share':>7}"
    for name, task in sorted(tasks.items(), key=lambda item: (-item[1].share, item[0])):
        yield (
            f"{name:<{width}} {task.examples:>9,} {task.short:>6,} {len(task.matches):>6,} "
            f"{task.share:>7.2%}"
        )


def report(
    corpora: Mapping[str, Callable[[Callable[[str], None]], Iterable[Mapping[str, str]]]],
    config: EvalConfig,
    file: str,
) -> None:
    """Search corpora for the examples of the config's tasks, or of all tasks with files.

    Prints a line for each corpus and task, and writes the first matches to `file` as JSON.

    Args:
      corpora: name -> a function that reads its documents (`text`, `id`) and passes a line for each
        unreadable one to its argument.
      config: the tasks, and the directory of their files.
      file: path of the JSON file.

    Raises:
      UserError: a named task has no file, or a file is damaged or cannot be written.
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
    tasks: dict[str, Any] = {
        name: {
            "examples": task.examples, "short": task.short, "overlapping": len(task.matches),
            "share": task.share, "first": list(map(dataclasses.asdict, task.matches[:SHOWN])),
        }
        for name, task in overlap.tasks.items()
    }  # fmt: skip
    content = {"gram": GRAM, "corpora": searched, "tasks": tasks, "left_out": left_out}
    try:
        atomic_write(file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error}") from error
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
