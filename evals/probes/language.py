"""Probes of technical English, on docstrings held out from training.

    word_order               a phrase, or the same with two adjacent words swapped   chance 1/2
    docstring_continuation   the continuation of the sentence, or of three others    chance 1/4

Both options of `word_order` have the same words; the four of `docstring_continuation` have the
same number of characters, and each is correct once and wrong about three times.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from jaxllm.evals.probes.tools import COUNT, choice, held_out
from jaxllm.evaluation.tasks import Choice, multiple_choice

_WORD = re.compile(r"[a-z]+$")
_CONTEXT, _CONTINUATION = 60, 32  # characters


def word_order() -> Iterator[Choice]:
    """A phrase of six plain words after some context, against a copy with two swapped."""
    rng = random.Random("word_order")
    number, seen = 0, set()
    for paragraph in _paragraphs():
        words = paragraph.split(" ")
        for start in range(4, len(words) - 6):
            phrase = words[start : start + 6]
            plain = all(map(_WORD.match, phrase)) and len(set(phrase)) == 6
            if plain and tuple(phrase) not in seen:
                seen.add(tuple(phrase))
                at = 1 + rng.randrange(4)
                swapped = [*phrase[:at], phrase[at + 1], phrase[at], *phrase[at + 2 :]]
                context = " ".join(words[:start][-6:])
                right, wrong = f" {' '.join(phrase)}", f" {' '.join(swapped)}"
                yield choice(context, right, [wrong], number, rng)
                number += 1
                break
        if number == COUNT:
            return


def docstring_continuation() -> Iterator[Choice]:
    """The true continuation among those of other docstrings, all of equal length."""
    found = []
    for paragraph in _paragraphs():
        cut = paragraph.find(" ", _CONTEXT)
        if 0 < cut <= len(paragraph) - _CONTINUATION:
            found.append((paragraph[:cut], paragraph[cut : cut + _CONTINUATION]))
    rng = random.Random("docstring_continuation")
    rng.shuffle(found)
    for number, (context, correct) in enumerate(found[:COUNT]):
        # The next three are the wrong options, so each is correct once and wrong three times.
        wrong = [found[(number + k) % len(found[:COUNT])][1] for k in (1, 2, 3)]
        if len({correct, *wrong}) == 4:
            yield choice(context, correct, wrong, number, rng)


def _paragraphs() -> Iterator[str]:
    """Yield paragraphs of prose in the held-out docstrings, each on one line."""
    seen = set()
    for text in held_out("docstrings"):
        for paragraph in re.split(r"\n\s*\n", text):
            line = " ".join(paragraph.split())
            prose = not re.search(r">>>|::|--|==|\s\|\s|[{}|]", line)
            if prose and line not in seen and len(line) >= 60:
                seen.add(line)
                yield line


multiple_choice("word_order", word_order, domain="language")
multiple_choice("docstring_continuation", docstring_continuation, domain="language")
