"""`python -m jaxllm.evaluate` scores a run's checkpoints bitwise as the run did."""

import gzip
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sentencepiece

from jaxllm.run.run import Run
from jaxllm.run.trajectory import TrajectoryStore
from tests import zygote
from tests.devices import xla_flags

GIN = """
include "base.gin"
TRAIN_STEPS = 4
SEQUENCE_LENGTH = 64
BATCH_SIZE = 4
EVAL_TASKS = (
    "heldout_letters", "basic_arithmetic", "simple_arithmetic_nospaces", "training_loss",
    "memorization_8_4",
)
EvalConfig.token_sets = ("heldout_letters:3x40", "held_out_code:2x20")
EvalConfig.max_examples = 4
EvalConfig.data_dir = "{directory}/evals"
ScheduleConfig.warmup_steps = 1
CheckpointConfig.early = 2
DataConfig.vocabulary = @VocabularyConfig()
VocabularyConfig.path = "{directory}/letters.model"
DataConfig.corpus_dir = "{directory}/corpora"
DataConfig.cache_dir = "{directory}/cache"
ModelConfig.vocab_size = 384
ModelConfig.num_layers = 2
ModelConfig.embed_dim = 32
ModelConfig.mlp_dim = 64
ModelConfig.num_heads = 4
MeshConfig.fsdp = 2
"""
TOKEN_SETS = ("heldout_letters:3x40", "held_out_code:2x20")


def started(*args, output=None):
    env = {**os.environ, **zygote.NO_REPORT, "XLA_FLAGS": xla_flags(2)}
    if output:
        output.touch()
    return zygote.Process(list(args), Path.cwd(), env, output)


