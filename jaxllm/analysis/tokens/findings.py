"""Findings on held-out tokens: what is learned and forgotten, in which sizes, and which tokens.

The questions of "Training Trajectories of Language Models Across Scales" (arXiv 2212.09803,
section 3), with a null for each answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.registry import TOKENS, Study, analysis
from jaxllm.analysis.stats import Z95, false_discovery
from jaxllm.analysis.tokens import trends
from jaxllm.analysis.tokens.double_descent import double_descent
from jaxllm.analysis.tokens.kinds import shares_by_kind, token_kinds
from jaxllm.analysis.tokens.runs import TokenRun, TokenStudy
from jaxllm.analysis.tokens.subsets import clustered_mean, overlap, subset_perplexity
from jaxllm.errors import UserError

AFTER = 0.2  # share of training after which subsets are chosen: the paper's figures 3 and 4
_AFTERS = (AFTER, 0.1, 0.4)  # its figures 10 and 11 are of the other two
_FOLLOWED = ("stagnated", "upward", "downward", "unclassified")
_ALIKE = 0.9  # CKA above which a layer is as in the last checkpoint
_FALSE = 0.001  # false discoveries among the kinds of tokens


@analysis(
    TOKENS,
    "Learned, stagnated, forgotten",
    needs=lambda study: bool(study.token_studies),
    place=10,
    caption="Share of held-out tokens by the trend of their loss after p % of training, with 95 % "
    "intervals over documents; at most 5 % of those called upward or downward wander by chance.",
    method="Lines through the loss under autoregressive noise (AR(1), restricted likelihood) with "
    "false-discovery control (Benjamini and Hochberg 1995), beside equation 1 of arXiv 2212.09803.",
)
def token_shares(study: Study) -> list[Finding]:
    """Shares of the trends by run and p, for each token set."""
    return _each(study.token_studies, "Learned, stagnated, forgotten", lambda one: [_shares(one)])


def _shares(study: TokenStudy) -> Finding:
    rows: list[dict[str, object]] = []
    notes: tuple[str, ...] = ()
    try:  # tests of equal power
        at = trends.common_checkpoints({run.run: run.tokens / run.tokens[-1] for run in study.runs})
        study = TokenStudy(study.token_set, tuple(run.at(at[run.run]) for run in study.runs))
    except UserError as error:
        notes = (f"Runs with more checkpoints have more power here: {error}.",)
    for run in study.runs:
        steps = run.steps.tolist()
        for after in (after for after in trends.AFTER if _follows(steps, after)):
            classes = trends.token_trends(run.losses, steps, after).controlled()
            for index, name in enumerate(trends.TRENDS):
                share, stderr = clustered_mean(classes == index, study.token_set.documents)
                low, high = max(share - Z95 * stderr, 0.0), share + Z95 * stderr
                row = {"run": run.run, "after": 100 * after, "trend": name, "share": share}
                rows.append(row | {"low": low, "high": high})
    table = pd.DataFrame(rows)
    if table.empty:
        return Finding.refuse("no run has four scored checkpoints after 10 % of its training")
    largest = next(run for run in study.runs[::-1] if (table.run == run.run).any())
    after = AFTER if _follows(largest.steps.tolist(), AFTER) else trends.AFTER[0]
    row = trends.trend_table(largest.losses, largest.steps.tolist(), [after]).set_index("trend")
    percent = lambda name, column: f"{row.loc[name, column]:.1%}"
    count = len(study.token_set.tokens)
    sentence = (
        f"After {after:.0%} of the {amount(largest.tokens[-1])} {largest.clock} of {largest.run}, "
        f"{percent('downward', 'controlled')} of {count:,} tokens are still learned, "
        f"{percent('upward', 'controlled')} forgotten and {percent('stagnated', 'controlled')} "
        f"stagnated. Equation 1 alone says {percent('downward', 'share')} and "
        f"{percent('upward', 'share')}; of losses that only wander it would say "
        f"{percent('downward', 'autoregressive')} and {percent('upward', 'autoregressive')}."
    )
    return Finding(sentence, table, notes=notes)


@analysis(
    TOKENS,
    "The same tokens in every size",
    needs=lambda study: any(len(one.runs) > 1 for one in study.token_studies),
    place=20,
    caption="Perplexity of the tokens of one trend (by equation 1, after 20 % of training) in each "
    "run: as each run sorts them itself, and as the smallest and the largest do. Below: after 10 "
    "and 40 %, where all runs have four checkpoints. Dashed curves are of a run's own choice, made "
    "from the dashed vertical on, and show what it was made for; those of other sizes and seeds "
    "can contradict it. Held-out perplexity is that of all tokens of the set.",
    method="Subsets of arXiv 2212.09803, figures 3, 4 and 10 to 12; a rise and a later fall are "
    "tested against a smooth curve with autoregressive noise, with false-discovery control.",
)
def token_subsets(study: Study) -> list[Finding]:
    """Each trend's tokens, as single runs choose them, followed in all; and their overlap."""
    several = [one for one in study.token_studies if len(one.runs) > 1]
    return _each(several, "The same tokens in every size", _subsets)


