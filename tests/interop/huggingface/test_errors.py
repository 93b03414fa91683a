"""Whatever is wrong with a directory: one line that names it, and nothing left behind."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm import convert
from jaxllm.errors import UserError
from jaxllm.interop.huggingface.architectures import FAMILIES
from jaxllm.interop.huggingface.checkpoint import HFCheckpoint, tensor_shapes
from jaxllm.interop.huggingface.fields import to_config
from jaxllm.interop.huggingface.importing import open_published, open_results
from jaxllm.models.config import ModelConfig
from jaxllm.run.run import Run
from tests.buckets import Proxy

MODEL = ModelConfig(vocab_size=40, num_layers=2, embed_dim=16, mlp_dim=24, num_heads=4, head_dim=4)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def make(directory: Path, model: ModelConfig = MODEL, architecture: str | None = None) -> Path:
    """A directory of two shards, written by the safetensors library."""
    directory.mkdir(parents=True, exist_ok=True)
    config = to_config(model, architecture)
    names = FAMILIES[config["architectures"][0]].tensors
    random = np.random.default_rng(0)
    shapes = tensor_shapes(model, names, "").items()
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes}
    where = {name: SHARDS[i % 2] for i, name in enumerate(tensors)} | {UP: SHARDS[0]}
    for shard in SHARDS:
        save_file({n: t for n, t in tensors.items() if where[n] == shard}, directory / shard)
    index = {"metadata": {}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def edit_config(**fields: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | fields))

    return change


def edit_tensors(how: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        tensors = load_file(directory / SHARDS[0])
        how(tensors)
        save_file(tensors, directory / SHARDS[0])
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        kept = {n: s for n, s in index["weight_map"].items() if s == SHARDS[1]}
        index["weight_map"] = kept | dict.fromkeys(tensors, SHARDS[0])
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def truncate(file: str, by: int) -> Callable[[Path], None]:
    return lambda directory: os.truncate(directory / file, (directory / file).stat().st_size - by)


UP = "model.layers.0.mlp.up_proj.weight"
MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (edit_tensors(lambda t: t.pop(UP)), rf"the tensor {UP} is missing"),
    "unexpected": (
        edit_tensors(lambda t: t.update(extra=np.zeros(3, np.float32))),
        rf"{SHARDS[0]}: unexpected tensor extra",
    ),
    "misshapen": (
        edit_tensors(lambda t: t.update({UP: t[UP][:20]})),
        rf"tensor {UP} has shape \[20, 16\], and config.json makes it \[24, 16\]",
    ),
    "integers": (
        edit_tensors(lambda t: t.update({UP: t[UP].astype(np.int8)})), rf"tensor {UP} is I8"
    ),
    "truncated": (truncate(SHARDS[1], 7), rf"{SHARDS[1]}: truncated"),
    "cut_header": (lambda d: os.truncate(d / SHARDS[1], 5), rf"{SHARDS[1]}: truncated"),
    "no_shard": (lambda d: (d / SHARDS[1]).unlink(), rf"cannot read .*{SHARDS[1]}"),
    "index_lies": (
        lambda d: save_file({"x": np.zeros(1, np.float32)}, d / SHARDS[1]),
        rf"{SHARDS[1]}: the tensor .* of model.safetensors.index.json is missing",
    ),
    "no_weights": (lambda d: [p.unlink() for p in d.glob("model*")], "has no weights"),
    "no_config": (lambda d: (d / "config.json").unlink(), r"cannot read .*config.json"),
    "no_json": (lambda d: (d / "config.json").write_text("{"), "config.json: not JSON"),
    "architecture": (
        edit_config(architectures=["MambaForCausalLM"]),
        r"config.json: architectures = \['MambaForCausalLM'\] is not implemented; known are Llama",
    ),
    "no_architecture": (edit_config(architectures=None, model_type=None), "model_type = None"),
    "rope_scaling": (
        edit_config(rope_scaling={"type": "dynamic", "factor": 2.0}),
        "config.json: rope_scaling: rope_type = 'dynamic' is not implemented",
    ),
    "rope_scaling_unknown": (
        edit_config(rope_scaling={"type": "yarn", "factor": 2.0, "mscale": 0.7}),
        r"rope_scaling: \['mscale'\] is not implemented",
    ),
    "rope_factor": (
        edit_config(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5}),
        "rope_scaling: the field factor is missing",
    ),
    "partial_rotary": (
        edit_config(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
        "partial_rotary_factor = 0.5 is not implemented",
    ),
    "activation": (edit_config(hidden_act="xielu"), "hidden_act = 'xielu' is not implemented"),
    "window": (edit_config(sliding_window=4096), "sliding_window = 4096 is not implemented"),
    "quantized": (edit_config(quantization_config={"bits": 4}), "quantization_config = "),
    "no_field": (edit_config(hidden_size=None), "the field hidden_size is missing"),
    "head_count": (edit_config(num_key_value_heads=3), "num_kv_heads = 3 does not divide"),
    "head_count_text": (
        edit_config(num_attention_heads="4"), r"config.json: .*num_heads = '4'"
    ),
    "rope_scaling_text": (edit_config(rope_scaling="linear"), r"config.json: rope_scaling"),
    "lfs_pointer": (
        lambda d: (d / SHARDS[1]).write_text("version https://git-lfs.github.com/spec/v1\noid x\n"),
        rf"{SHARDS[1]}: a git-lfs pointer, not the weights: fetch them by `git lfs pull`",
    ),
    "tied_twice": (
        lambda d: (
            edit_config(tie_word_embeddings=True)(d),
        ),
        "lm_head.weight differs from model.embed_tokens.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_directory_is_named(mistake: str, tmp_path: Path) -> None:
    how, message = MISTAKES[mistake]
    how(make(tmp_path / "hf"))
    with pytest.raises(UserError, match=message) as caught:
        convert.main([f"--from=hf:{tmp_path}/hf", f"--to={tmp_path}/run"])
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["hf"], "something was left behind"


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    from jaxllm.interop.huggingface import checkpoint

    make(tmp_path / "hf")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "copy", full)
    with pytest.raises(UserError, match=r"cannot write .*run: No space left on device"):
        convert.main([f"--from=hf:{tmp_path}/hf", f"--to={tmp_path}/run"])
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--from=hf:a", "--to=hf:b"], "one of --from and --to is hf:DIR"),
        (["--from=a", "--to=b"], "one of --from and --to is hf:DIR"),
        (["--from=hf:{0}/none", "--to={0}/new"], "none: no such directory, nor a manifest"),
        (["--from=hf:{0}/hf", "--to={0}/hf"], "hf exists already"),
        (["--from={0}/run", "--to=hf:{0}/new"], "--step=N, or several with --steps=all"),
        (["--from={0}/run", "--to=hf:{0}/new", "--step=0", "--tokens=5"], "--tokens is not read"),
        (["--from=hf:{0}/hf", "--to={0}/new", "--steps=5"], "--steps is not read into a run"),
        (["--from=hf:{0}/hf", "--to={0}/new", "--gin.A=1"], "--gin_bindings is not read"),
        (["--from={0}/run", "--to=hf:{0}/new", "--step=3"], "no checkpoint of step 3; it has 0"),
        (["--from={0}/none", "--to=hf:{0}/new", "--step=0"], "none is no run"),
        (["--from={0}/run", "--to=hf:{0}/new", "--step=0", "--max_shard_size=2 cm"], "as 5GB"),
        (["--from={0}/run", "--to=hf:{0}/new", "--step=0", "--architecture=GPT2LMHeadModel"],
         r"GPT2LMHeadModel, the nearest architecture, has no ModelConfig\.\w+ = "),
        (["--from={0}/run", "--to=hf:{0}/new", "--step=0", "--gin.ModelConfig.mlp_dim=32",
          "--gin.VocabularyConfig.path=bytes"],
         "parameter layers/mlp/.* has shape"),
        (["--from={0}/run", "--to=hf:{0}/new", "--step=0", "--gin.ModelConfig.qk_norm=all_heads",
          "--gin.VocabularyConfig.path=bytes"],
         "LlamaForCausalLM, the nearest architecture, has no ModelConfig.qk_norm = 'all_heads'"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(flags: list[str], message: str, tmp_path: Path) -> None:
    make(tmp_path / "hf")
    convert.main([f"--from=hf:{tmp_path}/hf", f"--to={tmp_path}/run"])
    with pytest.raises(UserError, match=message):
        convert.main([flag.format(tmp_path) for flag in flags])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "run"]


def test_numbers_too_large_for_the_type_are_refused(tmp_path: Path) -> None:
    edit_tensors(lambda t: t.update({UP: t[UP] * 1e6}))(make(tmp_path / "hf"))
    convert.main([f"--from=hf:{tmp_path}/hf", f"--to={tmp_path}/run"])
    with pytest.raises(UserError, match="parameter layers/mlp/up is too large for float16"):
        convert.main(
            [f"--from={tmp_path}/run", f"--to=hf:{tmp_path}/new", "--step=0", "--dtype=float16"]
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_an_import_into_a_narrower_type_names_what_does_not_fit(tmp_path: Path, kind: str) -> None:
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    widened = lambda t: t.update({name: (x * 1e6).astype(dtype) for name, x in t.items()})
    edit_tensors(widened)(make(tmp_path / "hf"))
    with pytest.raises(UserError, match=r"parameter \S+ is too large for float16: use another"):
        convert.main([f"--from=hf:{tmp_path}/hf", f"--to={tmp_path}/run", "--dtype=float16"])
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_a_single_file_comes_before_a_stale_index_as_in_transformers(tmp_path: Path) -> None:
    make(tmp_path / "hf")
    tensors = {k: v for s in SHARDS for k, v in load_file(tmp_path / "hf" / s).items()}
    save_file({k: v + 1 for k, v in tensors.items()}, tmp_path / "hf" / "model.safetensors")
    opened = HFCheckpoint.open(tmp_path / "hf")
    assert {t.file.name for t in opened.tensors.values()} == {"model.safetensors"}
    np.testing.assert_array_equal(opened.tensors[UP].open(), tensors[UP] + 1)


def test_pytorch_files_of_any_age_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    make(tmp_path / "hf")
    arrays = {k: v for s in SHARDS for k, v in load_file(tmp_path / "hf" / s).items()}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for file in (tmp_path / "hf").glob("model*"):
        file.unlink()
    weights = tmp_path / "hf" / "pytorch_model.bin"
    torch.save(tensors, weights, _use_new_zipfile_serialization=False)  # as before PyTorch 1.6
    np.testing.assert_array_equal(HFCheckpoint.open(tmp_path / "hf").tensors[UP].open(), arrays[UP])
    for content, message in (
        ({**tensors, "step": 5}, "step is a int, not a tensor"),
        ({"state_dict": tensors}, "state_dict is a dict, not a tensor"),
        ([1], "holds a list, and no tensors by name"),
    ):
        torch.save(content, weights)
        with pytest.raises(UserError, match=f"pytorch_model.bin: {message}"):
            HFCheckpoint.open(tmp_path / "hf")
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(UserError, match="a git-lfs pointer"):
        HFCheckpoint.open(tmp_path / "hf")


def test_published_models_do_not_share_a_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names with dots, and the same name in two places; one that is named serves a series."""
    monkeypatch.chdir(tmp_path)
    names = ("pythia-1.4b", "pythia-1.4b-deduped", "other/pythia-1.4b")
    series = {name: open_published(make(tmp_path / name)) for name in names}
    first, second = (open_results(name, series[name], None).path for name in names[:2])
    assert (first.name, second.name) == names[:2]
    assert open_results(names[0], series[names[0]], None).path == first
    with pytest.raises(UserError, match="by where it came from"):
        open_results(names[2], series[names[2]], None)
    assert open_results(names[2], series[names[2]], str(first)).path == first


