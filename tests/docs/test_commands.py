"""Every `python -m jaxllm…` line of the README and of docs/ works as it stands there.

Placeholders (CORPORA, EVALS, DIR, …) are small files of those names, and a few overrides keep a run
to seconds. What needs a TPU, a bucket, a download or minutes of compilation is read and not run:
its flags, gin files and bindings must exist. All but the quickstart are forks of a process that has
imported everything, where a missing import does not show: tests/tpu_scripts start real processes.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import gin
import pytest

from jaxllm import cli
from jaxllm.data.config import DataConfig
from jaxllm.training.experiment import Experiment
from tests import zygote
from tests.conftest import REPOSITORY
from tests.devices import QUICK
from tests.docs import workplace

Start = Callable[[list[str], Path, dict[str, str]], subprocess.CompletedProcess[str]]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NOT_RUN = (
    "gs://",
    "--launcher",
    "--topology",
    "--download",
    "--coordinator_address",
    "humaneval",
    "mix run",
)
FEW_STEPS = (
    "--gin.TRAIN_STEPS=4",
    "--gin.ScheduleConfig.warmup_steps=1",
    "--gin.ModelConfig.num_layers=1",
)
# They need a run with token losses; tests/data/test_seen.py and test_similarity.py run them.
ELSEWHERE = ("jaxllm.seen", "jaxllm.similarity")
SMALL = {
    "quickstart.gin": (*FEW_STEPS, "--gin.EVAL_TASKS=counting"),
    "domains.gin": (*FEW_STEPS, "--gin.EVAL_TASKS=heldout_wiki", "--gin.VOCABULARY_SIZE=512"),
    "staged.gin": (*FEW_STEPS, "--gin.EVAL_TASKS=counting"),
    "mine.gin": (*FEW_STEPS, "--gin.VocabularyConfig.size=512"),
    "suites/ladder.gin": (
        "--gin.EVAL_TASKS=counting",
        "--gin.SuiteConfig.cooldowns=()",
        "--gin.SuiteConfig.axes={'params': (5e4,), 'tokens': 1e4}",
    ),
    "suites/seeds.gin": (
        "--gin.EVAL_TASKS=counting",
        "--gin.SuiteConfig.checkpoints=2",
        "--gin.SuiteConfig.axes={'params': 5e4, 'tokens': 8e3, 'SEED': (1, 2)}",
    ),
    "suites/domains.gin": (
        "--gin.EVAL_TASKS=heldout_wiki",
        "--gin.VOCABULARY_SIZE=512",
        "--gin.SuiteConfig.checkpoints=2",
        "--gin.SuiteConfig.cooldowns=()",
        "--gin.SuiteConfig.axes={'params': (5e4,), 'tokens': 1e4}",
    ),
    "suites/proxies.gin": (
        "--gin.EVAL_TASKS=counting",
        "--gin.SuiteConfig.axes={'params': 5e4, 'tokens': 8e3}",
    ),
    "RUN.gin": (*FEW_STEPS, "--gin.VocabularyConfig.size=512"),
}
RENAMED = {
    "--step=2700": "--step=4", "--devices=gpu": "--devices=cpu:1", '"(20, 24)"': '"(2, 3)"',
    "TABLE.csv?run": "MAPPED.csv?run", "@1800": "@4", "@2700": "@4", "=2100": "=6",
    "decay_steps=300": "decay_steps=2", "--count=32": "--count=2",
}  # fmt: skip
# Runs and suites whose like have shown their reports: the quickstart, and the ladder.
NO_REPORT = ("--gin_file=quickstart.gin", "suites/seeds.gin", "swarm/suite.gin", "suites/domains")


def commands() -> list[str]:
    """Every line in a code block that starts one of ours, once, its continuation lines joined."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        blocks = re.findall(r"^```(?:\w*)\n(.*?)^```|((?:^    .*\n)+)", text, re.M | re.S)
        for line in "\n".join(fenced or indented for fenced, indented in blocks).splitlines():
            if line.strip().startswith("python -m jaxllm."):
                found.append(re.sub(r"\s+", " ", line.strip().partition("  #")[0]))
    return list(dict.fromkeys(found))


