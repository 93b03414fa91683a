"""Places as users write them."""

import os
from collections.abc import Iterator
from pathlib import Path

import gin
import pytest

from jaxllm import generate
from jaxllm.errors import UserError
from jaxllm.io import location
from jaxllm.training.config import TrainConfig


@pytest.fixture(autouse=True)
def fresh_gin() -> Iterator[None]:
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("~/run", "/home/someone/run"),
        ("hf:~/model", "hf:/home/someone/model"),
        ("file:///tmp/run", "/tmp/run"),
        ("gs://bucket/~/run", "gs://bucket/~/run"),
        ("runs/~mine", "runs/~mine"),
    ],
)
def test_a_place_is_where_the_user_means_it(
    text: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert location(text) == place


def test_runs_lie_in_the_home_directory_not_in_a_folder_called_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TrainConfig(model_dir="~/run").model_dir == os.path.join(tmp_path, "run")
    assert TrainConfig(model_dir="file:///data/run").model_dir == "/data/run"
    with pytest.raises(UserError, match=f"^{tmp_path}/run is no run"):
        generate.main(["--model_dir=~/run", "--prompt=x"])
    with pytest.raises(UserError, match=r"^/nowhere is no run"):
        generate.main(["--model_dir=file:///nowhere", "--prompt=x"])
