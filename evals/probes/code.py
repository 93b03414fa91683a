"""Probes of Python syntax, on standard library modules held out from training (domain: code).

    closing_bracket  which of ) ] comes next         chance 1/2: each is right equally often
    indentation      is the next line indented?      chance 1/2: half are, half are not
    keyword          in, is, import or as            chance 1/4: each is right equally often

The options of a task are the same for all its examples, and each is correct equally often: neither
frequency nor length is informative.
"""

from __future__ import annotations

import io
import itertools
import random
import tokenize
from collections import defaultdict
from collections.abc import Iterator

from jaxllm.evals.probes.tools import COUNT, choice, held_out
from jaxllm.evaluation.tasks import Choice, multiple_choice

_CONTEXT = 60  # characters of code before the question, and the rest of that line
_BRACKETS = {"(": ")", "[": "]"}
_KEYWORDS = ("in", "is", "import", "as")
_SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING}


def closing_bracket() -> Iterator[Choice]:
    """The bracket that closes the last opened one."""
    found: dict[str, list[str]] = defaultdict(list)
    for text in held_out("code"):
        open_brackets: list[tuple[str, int]] = []
        for token, start in _tokens(text):
            if token.string in _BRACKETS:
                open_brackets.append((token.string, start))
            elif token.string in _BRACKETS.values() and open_brackets:
                bracket, opened = open_brackets.pop()
                # The opening bracket is in the context, and not adjacent to the closing one.
                if 4 <= start - opened <= 60 and (text[start - 1].isalnum()):
                    found[_BRACKETS[bracket]].append(_before(text, start))
    yield from _balanced("closing_bracket", found, tuple(_BRACKETS.values()), "")


def keyword() -> Iterator[Choice]:
    """The keyword after its partner: for … in, if … is, from … import, with … as."""
    found: dict[str, list[str]] = defaultdict(list)
    for text in held_out("code"):
        for token, start in _tokens(text):
            line = text[text.rfind("\n", 0, start) + 1 : start]
            if token.string in _KEYWORDS and line.strip() and line.endswith(" "):
                found[token.string].append(line[:-1])
    yield from _balanced("keyword", found, _KEYWORDS, " ")


def indentation() -> Iterator[Choice]:
    """The indentation of the next line: one level deeper, or unchanged."""
    found: dict[tuple[int, bool], list[tuple[str, str]]] = defaultdict(list)
    for text in held_out("code"):
        for (start, end), (following, last) in itertools.pairwise(_logical_lines(text)):
            line = text[following:last]
            level, next_level = _column(text, start), _column(text, following)
            adjacent = text[end:following].strip(" ") == "\n" and "\n" not in line
            if adjacent and level and next_level - level in (0, 4):
                found[level, next_level > level].append((_before(text, end), line[:40]))
    rng = random.Random("indentation")
    examples = []
    for level in sorted({level for level, _ in found}):
        pair = [found[level, deeper] for deeper in (False, True)]
        for pool in pair:
            rng.shuffle(pool)
        # Balanced at every level, so that the frequency of a level is uninformative.
        examples += [(level, *both) for both in zip(*pair, strict=False)]
    rng.shuffle(examples)
    for number in range(min(COUNT, 2 * len(examples))):
        level, *both = examples[number // 2]
        context, line = both[number % 2]
        options = [f"\n{' ' * (level + extra)}{line}" for extra in (0, 4)]
        right = options.pop(number % 2)
        yield choice(context, right, options, number // 2, rng)


def _logical_lines(text: str) -> list[tuple[int, int]]:
    """Character offsets (start, end) of each logical line."""
    lines = []
    first: int | None = None
    for token, start in _tokens(text):
        if token.type == tokenize.NEWLINE and first is not None:
            lines.append((first, start))
            first = None
        elif token.type not in (tokenize.INDENT, tokenize.DEDENT) and first is None:
            first = start
    return lines


def _column(text: str, start: int) -> int:
    return start - text.rfind("\n", 0, start) - 1


def _tokens(text: str) -> Iterator[tuple[tokenize.TokenInfo, int]]:
    """Yield the tokens of a source text with their character offsets."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in _SKIPPED:
                yield token, starts[token.start[0] - 1] + token.start[1]
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return


def _before(text: str, end: int) -> str:
    """About `_CONTEXT` characters before `end`, beginning at a line start."""
    start = text.rfind("\n", 0, max(0, end - _CONTEXT)) + 1
    return text[start:end]


def _balanced(
    task: str, found: dict[str, list[str]], options: tuple[str, ...], prefix: str
) -> Iterator[Choice]:
    """Yield examples in which each of `options` is correct equally often."""
    rng = random.Random(task)
    pools = {option: sorted(set(found[option])) for option in options}
    for pool in pools.values():
        rng.shuffle(pool)
    each = min(COUNT // len(options), *map(len, pools.values()))
    for number in range(each * len(options)):
        # The order rotates by one each round, so an option and its position are independent.
        correct = options[(number + number // len(options)) % len(options)]
        wrong = [prefix + option for option in options if option != correct]
        yield choice(pools[correct].pop(), prefix + correct, wrong, number, rng)


multiple_choice("closing_bracket", closing_bracket, domain="code")
multiple_choice("keyword", keyword, domain="code")
multiple_choice("indentation", indentation, domain="code")
