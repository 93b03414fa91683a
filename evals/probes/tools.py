"""Common parts of the probes: balanced options, and held-out text."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

from jaxllm.evals.probes import embedded
from jaxllm.evaluation.tasks import Choice

COUNT = 200  # examples per task: a standard error of about 3 %, in a few seconds for all tasks


@functools.cache
def held_out(domain: str) -> tuple[str, ...]:
    """The distinct texts of an embedded domain's test split, in a pseudorandom order."""
    texts = sorted({document["text"] for document in embedded.documents(domain, "test")})
    random.Random(f"held out {domain}").shuffle(texts)
    return tuple(texts)


def choice(
    context: str, correct: str, distractors: Sequence[str], number: int, rng: random.Random
) -> Choice:
    """A question; over consecutive `number`s, the correct option is at each index equally often."""
    options = rng.sample(list(distractors), len(distractors))
    answer = number % (len(options) + 1)
    options.insert(answer, correct)
    return Choice(context, tuple(options), answer, id=str(number))


def numbers_near(value: int, number: int, avoid: Sequence[int] = ()) -> list[int]:
    """Three wrong numbers of 0 … 99 near `value`, none of them in `avoid`.

    The rank of the correct one among the four is `number` mod 4 if possible, so that neither the
    largest nor the middle option is a good guess.
    """
    near = (1, 10, 2, 3, 11)
    below = [value - d for d in near if value - d >= 0 and value - d not in avoid]
    above = [value + d for d in near if value + d <= 99 and value + d not in avoid]
    rank = max(min(number % 4, len(below)), 3 - len(above))
    return below[:rank] + above[: 3 - rank]
