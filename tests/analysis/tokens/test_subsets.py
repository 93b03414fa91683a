"""Subsets, their overlap and kinds of tokens: against pandas, a bootstrap and a text by hand."""

import numpy as np
import pandas as pd

from jaxllm.analysis.tokens.kinds import shares_by_kind, token_kinds, trends_by_corpus
from jaxllm.analysis.tokens.subsets import clustered_mean, overlap, subset_perplexity
from jaxllm.analysis.tokens.trends import TRENDS, classify
from jaxllm.run.token_losses import TokenSet
from tests.analysis.tokens.test_trends import autoregressive


def test_clustered_error_is_that_of_a_bootstrap_over_documents() -> None:
    rng = np.random.default_rng(0)
    documents = rng.permutation(np.repeat(np.arange(60), rng.integers(5, 40, 60)))
    values = rng.normal(0, 1, 60)[documents] + rng.normal(0, 1, (2, len(documents)))
    mean, stderr = clustered_mean(values, documents)
    np.testing.assert_allclose(mean, values.mean(axis=1))
    sums = np.stack([values[:, documents == d].sum(axis=1) for d in range(60)])
    counts = np.bincount(documents)
    drawn = rng.integers(0, 60, (4000, 60))
    bootstrap = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)[:, None]
    np.testing.assert_allclose(stderr, bootstrap.std(axis=0), rtol=0.07)
    assert (stderr > 2 * values.std(axis=1) / np.sqrt(len(documents))).all()
    assert np.isnan(clustered_mean(values, 0 * documents)[1]).all()
    assert np.isnan(clustered_mean(values[:, :0], documents[:0])).all()


