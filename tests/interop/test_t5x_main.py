"""t5x's own main trains, evaluates and infers with our model, as docs/t5x.md shows."""

import json
import os
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest

pytest.importorskip("t5x.models", reason="t5x is not installed (docs/t5x.md)", exc_type=ImportError)

import seqio

from jaxllm.interop.t5x import bridge
from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.scoring import score_tokens
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from tests.conftest import REPOSITORY
from tests.devices import xla_flags


@pytest.mark.slow
def test_t5xs_main_trains_evaluates_and_infers(tmp_path) -> None:
    """The commands of docs/t5x.md, on two devices; inference agrees with our own scoring."""
    run, out = tmp_path / "run", tmp_path / "out"
    env = {**os.environ, "XLA_FLAGS": xla_flags(2)}

    def t5x_main(mode: str, *bindings: str) -> None:
        file = f"--gin_file=t5x/{mode}_additions.gin"
        command = ["-m", "t5x.main", f"--run_mode={mode}", "--gin_search_paths=gin", file]
        done = subprocess.run(
            [sys.executable, *command, *bindings],
            cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    t5x_main("train", f'--gin.MODEL_DIR="{run}"', "--gin.TRAIN_STEPS=42", "--gin.BATCH_SIZE=16")
    checkpoint = f'--gin.CHECKPOINT_PATH="{run}/checkpoint_42"'
    t5x_main("eval", checkpoint, f'--gin.EVAL_OUTPUT_DIR="{out}"')
    t5x_main("infer", checkpoint, f'--gin.INFER_OUTPUT_DIR="{out}"', '--gin.infer.mode="score"')

    metrics = run / "inference_eval" / "jaxllm_additions-metrics.jsonl"
    while_training = json.loads(metrics.read_text().splitlines()[-1])
    evaluated = json.loads((out / "inference_eval" / metrics.name).read_text())
    assert evaluated == pytest.approx(while_training, rel=1e-6)

    config = ModelConfig(
        vocab_size=384, num_layers=3, embed_dim=128, mlp_dim=352, num_heads=4, max_length=12
    )
    trained = bridge.read_checkpoint(run, 42, config, make_mesh(MeshConfig(fsdp=8)))
    (written,) = out.glob("jaxllm_additions-score.jsonl-*-of-00001")
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    vocabulary = seqio.ByteVocabulary()
    examples = [line["inputs"] for line in lines[:16]]
    tokens = np.zeros((16, 13), np.int32)
    weights = np.zeros((16, 12), np.float32)
    for row, example in enumerate(examples):
        prompt = vocabulary.encode(example["inputs_pretokenized"])
        target = [*vocabulary.encode(example["targets_pretokenized"]), 1]
        tokens[row, 1 : 1 + len(prompt) + len(target)] = prompt + target
        weights[row, len(prompt) : len(prompt) + len(target)] = 1
    inputs, ones = tokens[:, :-1], np.ones((16, 12), np.int32)
    rows = Batch(inputs, tokens[:, 1:], weights, np.arange(12) * ones, ones, np.zeros(16, np.int32))
    found = jax.jit(partial(score_tokens, config))(trained, rows).log_likelihood
    found = (found * weights).sum(-1)
    np.testing.assert_allclose([line["score"] for line in lines[:16]], found, rtol=1e-4)
    assert evaluated["log_likelihood"] == pytest.approx(
        np.mean([line["score"] for line in lines]), rel=1e-4
    )
