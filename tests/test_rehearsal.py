"""openllama.gin as on a pod, with only its sizes overridden, everything in a bucket.

The TFDS data sets have the names, versions and features of the real ones, and text made here.
"""

import io
import itertools
import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest

from jaxllm.kvstore import KeyValueStore
from jaxllm.run.run import Run
from tests import zygote
from tests.buckets import Proxy, tensorflow_environment
from tests.conftest import REPOSITORY
from tests.data.conftest import texts
from tests.hosts import finish, start_hosts, wait_for
from tests.zygote import Process

# The data set of each domain: its name, version, feature with the text, and splits.
DATA_SETS = {
    "c4": ("c4/en", "3.1.0", "text", ("train", "validation")),
    "wiki": ("wikipedia/20230601.en", "1.0.0", "text", ("train",)),
    "books": ("pg19", "0.1.1", "book_text", ("train", "validation")),
    "arxiv": ("scientific_papers/arxiv", "1.1.1", "article", ("train", "validation")),
}
DOMAINS = tuple(DATA_SETS)
HELD_OUT = ("heldout_c4", "heldout_wiki")  # a split of its own, and documents of the training split
STEPS, DEVICES = 12, 8
SIZES = {
    "SIZE": "3b", "ModelConfig.num_layers": 1, "ModelConfig.embed_dim": 32,
    "ModelConfig.mlp_dim": 64, "ModelConfig.num_heads": 2, "ModelConfig.num_kv_heads": 2,
    "ModelConfig.scan_layers": False,
    "SEQUENCE_LENGTH": 32, "BATCH_SIZE": 16, "TRAIN_STEPS": STEPS, "MeshConfig.fsdp": 4,
    "ScheduleConfig.warmup_steps": 2, "CheckpointConfig.early": None,
    "CheckpointConfig.every_steps": 4, "TrainConfig.log_every": 1,
    "EVAL_TASKS": HELD_OUT,
    "EvalConfig.max_examples": 4, "EvalConfig.tokens_per_batch": 512,
}  # fmt: skip


PLACES = {
    "TFDS_DATA_DIR": "gs://bucket/tfds", "VOCABULARY": "gs://bucket/tokenizer.model",
    "DataConfig.cache_dir": "gs://bucket/cache", "EVAL_DIR": "gs://bucket/evals",
}  # fmt: skip
# What takes the place of TFDS where its reader finds no bucket of this machine.
IN_FILES = {
    "DataConfig.corpora": None, "TFDS_DATA_DIR": "gs://bucket/corpus", "VOCABULARY": None,
    "VocabularyConfig.size": 512,
}  # fmt: skip


def flags(model_dir: str, **other: object) -> list[str]:
    bindings = {**SIZES, **PLACES, "MODEL_DIR": model_dir, **other}
    return ["--gin_file=openllama.gin", *(f"--gin.{k}={v}" for k, v in bindings.items())]


def fill_bucket(scratch: Path) -> None:
    """The data sets, a tokenizer and an evaluation set."""
    import sentencepiece
    import tensorflow as tf
    import tensorflow_datasets as tfds

    for domain, (name, version, feature, splits) in DATA_SETS.items():
        data_set, _, config = name.partition("/")
        rows = {s: texts(f"{domain} {s}", 150 if s == "train" else 6) for s in splits}
        tfds.dataset_builders.store_as_tfds_dataset(
            data_set, version, tfds.features.FeaturesDict({feature: tfds.features.Text()}),
            {s: tf.data.Dataset.from_tensor_slices({feature: rows[s]}) for s in splits},
            tfds.core.BuilderConfig(name=config, version=version) if config else None, str(scratch),
        )  # fmt: skip
    files = {p.relative_to(scratch): p.read_bytes() for p in scratch.rglob("*") if p.is_file()}
    model = io.BytesIO()
    every = itertools.chain.from_iterable(texts(f"{domain} train", 150) for domain in DOMAINS)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=every, model_writer=model, vocab_size=512, hard_vocab_limit=False,
        byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    quiz = {"query": "all work and no", "choices": ["play", "words"], "gold": 0}
    KeyValueStore("gs://bucket").write(
        {f"tfds/{path}": content for path, content in files.items()}
        | {"tokenizer.model": model.getvalue(), "evals/quiz.jsonl": json.dumps(quiz).encode()}
    )


def command(*arguments: str) -> str:
    done = zygote.run([*arguments], REPOSITORY, os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(home: Path, hosts: int, model_dir: str) -> list[Process]:
    return start_hosts(home, hosts, DEVICES, "train", *flags(model_dir), "--heartbeat_timeout=10")


def losses(model_dir: str) -> pd.DataFrame:
    return Run(model_dir).metrics()[["step", "loss", "grad_norm", "param_norm"]]


@pytest.mark.slow
def test_the_headline_run_on_buckets_survives_and_ends_as_it_would_have(
    bucket: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scratch := tmp_path / "tfds").mkdir()
    fill_bucket(scratch)
    with tensorflow_environment(bucket, tmp_path) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        rehearse(tmp_path, monkeypatch)


def rehearse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert {*Run(run).records().task} == {*HELD_OUT}
    command("jaxllm.evaluate", f"--model_dir={run}", "--tasks=heldout_c4,jsonl_quiz", "--missing")
    assert {*Run(run).records().task} == {*HELD_OUT, "jsonl_quiz"}
    assert "gs://bucket/report/index.html" in command(
        "jaxllm.analyze", run, "gs://bucket/alone", "--output=gs://bucket/report"
    )
    command("jaxllm.convert", f"--from={run}", f"--step={STEPS}", "--to=hf:gs://bucket/hf")
    assert "config.json" in KeyValueStore("gs://bucket/hf").names()


def _has_beam() -> bool:
    import importlib.util

    return importlib.util.find_spec("apache_beam") is not None
