"""Gin binds the fields of configs, and no field takes a value that is not of its type."""

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Any

import pytest

from jaxllm import cli, train
from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.errors import UserError
from jaxllm.evaluation.config import EvalConfig
from jaxllm.models.config import ModelConfig
from jaxllm.run.checkpoint_schedule import CheckpointConfig
from jaxllm.sharding.mesh import MeshConfig
from jaxllm.training.config import AdamWConfig, TrainConfig
from jaxllm.training.learning_rate import ScheduleConfig


def load(*argv: str) -> None:
    cli.load_gin(cli.parse(cli.parser("test"), argv))


@pytest.mark.parametrize(
    ("config", "binding", "message"),
    [
        (EvalConfig, "run_code=isolated", r"must be True or False or 'unisolated'$"),
        (EvalConfig, "run_code=1", r"must be True or False or 'unisolated'$"),
        (EvalConfig, "run_code=NO", r"run_code = 'NO': must be True or False or 'unisolated'$"),
        (TrainConfig, "exit_on_hang=yes", r"must be True or False$"),
        (TrainConfig, "exit_on_hang=1", r"exit_on_hang = 1: must be True or False$"),
        (AdamWConfig, "max_grad_norm=none", r"must be a finite number > 0 or None; write None$"),
        (TrainConfig, "family=none", r"must be text or None; write None$"),
        (EvalConfig, "data_dir=false", r"data_dir = False: must be text or None$"),
        (EvalConfig, "tasks=('a', 1)", r"must be a tuple, \(text, …\)$"),
        (EvalConfig, "tasks=None", r"must be a tuple"),
        (EvalConfig, "tasks=7", r"must be a tuple"),
        (TrainConfig, "model_dir=2024", r"model_dir = 2024: must be text or None$"),
        (TrainConfig, "steps=8.0", r"steps = 8.0: must be a whole number > 0$"),
        (TrainConfig, "steps=True", r"steps = True: must be a whole number > 0$"),
        (TrainConfig, "profile_steps=(3,)", r"must be a tuple, \(a whole number, a whole number\)"),
        (TrainConfig, "profile_steps=(1.5, 3)", r"must be a tuple"),
        (ModelConfig, "num_layers=2.5", r"num_layers = 2.5: must be a whole number > 0$"),
        (ModelConfig, "sliding_window_pattern=(0, 'all')", r"a tuple, \(a whole number >= 0, …\)"),
        (MeshConfig, "tensor=2.0", r"must be a whole number$"),
        (CheckpointConfig, "every_steps=1e1", r"must be a whole number > 0 or None$"),
        (ScheduleConfig, "peak_lr=3e-4x", r"peak_lr = '3e-4x': must be a finite number > 0$"),
        (ScheduleConfig, "peak_lr=", r"peak_lr = '': must be a finite number > 0$"),
        (ScheduleConfig, "peak_lr=1e999", r"peak_lr = inf: must be a finite number > 0$"),
        (VocabularyConfig, "size='512'", r"size = '512': must be a whole number$"),
        (DataConfig, "weights=a:1,b:2", r"must be a mapping, {'name': a finite number} or None$"),
        (DataConfig, "weights={'a': 'all'}", r"must be a mapping"),
        (DataConfig, "vocabulary=@VocabularyConfig", r"VocabularyConfig, @VocabularyConfig\(\)$"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(config: type, binding: str, message: str) -> None:
    load(f"--gin.{config.__name__}.{binding}")
    with pytest.raises(UserError) as refused:
        config()
    line = str(refused.value).split("\n  In call to")[0]
    assert line.startswith(f"{config.__name__}.{binding.split('=')[0]} = ")
    with pytest.raises(UserError, match=message):
        raise UserError(line)


@pytest.mark.parametrize(
    ("config", "binding", "value"),
    [
        (ScheduleConfig, "peak_lr=1", 1),
        (CheckpointConfig, "every_steps=None", None),
        (EvalConfig, "run_code=True", True),
        (EvalConfig, "run_code=false", False),
        (EvalConfig, "run_code=unisolated", "unisolated"),
        (ModelConfig, "remat=none", "none"),
        (ModelConfig, "sliding_window_pattern=[0, 256]", (0, 256)),
        (TrainConfig, "profile_steps=(2, 4)", (2, 4)),
        (EvalConfig, "tasks=arc_easy", ("arc_easy",)),
        (EvalConfig, "tasks=arc_easy,piqa", ("arc_easy", "piqa")),
        (EvalConfig, "tasks=['arc_easy']", ("arc_easy",)),
        (EvalConfig, "tasks=()", ()),
    ],
)
def test_a_value_that_serves_is_taken(config: type, binding: str, value: Any) -> None:
    load(f"--gin.{config.__name__}.{binding}")
    assert getattr(config(), binding.split("=")[0]) == value


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_config_holds_a_number_that_is_none(number: float) -> None:
    with pytest.raises(UserError, match=r"z_loss = .*must be a finite number"):
        TrainConfig(z_loss=number)
    with pytest.raises(UserError, match=r"eps = .*must be a finite number"):
        dataclasses.replace(AdamWConfig(), eps=number)
    with pytest.raises(UserError, match=r"weights = .*must be a mapping"):
        DataConfig("task", weights={"a": number})


@pytest.mark.parametrize("wrong", [{"max_grad_norm": -1.0}, {"b2": 2.0}, {"weight_decay": -100}])
def test_an_optimizer_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        AdamWConfig(**wrong)


def test_every_config_that_gin_may_bind_is_checked() -> None:
    """A config that is decorated with gin's own decorator would take anything."""
    configs = set()
    for name in cli.CONFIG_MODULES:
        module = importlib.import_module(name)
        found = [c for c in vars(module).values() if dataclasses.is_dataclass(c)]
        configs |= {c for c in found if c.__name__.endswith("Config")}
    assert len(configs) >= 10
    for config in configs:
        field = next(f for f in dataclasses.fields(config) if f.name != "mixture_or_task_name")
        with pytest.raises(UserError, match=f"{config.__name__}.{field.name} = "):
            config(**{field.name: object()})


def test_a_command_says_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--gin_file=quickstart.gin", f"--gin.MODEL_DIR={tmp_path}/run",
            "--gin.EvalConfig.run_code=no"]  # fmt: skip
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("jaxllm.runtime.abort", lambda code: None)
    with pytest.raises(SystemExit, match="2"):
        cli.run(lambda _: train.main(argv))
    error = capsys.readouterr().err
    assert error == "error: EvalConfig.run_code = 'no': must be True or False or 'unisolated'\n"
    assert not (tmp_path / "run").exists()