def test_perplexity_of_a_subset() -> None:
    rng = np.random.default_rng(1)
    losses, subset = rng.normal(3, 1, (3, 200)), rng.random(200) < 0.4
    perplexity, low, high = subset_perplexity(losses, subset, np.arange(200) // 10)
    np.testing.assert_allclose(perplexity, [np.exp(row[subset].mean()) for row in losses])
    assert ((low < perplexity) & (high > perplexity)).all()


def test_overlap_is_that_of_a_contingency_table() -> None:
    rng = np.random.default_rng(2)
    small = rng.integers(0, 4, 500).astype(np.int8)
    large = np.where(rng.random(500) < 0.5, small, rng.integers(0, 4, 500)).astype(np.int8)
    never = np.zeros(500, np.int8)
    table = overlap({"s": small, "l": large, "none": never}, np.arange(500) // 5)
    counts = pd.crosstab(small == 1, large == 1)
    row = table.set_index(["first", "second"]).loc[("s", "l")]
    assert row.tokens == counts.loc[True].sum()
    np.testing.assert_allclose(row.share, counts.loc[True, True] / counts.loc[True].sum())
    np.testing.assert_allclose(row.chance, counts[True].sum() / 500)
    np.testing.assert_allclose(row["lift"], row.share / row.chance)
    assert row["lift"] > 1.5 and len(table) == 9
    assert np.isnan(table.set_index(["first", "second"]).loc[("none", "s")].share)


TEXT = "It's “naïve” to wait 12 days —\nunbelievable!"
PIECES = [
    ("It", "whole", "function"),
    ("'", "middle", "function"),
    ("s", "end", "function"),
    (" “", "punctuation", "neither"),
    ("na", "start", "content"),
    ("ï", "middle", "content"),
    ("ve", "end", "content"),
    ("”", "punctuation", "neither"),
    (" to", "whole", "function"),
    (" wait", "whole", "content"),
    (" 12", "number", "neither"),
    (" days", "whole", "content"),
    (" —", "punctuation", "neither"),
    ("\n", "whitespace", "neither"),
    ("un", "start", "content"),
    ("believ", "middle", "content"),
    ("able!", "end", "content"),
]


def test_parts_of_words_and_their_kinds() -> None:
    pieces, parts, kinds = zip(*PIECES, strict=True)
    assert "".join(pieces) == TEXT
    ends = np.cumsum([len(piece.encode()) for piece in pieces])
    n = len(ends)
    found = token_kinds(
        np.tile(np.arange(n), 2), np.repeat([0, 1], n), np.tile(np.arange(n), 2),
        np.tile(ends, 2), [TEXT, TEXT], log_probs=np.arange(2 * n) - 2.0 * n,
    )  # fmt: skip
    assert list(found["word"]) == list(kinds) * 2
    # "It" is the start of "It's", whose stem decides on function or content
    assert list(found["part"]) == ["start", *parts[1:]] * 2
    assert set(found["frequency"].astype(str)) == {"[1, 10)"}
    assert list(found["position"].astype(str))[-2:] == ["[0, 16)", "[16, 64)"]
    assert (found["predictability"].value_counts() >= 6).all()
    bare = token_kinds(*np.zeros((3, 1), int), np.array([2]), ["…?"[1:] + " "], np.array([123]))
    assert bare.astype(str).iloc[0].to_dict() == {
        "frequency": "[100, 1000)", "position": "[0, 16)",
        "part": "punctuation", "word": "neither",
    }  # fmt: skip


def test_contractions_are_the_words_they_begin_with() -> None:
    text = "don't can't I’ve isn't dog's o'clock hello"
    ends = np.array([i for i, c in enumerate(text + " ") if c == " "])
    ends = np.array([len(text[:end].encode()) for end in ends])
    zeros = np.zeros(7, int)
    found = token_kinds(zeros, zeros, np.arange(7), ends, [text])
    assert list(found["part"]) == ["whole"] * 7
    assert list(found["word"]) == ["function"] * 4 + ["content"] * 3


def test_a_token_within_a_character_is_of_its_kind() -> None:
    """As byte-level tokens are: their text ends before the character that they begin."""
    text = "🙂 中 é1\n"
    sizes = [0, 0, 0, 4, 1, 0, 0, 3, 1, 0, 2, 1, 1]
    places = np.arange(len(sizes))
    found = token_kinds(0 * places, 0 * places, places, np.cumsum(sizes), [text])
    assert list(found["part"]) == [
        *["punctuation"] * 4, "whitespace", *["whole"] * 3, "whitespace", "whole", "whole",
        "number", "whitespace",
    ]  # fmt: skip


def test_shares_by_kind_are_those_of_groupby() -> None:
    rng = np.random.default_rng(3)
    kinds = pd.DataFrame({
        "word": pd.Categorical(rng.choice(["function", "content"], 300)),
        "position": pd.cut(rng.integers(0, 90, 300), [0, 10, 50, 100], right=False),
    })  # fmt: skip
    planted = np.where((kinds["word"] == "function") & (rng.random(300) < 0.8), 1, 3)
    table = shares_by_kind(planted.astype(np.int8), kinds, np.arange(300) // 30)
    assert len(table) == (2 + 3) * 4 and np.isfinite(table["stderr"]).all()
    for kind, values in kinds.items():
        expected = pd.crosstab(values.astype(str), planted, normalize="index")
        found = table[table.kind == kind].pivot(index="bin", columns="trend", values="share")
        np.testing.assert_allclose(found["stagnated"], expected[1])
        np.testing.assert_allclose(found["downward"], expected[3])
    overall = table.groupby("trend")["overall"].unique()
    assert [overall[t] for t in TRENDS] == [0, (planted == 1).mean(), 0, (planted == 3).mean()]


def test_a_trend_by_selection_is_gone_in_another_seed() -> None:
    """Of noise alone, the tokens that a seed calls upward rise in that seed and in no other."""
    rng = np.random.default_rng(4)
    losses = [3 + autoregressive(rng, np.full(4000, 0.5), 30, 0.1) for _ in range(2)]
    upward = classify(losses[0], range(1, 31), 0.0) == TRENDS.index("upward")
    documents = np.arange(4000) // 20
    (_, low, high), (_, other_low, other_high) = (
        subset_perplexity(each, upward, documents) for each in losses
    )
    assert low[-1] > high[0] * 1.05
    assert other_low[-1] < other_high[0] and other_low[0] < other_high[-1]


def test_trends_by_what_the_corpora_tell() -> None:
    """Rare tokens rise; the fifth that n-grams predict least is half of rare tokens."""
    rng, steps = np.random.default_rng(5), list(range(1, 25))
    ids = rng.permutation(np.repeat([1, 2], [100, 900]))
    text = TokenSet.of("t", ["a " * 100] * 10, ids.reshape(10, 100), [range(2, 201, 2)] * 10)
    rise = np.linspace(0, 1, 24)[:, None] * (ids == 1)
    losses = (3 + rise + rng.normal(0, 0.02, rise.shape)).astype(np.float32)
    order = np.where(ids == 1, -2.0, -1.0 - (rng.random(1000) < 0.1)) - 0.01 * rng.random(1000)
    found = trends_by_corpus(losses, steps, text, np.where(ids == 1, 5, 700), order)
    upward = found["upward"].droplevel("tokens")
    assert upward["frequency", "[1, 10)"] == 100 and upward["frequency", "[100, 1000)"] < 2
    by_score = pd.qcut(order, 5)
    assert set(upward["predictability"].index) == set(by_score.categories.astype(str))
    least = (ids == 1)[by_score.codes == 0].mean()
    np.testing.assert_allclose(upward["predictability"].iloc[0], 100 * least, atol=2)