def test_records_of_a_published_model_may_go_to_an_object_store(
    tmp_path: Path, bucket: Proxy
) -> None:
    published = open_published(make(tmp_path / "hf"))
    there = f"gs://bucket/{tmp_path.name}"
    for _ in range(2):  # made, and found again
        open_results(str(tmp_path / "hf"), published, there)
    config = Run(there).config()
    assert f"TrainConfig.model_dir = '{there}'" in config
    assert "mixture_or_task_name" not in config, "its corpora are not known"


def test_a_series_comes_in_and_goes_out_in_one_call(tmp_path: Path) -> None:
    """A directory, and a revision of a folder as the Hugging Face cache lays it out."""
    make(tmp_path / "a")
    cache = tmp_path / "models--org--name"
    edit_tensors(lambda t: t.update({UP: -t[UP]}))(make(cache / "snapshots" / "0f3c"))
    (cache / "refs").mkdir()
    (cache / "refs" / "step2000").write_text("0f3c")
    rows = [
        {"directory": cache.name, "revision": "step2000", "step": 2000, "tokens": "4e6"},
        {"directory": "a", "revision": "", "step": 1000, "tokens": "2e6"},
    ]
    with (tmp_path / "series.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "series.json").write_text(json.dumps({"checkpoints": rows}))
    for kind in ("csv", "json"):
        convert.main([f"--from=hf:{tmp_path}/series.{kind}", f"--to={tmp_path}/{kind}"])
        lines = [json.loads(x) for x in (tmp_path / kind / "checkpoints.jsonl").open()]
        assert [(x["step"], x["tokens"]) for x in lines] == [(1000, 2_000_000), (2000, 4_000_000)]
    convert.main([f"--from={tmp_path}/csv", f"--to=hf:{tmp_path}/out", "--steps=all"])
    for name, source in (("step1000", tmp_path / "a"), ("step2000", cache / "snapshots/0f3c")):
        there = {k: v for s in SHARDS for k, v in load_file(source / s).items()}
        back = load_file(tmp_path / "out" / name / "model.safetensors")
        assert back.keys() == there.keys()
        assert all(np.array_equal(back[key], there[key]) for key in there)

    edit_config(rms_norm_eps=1e-3)(tmp_path / "a")
    with pytest.raises(UserError, match=r"another model than a's: norm_eps = 1e-06, not 0.001"):
        convert.main([f"--from=hf:{tmp_path}/series.csv", f"--to={tmp_path}/new"])
    linear = {"rope_type": "linear", "factor": 2.0}
    edit_config(rms_norm_eps=1e-6, rope_scaling=linear)(tmp_path / "a")
    with pytest.raises(UserError, match=r"quirks.rope_scaling = None, not RopeScaling"):
        convert.main([f"--from=hf:{tmp_path}/series.csv", f"--to={tmp_path}/new"])
    (tmp_path / "bad.csv").write_text("directory,tokens\na,5\n")
    with pytest.raises(UserError, match=r"bad.csv, checkpoint 1: needs directory and step"):
        convert.main([f"--from=hf:{tmp_path}/bad.csv", f"--to={tmp_path}/new"])


@pytest.mark.parametrize(
    ("changes", "architecture", "fields"),
    [
        ({"max_length": 4096}, "BaiChuanForCausalLM", {"max_position_embeddings": 4096}),
        (
            {"max_length": 4096, "quirks": {"normalize_lm_head": True}},
            "BaichuanForCausalLM",
            {"z_loss_weight": 0},
        ),
        ({"position_embedding": "alibi"}, "BaichuanForCausalLM", {"model_max_length": 2048}),
        ({"num_kv_heads": 2}, "SkyworkForCausalLM", {"num_key_value_heads": 2}),
    ],
)
def test_architectures_without_a_class_in_transformers(
    changes: dict[str, Any], architecture: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = ModelConfig(**{**vars(MODEL), **changes})
    make(tmp_path / "hf", model, architecture)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert fields.items() <= config.items()
    convert.main([f"--from=hf:{tmp_path}/hf", f"--to={tmp_path}/run"])
    convert.main([f"--from={tmp_path}/run", f"--to=hf:{tmp_path}/back", "--step=0"])
    there = {k: v for s in SHARDS for k, v in load_file(tmp_path / "hf" / s).items()}
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == there.keys()
    assert all(np.array_equal(back[key], there[key]) for key in there)
    if architecture == "BaiChuanForCausalLM":  # the same block as LLaMA's, query first
        llama = [f"--from={tmp_path}/run", f"--to=hf:{tmp_path}/llama", "--step=0"]
        (tmp_path / "run" / "config.gin").open("a").write("VocabularyConfig.path = 'bytes'\n")
        convert.main([*llama, "--architecture=LlamaForCausalLM"])
        apart = load_file(tmp_path / "llama" / "model.safetensors")
        name = "model.layers.1.self_attn."
        parts = [apart[f"{name}{part}_proj.weight"] for part in "qkv"]
        np.testing.assert_array_equal(np.concatenate(parts), there[f"{name}W_pack.weight"])


def test_the_command_runs_by_itself(tmp_path: Path) -> None:
    make(tmp_path / "hf")

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jaxllm.convert", *flags],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    done = run(f"--from=hf:{tmp_path}/hf", f"--to={tmp_path}/run", "--step=5")
    assert done.returncode == 0, done.stderr
    assert f"step 5  0 tokens  from {tmp_path}/hf" in done.stdout
    assert not done.stderr
    again = run(f"--from=hf:{tmp_path}/hf", f"--to={tmp_path}/run")
    assert again.returncode == 2
    assert again.stderr == f"error: {tmp_path}/run exists already: name a directory that does not\n"
