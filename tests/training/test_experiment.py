"""What defines a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import gin
import pytest

from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.models.config import ModelConfig
from tests.training.helpers import experiment


@pytest.fixture(autouse=True)
def _without_bindings() -> Iterator[None]:
    gin.clear_config()
    yield
    gin.clear_config()


def test_the_vocabulary_sets_the_models_unless_gin_does(tmp_path: Path) -> None:
    data = DataConfig(mixture_or_task_name="none", vocabulary=VocabularyConfig("bytes"))
    configured = dataclasses.replace(experiment(tmp_path), model=ModelConfig(), data=data)
    gin.bind_parameter("ModelConfig.num_layers", 3)
    model = configured.with_vocabulary().model
    assert (model.vocab_size, model.num_layers) == (320, 3)  # 260 bytes, padded
    assert "ModelConfig.vocab_size = 320" in gin.operative_config_str()
    gin.bind_parameter("ModelConfig.vocab_size", 1000)
    assert configured.with_vocabulary(260) is configured
