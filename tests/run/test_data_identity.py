"""A run goes on with the sequences and the vocabulary that it began with, or not at all."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import gin
import pytest

from jaxllm.data import vocabularies
from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.data.tokenizer import with_saved_tokenizer
from jaxllm.errors import UserError
from jaxllm.run import data_identity
from jaxllm.run.data_identity import DataIdentity, saved_tokenizer
from jaxllm.run.run import Run
from jaxllm.training.sequences import open_data
from tests.training.helpers import experiment

TOKENIZER = {"tokenizer_config.json": b"{}", "tokenizer.json": b"{1}"}


def identity(fingerprint: str) -> DataIdentity:
    return DataIdentity(fingerprint, "")


def test_other_sequences_are_refused(tmp_path: Path) -> None:
    data_identity.verify(str(tmp_path / "new"), identity("a"))
    data_identity.save(str(tmp_path), identity("a"), {})
    data_identity.verify(str(tmp_path), identity("a"))
    with pytest.raises(UserError, match=r"began with other data.*take a new MODEL_DIR") as error:
        data_identity.verify(str(tmp_path), identity("b"))
    assert "delete" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"finger": 1}'])
def test_a_damaged_fingerprint_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(UserError, match=r"data\.json is damaged.*restore it"):
        data_identity.verify(str(tmp_path), identity("a"))


@pytest.mark.parametrize("moves", range(4))
def test_a_kill_leaves_each_file_complete_or_absent(tmp_path: Path, monkeypatch, moves) -> None:
    """Killed after the content of a file is written, before it has its name; then started again."""

    class Killed(BaseException):
        pass

    done: list[str] = []
    replace = os.replace

    def killed(source, target) -> None:
        if len(done) == moves:
            raise Killed
        done.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    try:
        data_identity.save(str(tmp_path), identity("a"), TOKENIZER)
    except Killed:
        assert moves < 3
    monkeypatch.setattr(os, "replace", replace)
    complete = {p.name for p in tmp_path.iterdir() if p.suffix != ".tmp"}
    assert complete == set(done)
    data_identity.save(str(tmp_path), identity("a"), TOKENIZER)
    data_identity.verify(str(tmp_path), identity("a"))
    assert saved_tokenizer(str(tmp_path)) == tmp_path / "tokenizer.json"
    assert {name: (tmp_path / name).read_bytes() for name in TOKENIZER} == TOKENIZER


def write_corpus(root: Path, line: str) -> None:
    (root / "plain").mkdir(parents=True, exist_ok=True)
    (root / "plain" / "train.txt").write_text(line * 2000)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    write_corpus(tmp_path / "corpora", "some words, some numbers 1 2 3\n")
    return DataConfig(
        mixture_or_task_name="corpora",
        corpus_dir=str(tmp_path / "corpora"),
        cache_dir=str(tmp_path / "cache"),
        vocabulary=VocabularyConfig(size=512),
    )


def test_the_vocabulary_travels_with_the_run(config: DataConfig, tmp_path: Path) -> None:
    trained = vocabularies.build_vocabulary(config)
    run = str(tmp_path / "run")
    assert with_saved_tokenizer(config, run) == config
    data_identity.save(run, identity("a"), vocabularies.load_tokenizer(config).files)
    for file in (tmp_path / "cache").rglob("*.model"):
        file.unlink()
    again = vocabularies.build_vocabulary(with_saved_tokenizer(config, run))
    assert again.encode("some 12") == trained.encode("some 12")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("bytes", r"another vocabulary than .*run, .* leave it out"),
        ("gone", "no file gone"),
    ],
)
def test_a_run_that_is_given_another_vocabulary_is_refused(
    config: DataConfig, tmp_path: Path, other: str, message: str
) -> None:
    run = experiment(tmp_path / "run", data=config)
    (began,), identity = open_data(run)
    data_identity.save(run.model_dir, identity, began.tokenizer.files)
    Run(run.model_dir).write_config("VocabularyConfig.size = 512\n")
    file = shutil.copy(tmp_path / "run" / "tokenizer.model", tmp_path / "same.model")
    for same in (config.vocabulary, VocabularyConfig(str(file))):  # as before, or from elsewhere
        (source,), _ = open_data(experiment(run.model_dir, data=replace(config, vocabulary=same)))
        assert source.fingerprint == began.fingerprint
    gin.bind_parameter("VocabularyConfig.path", other)
    with pytest.raises(UserError, match=message):
        open_data(experiment(run.model_dir, data=replace(config, vocabulary=VocabularyConfig())))


def test_changed_corpora_bring_no_new_vocabulary(config: DataConfig, tmp_path: Path) -> None:
    """Whatever a user deletes to go on with other data, the run's token ids keep their meaning."""
    run = experiment(tmp_path / "run", data=config)
    (began,), saved_identity = open_data(run)
    data_identity.save(run.model_dir, saved_identity, began.tokenizer.files)
    saved = (tmp_path / "run" / "tokenizer.model").read_bytes()
    write_corpus(tmp_path / "corpora", "other text of other letters: qxzj vwyk\n")
    with pytest.raises(UserError, match="began with other data"):
        open_data(run)
    (tmp_path / "run" / "data.json").unlink()
    (went_on,), _ = open_data(run)
    assert went_on.fingerprint != began.fingerprint
    text = began.sequences(0, 1)["inputs"][0]
    vocabulary = vocabularies.from_directory(tmp_path / "run" / "tokenizer.model")
    assert "some words" in vocabulary.decode(text.tolist())
    assert "qxzj" in vocabulary.decode(went_on.sequences(0, 1)["inputs"][0].tolist())
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == saved
