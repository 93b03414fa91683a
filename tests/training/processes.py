"""Runs of `python -m jaxllm.train` in processes of their own, on a corpus made here."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from jaxllm.run.run import Run
from tests.devices import xla_flags
from tests.zygote import NO_REPORT, REPOSITORY, Process

STEPS = 60
CONFIG = f"""
include 'runs/base.gin'
TRAIN_STEPS = {STEPS}
SEQUENCE_LENGTH = 16
BATCH_SIZE = 4
EVAL_TASKS = ('heldout_words',)
EvalConfig.max_examples = 8
EvalConfig.tokens_per_batch = 64
VocabularyConfig.path = 'bytes'
ModelConfig.vocab_size = 320
ModelConfig.num_layers = 1
ModelConfig.embed_dim = 16
ModelConfig.mlp_dim = 32
ModelConfig.num_heads = 2
ScheduleConfig.warmup_steps = 5
ScheduleConfig.peak_lr = 1e-2
CheckpointConfig.early = (0,)
CheckpointConfig.every_steps = 20
TrainConfig.log_every = 7
"""


def make_home(home: Path, more: str = "") -> Path:
    """Writes tiny.gin, with `more` at its end, and the corpus that it names, into `home`."""
    words = random.Random(0)
    for split, documents in (("train", 300), ("valid", 8)):
        text = "\n\n".join(
            " ".join(words.choice(["the", "cat", "sat", "on", "a", "mat"]) for _ in range(20))
            for _ in range(documents)
        )
        path = home / "corpus" / "words" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (home / "tiny.gin").write_text(
        CONFIG
        + f"DataConfig.corpus_dir = '{home}/corpus'\n"
        + f"DataConfig.cache_dir = '{home}/cache'\n"
        + more
    )
    return home


def environment(cache: str, devices: int) -> dict[str, str]:
    """Of a process with so many devices, which finds compiled programs in `cache`."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(REPOSITORY),
    }


def start(home: Path, name: str, *flags: str, module: str = "jaxllm.train") -> Process:
    """A run in a process of its own, with two devices."""
    words = [f"--gin_file={home}/tiny.gin", f"--gin.MODEL_DIR={home}/{name}", *flags]
    return Process([module, *words], home, environment(f"{home}/xla", 2) | NO_REPORT)


def finish(process: Process, code: int = 0) -> str:
    """The output of a process that must end with `code`."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    return out + err


def kill_when(process: Process, number: int, ready: Callable[[], bool]) -> float:
    """Sends the signal as soon as `ready()`; returns the seconds until the process was gone."""
    while not ready():
        assert process.poll() is None, finish(process)
        time.sleep(0.002)
    process.send_signal(number)
    sent = time.perf_counter()
    process.wait(timeout=120)
    assert process.returncode in (0, -number), finish(process)
    return time.perf_counter() - sent


def steps_logged(run: Path) -> int:
    return max((row["step"] for row in Run(run).metrics_lines.read()[0]), default=0)
