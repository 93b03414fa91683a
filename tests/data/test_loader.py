"""Batches are a function of (seed, global index): of hosts, restarts and threads, nothing else."""

import contextlib
import dataclasses

import numpy as np
import pytest

from jaxllm.data import corpora, files, loader
from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.data.loader import SequenceSource, open_batches, open_source
from jaxllm.data.prepare import PreparedDomain
from jaxllm.data.repetition import check_epochs
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import UserError
from jaxllm.models.batch import Batch
from tests.data.conftest import write_store

LAYOUTS = ["concat", "concat_masked", "pack"]


def batches(source: SequenceSource, count: int, **kwargs) -> list[Batch]:
    with contextlib.closing(open_batches(source, source.config.batch_size, **kwargs)) as found:
        return [next(found) for _ in range(count)]


def assert_equal(a: Batch, b: Batch) -> None:
    for name in Batch._fields:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        assert getattr(a, name).dtype == getattr(b, name).dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_gives_the_same_global_batch(config, layout: str, hosts: int) -> None:
    source = open_source(dataclasses.replace(config, layout=layout))
    alone = batches(source, 6)
    parts = [batches(source, 6, process_index=p, process_count=hosts) for p in range(hosts)]
    for step, whole in enumerate(alone):
        local = [parts[p][step] for p in range(hosts)]
        assert all(len(part.inputs) == len(whole.inputs) // hosts for part in local)
        assert_equal(whole, Batch(*(np.concatenate(arrays) for arrays in zip(*local, strict=True))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_resumes_anywhere(
    config: DataConfig, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = dataclasses.replace(config, layout=layout)
    size = config.batch_size
    monkeypatch.setattr(loader, "PREFETCH", 1)
    first = batches(open_source(chosen), 20)
    monkeypatch.setattr(loader, "PREFETCH", 7)
    again = batches(open_source(chosen), 5, start=15 * size)
    for a, b in zip(first[15:], again, strict=True):
        assert_equal(a, b)
    # The position counts sequences, so a run may go on with another batch size.
    one = open_source(chosen).sequences(10 * size + 3, 1)
    np.testing.assert_array_equal(one["inputs"][0], first[10].inputs[3])
    assert one["domains"] == first[10].domains[3]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_domain_gives_every_token_once_per_epoch(config: DataConfig, layout: str) -> None:
    source = open_source(dataclasses.replace(config, layout=layout))
    sequences = source.sequences(0, 4000)
    for index, prepared in enumerate(source.prepared):
        mine = np.flatnonzero(sequences["domains"] == index)
        size = source._layouts[index].count
        assert len(mine) >= 2 * size, "the test reads two epochs of each domain"
        store = prepared.store
        tokens = store.read(0, store.counts.tokens)
        opening = np.zeros(len(tokens), bool)
        for shard, edge in enumerate(store.edges[:-1]):
            opening[edge + store.document_starts(shard)[:-1].astype(int)] = True
        expected = np.bincount(tokens[~opening], minlength=260)
        orders = []
        for epoch in range(2):
            taken = mine[epoch * size : (epoch + 1) * size]
            counted = sequences["weights"][taken] > 0
            got = np.bincount(sequences["targets"][taken][counted], minlength=260)
            np.testing.assert_array_equal(got, expected)
            orders.append([one.tobytes() for one in sequences["inputs"][taken]])
        assert sorted(orders[0]) == sorted(orders[1])
        assert size < 5 or orders[0] != orders[1], "each epoch has its own order"


def test_the_seed_and_nothing_else_changes_the_order(config: DataConfig) -> None:
    source = open_source(config)
    same = open_source(dataclasses.replace(config, batch_size=4))
    other = open_source(dataclasses.replace(config, seed=1))
    np.testing.assert_array_equal(
        source.sequences(0, 50)["inputs"], same.sequences(0, 50)["inputs"]
    )
    assert not np.array_equal(source.sequences(0, 50)["inputs"], other.sequences(0, 50)["inputs"])
    # Another domain in the mixture does not reorder the ones that were there.
    fewer = open_source(dataclasses.replace(config, weights={"prose": 3, "notes": 2}))

    def prose(of: SequenceSource) -> np.ndarray:
        sequences = of.sequences(0, 400)
        return sequences["inputs"][sequences["domains"] == of.domains.index("prose")][:100]

    np.testing.assert_array_equal(prose(source), prose(fewer))


def test_the_fingerprint_tells_whether_sequences_are_the_same(config: DataConfig, tmp_path) -> None:
    source = open_source(config)
    moved = dataclasses.replace(config, cache_dir=str(tmp_path / "other"), batch_size=2)
    assert open_source(moved).fingerprint == source.fingerprint
    for change in (
        {"seed": 1},
        {"layout": "pack"},
        {"sequence_length": 32},
        {"weights": {"prose": 3, "notes": 2}},
        {"weights": {"prose": 3, "notes": 2, "plays": 2}},
    ):
        assert open_source(dataclasses.replace(config, **change)).fingerprint != source.fingerprint


def test_what_a_batch_is(config: DataConfig) -> None:
    source = open_source(config)
    assert source.domains == ("notes", "plays", "prose")
    np.testing.assert_allclose(source.weights, [1 / 3, 1 / 6, 1 / 2])
    (batch,) = batches(source, 1)
    for name in ("inputs", "targets", "positions", "segment_ids"):
        assert getattr(batch, name).shape == (8, 64) and getattr(batch, name).dtype == np.int32
    assert batch.weights.shape == (8, 64) and batch.weights.dtype == np.float32
    assert batch.domains.shape == (8,) and batch.domains.dtype == np.int32
    np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_mistakes_are_named(config: DataConfig) -> None:
    source = open_source(config)
    assert source.tokenizer.size == 260
    source.check_vocabulary(260)
    with pytest.raises(UserError, match=r"vocab_size = 200 is too small: .* vocabulary of 260"):
        source.check_vocabulary(200)
    with pytest.raises(UserError, match="batch_size = 8 is not divisible by 3 hosts"):
        open_batches(source, 8, process_count=3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_documents_of_a_single_token_are_refused(config: DataConfig, tmp_path, layout) -> None:
    store = write_store(tmp_path, np.ones(5, np.uint16), np.ones(5, np.int64))
    domain = PreparedDomain("void", 1.0, store)
    with pytest.raises(UserError, match="corpus void: each of its documents is a single token"):
        SequenceSource(dataclasses.replace(config, layout=layout), Tokenizer("bytes"), (domain,))


def test_epochs_are_those_that_the_run_reads(config: DataConfig) -> None:
    source = open_source(config)
    domains = source.sequences(0, 600)["domains"]
    for number, (name, _, store, _) in enumerate(source.prepared):
        whole = -(-(store.counts.tokens - 1) // config.sequence_length)
        read = (domains == number).sum() / whole
        assert source.epochs(600)[name] == pytest.approx(read, abs=2 / whole)
        assert source.epochs_read(600)[name] == pytest.approx(read)
    epochs = source.epochs(200 * config.batch_size)
    (warning,) = check_epochs(epochs, 200)
    assert f"plays is read {epochs['plays']:.1f} times in 200 steps, worth" in warning
    assert not check_epochs(source.epochs(config.batch_size), 1)


def test_a_start_reads_the_corpus_directory_once(config: DataConfig, monkeypatch) -> None:
    listed: list[str] = []

    def directory_corpora(directory):
        listed.append(directory)
        return files.directory_corpora(directory)

    monkeypatch.setattr(corpora, "directory_corpora", directory_corpora)
    trained = dataclasses.replace(config, vocabulary=VocabularyConfig(size=512))
    open_source(trained, corpora.resolve(trained))
    assert listed == [config.corpus_dir]