def command(*args):
    process = started(*args)
    out, err = process.communicate()
    return subprocess.CompletedProcess(args, process.wait(), out, err)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of four steps, scored as it went."""
    path = tmp_path_factory.mktemp("run")
    letters = path / "corpora" / "letters"
    letters.mkdir(parents=True)
    (letters / "train.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    (letters / "valid.txt").write_text("a lazy dog sleeps\n" * 200)
    sentencepiece.SentencePieceTrainer.train(
        input=str(letters / "train.txt"), model_prefix=str(path / "letters"), vocab_size=300,
        model_type="bpe", byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    sums = path / "evals" / "basic_arithmetic"
    sums.mkdir(parents=True)
    row = '{"id": "%d", "question": "1 + %d =", "choices": {"text": ["3", "%d"], '
    row += '"label": ["A", "B"]}, "answerKey": "B"}\n'
    rows = "".join(row % (i, i, i + 1) for i in range(3, 9))
    (sums / "validation.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    simple = path / "evals" / "simple_arithmetic"
    simple.mkdir()
    (simple / "simple_arithmetic_nospaces.jsonl.gz").write_bytes(
        gzip.compress(b'{"context": "1+2=", "continuation": "3"}\n')
    )
    (path / "run.gin").write_text(GIN.format(directory=path))
    done = command(
        "jaxllm.train", f"--gin_file={path}/run.gin", f"--gin.MODEL_DIR={path}/run"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path / "run"


@pytest.mark.slow
def test_checkpoints_are_scored_bitwise_as_the_run_scored_them(run_dir):
    store = TrajectoryStore(run_dir)
    before = store.read()
    examples = {
        (step, task): store.read_examples(step, task)
        for step in store.steps()
        for task in sorted(store.scored(step))
    }
    assert set(before.step) >= {0, 2, 4}
    assert set(before.status) == {"ok"}
    losses = {name: Run(run_dir).token_losses(name).read() for name in TOKEN_SETS}
    for name in TOKEN_SETS:
        (run_dir / "token_losses" / name / "0.f16").unlink()
    for step in (2, 4):
        for file in (run_dir / "trajectory" / str(step)).iterdir():
            file.unlink()
    done = command("jaxllm.evaluate", f"--model_dir={run_dir}", "--missing")
    assert done.returncode == 0, done.stderr
    assert "step 0  heldout_letters " not in done.stdout  # it is not missing
    assert "step 0  heldout_letters:3x40" in done.stdout
    for name in TOKEN_SETS:
        np.testing.assert_array_equal(Run(run_dir).token_losses(name).read(), losses[name])
    assert "step 4  heldout_letters  bits_per_byte" in done.stdout
    after = store.read()
    pd.testing.assert_frame_equal(
        after.drop(columns="seconds"), before.drop(columns="seconds"), check_exact=True
    )
    for (step, task), table in examples.items():
        again = store.read_examples(step, task)
        pd.testing.assert_frame_equal(again, table, check_exact=True)


@pytest.mark.slow
def test_an_exported_checkpoint_scores_as_the_run_scored_it(run_dir, tmp_path):
    """Out into the Hugging Face format, and scored from there: the same records and examples."""
    tasks = ("basic_arithmetic", "simple_arithmetic_nospaces", TOKEN_SETS[1])
    exported = command(
        "jaxllm.convert", f"--from={run_dir}", "--step=4", f"--to=hf:{tmp_path}/hf"
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    scored = command(
        "jaxllm.evaluate", f"--model_dir=hf:{tmp_path}/hf", f"--tasks={','.join(tasks)}",
        f"--output={tmp_path}/scored", "--step=4", "--tokens=1024",
        f"--gin.EvalConfig.data_dir={run_dir.parent}/evals", "--gin.EvalConfig.max_examples=4",
        "--gin.MeshConfig.fsdp=2",
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    ours, theirs = TrajectoryStore(run_dir), TrajectoryStore(tmp_path / "scored")
    before, after = ours.read(), theirs.read()
    before = before[(before.step == 4) & before.task.isin(tasks)].reset_index(drop=True)
    assert len(after) == len(before) > 0
    published, own = (Run(of).token_losses(TOKEN_SETS[1]) for of in (tmp_path / "scored", run_dir))
    np.testing.assert_array_equal(published.read(), own.read([4]))
    same = ["task", "metric", "value", "stderr", "n", "step", "tokens", "params"]
    pd.testing.assert_frame_equal(after[same], before[same], check_exact=True)
    for task in tasks:
        pd.testing.assert_frame_equal(
            theirs.read_examples(4, task), ours.read_examples(4, task), check_exact=True
        )


@pytest.mark.slow
def test_a_follower_scores_a_run_that_leaves_it_to_it(run_dir, tmp_path):
    """It starts first, waits for checkpoints, is killed, and the next one does what is left."""
    followed = tmp_path / "followed"
    train = [
        "jaxllm.train", f"--gin_file={run_dir.parent}/run.gin", f"--gin.MODEL_DIR={followed}",
        "--gin.EvalConfig.every=0",
    ]  # fmt: skip
    follow = ["jaxllm.evaluate", f"--model_dir={followed}", "--follow", "--poll_seconds=0.1"]
    run = started(*train)
    while not (followed / "config.gin").exists():
        time.sleep(0.1)
        assert run.poll() is None
    first = started(*follow, output=tmp_path / "said")
    while "  n " not in (tmp_path / "said").read_text():  # a scored task; costs come before
        time.sleep(0.01)
        assert first.poll() is None
    first.kill()
    assert run.wait() == 0
    steps = {0, 2, 4}
    left = sum(len(TrajectoryStore(followed).scored(step)) for step in steps)
    every = 3 * (5 + len(TOKEN_SETS))  # tasks and token sets of the run
    assert 0 < left < every
    done = command(*follow)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  n ") == every - left
    columns = ["step", "task", "metric", "value"]
    table = lambda path: TrajectoryStore(path).read()[columns].sort_values(columns[:3])
    pd.testing.assert_frame_equal(
        table(followed).reset_index(drop=True), table(run_dir).reset_index(drop=True),
        check_exact=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps=3"], "has no checkpoint of step 3; it has 0, 2, 4"),
        (["--steps=2", "--follow"], "--steps is not read with --follow"),
        (["--output=x"], "--output is not read where the run itself says it"),
        (["--download", "--steps=2"], "--steps is not read with --download"),
        (["--steps=two"], "--steps=two: write numbers"),
        (["--tasks=basic_arithmetik"], "did you mean basic_arithmetic"),
        (["--model_dir=/nowhere"], "/nowhere is no run: it has no config.gin"),
    ],
)
def test_mistakes_get_one_line(flags, message, run_dir):
    done = command("jaxllm.evaluate", f"--model_dir={run_dir}", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