def _subsets(study: TokenStudy) -> Iterator[Finding]:
    runs = [run for run in study.runs if _follows(run.steps.tolist(), AFTER)]
    if len(runs) < 2:
        yield Finding.refuse("fewer than two runs have four checkpoints after 20 % of training")
        return
    classes = {
        after: {run.run: trends.classify(run.losses, run.steps.tolist(), after) for run in runs}
        for after in _AFTERS
        if all(_follows(run.steps.tolist(), after) for run in runs)
    }
    documents, params = study.token_set.documents, {run.run: run.params for run in runs}
    pairs = [overlap(classes[AFTER], documents, trend).assign(trend=trend) for trend in _FOLLOWED]
    for trend, pair in zip(_FOLLOWED, pairs, strict=True):
        yield _followed(runs, trend, classes, documents, pair.iloc[len(runs) - 1])
    table = pd.concat(pairs, ignore_index=True)
    up = table[table["first"].map(params) < table.second.map(params)]
    median = up.groupby("trend", sort=False)[["share", "lift"]].median().dropna().iterrows()
    said = [f"{row.share:.0%} of {name} ones ({row.lift:.2g} times chance)" for name, row in median]
    sentence = f"Of the tokens of a run, a larger one sorts alike: {', '.join(said)}; medians."
    sentence = sentence if said else "No run is known to be larger than another."
    yield Finding(sentence, table, title="Tokens of one trend in two runs")


def _followed(
    runs: list[TokenRun], trend: str, classes: dict[float, dict[str, trends.Classes]],
    documents: np.ndarray, ends: pd.Series,
) -> Finding:  # fmt: skip
    """The tokens of a trend, as each run sorts them, in all; and the overlap of both `ends`."""
    curves, tests, title = [], [], f"{trend.capitalize()} tokens in every size"
    for after, by, run in itertools.product(classes, (None, runs[0], runs[-1]), runs):
        subset = classes[after][(by or run).run] == trends.TRENDS.index(trend)
        own = by is None or by is run
        if not subset.any():
            continue
        perplexity, low, high = subset_perplexity(run.losses, subset, documents)
        start, _ = trends.PAPER.starts(run.steps.tolist(), after)
        curve = {
            "step": run.steps, "tokens": run.tokens, "flops": run.flops, "size": run.label,
            "of_all_tokens": np.exp(run.losses.mean(axis=1, dtype=float)),
            "perplexity": perplexity, "low": low, "high": high, "run": run.run,
            "trend": trend, "after": 100 * after, "by": by.run if by else "each run",
            "begins": own & (run.steps == run.steps[start]),
            "selection": "its own choice" if own else "another's choice",
        }  # fmt: skip
        curves.append(pd.DataFrame(curve))
        if trend == "upward" and after == AFTER and by and not own:
            late = run.steps >= 0.02 * run.steps[-1]  # the first steps are another regime
            losses, steps = run.losses[late][:, subset], run.steps[late].tolist()
            with contextlib.suppress(UserError):
                result = double_descent(losses, steps, documents[subset])
                tests.append((run.run, by.run, result))
    if not curves:
        return dataclasses.replace(
            Finding.refuse(f"equation 1 calls no token {trend}"), title=title
        )
    sentence = f"No token is {trend} in {ends['first']}, by equation 1."
    if ends.tokens:
        sentence = (
            f"Of the {ends.tokens:,.0f} tokens that are {trend} in {ends['first']}, "
            f"{ends.share:.0%} are in {ends.second}, too, where {ends.chance:.0%} of all are."
        )
    lines = tuple(_descents(tests)) if trend == "upward" else ()
    return Finding(sentence, pd.concat(curves).query("step > 0"), lines=lines, title=title)


def _descents(tests: list[tuple]) -> list[str]:
    """Sentences on double descent, controlled over all tests."""
    if not tests:
        return ["Double descent was not tested: it takes 12 checkpoints of another run."]
    q = false_discovery([result.p_value for *_, result in tests])
    found = [
        f"On the tokens that {by} forgets, {run} rises by {result.rise[0]:.3f} nats to step "
        f"{result.steps[1]} and falls again by {result.fall[0]:.3f} (q = {value:.2g})."
        for (run, by, result), value in zip(tests, q, strict=True)
        if value < trends.LEVEL
    ]
    none = f"No double descent in {len(tests)} tests of runs on the tokens that another forgets."
    return found or [none]


