"""report/tokens.html: passages of the token sets, each token coloured by its trend or its change.

One self-contained page, as `page` is, with the losses of up to `CHECKPOINTS` checkpoints of each
run. They are stored as q = round(k log(1 + loss)), as differences between checkpoints, compressed,
with the largest k of `LEVELS` that keeps them below `BYTES` a run: the error is at most
(exp(1 / 2k) - 1) (1 + loss), which the page states.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from jaxllm.analysis.finding import amount
from jaxllm.analysis.tokens.runs import TokenRun, TokenStudy
from jaxllm.analysis.tokens.trends import PAPER, token_trends
from jaxllm.errors import UserError
from jaxllm.report import page
from jaxllm.report.theme import style_variables
from jaxllm.run.token_losses import TokenSet

CHECKPOINTS, TOKENS, BYTES = 30, 100_000, 1_250_000  # at most, in one page; bytes of each run
LEVELS = (16, 12, 9, 7, 5, 4)
AFTER = (0.1, 0.2, 0.4, 0.7)


def render(studies: Sequence[TokenStudy]) -> str:
    """Render the page as HTML, of the runs that have losses of all of `studies`' sets.

    Where no run has all of them, of the set with the most runs.
    """
    every = {run.run for study in studies for run in study.runs}
    shown = _shared_by_all(studies)
    if not shown:
        studies = [max(studies, key=lambda study: len(study.runs))]
        shown = _shared_by_all(studies)
    left_out = len(every) - len(shown)
    share = min(1.0, TOKENS / sum(len(study.token_set.tokens) for study in studies))
    first = [s.token_set.first_documents(share * len(s.token_set.tokens)) for s in studies]
    counts, ends = zip(*first, strict=True)
    chosen = [(s, d) for s, count in zip(studies, counts, strict=True) for d in range(count)]
    documents = [{"set": s.name, "text": s.token_set.texts[d]} for s, d in chosen]
    lengths = [_lengths(s.token_set, d) for s, d in chosen]
    runs = [_run(parts, [slice(0, end) for end in ends]) for parts in shown]
    for levels in LEVELS:
        packed = [_packed(_quantised(run["losses"], levels)) for run in runs]
        if sum(map(len, packed)) < BYTES * len(runs):
            break
    runs = [run | {"losses": losses} for run, losses in zip(runs, packed, strict=True)]
    data = {
        "documents": documents,
        "sizes": [len(tokens) for tokens in lengths],
        "lengths": _packed(np.concatenate(lengths)),
        "after": AFTER,
        "levels": levels,
        "runs": runs,
    }
    cut = [
        f"the first {len(chosen)} documents" if share < 1 else "",
        f"{len(runs)} runs; {left_out} are left out" if left_out else "",
    ]
    return page.templates().get_template("tokens.html").render(
        heading=f"Tokens of {', '.join(study.name for study in studies)}",
        cut="; ".join(filter(None, cut)),
        error=f"{np.expm1(0.5 / levels):.1%}",
        style=Markup(style_variables("sizes") + page.asset("page.css") + page.asset("tokens.css")),
        data=htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False),
        script=Markup(page.asset("tokens.js")),
    )  # fmt: skip


def _shared_by_all(studies: Sequence[TokenStudy]) -> list[list[TokenRun]]:
    """Each run that was scored on all sets at some checkpoint, as its part of each."""
    parts = [
        [run for s in studies for run in s.runs if run.run == one.run] for one in studies[0].runs
    ]
    return [each for each in parts if len(each) == len(studies) and _common(each)]


def _common(parts: Sequence[TokenRun]) -> list[int]:
    """The checkpoints with losses of all sets."""
    return sorted(set.intersection(*({int(step) for step in part.steps} for part in parts)))


def _lengths(token_set: TokenSet, document: int) -> np.ndarray:
    """Characters of each token of a document, uint16; one that tokens share is the first's."""
    # In UTF-16, as scripts count; a byte 10xxxxxx continues a character.
    content = token_set.texts[document].encode()
    units = [0 if byte & 0xC0 == 0x80 else 2 if byte >= 0xF0 else 1 for byte in content]
    starts = np.concatenate([[0], np.cumsum(units)])
    ends = starts[token_set.ends[token_set.documents == document]]
    return np.diff(ends, prepend=0).astype("<u2")


def _run(parts: Sequence[TokenRun], tokens: Sequence[slice]) -> dict[str, Any]:
    """One run's losses on all sets, at the checkpoints that they share."""
    first = parts[0]
    common = _common(parts)
    places = np.unique(np.linspace(0, len(common) - 1, CHECKPOINTS).round().astype(int))
    steps = [common[place] for place in places]
    rows = [np.searchsorted(part.steps, steps) for part in parts]
    losses = np.concatenate(
        [p.losses[r][:, of] for p, r, of in zip(parts, rows, tokens, strict=True)], axis=1
    )
    classes = [_classes(part, of) for part, of in zip(parts, tokens, strict=True)]
    return {
        "name": first.run,
        "size": amount(first.params),
        "steps": [int(step) for step in steps],
        "seen": [f"{amount(float(first.tokens[row]))} {first.clock}" for row in rows[0]],
        "x": [float(first.tokens[row]) for row in rows[0]],
        "losses": losses,
        "classes": _packed(np.concatenate(classes, axis=1)),
    }


def _quantised(losses: np.ndarray, levels: int) -> np.ndarray:
    """Differences of q between checkpoints, uint8 modulo 256."""
    q = np.clip(np.round(levels * np.log1p(np.maximum(losses, 0))), 0, 255).astype(np.uint8)
    return np.diff(q, axis=0, prepend=np.zeros_like(q[:1]))


def _classes(run: TokenRun, tokens: slice) -> np.ndarray:
    """Classes [2 · len(AFTER), n]: by the paper's rule and with controlled false discoveries.

    Where fewer than `FEWEST` checkpoints follow, tokens are unclassified.
    """
    losses, rows = run.losses[:, tokens], []
    for after in AFTER:
        try:
            trends = token_trends(losses, [int(step) for step in run.steps], after, PAPER)
            rows += [trends.classes, trends.controlled()]
        except UserError:
            rows += [np.zeros(losses.shape[1], np.int8)] * 2
    return np.stack(rows)


def _packed(array: np.ndarray) -> str:
    """Bytes of an array, compressed, in base 64."""
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
