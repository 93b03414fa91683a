"""Prepared corpora are made once, whole or not at all, the same by any number of processes."""

import dataclasses
import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxllm.data import corpora, formats, jobs
from jaxllm.data import prepare as preparing
from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.data.files import path_corpus
from jaxllm.data.loader import open_source
from jaxllm.data.prepare import PreparedDomain
from jaxllm.data.tokenizer import BYTE_BOS, BYTE_EOS, BYTE_OFFSET
from jaxllm.data.vocabularies import load_tokenizer
from jaxllm.errors import UserError
from tests import zygote
from tests.conftest import REPOSITORY
from tests.data.conftest import texts, write_jsonl


def prepare(config: DataConfig) -> tuple[PreparedDomain, ...]:
    weights = corpora.resolve(config)
    return preparing.prepare(config, weights, load_tokenizer(config, weights))


def byte_documents(domain: PreparedDomain) -> list[str]:
    ids = domain.store.read(0, domain.store.counts.tokens)
    found = []
    for document in np.split(ids, np.flatnonzero(domain.store.separators.begins(ids)) + 1):
        assert document[0] == BYTE_BOS and document[-1] == BYTE_EOS
        found.append(bytes((document[1:-1] - BYTE_OFFSET).tolist()).decode())
    return found


def files(config: DataConfig) -> dict[str, int]:
    root = Path(config.cache)
    made = sorted(path for path in root.rglob("*.*") if path.is_file())
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in made}


def test_the_tokens_are_the_documents(config: DataConfig) -> None:
    notes, plays, prose = prepare(config)
    assert byte_documents(prose) == texts("prose", 120)
    assert byte_documents(notes) == texts("notes", 40) + texts("more notes", 30)
    assert len(byte_documents(plays)) == 1
    counts = prose.store.counts
    assert (counts.documents, counts.empty, counts.bad) == (120, 0, 0)
    assert counts.text_bytes == sum(len(t) for t in texts("prose", 120))
    assert counts.tokens == counts.text_bytes + 2 * 120
    assert "prose" in preparing.summary((notes, plays, prose))


def test_a_second_run_reads_the_cache(config: DataConfig, capsys) -> None:
    prepare(config)
    assert "prepared prose train: 120 documents" in capsys.readouterr().err
    before = files(config)
    other = dataclasses.replace(
        config, weights={"prose": 1, "notes": 9}, layout="pack", sequence_length=32, seed=7
    )
    prepare(other)  # the same tokens in another order
    made = files(config)
    assert before.items() <= made.items()
    assert all("packing-32" in name for name in made.keys() - before.keys())
    assert capsys.readouterr().err == ""


def test_the_cache_follows_the_sources_and_the_vocabulary(config: DataConfig, corpus_dir) -> None:
    prepare(config)
    before = files(config)
    write_jsonl(corpus_dir / "notes" / "train-01.jsonl", ["changed"])
    changed = prepare(config)
    assert byte_documents(changed[0])[-1] == "changed"
    added = {name.split("/")[1].split("-")[0] for name in files(config).keys() - before.keys()}
    assert added == {"notes"}  # the others were not tokenised again
    trained = dataclasses.replace(config, vocabulary=VocabularyConfig(size=512))
    assert prepare(trained)[0].store.files.directory != changed[0].store.files.directory


def test_batches_do_not_change_the_bytes(config: DataConfig, tmp_path: Path, monkeypatch) -> None:
    """However many documents the tokenizer's threads share."""
    trained = dataclasses.replace(config, vocabulary=VocabularyConfig(size=512))
    stores = [domain.store for domain in prepare(trained)]
    monkeypatch.setattr(preparing, "BATCH_CHARS", 500)
    other = dataclasses.replace(trained, cache_dir=str(tmp_path / "other"))
    for one, many in zip(stores, [domain.store for domain in prepare(other)], strict=True):
        assert one.meta == many.meta
    assert contents(trained) == contents(other)


def test_a_few_bad_lines_are_counted_and_many_are_fatal(
    config: DataConfig, corpus_dir: Path, capsys, monkeypatch
) -> None:
    file = write_jsonl(corpus_dir / "notes" / "train-01.jsonl", ["", "fine"])
    file.write_text(file.read_text() + '{"text": "cut\n')
    file.with_name("table.csv").write_text("a,b")
    only = dataclasses.replace(config, weights={"notes": 1})
    monkeypatch.setattr(preparing, "MAX_BAD_SHARE", 0.1)
    (notes,) = prepare(only)
    assert (notes.store.counts.bad, notes.store.counts.empty) == (1, 1)
    said = capsys.readouterr().err
    assert "1 empty documents left out, 1 bad lines left out" in said
    assert f"{file}:3: broken JSON" in said
    assert "files left out: 1 .csv" in said
    # A stricter limit is held to the cached corpus, too.
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"corpus notes: 1 of 42 documents cannot be read"):
        prepare(only)
    fresh = dataclasses.replace(only, cache_dir=config.cache_dir + "2")
    with pytest.raises(UserError, match=r"first .*train-01\.jsonl:3: broken JSON"):
        prepare(fresh)
    with pytest.raises(UserError, match=r"1 of 42 documents cannot be read"):
        prepare(fresh)  # what was prepared is not believed


