"""Which tokens: classes by frequency, part of word, position, kind of word and predictability."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from jaxllm.analysis.tokens.subsets import clustered_mean
from jaxllm.analysis.tokens.trends import TRENDS, Classes, Floats, Ints, token_trends
from jaxllm.run.token_losses import TokenSet

_WORD = re.compile(r"([^\W\d_]+?)(?:n?['’][^\W\d_]+)*(?![^\W\d_])")  # 1: stem of don't, it's
# Determiners, prepositions, pronouns, conjunctions, auxiliaries and particles of English.
_FUNCTION = """a about above across after against all along although am among an and another any are
as at be because been before behind being below beside between beyond both but by ca can could did
do does during each every for from had has have having he her herself him himself his how i if
in into is it its itself may me might more most must my myself neither no nor not of off on or our
out over shall she should since so some such than that the their them then there these they this
those though through till to toward towards under unless until up upon us was we were what when
where whether which while who whom whose why will with within without wo would yet you your"""
FUNCTION_WORDS = frozenset(_FUNCTION.split())


def token_kinds(
    tokens: Ints, documents: Ints, positions: Ints, ends: Ints, texts: Sequence[str],
    counts: Ints | None = None, log_probs: Floats | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Describe the n tokens of a `TokenSet`, sorted by document and position, in categories.

    `frequency`, decades of `counts` [vocabulary], such as the training data's, else in the set;
    `position` in the document, by factors of four; `part` of a word that it is or has; `word`:
    function, content or neither; `predictability`, fifths of `log_probs` [n] of an n-gram model,
    where given.
    """
    count = (np.bincount(tokens) if counts is None else counts)[tokens]
    each = np.split(ends, np.flatnonzero(np.diff(documents)) + 1)
    words = [_words(texts[d], e) for d, e in zip(np.unique(documents), each, strict=True)]
    part, word = np.concatenate(words, axis=1)
    kinds = {
        "frequency": pd.cut(count, [0, *10 ** np.arange(14)], right=False),
        "position": pd.cut(positions, [0, *4 ** np.arange(2, 14)], right=False),
        "part": pd.Categorical(part),
        "word": pd.Categorical(word),
    }
    if log_probs is not None:
        kinds["predictability"] = pd.qcut(log_probs, 5, duplicates="drop")
    return pd.DataFrame(kinds)


def shares_by_kind(classes: Classes, kinds: pd.DataFrame, documents: Ints) -> pd.DataFrame:
    """Share of each class in each category of `kinds`, beside its share of all tokens: a row per
    `kind`, `bin` (with its `tokens`) and `trend`: `share`, its `stderr` over documents, `overall`
    share.
    """
    is_class = classes == np.arange(len(TRENDS))[:, None]
    overall, rows = is_class.mean(axis=1), []
    for kind, values in kinds.items():
        for name, at in pd.get_dummies(values).items():
            shares = clustered_mean(is_class[:, at], documents[at])
            numbers = zip(TRENDS, *shares, overall, strict=True)
            rows += [(kind, str(name), at.sum(), *row) for row in numbers]
    columns = ["kind", "bin", "tokens", "trend", "share", "stderr", "overall"]
    return pd.DataFrame(rows, columns=columns).dropna(subset="share")


def trends_by_corpus(
    losses: Floats, steps: Sequence[int], text: TokenSet, counts: Floats, scores: Floats
) -> pd.DataFrame:
    """Percent of the tokens of each kind that have a trend, tested, after 20 % of training.

    `counts` [n] are those of the tokens in the run's corpora, `scores` [n] their log-probabilities
    by n-grams of these, `losses` [S, n] in nats. UserError as in `trends.token_trends`.
    """
    vocabulary = np.zeros(text.tokens.max(initial=0) + 1)
    vocabulary[text.tokens] = counts
    described = text.tokens, text.documents, text.positions, text.ends, text.texts
    classes = token_trends(losses, steps, 0.2).controlled()
    table = shares_by_kind(classes, token_kinds(*described, vocabulary, scores), text.documents)
    return 100 * table.pivot_table("share", ["kind", "bin", "tokens"], "trend", sort=False)


def _words(text: str, ends: Ints) -> npt.NDArray[np.object_]:
    """Part and kind of word [2, n] of a document's tokens, from the UTF-8 offsets of their ends."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    offsets = np.concatenate([[0], np.cumsum(widths)])  # of the characters, in bytes
    found = [*_WORD.finditer(text), None]
    # A word that starts and ends at 0 stands for none, last as index −1.
    first, last = offsets[[m.span() if m else (0, 0) for m in found]].T
    begins = np.concatenate([[0], ends[:-1]])
    # A token that ends within a character has no width: it is of the kind of that character.
    after = offsets[np.minimum(np.searchsorted(offsets, ends, "right"), len(offsets) - 1)]
    ends = np.where(ends > begins, ends, after)
    which = np.searchsorted(first[:-1], ends) - 1  # the last word that starts within or before
    inside = last[which] > begins
    starts, stops = first[which] >= begins, last[which] <= ends
    part = np.array(["middle", "end", "start", "whole"], object)[2 * starts + stops]
    kind = np.full(len(ends), "neither", object)
    for token, match in enumerate(found[index] for index in which):
        if inside[token] and match:
            kind[token] = "function" if match[1].lower() in FUNCTION_WORDS else "content"
        else:
            own = text[slice(*np.searchsorted(offsets, [begins[token], ends[token]]))]
            mark = "number" if any(map(str.isdigit, own)) else "punctuation"
            part[token] = "whitespace" if own.isspace() else mark
    return np.stack([part, kind])