@analysis(
    TOKENS,
    "Which tokens they are",
    needs=lambda study: bool(study.token_studies),
    place=30,
    caption="How much more or less often a trend is among the tokens of a kind than among all, in "
    "the largest run after 20 % of training. Frequency is that in the token set.",
    method="Shares by kind against those of all tokens, with the variance over documents (Cochran "
    "1977, chapter 9A) and 0.1 % false discoveries (Benjamini and Hochberg 1995).",
)
def token_kinds_of_trends(study: Study) -> list[Finding]:
    """Trends by kind of token in the largest run, for each token set."""
    return _each(study.token_studies, "Which tokens they are", lambda one: [_kinds(one)])


def _kinds(study: TokenStudy) -> Finding:
    run, tokens = study.runs[-1], study.token_set
    if not _follows(run.steps.tolist(), AFTER):
        return Finding.refuse(f"{run.run} has fewer than four checkpoints after 20 % of training")
    classes = trends.token_trends(run.losses, run.steps.tolist(), AFTER).controlled()
    kinds = token_kinds(
        tokens.tokens, tokens.documents, tokens.positions, tokens.ends, tokens.texts
    )
    table = shares_by_kind(classes, kinds, tokens.documents)
    table = table[(table.trend != "unclassified") & (table.overall > 0) & (table.tokens >= 50)]
    spread = {
        name: clustered_mean(classes == index, tokens.documents)[1] ** 2 * len(classes)
        for index, name in enumerate(trends.TRENDS)
    }
    # Under the null a kind has the variance of all tokens, clustered by document, for its size.
    null = np.sqrt(np.fmax(table.trend.map(spread), table.overall * (1 - table.overall)))
    z = (table.share - table.overall).abs() / (null / np.sqrt(table.tokens))
    table = table.assign(
        group=table.kind + ": " + table["bin"],
        ratio=np.log2(np.maximum(table.share, 1e-4) / table.overall).clip(-3, 3),
        q=false_discovery(2 * stats.norm.sf(z)),
    )
    clear = table[table.q < _FALSE].sort_values(["ratio", "tokens"], ascending=[True, False])
    if clear.empty:
        return Finding("No kind of token differs clearly from all tokens.", table)
    said = [
        f"{row.trend} {row.share:.1%} of the tokens with {row.group} (all: {row.overall:.1%})"
        for _, row in clear.iloc[[-1, 0] if len(clear) > 1 else [0]].iterrows()
    ]
    return Finding(f"In {run.run}: {'; '.join(said)}.", table)


@analysis(
    TOKENS,
    "When each layer settles",
    needs=lambda study: bool(study.layers),
    caption="Hidden states after a layer (row) against those after it in the last checkpoint, or "
    "after those of another model (columns). A layer settles between its step and the one before.",
    method="Linear CKA (Kornblith et al. 2019), unbiased; SVCCA (Raghu et al. 2017) in the table.",
)
def layer_similarity(study: Study) -> list[Finding]:
    """When each layer settles, or which layers of two models correspond, for each comparison."""
    findings = []
    for table in (named.replace(".*/", "", regex=True) for named in study.layers):
        on, first, other = table.loc[0, ["token_set", "checkpoint", "other"]]
        if table.checkpoint.nunique() == 1:
            title, begin = f"Which layers correspond, {first} and {other}", "most alike are"
            best = table.loc[table.dropna(subset="cka").groupby("layer").cka.idxmax()]
            pairs = zip(best.layer, best.other_layer, best.cka, strict=True)
            parts = [f"layers {i} and {j} (CKA {cka:.2f})" for i, j, cka in pairs]
        else:
            run, _, last = other.rpartition("@")
            title, begin = f"When each layer settles, {run}", f"CKA with step {last} > {_ALIKE}"
            table = table[table.layer == table.other_layer]
            step = table.checkpoint.str.rpartition("@")[2].astype(int)
            apart = step.mask(table.cka > _ALIKE).groupby(table.layer).transform("max")
            after = step.mask(step <= apart).groupby(table.layer).transform("min")
            table = table.assign(step=step, settled=after.fillna(int(last)).astype(int))
            by_layer = table.groupby("layer").settled.first().items()
            parts = [f"in layer {layer} from step {start}" for layer, start in by_layer]
        answer = f"On {on}, {begin} {', '.join(parts)}."
        findings.append(Finding(answer, table, title=f"{title}, {on}"))
    return findings


def _follows(steps: list[int], after: float) -> bool:
    """Whether enough checkpoints follow this share of training."""
    try:
        return bool(trends.PAPER.starts(steps, after))
    except UserError:
        return False


def _each(
    studies: Sequence[TokenStudy], title: str, find: Callable[[TokenStudy], Iterable[Finding]]
) -> list[Finding]:
    """The findings on each token set, named where there are several."""
    found = [(one, finding) for one in studies for finding in find(one)]
    name = lambda one, of: f"{of.title or title}, {one.name}" if len(studies) > 1 else of.title
    return [dataclasses.replace(of, title=name(one, of)) for one, of in found]
