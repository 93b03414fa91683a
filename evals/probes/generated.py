"""Generated text: small worlds whose rules a model can only learn by learning a mechanism.

    arithmetic   lines of two-digit additions and of counting in equal steps
    copying      a ring of random words, then stretches of it again, from random places
    recall       "fox is red": facts true of this document only, then the same facts asked again
    labels       words and the letters that stand for their categories, new letters every time

Everything is drawn from `random.Random` seeded with text, so it is the same on every machine and
Python version. What is held out is decided by a hash of the item itself (the pair of numbers, the
row of words, …), so no item of a test document occurs in a training document.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

SPLITS = ("train", "validation", "test")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Few words, and all of them in every document: how often a word occurs in a document tells
# nothing about what comes next, so a model does not settle for counting (Edelman et al., "The
# Evolution of Statistical Induction Heads", 2024, section 4).
WORDS = _words("bell boat card cloud door flag hill jar king lamp")
COLORS = _words("black blue brown gray green pink red white")
CATEGORIES = {
    "animal": _words("ant bat bee bird cat cow dog duck fish fox frog goat horse lion"),
    "thing": _words("bag bell book bowl box card chair clock cup desk dish drum fork lamp"),
    "color": (*COLORS, *_words("gold orange purple silver violet yellow")),
    "number": _words(
        "one two three four five six seven eight nine ten eleven twelve twenty thirty"
    ),
}
LABELS = _words("A B")
ROW_START = "row:"

_DOCUMENTS = {"arithmetic": 6000, "copying": 5000, "recall": 5000, "labels": 5000}
_HELD_OUT_SHARE = {"validation": 0.1, "test": 0.1}


def documents(domain: str, split: str) -> Iterator[dict[str, str]]:
    """The documents of a generated domain: `text` and `id`.

    Raises:
      KeyError: no such domain.
      ValueError: no such split.
    """
    write = _WRITERS[domain]
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: one of {', '.join(SPLITS)}")
    share = _HELD_OUT_SHARE.get(split, 1.0)
    for index in range(int(share * _DOCUMENTS[domain])):
        rng = random.Random(f"{domain}/{split}/{index}")
        yield {"id": f"{domain}/{split}/{index}", "text": write(rng, split)}


def split_of(item: object, test_share: float = 0.1) -> str:
    """The split that an item belongs to, from a hash of its text: 10 % are validation."""
    digest = hashlib.blake2b(repr(item).encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    return "test" if place < test_share else "validation" if place < test_share + 0.1 else "train"


def additions(split: str) -> list[tuple[int, int]]:
    """The pairs of numbers 0 … 98 with a sum below 100 in `split`; a + b goes where b + a goes."""
    return [
        (a, b)
        for a in range(100)
        for b in range(100 - a)
        if split_of(("addition", min(a, b), max(a, b))) == split
    ]


def progressions(split: str) -> list[tuple[int, int]]:
    """The (start, step) of the rows of six numbers below 100 in `split`, with steps from 1 to 5."""
    return [
        (start, step)
        for step in range(1, 6)
        for start in range(100 - 5 * step)
        if split_of(("progression", start, step), test_share=0.4) == split
    ]


def progression(start: int, step: int) -> list[int]:
    """Six numbers: start, start + step, …"""
    return [start + i * step for i in range(6)]


class Row(NamedTuple):
    """A row of distinct words; `copying` documents repeat stretches of it."""

    words: tuple[str, ...]


def draw_row(rng: random.Random, split: str) -> Row:
    """All the words in an order that belongs to `split`."""
    return _draw(rng, split, lambda: Row(tuple(rng.sample(WORDS, len(WORDS)))))


class Facts(NamedTuple):
    """What is true in one document: each word has one color, and all colors differ."""

    pairs: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """`facts: fox is red , cup is blue`."""
        return "facts: " + " , ".join(f"{word} is {color}" for word, color in self.pairs)


def draw_facts(rng: random.Random, split: str) -> Facts:
    """A fact for each color, in an order and with words that belong to `split` together."""

    def draw() -> Facts:
        words, colors = rng.sample(WORDS, len(COLORS)), rng.sample(COLORS, len(COLORS))
        return Facts(tuple(zip(words, colors, strict=True)))

    return _draw(rng, split, draw)


class Mapping(NamedTuple):
    """Two categories, the letter that stands for each, and words with their category's letter."""

    labels: tuple[str, str]
    shots: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """`labels: fox : A , red : B`."""
        return "labels: " + " , ".join(f"{word} : {label}" for word, label in self.shots)


def draw_mapping(rng: random.Random, split: str, count: int) -> Mapping:
    """`count` (even) distinct words, half from each of two categories, in random order."""

    def draw() -> Mapping:
        names = rng.sample(sorted(CATEGORIES), 2)
        first, second = rng.sample(LABELS, 2)
        labels = (first, second)
        shots = [
            (word, label)
            for name, label in zip(names, labels, strict=True)
            for word in rng.sample(CATEGORIES[name], count // 2)
        ]
        rng.shuffle(shots)
        return Mapping(labels, tuple(shots))

    return _draw(rng, split, draw)


def _draw(rng: random.Random, split: str, draw: Callable[[], NamedTuple]):  # type: ignore
    while True:
        item = draw()
        if split_of(tuple(item)) == split:
            return item


def _write_arithmetic(rng: random.Random, split: str) -> str:
    sums = [rng.choice(_ADDITIONS[split]) for _ in range(5)]
    rows = [rng.choice(_PROGRESSIONS[split]) for _ in range(4)]
    lines = [f"{a}+{b}={a + b}" for a, b in sums]
    lines += [",".join(map(str, progression(*row))) for row in rows]
    rng.shuffle(lines)
    return "\n".join(lines) + "\n"


def _write_copying(rng: random.Random, split: str) -> str:
    row = draw_row(rng, split).words
    text = f"{ROW_START} {' '.join(row)}"
    for _ in range(13):
        start = rng.randrange(len(row))  # around the end, so that no word comes more often
        text += f" ; {' '.join((row + row)[start : start + rng.randrange(5, 9)])}"
    return f"{text} .\n"


def _write_recall(rng: random.Random, split: str) -> str:
    facts = draw_facts(rng, split)
    asked = (rng.choice(facts.pairs) for _ in range(24 - len(facts.pairs)))
    return f"{facts.text} . {' , '.join(f'{word} is {color}' for word, color in asked)} .\n"


def _write_labels(rng: random.Random, split: str) -> str:
    return draw_mapping(rng, split, 24).text + " .\n"


_ADDITIONS = {split: additions(split) for split in SPLITS}
_PROGRESSIONS = {split: progressions(split) for split in SPLITS}
_WRITERS: dict[str, Callable[[random.Random, str], str]] = {
    "arithmetic": _write_arithmetic,
    "copying": _write_copying,
    "recall": _write_recall,
    "labels": _write_labels,
}
DOMAINS = tuple(_WRITERS)
