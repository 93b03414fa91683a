"""Generated documents say true things, and what is held out never occurs in training."""

import itertools
import re
import subprocess
import sys
import zlib

import pytest

from jaxllm.evals.probes import generated

HELD_OUT = ("validation", "test")


def texts(domain: str, split: str = "train") -> list[str]:
    return [document["text"] for document in generated.documents(domain, split)]


def numbers(split: str) -> tuple[set[tuple[int, int]], set[tuple[int, ...]]]:
    """The additions and rows of numbers that the documents of a split hold."""
    sums, rows = set(), set()
    for line in "".join(texts("arithmetic", split)).splitlines():
        if match := re.fullmatch(r"(\d+)\+(\d+)=(\d+)", line):
            a, b, c = map(int, match.groups())
            assert a + b == c
            sums.add((a, b))
        else:
            rows.add(tuple(map(int, line.split(","))))
    return sums, rows


def test_arithmetic_is_right_and_held_out():
    train_sums, train_rows = numbers("train")
    assert all(len({b - a for a, b in itertools.pairwise(r)}) == 1 for r in train_rows)
    for split in HELD_OUT:
        sums, rows = numbers(split)
        assert not train_sums & sums and not train_sums & {(b, a) for a, b in sums}
        assert not train_rows & rows


def test_every_sum_and_row_belongs_to_one_split():
    pairs = [pair for split in generated.SPLITS for pair in generated.additions(split)]
    assert sorted(pairs) == [(a, b) for a in range(100) for b in range(100) if a + b < 100]
    rows = [row for split in generated.SPLITS for row in generated.progressions(split)]
    assert len(rows) == len(set(rows)) == sum(100 - 5 * step for step in range(1, 6))


def test_copying_repeats_stretches_of_its_row():
    for text in texts("copying"):
        row, *stretches = text.removeprefix("row: ").removesuffix(" .\n").split(" ; ")
        assert stretches and all(f" {stretch} " in f" {row} {row} " for stretch in stretches)
        assert len(set(row.split())) == len(row.split()) == len(generated.WORDS)


def test_recall_asks_what_was_said():
    for text in texts("recall"):
        stated, asked = text.removeprefix("facts: ").removesuffix(" .\n").split(" . ")
        facts = stated.split(" , ")
        words, colors = zip(*(fact.split(" is ") for fact in facts), strict=True)
        assert len(set(words)) == len(set(colors)) == len(facts) == len(generated.COLORS)
        assert set(asked.split(" , ")) <= set(facts)


def test_labels_follow_two_categories():
    category = {w: name for name, words in generated.CATEGORIES.items() for w in words}
    assert sum(map(len, generated.CATEGORIES.values())) == len(category)  # no word in two
    for text in texts("labels"):
        shots = [s.split(" : ") for s in text.removeprefix("labels: ").split(" .")[0].split(" , ")]
        pairs = {(category[word], label) for word, label in shots}
        assert len(pairs) == 2 and len({label for _, label in pairs}) == 2


@pytest.mark.parametrize("domain", ["copying", "recall", "labels"])
def test_held_out_items_are_never_trained_on(domain):
    def items(split: str) -> set[str]:
        """A row, a set of facts: what comes before the first repetition."""
        return {re.split(r" ; | \. ", text)[0] for text in texts(domain, split)}

    train = items("train")
    for split in HELD_OUT:
        assert items(split) and not train & items(split)


@pytest.mark.parametrize("domain", generated.DOMAINS)
def test_documents_fit_a_row_of_the_quickstart(domain):
    """Shorter than 128 tokens if every word, number sign and digit is one."""
    for text in texts(domain):
        assert len(re.findall(r"[a-zA-Z]+|[^a-zA-Z ]", text)) < 126


def test_the_same_documents_in_every_process():
    code = (
        "import zlib\nfrom jaxllm.evals.probes import generated\n"
        "print([zlib.crc32(repr(list(generated.documents(d, 'test'))).encode())"
        " for d in generated.DOMAINS])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": "3"},
    )  # fmt: skip
    rows = [repr(list(generated.documents(d, "test"))) for d in generated.DOMAINS]
    assert done.stdout.strip() == repr([zlib.crc32(row.encode()) for row in rows])


def test_unknown_names_are_refused():
    with pytest.raises(KeyError):
        next(generated.documents("poems", "train"))
    with pytest.raises(ValueError, match="dev"):
        next(generated.documents("recall", "dev"))
