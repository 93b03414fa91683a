"""Probes of in-context learning (domain: reasoning).

Contexts are generated items of the test split (by their hash) of `jaxllm.evals.probes.generated`:
the mechanism was trained; these rows, facts and mappings were not.

    induction        "… b c d e ; c" -> "d"      chance 1/4: the options are words of the row
    row_copy         the next three words, each the argmax                      chance 0
    fact_recall      "jar is red , … . jar is" -> "red"     chance 1/4: colors of the context
    few_shot_labels  "fox : A , red : B , … cow :" -> "A"   chance 1/2: a word not shown before
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from jaxllm.evals.probes import generated
from jaxllm.evals.probes.tools import COUNT, choice
from jaxllm.evaluation.tasks import Choice, Prompt, cloze, multiple_choice

_ROW = len(generated.WORDS)
_FACTS = len(generated.COLORS)
_SHOTS = 10


def induction() -> Iterator[Choice]:
    """The word that followed this word before; options are equally frequent in the context."""
    for number in range(COUNT):
        rng = random.Random(f"induction/{number}")
        row = generated.draw_row(rng, "test").words
        at = rng.randrange(_ROW - 1)
        others = [word for word in row if word not in row[at : at + 2]]
        context = f"{generated.ROW_START} {' '.join(row)} ; {row[at]}"
        wrong = [f" {word}" for word in rng.sample(others, 3)]
        yield choice(context, f" {row[at + 1]}", wrong, number, rng)


def row_copy() -> Iterator[Prompt]:
    """The three words after this word."""
    for number in range(COUNT // 2):
        rng = random.Random(f"row_copy/{number}")
        row = generated.draw_row(rng, "test").words
        at = rng.randrange(_ROW - 3)
        context = f"{generated.ROW_START} {' '.join(row)} ; {row[at]}"
        yield Prompt(context, (f" {' '.join(row[at + 1 : at + 4])}",), id=str(number))


def fact_recall() -> Iterator[Choice]:
    """The color of a word in the context; the other options are the colors of other words."""
    for number in range(COUNT):
        rng = random.Random(f"fact_recall/{number}")
        facts = generated.draw_facts(rng, "test")
        word, color = facts.pairs[number % _FACTS]
        wrong = [f" {other}" for _, other in facts.pairs if other != color]
        yield choice(f"{facts.text} . {word} is", f" {color}", rng.sample(wrong, 3), number, rng)


def few_shot_labels() -> Iterator[Choice]:
    """The letter of the category of a word that is not labelled in the context."""
    for number in range(COUNT):
        rng = random.Random(f"few_shot_labels/{number}")
        mapping = generated.draw_mapping(rng, "test", _SHOTS + 2)
        shown, asked = mapping.shots[:_SHOTS], mapping.shots[_SHOTS]
        wanted = mapping.labels[rng.randrange(2)]
        if asked[1] != wanted:  # both letters are correct equally often, whatever was shown
            swap = next(i for i, shot in enumerate(shown) if shot[1] == wanted)
            shown, asked = (*shown[:swap], asked, *shown[swap + 1 :]), shown[swap]
        wrong = next(label for label in mapping.labels if label != wanted)
        shots = generated.Mapping(mapping.labels, shown).text
        yield choice(f"{shots} , {asked[0]} :", f" {wanted}", [f" {wrong}"], number, rng)


multiple_choice("induction", induction, domain="reasoning")
cloze("row_copy", row_copy, domain="reasoning")
multiple_choice("fact_recall", fact_recall, domain="reasoning")
multiple_choice("few_shot_labels", few_shot_labels, domain="reasoning", shots=_SHOTS)