def is_run(command: str) -> bool:
    return not any(word in command for word in NOT_RUN)


def test_the_pages_show_commands() -> None:
    assert len(commands()) > 20
    assert {c.split()[2].removeprefix("jaxllm.") for c in commands()} == {
        "train", "evaluate", "generate", "analyze", "plan", "prepare", "convert", "suite",
        "average", "mix", "seen", "similarity", "health",
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the commands find what they name."""
    root = tmp_path_factory.mktemp("docs")
    workplace.make(root)
    quickstart = "python -m jaxllm.train --gin_file=quickstart.gin --gin.MODEL_DIR=runs/quickstart"
    run(quickstart, root, start=new_process)
    shutil.copytree(root / "runs" / "quickstart", root / "runs" / "other")
    run("python -m jaxllm.convert --from=runs/quickstart --step=4 --to=hf:DIR", root)
    return root


def new_process(
    command: list[str], cwd: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """What `zygote.run` does, as a user does it."""
    words = [sys.executable, "-m", *command]
    environment |= {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    return subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def run(command: str, root: Path, start: Start = zygote.run) -> None:
    for old, new in RENAMED.items():
        command = command.replace(old, new)
    words = shlex.split(command)[1:]
    files = [w.removeprefix("--gin_file=") for w in words if w.startswith("--gin_file=")]
    words += [flag for name in files for flag in SMALL.get(name, ())]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(root / "cache"),
        "XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(root / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    if start is zygote.run and any(name in command for name in NO_REPORT):
        environment |= zygote.NO_REPORT
    done = start(words[1:], root, environment)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [c for c in commands() if is_run(c) and c.split()[2] not in ELSEWHERE]
)
def test_commands_run(place: Path, command: str) -> None:
    run(command, place)


class Read(Exception):
    """A command has read its flags, and its gin files where it has any."""


@pytest.fixture
def stopped_when_read(monkeypatch: pytest.MonkeyPatch) -> None:
    load, parse = cli.load_gin, ArgumentParser.parse_args

    def load_and_stop(args: Namespace, run: str | None = None) -> None:
        load(args)  # the run of a placeholder has no config
        raise Read

    def parse_and_stop(self: ArgumentParser, argv: list[str]) -> object:
        parsed = parse(self, argv)
        if not hasattr(parsed, "gin_file"):
            raise Read
        return parsed

    monkeypatch.setattr(cli, "load_gin", load_and_stop)
    monkeypatch.setattr(ArgumentParser, "parse_args", parse_and_stop)


@pytest.mark.parametrize("command", [c for c in commands() if not is_run(c)])
def test_other_commands_can_be_read(
    stopped_when_read: None, command: str, monkeypatch, tmp_path
) -> None:
    module = importlib.import_module(shlex.split(command)[2])
    if "--model_dir=RUN" in command:
        pytest.skip("reads its run's config")
    workplace.gin_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = [w for w in shlex.split(command)[3:] if w != "&"]
    with pytest.raises(Read):
        module.main([word.replace("$i", "0") for word in words])


def test_the_stages_of_resume_md_make_up_the_run(tmp_path: Path) -> None:
    (tmp_path / "staged.gin").write_text(workplace.stages())
    cli.load_gin(cli.parse(cli.parser(""), [f"--gin_file={tmp_path}/staged.gin"]))
    first, second = Experiment.configured().stages
    assert (first.train.steps, second.train.steps) == (2000, 2700)
    assert (first.data.sequence_length, second.data.sequence_length) == (128, 256)
    assert set(second.data.weights or ()) <= set(first.data.weights or ())


def test_the_sources_of_data_md_are_read(tmp_path: Path) -> None:
    workplace.gin_files(tmp_path)
    cli.load_gin(cli.parse(cli.parser(""), [f"--gin_file={tmp_path}/sources.gin"]))
    try:
        sources = DataConfig().sources
    finally:
        gin.clear_config()
    assert [(s.text, s.weight) for s in sources["code"]] == [("content", 0.8), ("issue.body", 0.2)]
    assert sources["wiki"][0].tfds == "wikipedia/20230601.en:1.0.0"
