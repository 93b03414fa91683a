"""A corpus without a validation split holds documents out, disjoint from those for training."""

import json
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.data import formats, held_out
from jaxllm.data.files import path_corpus
from jaxllm.data.formats import BadLine
from tests.data.conftest import write_jsonl


def selected(texts: list[str], chosen: bool) -> list[str]:
    def documents() -> Generator[dict[str, str], None, int]:
        yield from ({"text": text} for text in texts)
        return len(texts)

    return [document["text"] for document in held_out.select(documents(), chosen)]


@given(st.lists(st.text("abc", max_size=6), max_size=60), st.floats(0.05, 0.9), st.integers(1, 90))
def test_the_splits_are_disjoint_and_complete(texts, share, limit) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "HELD_OUT", share)
        patch.setattr(held_out, "LIMIT_CHARS", limit)
        kept, chosen = selected(texts, False), selected(texts, True)
    assert not set(kept) & set(chosen)
    assert {*kept, *chosen} == set(texts)
    assert kept == [text for text in texts if text in set(kept)]
    assert sum(map(len, chosen)) < limit + 6


@given(st.lists(st.integers(0, 50), max_size=9), st.integers(1, 100))
def test_the_first_parts_make_enough_bytes(sizes: list[int], enough: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "LEADING_BYTES", enough)
        count = held_out.leading(sizes)
    assert sum(sizes[:count]) >= enough or count == len(sizes)
    assert sum(sizes[: count - 1]) < enough


def test_a_corpus_of_files_is_divided(tmp_path: Path, monkeypatch) -> None:
    """Whatever its parts are; other parts are those of a corpus that holds nothing out."""
    texts = [f"text {i}" for i in range(20_000)]
    write_jsonl(tmp_path / "web" / "a.jsonl", texts[:15_000])
    write_jsonl(tmp_path / "web" / "b.jsonl", texts[15_000:]).open("a").write("broken\n")
    monkeypatch.setattr(formats, "PART_BYTES", 100_000)
    for leading in (200_000, 1 << 30):
        monkeypatch.setattr(held_out, "LEADING_BYTES", leading)
        corpus = path_corpus(f"{tmp_path}/web", "text")
        parts = {split: corpus.parts(split) for split in corpus.splits}
        bad: list[BadLine] = []
        read = {
            split: [d["text"] for part in found for d in part.documents(bad.append)]
            for split, found in parts.items()
        }
        assert sorted(read["train"] + read["validation"]) == sorted(texts)
        lines = 20_000 * min(1, leading / sum(part.size for part in parts["train"]))
        assert 0.005 < len(read["validation"]) / lines < 0.02
        assert len(bad) == 1  # of the documents for training
    monkeypatch.setattr(held_out, "LEADING_BYTES", 200_000)
    before = {part.key for part in path_corpus(f"{tmp_path}/web", "text").parts("train")}
    (tmp_path / "web" / "valid.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    after = {part.key for part in path_corpus(f"{tmp_path}/web", "text").parts("train")}
    assert len(before & after) == len(before) - 2 > 0
