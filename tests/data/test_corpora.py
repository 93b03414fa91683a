"""Corpora are found, named and refused as a user expects; SeqIO sees the same text as we do."""

import dataclasses
from pathlib import Path

import gin
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from jaxllm.data import corpora
from jaxllm.data.config import DataConfig
from jaxllm.data.loader import open_source
from jaxllm.errors import UserError
from jaxllm.evals import heldout
from jaxllm.evals.probes import embedded, generated
from tests.data.conftest import texts

MODULE = "jaxllm.evals.probes.corpora"


def test_directories_become_domains(config: DataConfig, corpus_dir: Path) -> None:
    weights = corpora.resolve(dataclasses.replace(config, weights=None))
    assert list(weights) == ["notes", "plays", "prose"]
    assert sum(weights.values()) == pytest.approx(1)
    sizes = {
        name: sum(
            f.stat().st_size
            for f in (corpus_dir / name).rglob("*")
            if f.is_file() and "valid" not in f.name
        )
        for name in weights
    }
    for name, weight in weights.items():  # without weights, by bytes
        assert weight == pytest.approx(sizes[name] / sum(sizes.values()))
    read = [d["text"] for d in corpora.documents("prose", "train")]
    assert read == texts("prose", 120)
    assert [d["text"] for d in corpora.documents("prose", "validation")] == texts("held out", 5)


def test_weights_choose_domains(config: DataConfig) -> None:
    chosen = dataclasses.replace(config, weights={"plays": 1, "prose": 3})
    assert corpora.resolve(chosen) == {"plays": 0.25, "prose": 0.75}


def test_seqio_reads_the_same_documents(config: DataConfig) -> None:
    corpora.register(config)
    for name in ("prose", "notes", "plays"):
        dataset = seqio.get_mixture_or_task(name).get_dataset(None, "train", shuffle=False)
        through_seqio = [row["text"].decode() for row in dataset.as_numpy_iterator()]
        assert through_seqio == [d["text"] for d in corpora.documents(name, "train")]


def test_a_users_task_with_preprocessors_is_a_corpus(config: DataConfig) -> None:
    rows = ["one", "two", "three"]
    name = "users_task"
    seqio.TaskRegistry.add(
        name,
        seqio.FunctionDataSource(
            lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices({"body": rows}),
            splits=["train"],
        ),
        preprocessors=[seqio.map_over_dataset(lambda row: {"text": tf.strings.upper(row["body"])})],
        output_features={
            "text": seqio.Feature(
                seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0
            )
        },
    )
    try:
        alone = dataclasses.replace(config, mixture_or_task_name=name, weights=None)
        assert corpora.resolve(alone) == {name: 1.0}
        assert [d["text"] for d in corpora.documents(name, "train")] == ["ONE", "TWO", "THREE"]
        assert corpora.fingerprint(name, "train") == corpora.fingerprint(name, "train")
    finally:
        seqio.TaskRegistry.remove(name)


def test_embedded_and_generated_domains_are_there(config: DataConfig) -> None:
    chosen = dataclasses.replace(
        config, mixture_or_task_name="embedded", modules=(MODULE,), corpus_dir=None, weights=None
    )
    names = list(corpora.resolve(chosen))
    assert names == sorted(embedded.DOMAINS + generated.DOMAINS)
    for name in names:
        for split in ("train", "validation", "test"):
            assert next(corpora.documents(name, split))["text"]


