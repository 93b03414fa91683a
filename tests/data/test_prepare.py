"""Prepared corpora are made once, whole or not at all, the same by any number of processes."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxllm.data import corpora
from jaxllm.data import prepare as preparing
from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.data.prepare import PreparedDomain
from jaxllm.data.store import TokenStore
from jaxllm.data.tokenizer import BYTE_BOS, BYTE_EOS, BYTE_OFFSET, Tokenizer
from jaxllm.data.vocabularies import load_tokenizer
from jaxllm.errors import UserError
from jaxllm.io import made_once, remove_abandoned
from tests.conftest import REPOSITORY
from tests.data.conftest import texts, write_jsonl


def prepare(config: DataConfig) -> tuple[PreparedDomain, ...]:
    weights = corpora.resolve(config)
    return preparing.prepare(config, weights, load_tokenizer(config, weights))


def byte_documents(domain: PreparedDomain) -> list[str]:
    ids = domain.store.read(0, domain.store.counts.tokens)
    found = []
    for document in np.split(ids, domain.store.starts[1:-1].astype(int)):
        assert document[0] == BYTE_BOS and document[-1] == BYTE_EOS
        found.append(bytes((document[1:-1] - BYTE_OFFSET).tolist()).decode())
    return found


def files(config: DataConfig) -> dict[str, int]:
    root = Path(config.cache)
    made = sorted(root.rglob("*.*"))
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in made if ".locks" not in p.parts}


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
    assert files(config) == before
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
    assert prepare(trained)[0].store.directory != changed[0].store.directory


def test_batches_do_not_change_the_bytes(config: DataConfig, tmp_path: Path, monkeypatch) -> None:
    """However many documents the tokenizer's threads share."""
    trained = dataclasses.replace(config, vocabulary=VocabularyConfig(size=512))
    stores = [domain.store for domain in prepare(trained)]
    monkeypatch.setattr(preparing, "BATCH_CHARS", 500)
    again = prepare(dataclasses.replace(trained, cache_dir=str(tmp_path / "other")))
    for one, many in zip(stores, [domain.store for domain in again], strict=True):
        assert one.meta == many.meta
        for name in ("starts.bin", *one.meta["shards"]):
            assert (one.directory / name).read_bytes() == (many.directory / name).read_bytes()


def test_a_failing_reader_ends_the_tokenizing() -> None:
    def broken():
        yield ["one"]
        raise UserError("f.jsonl:2: broken")

    with pytest.raises(UserError, match="broken"):
        list(preparing._encoded(broken(), Tokenizer("bytes")))


def test_a_few_bad_lines_are_counted_and_many_are_fatal(
    config: DataConfig, corpus_dir: Path, capsys, monkeypatch
) -> None:
    file = write_jsonl(corpus_dir / "notes" / "train-01.jsonl", ["", "fine"])
    file.write_text(file.read_text() + '{"text": "cut\n')
    only = dataclasses.replace(config, weights={"notes": 1})
    monkeypatch.setattr(preparing, "MAX_BAD_SHARE", 0.1)
    (notes,) = prepare(only)
    assert (notes.store.counts.bad, notes.store.counts.empty) == (1, 1)
    assert "1 empty and 1 bad left out" in (told := capsys.readouterr().err)
    assert f"{file}:3: broken JSON" in told
    # A stricter limit is held to the cached corpus, too.
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"corpus notes: 1 of 42 documents cannot be read"):
        prepare(only)
    fresh = dataclasses.replace(only, cache_dir=config.cache_dir + "2")
    with pytest.raises(UserError, match=r"first .*train-01\.jsonl:3: broken JSON"):
        prepare(fresh)
    assert not list(Path(fresh.cache, "corpora").glob("*notes*"))


def test_an_empty_corpus_is_refused_and_leaves_nothing(config: DataConfig, corpus_dir) -> None:
    write_jsonl(corpus_dir / "void" / "train.jsonl", ["", ""])
    with pytest.raises(UserError, match="corpus void has no text in its split train"):
        prepare(dataclasses.replace(config, weights={"void": 1}))
    assert not list(Path(config.cache, "corpora").glob("*void*"))


def test_an_unwritable_cache_is_named(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache_dir .*file/cache: Not a directory"):
        prepare(dataclasses.replace(config, cache_dir=str(tmp_path / "file" / "cache")))


FULL = """
import random, resource, sys
from pathlib import Path
from jaxllm.data import corpora, prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
noise = "".join(map(chr, random.Random(0).choices(range(32, 126), k=1 << 18)))
corpora.documents = lambda *_: iter([{"text": noise}])
try:
    with prepare._disk_errors(sys.argv[1]):
        tokenizer = prepare.Tokenizer("bytes")
        prepare.prepare_domain("prose", "train", tokenizer, Path(sys.argv[1], "store"))
except prepare.UserError as error:
    print(error)
"""


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"DataConfig.cache_dir {tmp_path}: ")
    assert "File too large" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]


def test_a_damaged_cache_is_made_again(config: DataConfig) -> None:
    prose = prepare(config)[2]
    shard = prose.store.directory / "tokens-00000.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:100])
    assert byte_documents(prepare(config)[2]) == texts("prose", 120)


KILLED = """
import itertools, sys
from pathlib import Path
from jaxllm.data import corpora
from jaxllm.data.prepare import prepare_domain
from jaxllm.data.tokenizer import Tokenizer
corpora.documents = lambda *_: ({"text": "all work and no play " * 500} for _ in itertools.count())
prepare_domain("prose", "train", Tokenizer("bytes"), Path(sys.argv[1]))
"""


def test_a_killed_prepare_leaves_nothing_that_is_believed(config: DataConfig) -> None:
    prose = prepare(config)[2]
    target = prose.store.directory
    whole = {p.name: p.read_bytes() for p in target.iterdir()}
    for path in target.iterdir():
        path.unlink()
    target.rmdir()
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(target)], cwd=REPOSITORY)
    partial = target.with_name(f".partial-{target.name}")
    shard = partial / "tokens-00000.arrayrecord"
    deadline = time.monotonic() + 60
    while not (shard.exists() and shard.stat().st_size > 1 << 16):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists() and not target.exists()
    assert not TokenStore.is_complete(partial)
    again = prepare(config)[2]
    assert {p.name: p.read_bytes() for p in again.store.directory.iterdir()} == whole
    assert not partial.exists()


WAITS = """
import sys
from pathlib import Path
from jaxllm.io import made_once
with made_once(Path(sys.argv[1])) as partial:
    print("found" if partial is None else "made", flush=True)
"""


def test_who_comes_second_waits_and_finds_it_made(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with made_once(target) as partial:
        assert partial is not None
        (partial / "file").write_text("whole")
        second = subprocess.Popen(
            [sys.executable, "-c", WAITS, str(target)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(2)
        remove_abandoned(tmp_path)  # it is not abandoned
        assert partial.exists() and not target.exists()
    assert second.communicate(timeout=30)[0] == "found\n"
    assert (target / "file").read_text() == "whole"


def test_what_fails_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), made_once(tmp_path / "target") as partial:
        assert partial is not None
        (partial / "file").write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == [".locks"]
    (tmp_path / ".partial-target").mkdir()
    remove_abandoned(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".locks"]


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
    wrong = [*command, "--gin.DataConfig.weights={'proze': 1}"]
    done = subprocess.run(wrong, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "weights names proze" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