def test_bad_lines_are_numbered_in_their_file_whatever_its_parts(
    config: DataConfig, corpus_dir: Path, capsys, monkeypatch
) -> None:
    file = write_jsonl(corpus_dir / "notes" / "train-01.jsonl", texts("more notes", 30))
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:20], "broken\n", *lines[20:]]))
    monkeypatch.setattr(preparing, "MAX_BAD_SHARE", 0.1)
    monkeypatch.setattr(formats, "PART_BYTES", 500)
    assert len(path_corpus(str(file), "text").parts("train")) > 10
    prepare(dataclasses.replace(config, weights={"notes": 1}))
    assert f"{file}:21: broken JSON" in capsys.readouterr().err


def test_a_file_that_changes_while_it_is_read_is_named(
    config: DataConfig, corpus_dir: Path, monkeypatch
) -> None:
    only = dataclasses.replace(config, weights={"notes": 1})
    file, documents = corpus_dir / "notes" / "train-01.jsonl", formats.FilePart.documents

    def documents_while_it_grows(part, on_error=None):
        lines = yield from documents(part, on_error)
        if part.file == str(file):
            file.write_text(file.read_text() + '{"text": "late"}\n')
        return lines

    monkeypatch.setattr(formats.FilePart, "documents", documents_while_it_grows)
    with pytest.raises(UserError, match=rf"corpus notes: {file} has changed since it was listed"):
        prepare(only)
    monkeypatch.undo()
    (notes,) = prepare(only)
    assert byte_documents(notes)[-1] == "late"


def test_several_hosts_prepare_only_what_is_small(config: DataConfig, monkeypatch) -> None:
    monkeypatch.setattr(jobs, "INLINE_BYTES", 1000)
    with pytest.raises(UserError, match=r"not prepared.*`python -m jaxllm\.prepare`.*cache_dir"):
        open_source(config, hosts=2)
    assert open_source(config).fingerprint == open_source(config, hosts=2).fingerprint


def test_an_empty_corpus_is_refused(config: DataConfig, corpus_dir) -> None:
    write_jsonl(corpus_dir / "void" / "train.jsonl", ["", ""])
    with pytest.raises(UserError, match="corpus void has no text in its split train"):
        prepare(dataclasses.replace(config, weights={"void": 1}))


