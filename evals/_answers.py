"""Comparison of generated answers with their targets.

Normalizations are those of the benchmarks' own scripts; `extract` and `same` reimplement the filter
`regex` and the metric `exact_match` of lm-evaluation-harness.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Mapping, Sequence

from jaxllm.evaluation.tasks import Prompt

INVALID = "[invalid]"  # the result of an extraction without a match, as in the harness
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNPUNCTUATED = str.maketrans("", "", string.punctuation)
_LAST_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def plain(text: str) -> str:
    """Lower-case a text and strip punctuation, articles and extra spaces (evaluate-v1.1.py)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_UNPUNCTUATED)).split())


def exact_match(prediction: str, target: str) -> float:
    """1 if both are equal after `plain`."""
    return float(plain(prediction) == plain(target))


def f1(prediction: str, target: str) -> float:
    """F1 of the bags of words, after `plain`. If one of them is empty, 1 if both are."""
    found, wanted = plain(prediction).split(), plain(target).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def extract(pattern: re.Pattern[str], text: str, which: int = 0) -> str:
    """The first non-empty group of the first match (`which` = -1: the last match), stripped."""
    matches = pattern.findall(text)
    if not matches:
        return INVALID
    match = matches[which]
    if isinstance(match, tuple):
        match = next((group for group in match if group), INVALID)
    return match.strip()


def same(
    prediction: str, target: str, *, ignore: Sequence[str] = (), punctuation: bool = True
) -> float:
    """1 if both are equal but for case, matches of `ignore` and, without it, `punctuation`."""
    texts = [prediction, target]
    for pattern in ignore:
        texts = [re.sub(pattern, "", text) for text in texts]
    texts = [text.lower() for text in texts]
    if not punctuation:
        texts = [text.translate(_UNPUNCTUATED) for text in texts]
    return float(texts[0] == texts[1])


def number_score(
    text: str,
    example: Prompt,
    *,
    strict: re.Pattern[str],
    ignore: Sequence[str] = (),
    punctuation: bool = True,
) -> Mapping[str, float]:
    """Compare the number in an answer to a word problem with the target.

    exact_match_strict_match: the first number after the phrase in `strict`.
    exact_match_flexible_extract: the last number of the text.
    `ignore` and `punctuation`: see `same`.
    """
    found = {
        "exact_match_strict_match": extract(strict, text),
        "exact_match_flexible_extract": extract(_LAST_NUMBER, text, -1),
    }
    target = example.targets[0]
    return {
        name: same(number, target, ignore=ignore, punctuation=punctuation)
        for name, number in found.items()
    }
