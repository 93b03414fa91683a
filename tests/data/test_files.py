"""A corpus directory tells its domains, the split of every file, and what is left out."""

import os
from pathlib import Path

import pytest

from jaxllm.data import formats
from jaxllm.data.files import directory_corpora, split_of
from jaxllm.errors import UserError


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00.jsonl", "train"),
        ("00.parquet", "train"),
        ("val.jsonl.zst", "validation"),
        ("validation/00000.parquet", "validation"),
        ("data/dev_2.txt", "validation"),
        ("pile-test-3.jsonl", "test"),
        ("test/train-like.jsonl", "train"),  # the name itself comes first
        ("deviantart.jsonl", "train"),
        ("validity_proofs.jsonl", "train"),
        ("testimonies.jsonl", "train"),
        ("c4-Validation.00000-of-00008.json.gz", "validation"),
        ("a/b/c/held/heldout.txt", "validation"),
    ],
)
def test_words_of_the_path_name_the_split(path: str, split: str) -> None:
    assert split_of(path) == split


def write(root: Path, names: dict[str, str]) -> None:
    for name, content in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


LINE = '{"text": "one"}\n'


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "web/deep/er/a.jsonl": LINE,
            "web/valid/b.txt": "two",
            "web/.ipynb_checkpoints/a.jsonl": LINE,
            "web/.a.jsonl.swp": "x",
            "web/_SUCCESS": "",
            "web/README.txt": "read me",
            "web/LICENSE.txt": "licence",
            "web/a.csv": "a,b",
            "web/c.csv": "a,b",
            "web/empty.jsonl": "",
            "web/a.txt~": "x",
            "notes.txt": "no domain",
            ".git/config.txt": "x",
        },
    )
    corpora = directory_corpora(str(tmp_path))
    assert list(corpora) == ["web"]
    web = corpora["web"]
    assert {split: list(found) for split, found in web.files.items()} == {
        "train": ["deep/er/a.jsonl"],
        "validation": ["valid/b.txt"],
    }
    assert web.left_out == {"hidden": 4, ".txt": 2, ".csv": 2, "empty": 1}
    assert web.splits == ("train", "validation")
    assert web.size("train") == len(LINE) and web.size("test") == 0


def test_a_changed_file_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "web" / "a.jsonl"
    write(tmp_path, {"web/a.jsonl": LINE})
    web = directory_corpora(str(tmp_path))["web"]
    before = web.fingerprint("train"), web.parts("train")[0].key
    stat = file.stat()
    file.write_text(LINE.replace("one", "two"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = web.fingerprint("train"), web.parts("train")[0].key
    assert before[0] != after[0] and before[1] != after[1]


def test_parts_of_other_files_keep_their_keys(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "PART_BYTES", 20)
    write(tmp_path, {"web/b.jsonl": LINE * 3})
    before = {part.key for part in directory_corpora(str(tmp_path))["web"].parts("train")}
    write(tmp_path, {"web/a.jsonl": LINE})
    after = [part.key for part in directory_corpora(str(tmp_path))["web"].parts("train")]
    assert len(before) == 3 and set(after) > before and len(after) == 4
    other_field = directory_corpora(str(tmp_path), "content")["web"].parts("train")
    assert not before & {part.key for part in other_field}


def test_directories_without_a_corpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no files below {tmp_path}/none"):
        directory_corpora(str(tmp_path / "none"))
    write(tmp_path, {"web/valid.jsonl": LINE})
    with pytest.raises(UserError, match="no training file"):
        directory_corpora(str(tmp_path))