def test_an_unwritable_cache_is_named(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache.*[Nn]ot a directory"):
        prepare(dataclasses.replace(config, cache_dir=str(tmp_path / "file" / "cache")))


FULL = """
import resource, sys
from jaxllm.data import corpora, prepare
from jaxllm.data.config import DataConfig
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
config = DataConfig("corpora", corpus_dir=sys.argv[1], cache_dir=sys.argv[2])
try:
    prepare.prepare(config, corpora.resolve(config), prepare.Tokenizer("bytes"))
except prepare.UserError as error:
    print(error)
"""


def test_a_full_disk_is_named_and_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus" / "prose" / "train.jsonl", ["all work " * (1 << 15)])
    command = [sys.executable, "-c", FULL, str(tmp_path / "corpus"), str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout and str(tmp_path / "cache") in done.stdout
    assert not list((tmp_path / "cache").rglob("*.tokens"))


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A corpus of twenty files, for a test of processes."""
    monkeypatch.setattr(jobs, "INLINE_BYTES", 0)
    for file in range(20):
        path = tmp_path / "many" / "prose" / f"train-{file:02d}.jsonl"
        write_jsonl(path, texts(f"prose {file}", 300))
    write_jsonl(tmp_path / "many" / "prose" / "valid.jsonl", ["held out"])
    return DataConfig(
        mixture_or_task_name="corpora",
        corpus_dir=str(tmp_path / "many"),
        cache_dir=str(tmp_path / "cache"),
        vocabulary=VocabularyConfig("bytes"),
    )


def contents(config: DataConfig) -> dict[str, bytes]:
    root = Path(config.cache)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.*") if p.is_file()}


def test_processes_write_the_same_bytes(large: DataConfig, tmp_path, monkeypatch) -> None:
    """And hold the same documents out, where there is no validation file."""
    (tmp_path / "many" / "prose" / "valid.jsonl").unlink()
    (by_processes,) = prepare(large)
    monkeypatch.setattr(jobs, "INLINE_BYTES", 1 << 40)
    (inline,) = prepare(other := dataclasses.replace(large, cache_dir=str(tmp_path / "other")))
    assert contents(large) == contents(other)
    held_out = {document["text"] for document in corpora.documents("prose", "validation")}
    every = [text for file in range(20) for text in texts(f"prose {file}", 300)]
    expected = [text for text in every if text not in held_out]
    assert byte_documents(by_processes) == byte_documents(inline) == expected
    assert 20 < len(held_out) == len(every) - len(expected) < 180


KILLED = """
import sys
from jaxllm.data import corpora, jobs, prepare
from jaxllm.data.config import DataConfig
jobs.INLINE_BYTES = 0
config = DataConfig("corpora", corpus_dir=sys.argv[1], cache_dir=sys.argv[2])
if __name__ == "__main__":
    prepare.prepare(config, corpora.resolve(config), prepare.Tokenizer("bytes"))
"""


def _children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def test_a_killed_preparation_goes_on_with_what_is_missing(large: DataConfig, tmp_path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(large.corpus_dir), large.cache]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    corpora_dir = Path(large.cache, "corpora")
    deadline = time.monotonic() + 90
    while not len(list(corpora_dir.rglob("*.json"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    workers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)
    complete = {path: path.stat().st_mtime_ns for path in corpora_dir.rglob("*.json")}
    (again,) = prepare(large)
    assert len(byte_documents(again)) == 6000
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in complete.items())
    prepare(other := dataclasses.replace(large, cache_dir=str(tmp_path / "other")))
    assert contents(large) == contents(other)


def test_a_corpus_that_gains_a_file_keeps_its_parts(large: DataConfig, tmp_path) -> None:
    prepare(large)
    before = {path: path.stat().st_mtime_ns for path in Path(large.cache).rglob("*.tokens")}
    write_jsonl(tmp_path / "many" / "prose" / "train-05b.jsonl", ["new"])
    (after,) = prepare(large)
    assert byte_documents(after)[6 * 300] == "new"
    made = {path: path.stat().st_mtime_ns for path in Path(large.cache).rglob("*.tokens")}
    assert len(made) == 21 and before.items() <= made.items()


def test_damaged_shards_are_found_and_written_again(large: DataConfig) -> None:
    (domain,) = prepare(large)
    before = contents(large)
    assert domain.store.take_back_damaged() == 0
    tokens = sorted(Path(large.cache).rglob("*.tokens"))
    tokens[3].unlink()
    tokens[7].write_bytes(tokens[7].read_bytes()[:-1] + b"x")
    starts = tokens[11].with_suffix(".starts")
    starts.write_bytes(starts.read_bytes()[:-8])
    with pytest.raises(UserError, match=rf"{tokens[3].name} is missing or too short"):
        domain.store.read(0, domain.store.counts.tokens)
    assert domain.store.take_back_damaged() == 3
    prepare(large)
    assert contents(large) == before
    index = next(Path(large.cache).rglob(f"{domain.store.name}.json"))
    index.write_bytes(index.read_bytes().replace(b'"bad": 0', b'"bad": 1'))
    prepare(large)
    assert contents(large) == before


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_done(large, tmp_path) -> None:
    bad = tmp_path / "many" / "prose" / "train-03.jsonl.gz"
    bad.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    with pytest.raises(UserError, match=rf"corpus prose: {bad} cannot be read to its end"):
        prepare(large)
    assert len(list(Path(large.cache).rglob("*.tokens"))) == 20
    bad.unlink()
    prepare(large)


@pytest.mark.slow
def test_the_command_prepares_and_says_what_it_read(corpus_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jaxllm.prepare", "--gin_file=base.gin"]
    command += ["--gin_file=data/domains.gin"]
    bindings = {
        "CORPUS_DIR": corpus_dir,
        "SEQUENCE_LENGTH": 64,
        "BATCH_SIZE": 8,
        "DataConfig.weights": {"prose": 1},
        "DataConfig.cache_dir": tmp_path / "cache",
        "VocabularyConfig.size": 512,
    }
    command += [f"--gin.{name}={value}" for name, value in bindings.items()]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "100.0%" in done.stdout and "120" in done.stdout
    wrong = [*command[2:], "--gin.DataConfig.weights={'proze': 1}"]
    done = zygote.run(wrong, REPOSITORY, dict(os.environ))
    assert done.returncode == 2
    assert "weights names proze" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
