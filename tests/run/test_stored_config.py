"""A run directory may come from anywhere: its config.gin is read, and runs nothing."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import gin
import pytest
from etils import epath

from jaxllm import cli, convert, evaluate, generate, prepare, train
from jaxllm.data.config import DataConfig
from jaxllm.errors import UserError
from jaxllm.evaluation.config import EvalConfig
from jaxllm.models.config import ModelConfig
from jaxllm.report.delivery import AlarmConfig
from jaxllm.run import stored_config
from jaxllm.training.config import TrainConfig

COMMANDS: dict[str, Callable[[Path], int]] = {
    "evaluate": lambda run: evaluate.main([f"--model_dir={run}", "--tasks=keyword"]),
    "generate": lambda run: generate.main([f"--model_dir={run}", "--prompt=x"]),
    "convert": lambda run: convert.main([f"--from={run}", f"--to=hf:{run}/hf", "--step=0"]),
    "download": lambda run: evaluate.main(["--download", f"--model_dir={run}"]),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a run, and beside it a module that leaves a file where it is imported."""
    (tmp_path / "strange_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strange_module", raising=False)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def load(run: Path, *argv: str) -> None:
    cli.load_gin(cli.parse(cli.parser("test"), argv), str(run))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_strangers_run_directory_runs_nothing(command: str, run: Path) -> None:
    (run / "config.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "import os\n"
        f"os.makedirs.name = {str(run.parent / 'ran')!r}\n"
        "from jaxllm.models import config\n"
        "from jaxllm.evaluation import config as evaluation\n"
        "evaluation.EvalConfig.seed = @os.makedirs()\n"
        "config.ModelConfig.num_layers = @os.makedirs()\n"
    )
    with pytest.raises(UserError, match=rf"{run}/config.gin, line 1 imports __gin__\.dynamic_reg"):
        COMMANDS[command](run)
    assert not (run.parent / "ran").exists()


@pytest.mark.parametrize(
    ("line", "does"),
    [
        ("import strange_module", "imports strange_module"),
        ("import strange_module as config", "imports strange_module"),
        ("include '{run}/other.gin'", "includes {run}/other.gin"),
        ("TrainConfig.seed = @singleton()", "names singleton"),
        ("TrainConfig.seed = @scope/gin.singleton()", "names gin.singleton"),
        ("SEED = [{{'a': @strange_module.call()}}]", "names strange_module.call"),
        ("SEED/gin.singleton.constructor = 3", "names gin.singleton"),
        ("gin.singleton:\n  constructor = 3", "names gin.singleton"),
    ],
)
def test_a_line_that_does_more_than_to_bind_is_named(line: str, does: str, run: Path) -> None:
    (run / "other.gin").write_text("import strange_module\n")
    (run / "config.gin").write_text(f"# a run\nTrainConfig.steps = 3\n{line.format(run=run)}\n")
    with pytest.raises(UserError) as refused:
        load(run)
    assert f"{run}/config.gin, line 3 {does.format(run=run)}: " in str(refused.value)
    assert not (run.parent / "ran").exists()


def test_macros_and_our_own_configs_are_bound(run: Path) -> None:
    (run / "config.gin").write_text(
        "N = 3\nTrainConfig.steps = %N\nModelConfig:\n  num_layers = %N\n"
        "jaxllm.data.config.DataConfig.mixture_or_task_name = 'embedded'\n"
        "DataConfig.vocabulary = @small/VocabularyConfig()\nsmall/VocabularyConfig.size = 777\n"
    )
    load(run, "--gin.TrainConfig.seed=5")
    assert (TrainConfig().steps, TrainConfig().seed, ModelConfig().num_layers) == (3, 5, 3)
    assert DataConfig().vocabulary.size == 777


