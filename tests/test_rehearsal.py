"""openllama.gin as on a pod, with only its sizes overridden, everything in a bucket.

TFDS data sets are replaced by corpora in files: TensorFlow's own reader cannot be pointed at a
server of this machine.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from jaxllm.kvstore import KeyValueStore
from jaxllm.run.run import Run
from tests.buckets import Proxy
from tests.conftest import REPOSITORY
from tests.data.conftest import texts
from tests.hosts import Host, finish, start_hosts, wait_for

DOMAINS = ("c4", "wiki", "books", "arxiv")
STEPS, DEVICES = 12, 8
SIZES = {
    "SIZE": "3b", "ModelConfig.num_layers": 1, "ModelConfig.embed_dim": 32,
    "ModelConfig.mlp_dim": 64, "ModelConfig.num_heads": 2, "ModelConfig.num_kv_heads": 2,
    "ModelConfig.scan_layers": False,
    "SEQUENCE_LENGTH": 32, "BATCH_SIZE": 16, "TRAIN_STEPS": STEPS, "MeshConfig.fsdp": 4,
    "ScheduleConfig.warmup_steps": 2, "CheckpointConfig.early": None,
    "CheckpointConfig.every_steps": 4, "TrainConfig.log_every": 1, "VocabularyConfig.size": 512,
    "EvalConfig.max_examples": 4, "EvalConfig.tokens_per_batch": 512,
}  # fmt: skip


def flags(model_dir: str) -> list[str]:
    places = {
        "DataConfig.corpora": None, "TFDS_DATA_DIR": "gs://bucket/corpus",
        "DataConfig.cache_dir": "gs://bucket/cache",
        "MODEL_DIR": model_dir,
    }  # fmt: skip
    bindings = {**SIZES, **places}
    return ["--gin_file=openllama.gin", *(f"--gin.{k}={v}" for k, v in bindings.items())]


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=REPOSITORY, capture_output=True, text=True,
        check=False, timeout=300, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(home: Path, hosts: int, model_dir: str) -> list[Host]:
    return start_hosts(home, hosts, DEVICES, "train", *flags(model_dir), "--heartbeat_timeout=10")


def losses(model_dir: str) -> pd.DataFrame:
    return Run(model_dir).metrics()[["step", "loss", "grad_norm", "param_norm"]]


@pytest.mark.slow
def test_the_headline_run_on_buckets_survives_and_ends_as_it_would_have(
    bucket: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = {}
    for domain in DOMAINS:
        for split, count in (("train", 150), ("validation", 6)):
            rows = [json.dumps({"text": text}) + "\n" for text in texts(f"{domain} {split}", count)]
            corpus[f"{domain}/{split}/00.jsonl"] = "".join(rows).encode()
    KeyValueStore("gs://bucket/corpus").write(corpus)
    runner = ["--", "--runner=DirectRunner"] if _has_beam() else []
    prepared = command("jaxllm.prepare", *flags("gs://bucket/run"), *runner)
    assert all(domain in prepared for domain in DOMAINS)

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/compiled")
    hosts = train(tmp_path, 4, "gs://bucket/run")
    wait_for(hosts, lambda: any(e.step >= 4 for e in Run("gs://bucket/run").available()))
    hosts[2].send_signal(signal.SIGKILL)
    for host in hosts:
        host.communicate(timeout=120)
    assert all(host.returncode != 0 for host in hosts)
    finish(train(tmp_path, 2, "gs://bucket/run"))
    finish(train(tmp_path, 1, "gs://bucket/alone"))
    pd.testing.assert_frame_equal(losses("gs://bucket/run"), losses("gs://bucket/alone"))
    assert list(losses("gs://bucket/run").step) == list(range(1, STEPS + 1))
    assert Run("gs://bucket/run").restart_lines.read()[0]

    run = "gs://bucket/run"
    command("jaxllm.evaluate", f"--model_dir={run}", "--tasks=heldout_c4", "--missing")
    assert "gs://bucket/report/index.html" in command(
        "jaxllm.analyze", run, "gs://bucket/alone", "--output=gs://bucket/report"
    )
    command("jaxllm.convert", f"--from={run}", f"--step={STEPS}", "--to=hf:gs://bucket/hf")
    assert "config.json" in KeyValueStore("gs://bucket/hf").names()


def _has_beam() -> bool:
    import importlib.util

    return importlib.util.find_spec("apache_beam") is not None
