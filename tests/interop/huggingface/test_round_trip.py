"""Every family goes in and out unharmed: Transformers' logits, and the same bytes."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxllm import convert
from jaxllm.interop.huggingface import importing, load
from jaxllm.models.config import ModelConfig
from jaxllm.run.checksums import of_arrays
from jaxllm.run.restore import saved_json
from jaxllm.run.run import Run
from tests.interop.huggingface.helpers import (
    MODELS,
    check_logits,
    mesh,
    save,
    tensors,
    their_logits,
    torch,
    transformers,
)

TOKENS = np.arange(40).reshape(2, 20) % 97
DTYPES = ("float32", "bfloat16", "float16")


def to_run(source: Path, run: Path, *flags: str) -> None:
    convert.main([f"--from=hf:{source}", f"--to={run}", *flags])


def to_hf(run: Path, target: Path, *flags: str) -> None:
    convert.main([f"--from={run}", f"--to=hf:{target}", *flags])


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers_and_the_export_has_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(name, tmp_path / "hf")
    monkeypatch.setattr(importing, "CHUNK_BYTES", 5000)  # tables in several chunks, unevenly
    to_run(tmp_path / "hf", tmp_path / "run", "--step=7", "--tokens=3e3")
    (entry,) = Run(tmp_path / "run").available()
    assert (entry.step, entry.tokens) == (7, 3000)
    assert entry.flops == 6.0 * model.num_parameters() * 3000

    config, params = load(tmp_path / "hf", mesh())
    assert config.num_params == model.num_parameters()
    check_logits(config, params, model)
    restored = Run(tmp_path / "run").restore_params(7, config, mesh())
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    known = saved_json(Run(tmp_path / "run").layout, 7)  # what was streamed has the whole's sums
    assert known["mixed_checksums"] == of_arrays({"model": params})
    assert known["model"] == config.saved()

    to_hf(tmp_path / "run", tmp_path / "back", "--step=7", "--max_shard_size=60KB")
    assert tensors(tmp_path / "back") == tensors(tmp_path / "hf")
    assert len(list(tmp_path.glob("back/*.safetensors"))) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", attn_implementation="eager"
    )
    np.testing.assert_array_equal(their_logits(again, TOKENS), their_logits(model, TOKENS))


@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", "float16"), *((name, "bfloat16") for name in MODELS)]
)
def test_half_precision_keeps_its_bytes(name: str, dtype: str, tmp_path: Path) -> None:
    save(name, tmp_path / "hf", dtype)
    to_run(tmp_path / "hf", tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "back", "--step=0")
    assert tensors(tmp_path / "back") == tensors(tmp_path / "hf")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_precision_keeps_its_bytes_on_the_way_through_float32(
    dtype: str, tmp_path: Path
) -> None:
    save("llama", tmp_path / "hf", dtype)
    to_run(tmp_path / "hf", tmp_path / "wide", "--dtype=float32")
    to_hf(tmp_path / "wide", tmp_path / "narrow", "--step=0", f"--dtype={dtype}")
    assert tensors(tmp_path / "narrow") == tensors(tmp_path / "hf")


@pytest.mark.parametrize("name", MODELS)
def test_a_run_of_our_own_is_described_so_that_transformers_computes_the_same(
    name: str, tmp_path: Path
) -> None:
    """Without the config.json it came with, the run is written from its ModelConfig alone."""
    original = save(name, tmp_path / "hf")
    to_run(tmp_path / "hf", tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    config = Run(tmp_path / "run").config()
    (tmp_path / "run" / "config.gin").write_text(config.replace("'huggingface'", "'bytes'"))
    to_hf(tmp_path / "run", tmp_path / "back", "--step=0")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", attn_implementation="eager"
    )
    assert type(model).__name__.startswith(MODELS[name][0])
    np.testing.assert_array_equal(their_logits(model, TOKENS), their_logits(original, TOKENS))
    assert tensors(tmp_path / "back") == tensors(tmp_path / "hf")


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_to_another_type_is_torchs(dtype: str, tmp_path: Path) -> None:
    model = save("llama", tmp_path / "hf")
    to_run(tmp_path / "hf", tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "back", "--step=0", f"--dtype={dtype}")
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "torch")
    assert tensors(tmp_path / "back") == tensors(tmp_path / "torch")


def test_parts_of_arrays_go_to_their_devices(tmp_path: Path) -> None:
    save("llama", tmp_path)
    _, params = load(tmp_path, mesh())
    up = params["layers"]["mlp"]["up"]
    assert {shard.data.shape for shard in up.addressable_shards} == {(3, 48 // 2, 80 // 2)}


@pytest.mark.parametrize("name", ["llama", "llama_biased_tied", "gpt2"])
def test_pytorch_files_are_read_too(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path / "hf", "bfloat16")
    (tmp_path / "bin").mkdir()
    shutil.copy(tmp_path / "hf" / "config.json", tmp_path / "bin")
    state = {
        key: value.clone()
        for key, value in model.state_dict().items()
        if name != "gpt2" or not key.startswith("lm_head")
    }
    if name == "gpt2":  # as OpenAI's is published: without the head's module, with masks
        state = {key.removeprefix("transformer."): value for key, value in state.items()}
        state["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    first, second = (load(tmp_path / d, mesh())[1] for d in ("hf", "bin"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_checkpoint_of_a_training_run_is_exported(tmp_path: Path) -> None:
    """As the training loop saves it: every array in one chunk, sharded over devices."""
    import flax.linen as nn

    from jaxllm.models.decoder import init_params
    from jaxllm.run.checkpoint_schedule import CheckpointConfig
    from jaxllm.run.manifest import ManifestEntry
    from jaxllm.sharding.rules import param_shardings

    config = ModelConfig(vocab_size=384, num_layers=3, embed_dim=48, mlp_dim=80, num_heads=6)
    boxed = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    params = jax.tree.map(jax.device_put, nn.unbox(boxed), param_shardings(mesh(), boxed))
    checkpoints = Run(tmp_path / "run").checkpoint_writer(CheckpointConfig())
    for step in (1, 4):
        entry = ManifestEntry(
            step=step, tokens=step, flops=1.0, learning_rate=None, loss=None, data_position=0,
            dtype="float32", wall_time=0.0, wall_seconds=0.0, code_version="", restarts=0,
            kind="scheduled",
        )  # fmt: skip
        scaled = jax.tree.map(lambda x, step=step: x * step, params)
        checkpoints.save(entry, scaled, {"step": np.int32(step)}, {})
    checkpoints.close()
    (tmp_path / "run" / "config.gin").write_text(
        "ModelConfig.vocab_size = 384\nModelConfig.num_layers = 3\nModelConfig.embed_dim = 48\n"
        "ModelConfig.mlp_dim = 80\nModelConfig.num_heads = 6\n"
        "DataConfig.mixture_or_task_name = 'embedded'\n"
        "DataConfig.vocabulary = @VocabularyConfig()\nVocabularyConfig.path = 'bytes'\n"
    )
    to_hf(tmp_path / "run", tmp_path / "hf", "--steps=all")
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == ["step1", "step4"]
    for step in (1, 4):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf" / f"step{step}")
        check_logits(config, jax.tree.map(lambda x, step=step: x * step, params), model)
    assert (model.generation_config.bos_token_id, model.config.eos_token_id) == (259, 1)


def test_the_tokenizer_of_a_run_travels_with_it_and_transformers_agrees(tmp_path: Path) -> None:
    """A SentencePiece model of our own making, exported for AutoTokenizer."""
    import sentencepiece

    from jaxllm.data import corpora, vocabularies
    from jaxllm.data.config import DataConfig, VocabularyConfig
    from tests.data.test_published_tokenizers import SAMPLES

    corpus = tmp_path / "corpora" / "plain"
    corpus.mkdir(parents=True)
    text = "some words,  some numbers 1 2 345\n\tdef f(x): return naïve 中文\n"
    corpus.joinpath("train.txt").write_text(text * 2000)
    config = DataConfig(
        mixture_or_task_name="corpora",
        corpus_dir=str(tmp_path / "corpora"),
        cache_dir=str(tmp_path / "cache"),
        vocabulary=VocabularyConfig(size=512),
    )
    model = vocabularies.trained_model(config, corpora.resolve(config))
    save("llama", tmp_path / "hf")
    shutil.copy(model, tmp_path / "hf" / "tokenizer.model")
    to_run(tmp_path / "hf", tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    (tmp_path / "run" / "generation_config.json").unlink()
    to_hf(tmp_path / "run", tmp_path / "back", "--step=0")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    ours = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for probe in (*SAMPLES, text):
        assert theirs.encode(probe, add_special_tokens=False) == ours.encode(probe), probe
        assert theirs.decode(ours.encode(probe)) == ours.decode(ours.encode(probe)), probe
    assert theirs.encode("a")[0] == theirs.bos_token_id == ours.bos_id() == 3
    stated = transformers.GenerationConfig.from_pretrained(tmp_path / "back")
    assert (stated.bos_token_id, stated.eos_token_id, stated.pad_token_id) == (3, 1, 0)
