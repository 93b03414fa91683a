"""Corpora are found, named and refused as a user expects; SeqIO sees the same text as we do."""

import dataclasses
from pathlib import Path

import gin
import numpy as np
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
    read = [d["text"] for d in corpora.documents("notes", "train")]
    assert read == texts("notes", 40) + texts("more notes", 30)
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


def test_tfds_data_sets_register_without_a_network(config: DataConfig) -> None:
    data_sets: dict = {
        "c4": "c4/en:3.1.0",
        "wiki": {"name": "wikipedia/20230601.en:1.0.0", "train": "all"},
    }
    chosen = dataclasses.replace(
        config,
        mixture_or_task_name="tfds",
        corpus_dir=None,
        weights={"c4": 9, "wiki": 1},
        tfds=data_sets,
        tfds_data_dir="gs://nowhere/tfds",
    )
    assert corpora.resolve(chosen) == {"c4": 0.9, "wiki": 0.1}
    assert corpora.fingerprint("c4", "train") != corpora.fingerprint("wiki", "train")
    for wrong in ("c4/en", {"name": "c4/en:3.1.0", "valid": "train"}):
        with pytest.raises(UserError, match=r"DataConfig\.tfds: c4"):
            corpora.resolve(dataclasses.replace(chosen, weights=None, tfds={"c4": wrong}))


def test_a_tfds_data_set_is_read(config: DataConfig, tmp_path: Path) -> None:
    books = [f"book {i}" for i in range(10)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="shelf",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"book": tfds.features.Text(), "id": np.int64}),
        split_datasets={
            "train": tf.data.Dataset.from_tensor_slices({"book": books, "id": np.arange(10)})
        },
        data_dir=str(tmp_path / "tfds"),
    )
    data_set = {
        "name": "shelf:1.0.0",
        "text": "book",
        "train": "train[20%:]",
        "validation": "train[:20%]",
    }
    chosen = dataclasses.replace(
        config,
        mixture_or_task_name="tfds",
        weights=None,
        tfds={"shelf": data_set},
        tfds_data_dir=str(tmp_path / "tfds"),
    )
    corpora.register(chosen)
    train = [d["text"] for d in corpora.documents("shelf", "train")]
    held_out = [d["text"] for d in corpora.documents("shelf", "validation")]
    assert (len(train), len(held_out)) == (8, 2)
    assert sorted(train + held_out) == sorted(books)
    assert open_source(chosen).prepared[0].store.counts.documents == 8
    assert corpora.fingerprint("shelf", "train") != corpora.fingerprint("shelf", "validation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture_or_task_name": ""}, "mixture_or_task_name is not set"),
        ({"mixture_or_task_name": "corpus_dri"}, "no mixture or task corpus_dri; did you mean cor"),
        ({"weights": {"pros": 1}}, "weights names pros, which corpus_dir does not.*mean prose"),
        ({"mixture_or_task_name": ""}, "mixture_or_task_name is not set"),
        ({"corpus_dir": None}, r"mixture corpus_dir needs DataConfig\.corpus_dir"),
        ({"corpus_dir": "/no/where"}, "corpus_dir: no files below /no/where"),
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
    with pytest.raises(UserError, match="notes has no split validation; it has train"):
        next(corpora.documents("notes", "validation"))
    with pytest.raises(UserError, match="no corpus note; did you mean notes"):
        next(corpora.documents("note", "train"))
