"""The flags and the one-line errors that every command shares."""

import os
import re
import subprocess
import sys
from pathlib import Path

import gin
import pytest

from jaxllm import cli
from jaxllm.errors import UserError
from jaxllm.io import atomic_write
from jaxllm.models.config import ModelConfig
from jaxllm.training.config import TrainConfig
from jaxllm.training.learning_rate import ScheduleConfig
from tests.conftest import REPOSITORY


def load(*argv: str) -> None:
    cli.load_gin(cli.parse(cli.parser("test"), argv))


def test_files_are_found_by_bare_name_and_later_bindings_win(tmp_path: Path) -> None:
    (tmp_path / "mine.gin").write_text("include 'models/llama.gin'\nTrainConfig.steps = 7\n")
    load(
        "--gin_file=mine.gin",
        f"--gin_search_paths={tmp_path}",
        "--gin.ModelConfig.num_layers=2",
    )
    assert ModelConfig().embed_dim == 4096
    assert ModelConfig().num_layers == 2
    assert TrainConfig().steps == 7


def test_a_directory_called_runs_does_not_hide_the_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    load("--gin_file=openllama.gin")
    assert TrainConfig().steps == 250_000


@pytest.mark.parametrize("value", ["/a/path with space", "gs://bucket/run", "wsd", "a=b"])
def test_text_that_is_no_gin_value_is_a_string(value: str) -> None:
    load(f"--gin.TrainConfig.model_dir={value}")
    assert TrainConfig().model_dir == value


def test_gin_values_stay_what_they_are() -> None:
    load("--gin.ScheduleConfig.peak_lr=3e-4", "--gin.TrainConfig.model_dir='quoted'")
    assert ScheduleConfig().peak_lr == 3e-4
    assert TrainConfig().model_dir == "quoted"


def test_a_binding_may_override_the_only_reader_of_a_macro(tmp_path: Path) -> None:
    (tmp_path / "a.gin").write_text("PLACE = 'runs/a'\nTrainConfig.model_dir = %PLACE\n")
    load(f"--gin_file={tmp_path}/a.gin", "--gin.TrainConfig.model_dir=runs/b")
    assert TrainConfig().model_dir == "runs/b"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--gin.ModelConfig.num_layer=3", "no parameter num_layer; did you mean num_layers"),
        ("--gin.ModelConfgi.num_layers=3", "no configurable named ModelConfgi; did you mean Mod"),
        ("--gin.TRAIN_STEP=3", "nothing reads the macro TRAIN_STEP; did you mean TRAIN_STEPS"),
        ("--gin_file=openlama.gin", "no gin file openlama.gin .*did you mean .*openllama.gin"),
        ("--gin.ModelConfig.num_layers", "write --gin.NAME=VALUE"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("--gin_file=openllama.gin", argument)


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "broken.gin").write_text("TrainConfig.steps = 1\nTrainConfig.seed = = 2\n")
    with pytest.raises(UserError, match=r"broken\.gin.*line 2"):
        load(f"--gin_file={tmp_path}/broken.gin")


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_a_users_mistake_is_one_line_and_exit_code_2(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", f"jaxllm.{command}", "--gin_file=openllama.gin",
            f"--gin.MODEL_DIR={tmp_path}/run", "--gin.TrainConfig.stepz=3",
        ],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: gin: TrainConfig has no par")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_file_that_cannot_be_written_or_read_is_named_in_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("x")
    for use, name, why in (
        (lambda path: atomic_write(path, "x"), tmp_path, "Is a directory"),
        (lambda path: atomic_write(path / "below", "x"), tmp_path / "file", "File exists"),
        (lambda path: path.read_text(), tmp_path / "none", "No such file or directory"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.run(lambda _, use=use, name=name: use(name))
        assert capsys.readouterr().err == f"error: {name}: {why}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not list(tmp_path.parent.glob(".*.tmp"))


def test_every_packaged_run_file_loads() -> None:
    for path in sorted((REPOSITORY / "gin" / "runs").glob("*.gin")):
        if path.name == "base.gin":
            continue
        gin.clear_config()
        load(f"--gin_file={path.name}")
        assert ModelConfig().num_params > 0


def test_a_terminal_that_lacks_a_character_shows_another() -> None:
    code = "from jaxllm import cli\ncli.run(lambda argv: print('0.5 \u00b1 0.1'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, cwd=REPOSITORY,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "0.5 ? 0.1\n"), done.stderr


def test_files_that_include_each_other_are_named(tmp_path: Path, capsys) -> None:
    for name, other in {"begin": "a", "a": "b", "b": "a"}.items():
        (tmp_path / f"{name}.gin").write_text(f"include '{tmp_path}/{other}.gin'\n")
    flags = ["--gin_file", f"{tmp_path}/begin.gin"]
    with pytest.raises(SystemExit, match="2"):
        cli.run(lambda _: cli.load_gin(cli.parse(cli.parser(""), flags)))
    line = capsys.readouterr().err.strip()
    assert re.search(r"in a circle: (\S+) includes \S+/[ab].gin includes \1$", line)


def test_gin_flags_become_words_for_another_command() -> None:
    axes = "--gin.SuiteConfig.axes={'SEED': (1, 2), 'x = y': 'z'}"
    argv = ["--gin_file=a.gin", "--gin_search_paths=b,c", "--gin.CORPUS_DIR=my words", axes]
    args = cli.parse(cli.parser(""), [*argv, "--gin_bindings=X=1"])
    words = cli.gin_words(args)
    assert words[1] == "--gin.CORPUS_DIR='my words'"
    assert cli.parse(cli.parser(""), words) == args


def test_numbers_by_name() -> None:
    assert cli.numbers("a=1,b=2e9", "tokens") == {"a": 1.0, "b": 2e9}
    assert cli.numbers("x/y,z=3", "objective", 1.0) == {"x/y": 1.0, "z": 3.0}
    for text, message in (("a", "--tokens: a: write NAME=VALUE"), ("a=b", "b is not a number")):
        with pytest.raises(UserError, match=message):
            cli.numbers(text, "tokens")
