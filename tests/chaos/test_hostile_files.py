"""Files of strangers: what they declare is compared with what they hold, and what they name is
not followed out of their directory. Each is refused in one line, without the memory it asks for."""

import gzip
import json
import resource
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxllm import io
from jaxllm.data import tokenizer
from jaxllm.errors import UserError
from jaxllm.interop.importers import open_source
from jaxllm.models.config import ModelConfig
from jaxllm.report import page
from jaxllm.run.layout import Layout
from jaxllm.run.run import Run
from jaxllm.run.token_losses import TokenLosses, TokenSet
from jaxllm.run.trajectory import TrajectoryStore

BILLION = 10**9


@pytest.fixture(autouse=True)
def little_memory():
    """What a hostile file makes us allocate is seen as a MemoryError, not as a dead machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def rows_from_nothing(column: str) -> bytes:
    """A Parquet file of a few kilobytes with 30 million equal rows."""
    buffer = pa.BufferOutputStream()
    rows = pa.table({column: pa.array(np.zeros(30_000_000, np.int8))})
    pq.write_table(rows, buffer, compression="zstd")
    content = buffer.getvalue().to_pybytes()
    assert len(content) < 200_000
    return content


def nested(depth: int = 100_000) -> str:
    return "[" * depth + "]" * depth


def test_parquet_files_that_swell(tmp_path: Path) -> None:
    run = TrajectoryStore(tmp_path)
    (tmp_path / "trajectory/5").mkdir(parents=True)
    (tmp_path / "trajectory/5/evil.parquet").write_bytes(rows_from_nothing("step"))
    records, problems = run.read_with_problems()
    assert not len(records) and "declare 30,000,000 rows" in problems[0]
    (tmp_path / "table.csv").write_bytes(rows_from_nothing("value"))
    with pytest.raises(UserError, match="declare 30,000,000 rows"):
        open_source(f"csv:{tmp_path}/table.csv")


@pytest.mark.parametrize("kind", ["csv", "harness", "rows"])
def test_gzip_files_that_swell(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "LARGEST_TEXT", 1 << 20)
    file = tmp_path / ("a.csv.gz" if kind == "csv" else "results.json.gz")
    file.write_bytes(gzip.compress(bytes(1 << 21)))
    if kind == "rows":
        from evals.rows import read_text

        with pytest.raises(UserError, match="more than 1,048,576"):
            read_text(file)
    elif kind == "csv":
        with pytest.raises(UserError, match="more than 1,048,576"):
            open_source(f"csv:{file}")
    else:
        with pytest.raises(UserError, match="no results"):
            open_source(f"harness:{tmp_path}")


def test_json_lines_of_any_depth_and_size(tmp_path: Path) -> None:
    lines = [f'{{"step": 1, "x": {nested()}}}', f'{{"step": {10**30}}}', '{"step": 2}',
             f'{{"step": {"9" * 10_000}}}']  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    rows, broken = io.JsonLines(tmp_path / "metrics.jsonl").read()
    assert rows == [{"step": 2}] and broken == [1, 2, 4]


def test_a_manifest_of_other_types(tmp_path: Path) -> None:
    names = ("tokens", "flops", "learning_rate", "loss", "data_position", "dtype", "wall_time",
             "wall_seconds", "code_version", "restarts", "kind")  # fmt: skip
    row = dict.fromkeys(names, 0) | {"step": 1}
    for name, value in (("tokens", ["x"]), ("flops", "\x1b[2J"), ("wall_time", None)):
        (tmp_path / "checkpoints.jsonl").write_text(json.dumps(row | {name: value}) + "\n")
        with pytest.raises(UserError, match=f"has {name} = .*damaged"):
            Run(tmp_path).entries()
    (tmp_path / "rollbacks.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"rollbacks\.jsonl has a line without"):
        Run(tmp_path).rollbacks()


def test_token_losses_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    losses = TokenLosses(Layout(tmp_path), "text")
    losses.write_set(TokenSet.of("text", ["abc"], [[1, 2, 3]], [[1, 2, 3]]))
    losses.write(1, np.ones(3))
    assert losses.read().shape == (1, 3)
    for header in (
        f'{{"checkpoint": 0, "tokens": {10**15}}}',
        nested(100),
        "{}",
        '{"tokens": 3.5}',
    ):
        (losses.path / "1.f16").write_bytes(header.ljust(256).encode() + bytes(6))
        with pytest.raises(UserError, match=r"1\.f16 is damaged"):
            losses.read()
        assert not losses.holds(1)
        with pytest.raises(UserError, match=r"1\.f16 is (damaged|missing or too short)"):
            TokenLosses(Layout(tmp_path), "text").read()
    for ends in ([1, 2, 10**9], [2, 1, 3], [-1, 2, 3], [1, 2]):
        table = pa.table({"text": ["abc"], "tokens": [[1, 2, 3]], "ends": [ends]})
        pq.write_table(table, losses.path / "tokens.parquet")
        with pytest.raises(UserError, match=r"tokens\.parquet is damaged"):
            TokenLosses(Layout(tmp_path), "text").token_set()


def test_a_token_set_does_not_lead_out_of_the_run(tmp_path: Path) -> None:
    outside = TokenLosses(Layout(tmp_path / "run"), "../../outside")
    assert outside.path.parent == tmp_path / "run/token_losses"


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 4 * BILLION}, "unk_token": "a"}},
         "an id of 4,000,000,000"),
        ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}, "not a tokenizer.json"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "not a tok|None"),
        (nested(), "not a tokenizer.json"),
    ],
)  # fmt: skip
def test_tokenizers(files: dict | str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    text = files if isinstance(files, str) else json.dumps(TOKENIZER | files)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=message):
        tokenizer.read(tmp_path)


@pytest.mark.parametrize("text", ["[1]", nested(), '{"eos_token": ["a"], "bos_token": 7}'])
def test_what_stands_beside_a_tokenizer(text: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (tmp_path / "config.json").write_text('{"eos_token_id": [], "bos_token_id": "a"}')
    (tmp_path / "tokenizer_config.json").write_text(text)
    if text.startswith("{"):
        assert tokenizer.read(tmp_path).eos is None
    else:
        with pytest.raises(UserError, match=r"tokenizer_config\.json"):
            tokenizer.read(tmp_path)


@pytest.mark.parametrize("name", ["../weights.safetensors", "{}/weights.safetensors"])
def test_an_index_does_not_lead_out_of_its_directory(name: str, tmp_path: Path) -> None:
    from jaxllm.interop.huggingface.checkpoint import _tensors

    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"x": np.zeros(1, np.float32)}, tmp_path / "weights.safetensors")
    (tmp_path / "model").mkdir()
    index = {"weight_map": {"x": name.format(tmp_path)}}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="which is not in its directory"):
        _tensors(tmp_path / "model")


def test_a_header_of_terabytes(tmp_path: Path) -> None:
    from jaxllm.interop.huggingface.checkpoint import map_safetensors

    pytest.importorskip("safetensors")
    entry = {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    for header in (json.dumps(entry).encode(), b"{}"):
        size = len(header) if len(header) > 2 else 1 << 50
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", size) + header)
        with pytest.raises(UserError, match="truncated, or no safetensors file"):
            map_safetensors(tmp_path / "a.safetensors")


def test_a_pytorch_tensor_with_one_value_for_all(tmp_path: Path) -> None:
    from jaxllm.interop.huggingface.checkpoint import _tensors

    torch = pytest.importorskip("torch")
    torch.save({"x": torch.zeros(1).expand(1 << 40)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="fewer values than its shape says"):
        _tensors(tmp_path)


def test_absurd_models() -> None:
    with pytest.raises(UserError, match="num_layers = 100000000: at most 10,000"):
        ModelConfig(num_layers=10**8)


def test_scalars_that_claim_to_be_arrays(tmp_path: Path) -> None:
    event_pb2 = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    from tensorboard.summary.writer.record_writer import RecordWriter

    with open(tmp_path / "events.tfevents.1", "wb") as file:
        writer = RecordWriter(file)
        for dims in ((), (1 << 40,)):
            event = event_pb2.Event(step=1)
            value = event.summary.value.add(tag="loss" if not dims else "big")
            value.metadata.plugin_data.plugin_name = "scalars"
            value.tensor.dtype = 1  # float
            value.tensor.float_val.append(2.0)
            for size in dims:
                value.tensor.tensor_shape.dim.add(size=size)
            writer.write(event.SerializeToString())
    metrics = open_source(f"tensorboard:{tmp_path}").metrics
    assert metrics.loss.tolist() == [2.0] and "big" not in metrics


def test_scripts_of_the_pages_make_no_markup_from_text() -> None:
    """Text goes in by textContent, append and setAttribute alone."""
    for name in ("page.js", "tokens.js"):
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                    "createContextualFragment", "srcdoc", "new Function"):  # fmt: skip
            assert way not in page.asset(name), (name, way)
    for name in ("page.html", "tokens.html", "cards.html", "overview.html"):
        assert "| safe" not in page.asset(name)