def test_permissions_come_from_the_command_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.gin").write_text(
        "DataConfig.mixture_or_task_name = 'embedded'\nDataConfig.modules = ('strange_module',)\n"
        "EvalConfig.run_code = True\nEvalConfig.modules = ('strange_module',)\n"
        "other/EvalConfig.modules = %MODULES\nMODULES = ('strange_module',)\n"
        "EvalConfig.tasks = %MODULES\n"
    )
    load(run)
    assert DataConfig().modules == () and not EvalConfig().run_code
    assert EvalConfig().modules == ("jaxllm.evals",)
    with gin.config_scope("other"):
        assert EvalConfig().modules == ("jaxllm.evals",)
    gin.clear_config()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert said[1].startswith(f"{run}/config.gin sets EvalConfig.run_code = True, which is not")
    gin.clear_config()
    load(run, "--gin.DataConfig.modules=strange_module", "--gin.EvalConfig.run_code=True")
    assert DataConfig().modules == ("strange_module",) and EvalConfig().run_code


@pytest.mark.parametrize(
    "text",
    [b"TrainConfig.seed = = 2\n", b"TrainConfig.family = '\xff'\n", b"EvalConfig.tasks = ('a',",
     b"SEED = " + b"[" * 5000 + b"]" * 5000],
)  # fmt: skip
def test_a_damaged_config_is_one_line(text: bytes, run: Path) -> None:
    (run / "config.gin").write_bytes(text)
    with pytest.raises(UserError, match=r"run/config\.gin"):
        load(run)


def test_our_own_modules_are_taken_from_a_run(tmp_path: Path) -> None:
    """Else no command could read a run of the quickstart, nor branch from it."""
    for modules in ("('jaxllm.evals.probes.corpora',)", "('jaxllm.evals.x', 'strange')"):
        (tmp_path / "config.gin").write_text(f"DataConfig.modules = {modules}")
        gin.clear_config()
        load(tmp_path)
        assert DataConfig().modules == (
            () if "strange" in modules else ("jaxllm.evals.probes.corpora",)
        )


def test_safe_gin_refuses_files_that_do_more(run: Path) -> None:
    """In an included file, too; without the flag gin imports, as t5x's users expect."""
    (run / "outer.gin").write_text("include 'inner.gin'\nTrainConfig.steps = 3\n")
    (run / "inner.gin").write_text("import strange_module\n")
    flags = [f"--gin_search_paths={run}", "--gin_file=outer.gin"]
    for command in (train.main, prepare.main):
        with pytest.raises(
            UserError, match=r"inner\.gin, line 1 imports strange_module: with --sa"
        ):
            command([*flags, "--safe_gin"])
        gin.clear_config()
    assert not (run.parent / "ran").exists()
    cli.load_gin(cli.parse(cli.parser("test"), flags))
    assert (run.parent / "ran").exists()


def test_with_safe_gin_only_the_command_line_gives_permissions(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "a.gin").write_text(
        "EvalConfig.modules = ('strange_module',)\nTrainConfig.steps = %N\nN = 3\n"
        "AlarmConfig.command = 'rm'\nDataConfig.modules = ('jaxllm.evals.probes.corpora',)\n"
    )
    flags = ["--safe_gin", f"--gin_file={run}/a.gin", "--gin.EvalConfig.run_code=True"]
    args = cli.parse(cli.parser("test"), flags)
    cli.load_gin(args)
    assert TrainConfig().steps == 3 and EvalConfig().run_code is True
    assert EvalConfig().modules == ("jaxllm.evals",) and AlarmConfig().command is None
    assert DataConfig().modules == ("jaxllm.evals.probes.corpora",)
    assert "not taken from it with --safe_gin" in capsys.readouterr().err
    assert "--safe_gin" in cli.gin_words(args)


@pytest.mark.parametrize(
    "file", sorted(Path(cli.packaged_gin_directories()[0]).glob("[!t]*/*.gin"), key=str), ids=str
)
def test_the_packaged_files_are_safe(file: Path) -> None:
    for module in cli.CONFIG_MODULES:
        importlib.import_module(module)
    stored_config.checked(epath.Path(file), includes=True)
