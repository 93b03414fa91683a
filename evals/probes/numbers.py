"""Probes of arithmetic on sums and sequences held out from training (domain: math).

    counting        "12,15,18,21,24," -> "27"       chance 1/4: the others are 1 to 11 off
    addition        "37+45=" -> "82"                chance 1/4: the others are 1, 2 or 10 off
    addition_exact  the same sums, answered by greedy generation                  chance 0

Each rank of the correct number among the four is equally frequent.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from jaxllm.evals.probes import generated
from jaxllm.evals.probes.tools import COUNT, choice, numbers_near
from jaxllm.evaluation.tasks import Choice, Prompt, generation, multiple_choice


def _sums() -> list[tuple[int, int]]:
    pairs = generated.additions("test")
    random.Random("addition").shuffle(pairs)
    return pairs


def addition() -> Iterator[Choice]:
    """Two numbers and their sum."""
    for number, (a, b) in enumerate(_sums()[:COUNT]):
        rng = random.Random(f"addition/{number}")
        wrong = [str(n) for n in numbers_near(a + b, number // 4)]
        yield choice(f"{a}+{b}=", str(a + b), wrong, number, rng)


def addition_exact() -> Iterator[Prompt]:
    """Two numbers; the sum is generated."""
    for number, (a, b) in enumerate(_sums()[: COUNT // 2]):
        yield Prompt(f"{a}+{b}=", (f"{a + b}",), id=str(number))


def counting() -> Iterator[Choice]:
    """The next number of an arithmetic progression."""
    rows = generated.progressions("test")
    random.Random("counting").shuffle(rows)
    for number, (start, step) in enumerate(rows[:COUNT]):
        rng = random.Random(f"counting/{number}")
        *shown, following = generated.progression(start, step)
        wrong = [str(n) for n in numbers_near(following, number // 4, avoid=shown)]
        yield choice("".join(f"{n}," for n in shown), str(following), wrong, number, rng)


multiple_choice("counting", counting, domain="math")
multiple_choice("addition", addition, domain="math")
generation("addition_exact", addition_exact, domain="math", max_new_tokens=4)