def test_a_tfds_data_set_registers_without_a_network(config: DataConfig) -> None:
    chosen = dataclasses.replace(
        config,
        corpus_dir="gs://nowhere/tfds",
        weights={"c4": 9, "wiki": 1},
        corpora={
            "c4": "tfds:c4/en:3.1.0",
            "wiki": "tfds:wikipedia/20230601.en:1.0.0",
        },
    )
    assert corpora.resolve(chosen) == {"c4": 0.9, "wiki": 0.1}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A directory with a TFDS data set of 300 books, without a validation split."""
    directory = tmp_path_factory.mktemp("tfds")
    rows = {"book": [f"book {i}" for i in range(300)], "id": np.arange(300)}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="shelf",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"book": tfds.features.Text(), "id": np.int64}),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(rows)},
        data_dir=str(directory),
    )
    return directory


def test_a_tfds_data_set_is_read(config: DataConfig, shelf: Path, capsys) -> None:
    source = {"path": "tfds:shelf:1.0.0", "text": "book"}
    chosen = dataclasses.replace(
        config, weights=None, corpus_dir=str(shelf), corpora={"shelf": source}
    )
    assert corpora.resolve(chosen) == {"shelf": 1.0}
    train = [d["text"] for d in corpora.documents("shelf", "train")]
    validation = [d["text"] for d in corpora.documents("shelf", "validation")]
    assert len(validation) == 3
    assert sorted(train + validation) == sorted(f"book {i}" for i in range(300))
    assert open_source(chosen).prepared[0].store.counts.documents == 297
    assert corpora.fingerprint("shelf", "train") != corpora.fingerprint("shelf", "validation")
    said = "no validation split: the first 3 documents are held out"
    assert said in capsys.readouterr().err


def test_tfds_data_sets_of_array_record_are_read_as_files(config: DataConfig, tmp_path) -> None:
    rows = {"book": [f"book {i}" for i in range(300)]}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="shelf",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"book": tfds.features.Text()}),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(rows)},
        data_dir=str(tmp_path),
        file_format="array_record",
    )
    named = {"path": "tfds:shelf:1.0.0", "text": "book"}
    chosen = dataclasses.replace(
        config, weights=None, corpus_dir=str(tmp_path), corpora={"shelf": named}
    )
    corpora.resolve(chosen)
    with pytest.raises(UserError, match=rf"ArrayRecord.* name its files .*, {tmp_path}/shelf"):
        next(corpora.documents("shelf", "train"))
    for path in ("shelf/1.0.0/*array_record*", "shelf"):
        files = {"path": path, "text": "book"}
        corpora.resolve(dataclasses.replace(chosen, corpora={"shelf": files}))
        splits = ("train", "validation")
        read = [d["text"] for split in splits for d in corpora.documents("shelf", split)]
        assert sorted(read) == sorted(rows["book"])


def test_what_datasets_saves_to_a_disk_is_read(config: DataConfig, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"train": texts("web", 40), "validation": texts("held out", 5)}
    saved = {split: datasets.Dataset.from_dict({"content": t}) for split, t in rows.items()}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "web")
    source = {"path": f"{tmp_path}/web", "text": "content"}
    corpora.resolve(dataclasses.replace(config, weights=None, corpora={"web": source}))
    for split, found in rows.items():
        assert [d["text"] for d in corpora.documents("web", split)] == found
    assert corpora.notes("web", "train") == ["files left out: 5 metadata"]


def test_a_domain_has_several_sources_with_their_shares(config: DataConfig, shelf, corpus_dir):
    """Sources of every kind, globs and renamed fields; the loss is that of the domain."""
    (corpus_dir / "stack").mkdir()
    pq.write_table(pa.table({"content": texts("stack", 40)}), corpus_dir / "stack" / "00.parquet")
    chosen = dataclasses.replace(
        config,
        weights={"code": 3, "rest": 1},
        corpora={
            "code": [
                {"path": "stack/*.parquet", "text": "content", "weight": 2},
                {"path": "no*/train-*.jsonl*"},
            ],
            "rest": [f"{corpus_dir}/prose", "plays/input.txt"],
            "ignored": "notes",
        },
    )
    weights = corpora.resolve(chosen)
    assert weights == pytest.approx(
        {"code:1": 0.5, "code:2": 0.25, "rest:1": 0.125, "rest:2": 0.125}
    )
    read = [d["text"] for d in corpora.documents("code", "train")]
    held_out = [d["text"] for d in corpora.documents("code", "validation")]
    everything = texts("stack", 40) + texts("notes", 40) + texts("more notes", 30)
    assert sorted(read + held_out) == sorted(everything) and read[0] == texts("stack", 40)[0]
    source = open_source(chosen, weights)
    assert source.domains == ("code", "rest")
    np.testing.assert_allclose(source.weights, [0.75, 0.25])
    sequences = source.sequences(0, 800)
    np.testing.assert_allclose(np.bincount(sequences["domains"]), [600, 200], atol=2)
    read = b"".join(bytes((row - 3).clip(0, 255).tolist()) for row in sequences["inputs"])
    assert b"stack" in read and b"notes" in read  # both sources of `code`
    assert set(source.epochs(800)) == set(weights)
    more = dataclasses.replace(chosen, corpora={"code": chosen.sources["code"] * 2})
    alone = dataclasses.replace(more, weights=None)
    assert list(corpora.resolve(alone)) == ["code:1", "code:2", "code:3", "code:4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture_or_task_name": ""}, "mixture_or_task_name is not set"),
        ({"mixture_or_task_name": "corpus_dir"}, "no mixture or task corpus_dir; did you mean cor"),
        ({"weights": {"pros": 1}}, "weights names pros, which corpora does not.*mean prose"),
        ({"corpus_dir": None}, r"mixture corpora needs DataConfig\.corpus_dir or DataConfig\.corp"),
        ({"corpus_dir": "/no/where"}, "no files below /no/where"),
        ({"corpora": {"a": "prose/x*.jsonl"}}, r"no file matches .*/corpus/prose/x\*\.jsonl"),
        ({"corpora": {"a": "prose/*/valid*"}}, "no domain has a training file"),
        ({"corpora": dict.fromkeys("ab", "tfds:no:1.0.0"), "weights": None}, "tfds:no:1.0.0 can"),
        ({"corpora": {"fine-web": "prose"}}, "corpus fine-web: a name has letters, digits and _"),
        ({"modules": ("no_such_module",)}, "cannot import no_such_module"),
    ],
)
def test_mistakes_are_named(config: DataConfig, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        corpora.resolve(dataclasses.replace(config, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "stack"}, "layout = 'stack'"),
        ({"weights": {"prose": 0}}, "shares above 0"),
        ({"weights": {}}, "shares above 0"),
        ({"corpora": {"c4": "tfds:c4/en"}}, "tfds:c4/en has no version"),
        ({"corpora": {}}, "each domain needs a source"),
        ({"corpora": {"a": []}}, "each domain needs a source"),
        ({"corpora": {"a": {"text": "b"}}}, "a source needs a `path`"),
        ({"corpora": {"a": {"path": "b", "txt": "c"}}}, "no field 'txt'; did you mean text"),
        ({"corpora": {"a": {"path": "b", "weight": 0}}}, r"Source\.weight = 0: must be .* > 0"),
        ({"corpora": {"a": 3}}, "corpora = .*: must be a mapping, .* a mapping with path, text"),
    ],
)
def test_a_wrong_configuration_is_refused(config: DataConfig, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **change)


def test_an_empty_directory_is_not_a_corpus(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "empty" / "domain").mkdir(parents=True)
    with pytest.raises(UserError, match="no files below"):
        corpora.resolve(dataclasses.replace(config, corpus_dir=str(tmp_path / "empty")))


def test_a_task_on_a_corpus_finds_that_of_the_configured_run(corpus_dir: Path) -> None:
    """`evaluate` resolves no training corpora: one that is scored is looked up when it is read."""
    folder = corpus_dir / "scored_alone"
    folder.mkdir()
    (folder / "valid.txt").write_text("held out\n")
    with gin.unlock_config():
        gin.bind_parameter("jaxllm.data.config.DataConfig.corpus_dir", str(corpus_dir))
    try:
        (passage,) = heldout.passages("scored_alone")
    finally:
        gin.clear_config()
    assert passage.text == "held out\n"
    with pytest.raises(UserError, match="no corpus scored_alon; did you mean scored_alone"):
        next(heldout.passages("scored_alon"))


def test_a_missing_split_is_named(config: DataConfig) -> None:
    corpora.register(config)
    with pytest.raises(UserError, match="notes has no split test; it has train, validation"):
        next(corpora.documents("notes", "test"))
    with pytest.raises(UserError, match="no corpus note; did you mean notes"):
        next(corpora.documents("note", "train"))
