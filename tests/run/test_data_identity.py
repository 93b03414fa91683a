"""A run goes on with the rows and the vocabulary that it began with, or not at all."""

from pathlib import Path

import pytest

from jaxllm.data import vocabularies
from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.errors import UserError
from jaxllm.run import data_identity


def test_other_rows_are_refused(tmp_path: Path) -> None:
    config = DataConfig(mixture_or_task_name="x", vocabulary=VocabularyConfig(kind="bytes"))
    data_identity.check(str(tmp_path / "new"), "rows")
    data_identity.keep(str(tmp_path), "rows", config)
    data_identity.check(str(tmp_path), "rows")
    with pytest.raises(UserError, match="began with other data"):
        data_identity.check(str(tmp_path), "other rows")


def test_the_vocabulary_travels_with_the_run(tmp_path: Path) -> None:
    corpus = tmp_path / "corpora" / "plain"
    corpus.mkdir(parents=True)
    corpus.joinpath("train.txt").write_text("some words, some numbers 1 2 3\n" * 2000)
    config = DataConfig(
        mixture_or_task_name="corpus_dir",
        corpus_dir=str(tmp_path / "corpora"),
        cache_dir=str(tmp_path / "cache"),
        vocabulary=VocabularyConfig(size=512),
    )
    trained = vocabularies.build_vocabulary(config)
    run = tmp_path / "run"
    assert data_identity.with_kept_vocabulary(str(run), config) == config
    data_identity.keep(str(run), "rows", config)
    for file in (tmp_path / "cache").rglob("*.model"):
        file.unlink()
    again = vocabularies.build_vocabulary(data_identity.with_kept_vocabulary(str(run), config))
    assert again.encode("some 12") == trained.encode("some 12")
