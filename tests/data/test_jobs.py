"""Jobs give the same bytes in processes of this machine, and on every runner of Beam."""

import os
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from jaxllm.data import jobs
from jaxllm.errors import UserError
from tests import zygote
from tests.conftest import REPOSITORY
from tests.data.conftest import texts, write_jsonl


class Sized(NamedTuple):
    size: int


def killed(item: Sized) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_ends_the_jobs_with_one_line() -> None:
    """As by the kernel, where memory is short."""
    items = [Sized(int(jobs.INLINE_BYTES))] * 2
    with pytest.raises(UserError, match=r"prepare train: one of 2 processes was killed.*goes on"):
        jobs.run_in_processes(killed, items, "prepare train")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for file in range(8):
        write_jsonl(root / "prose" / f"train-{file}.jsonl.gz", texts(f"prose {file}", 200))
    write_jsonl(root / "notes" / "train.jsonl", ["a note", "", "another"])
    return root


def prepare(corpus: Path, cache: Path, *options: str) -> subprocess.CompletedProcess[str]:
    bindings = {
        "CORPUS_DIR": corpus, "SEQUENCE_LENGTH": 32, "BATCH_SIZE": 8,
        "DataConfig.weights": {"prose": 1, "notes": 1}, "DataConfig.layout": "pack",
        "DataConfig.cache_dir": cache, "VocabularyConfig.size": 512,
    }  # fmt: skip
    command = ["jaxllm.prepare", "--gin_file=base.gin", "--gin_file=data/domains.gin"]
    command += [f"--gin.{name}={value}" for name, value in bindings.items()]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return zygote.run([*command, *options], REPOSITORY, environment)


def contents(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.rglob("*.*") if p.is_file()}


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    cache = tmp_path_factory.mktemp("local")
    done = prepare(corpus, cache)
    assert done.returncode == 0, done.stderr
    return contents(cache)


@pytest.mark.slow
def test_beam_in_processes(corpus: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    pytest.importorskip("apache_beam")
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    done = prepare(corpus, tmp_path, "--", "--runner=DirectRunner", *options)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == expected


@pytest.mark.slow
def test_beam_on_a_cluster_of_workers(corpus: Path, expected, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("apache_beam")
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    runner = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        address = f"--dask_client_address={cluster.scheduler_address}"
        done = prepare(corpus, tmp_path, "--", runner, address)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == expected


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--runner=NoSuchRunner"], "NoSuchRunner"),
        (["--direct_num_workers=many"], "argument --direct_num_workers: invalid int value: 'many'"),
        (["--runner=DataflowRunner"], "Missing required option: project"),
    ],
)
def test_options_that_beam_refuses_are_named(options: list[str], reason: str, capfd) -> None:
    pytest.importorskip("apache_beam")
    with pytest.raises(UserError, match=f"(?s)Beam refuses {' '.join(options)}: .*{reason}"):
        jobs.beam_runner(options)(print, [], "nothing")
    assert "usage" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "runner", ["DataflowRunner", "apache_beam.runners.dask.dask_runner.DaskRunner"]
)
def test_options_that_beam_does_not_know_are_named(runner: str) -> None:
    pytest.importorskip("apache_beam")
    with pytest.raises(UserError, match="not know the option --max_num_worker; did you mean max_n"):
        jobs.beam_runner([f"--runner={runner}", "--max_num_worker=10"])


def test_options_of_a_runner_are_known_once_it_is_named() -> None:
    pytest.importorskip("apache_beam")
    pytest.importorskip("dask.distributed")
    runner = "apache_beam.runners.dask.dask_runner.DaskRunner"
    jobs.beam_runner([f"--runner={runner}", "--dask_client_address=localhost:1"])
