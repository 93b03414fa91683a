"""A corpus directory tells its domains, the split of every file, and what is left out."""

import os
import sys
from pathlib import Path

import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from jaxllm.data import formats
from jaxllm.data.files import directory_corpora, path_corpus, split_of
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
    assert web.notes == ["files left out: 4 hidden, 2 .txt, 2 .csv, 1 empty"]
    assert web.splits == ("train", "validation")
    assert web.size("train") == len(LINE) and web.size("test") == 0


def test_what_describes_a_data_set_is_not_its_text(tmp_path: Path) -> None:
    """As `datasets` saves one to a disk; the real one is in test_corpora.py."""
    names = ["train/data.arrow", "test/data.arrow", "train/dataset_info.json", "train/state.json"]
    write(tmp_path, dict.fromkeys([*names, "dataset_dict.json", "train/states.json"], LINE))
    corpus = path_corpus(str(tmp_path), "text")
    assert list(corpus.files["train"]) == ["train/data.arrow", "train/states.json"]
    assert list(corpus.files["test"]) == ["test/data.arrow"]
    assert corpus.left_out == {"metadata": 3}


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
    other_field = path_corpus(f"{tmp_path}/web", "content").parts("train")
    assert not before & {part.key for part in other_field}


def test_patterns_directories_and_files_are_listed(tmp_path: Path, monkeypatch) -> None:
    names = ["web/a/train-0.jsonl", "web/b/train-1.jsonl", "web/b/val.jsonl", "web/readme.md"]
    write(tmp_path, dict.fromkeys(names, LINE))

    def files(path: str) -> dict[str, list[str]]:
        corpus = path_corpus(path, "text")
        return {s: [f"{corpus.root}/{f}" for f in found] for s, found in corpus.files.items()}

    everything = {
        "train": [f"{tmp_path}/{name}" for name in names[:2]],
        "validation": [f"{tmp_path}/{names[2]}"],
    }
    for path in ("web", "web/", "web/**", "web/*/*.jsonl", "web/[ab]/*", "w*/*"):
        assert files(f"{tmp_path}/{path}") == everything, path
    assert files(f"{tmp_path}/web/*/train-*.jsonl") == {"train": everything["train"]}
    assert files(f"{tmp_path}/{names[0]}") == {"train": everything["train"][:1]}
    monkeypatch.chdir(tmp_path)
    assert files("w*/a/*") == {"train": ["./web/a/train-0.jsonl"]}
    for path in ("web/*.parquet", "web/c"):
        with pytest.raises(UserError, match=rf"no file.* {tmp_path}/web/"):
            files(f"{tmp_path}/{path}")
    with pytest.raises(UserError, match=r"no file of \.jsonl.*, only files left out: 1 \.md"):
        files(f"{tmp_path}/web/*.md")
    with pytest.raises(UserError, match=r"nosuch://a/b cannot be listed \(Protocol not known"):
        files("nosuch://a/b")


def test_data_sets_of_the_hub_are_files(tmp_path: Path, monkeypatch) -> None:
    """HfFileSystem needs a network: a directory stands in for the hub under its protocol."""
    write(tmp_path, {"datasets/own/web/data/CC-1/train-0.jsonl": LINE})

    class Hub(DirFileSystem):
        protocol = "hf"

        def __init__(self, **kwargs) -> None:
            super().__init__(path=str(tmp_path), fs=LocalFileSystem(), **kwargs)

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("hf://")

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "hf", Hub)
    corpus = path_corpus("hf://datasets/own/web/data/CC-*/train-*.jsonl", "text")
    (part,) = corpus.parts("validation")
    assert part.file == "hf://datasets/own/web/data/CC-1/train-0.jsonl"
    assert [d["text"] for p in corpus.parts("train") for d in p.documents()] == ["one"]


def test_directories_without_a_corpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no files below {tmp_path}/none"):
        directory_corpora(str(tmp_path / "none"))
    write(tmp_path, {"web/valid.jsonl": LINE})
    with pytest.raises(UserError, match="no training file"):
        directory_corpora(str(tmp_path))
