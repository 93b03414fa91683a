"""Runs with DoReMi: a reference run, a proxy, and a run on the answer."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytest

from jaxllm import cli, convert, plan
from jaxllm.data.config import DataConfig
from jaxllm.errors import UserError
from jaxllm.io import sealed, unsealed
from jaxllm.run.run import Run
from jaxllm.training.experiment import Experiment
from jaxllm.training.metrics import MetricsLog
from tests.chaos.driver import read_item
from tests.training.processes import make_home
from tests.training.test_branches import MORE, run
from tests.training.test_loop import exact

STEPS = """
TRAIN_STEPS = 10
TrainConfig.log_every = 2
"""


@pytest.fixture(scope="module")
def home(no_report: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two domains, a reference run of a smaller model, and a proxy."""
    home = make_home(tmp_path_factory.mktemp("doremi"), MORE + STEPS)
    shutil.copytree(home / "corpus" / "words", home / "corpus" / "more")
    run(f"--gin_file={home}/tiny.gin", f"--gin.MODEL_DIR={home}/reference",
        "--gin.ModelConfig.embed_dim=8", "--gin.EVAL_TASKS=()")  # fmt: skip
    proxy(home, "proxy")
    return home


def proxy(home: Path, name: str, *flags: str, reference: str = "reference@10") -> None:
    weights = {"reference": f"{home}/{reference}"}
    run(f"--gin_file={home}/tiny.gin", f"--gin.MODEL_DIR={home}/{name}", "--gin.EVAL_TASKS=()",
        f"--gin.TrainConfig.domain_weights={weights}", *flags)  # fmt: skip


def test_an_interrupted_proxy_goes_on_bitwise(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = MetricsLog.add

    def added(log: MetricsLog, step: int, metrics: Any) -> None:
        add(log, step, metrics)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "add", added)
        proxy(home, "parts")
    assert [entry.step for entry in Run(home / "parts").available()] == [0, 5]
    assert not (home / "parts" / "domain_weights.gin").exists()
    proxy(home, "parts")
    parts, whole = Run.open(home / "parts"), Run.open(home / "proxy")
    lines = [[exact(line) for line in one.metrics_lines.read()[0]] for one in (parts, whole)]
    assert lines[0] == lines[1]
    for item in ("model", "training"):
        ours, expected = (read_item(Path(r.layout.checkpoint(10)) / item) for r in (parts, whole))
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(ours[name], value, name)
    assert parts.domain_weights() == whole.domain_weights()


def test_the_answer_is_the_mixture_of_the_next_run(home: Path) -> None:
    rows = Run.open(home / "proxy").metrics_lines.read()[0]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    for row in rows:
        assert row["domain_weight/more"] + row["domain_weight/words"] == pytest.approx(1)
    assert rows[0]["excess_loss/words"] > 0
    answer = Run.open(home / "proxy").domain_weights()
    assert answer == {name: rows[-1][f"average_domain_weight/{name}"] for name in answer}
    assert sum(answer.values()) == pytest.approx(1) and len(answer) == 2
    gin.clear_config()
    files = [f"--gin_file={home}/{name}" for name in ("tiny.gin", "proxy/domain_weights.gin")]
    cli.load_gin(cli.parse(cli.parser(""), files))
    assert DataConfig().weights == pytest.approx(answer, abs=1e-6)
    assert Run.open(home / "reference").domain_weights() == {}
    assert not (home / "reference" / "domain_weights.gin").exists()


def test_an_imported_model_is_the_reference_as_the_run_that_it_is_of(home: Path) -> None:
    """It has another size than the proxy, which only its own config.json tells."""
    gin.clear_config()
    convert.main([f"--from={home}/reference", "--step=10", f"--to=hf:{home}/hf"])
    convert.main([f"--from=hf:{home}/hf", f"--to={home}/imported"])
    proxy(home, "of_hf", reference="imported@0")
    runs = [Run.open(home / name) for name in ("of_hf", "proxy")]
    assert runs[0].domain_weights() == pytest.approx(runs[1].domain_weights(), abs=1e-6)
    losses = [[row["loss"] for row in one.metrics_lines.read()[0]] for one in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    gin.clear_config()
    weights = {"reference": f"{home}/imported@0"}
    flags = [f"--gin_file={home}/tiny.gin", f"--gin.TrainConfig.domain_weights={weights}"]
    cli.load_gin(cli.parse(cli.parser(""), flags))
    planned = plan.with_reference(Experiment.configured()).reference
    assert planned and planned.embed_dim == 8


def test_what_does_not_fit_is_refused_before_anything_is_written(home: Path) -> None:
    with pytest.raises(UserError, match=r"has no checkpoint of step 7; it has 0, 10"):
        proxy(home, "bad", reference="reference@7")
    with pytest.raises(UserError, match=r"reference = .*/reference: write RUN@STEP"):
        proxy(home, "bad", reference="reference")
    with pytest.raises(UserError, match="no such directory"):
        proxy(home, "bad", reference="nothing@7")
    assert not (home / "bad").exists()
    shutil.copytree(home / "reference", home / "other")
    data = home / "other" / "data.json"
    data.write_text(sealed(unsealed(data.read_bytes()) | {"vocabulary": "another"}))
    with pytest.raises(UserError, match="other@10 has another vocabulary than this run"):
        proxy(home, "bad", reference="other@10")
    names = "((0, {'wrods': 2.0}),)"
    with pytest.raises(UserError, match="names wrods, which the run's data does not have"):
        proxy(home, "bad", f"--gin.TrainConfig.domain_weights={names}")
    assert not list((home / "bad").iterdir())
    with pytest.raises(UserError, match="optimizer state domain_weights/average_domain_weight is"):
        proxy(home, "reference", "--gin.ModelConfig.embed_dim=8", "--gin.TRAIN_STEPS=12")
