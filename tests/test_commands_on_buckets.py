"""Every command reads and writes a bucket wherever it reads and writes files."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gin
import jax
import pandas as pd
import pytest
from jax._src import compilation_cache

from jaxllm import analyze, cli, convert, evaluate, generate, plan, prepare, train
from jaxllm.kvstore import KeyValueStore
from jaxllm.run.run import Run
from jaxllm.training import step
from tests import buckets
from tests.data.conftest import texts

PLACE = "gs://bucket/commands"
RUN = f"{PLACE}/run"
CONFIG = f"""
include 'runs/base.gin'
include '{PLACE}/sizes.gin'
TRAIN_STEPS = 4
SEQUENCE_LENGTH = 32
BATCH_SIZE = 8
MIXTURE_OR_TASK_NAME = 'corpora'
MODEL_DIR = '{RUN}'
EVAL_TASKS = ('heldout_words',)
EvalConfig.data_dir = '{PLACE}/evals'
EvalConfig.tokens_per_batch = 256
EvalConfig.max_examples = 8
DataConfig.corpus_dir = '{PLACE}/corpus'
DataConfig.cache_dir = '{PLACE}/cache'
VocabularyConfig.size = 512
CheckpointConfig.early = None
CheckpointConfig.every_steps = 2
ScheduleConfig.warmup_steps = 1
TrainConfig.log_every = 1
"""
SIZES = """
ModelConfig.num_layers = 1
ModelConfig.embed_dim = 16
ModelConfig.mlp_dim = 32
ModelConfig.num_heads = 2
"""
GIN = f"--gin_file={PLACE}/run.gin"


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@contextlib.contextmanager
def compiled_programs(directory: str) -> Iterator[None]:
    """All compiled programs are kept in `directory`."""
    settings = {
        "jax_compilation_cache_dir": directory, "jax_persistent_cache_min_compile_time_secs": 0.0,
    }  # fmt: skip
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


@pytest.fixture(scope="module", autouse=True)
def trained(_server: buckets.Proxy) -> Iterator[buckets.Proxy]:
    """A prepared corpus and a run on it, made by the commands."""
    files = {
        "run.gin": CONFIG.encode(),
        "sizes.gin": SIZES.encode(),
        "prompts.jsonl": jsonl([{"prompt": "words 3"}, {"prompt": "all work"}]),
        "evals/quiz.jsonl": jsonl(
            [{"query": f"all work {i}", "choices": ["and", "no"], "gold": 0} for i in range(6)]
        ),
    }
    for split, count in (("train", 200), ("valid", 9)):
        rows = [{"text": text} for text in texts(f"words {split}", count)]
        files[f"corpus/words/{split}.jsonl"] = jsonl(rows)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in buckets.environment(_server).items():
            patch.setenv(name, value)
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "set")  # as it is here
        KeyValueStore(PLACE).write(files)
        with compiled_programs(f"{PLACE}/compiled"):
            assert prepare.main([GIN]) == 0
            gin.clear_config()
            assert train.main([GIN]) == 0
            yield _server


def test_train() -> None:
    run = Run(RUN)
    assert [entry.step for entry in run.available()] == [2, 4]
    assert list(run.metrics().step) == [1, 2, 3, 4]
    assert set(run.records().task) == {"heldout_words"}
    names = KeyValueStore(RUN).names()
    assert {"config.gin", "data.json", "tokenizer.model", "report/index.html"} <= set(names)
    assert any(name.startswith("tensorboard/events") for name in names)


def test_a_restart_finds_data_vocabulary_and_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    run, columns = KeyValueStore(RUN), ["step", "loss", "grad_norm"]
    before = Run(RUN).metrics()
    run.delete(run.names("checkpoints/4/"))
    monkeypatch.setattr("jaxllm.data.prepare.tokenize_part", None)
    monkeypatch.setattr("jaxllm.data.vocabularies.train_sentencepiece", None)
    events: list[str] = []
    compile_step = step.compile_train_step

    def compile_and_count(*args: Any, **options: Any) -> Any:
        events.clear()
        update = compile_step(*args, **options)
        assert [e.rpartition("/")[2] for e in events if "/cache_" in e] == ["cache_hits"]
        return update

    monkeypatch.setattr("jaxllm.training.loop.compile_train_step", compile_and_count)
    monkeypatch.setattr("jaxllm.report.terminal.show_run", lambda *_, **__: None)
    listener = lambda event, **_: events.append(event)
    jax.monitoring.register_event_listener(listener)
    try:
        assert train.main([GIN]) == 0
    finally:
        jax.monitoring.unregister_event_listener(listener)
    after = Run(RUN).metrics()
    pd.testing.assert_frame_equal(after[columns], before[columns])
    assert list(after.restarts) == [0, 0, 1, 1] and "requests/read" in after


def test_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # which the command changes
    tokenizer = f"--gin.VocabularyConfig.path={RUN}/tokenizer.model"
    assert plan.main([GIN, "--devices=cpu:8", "--fit", tokenizer]) == 0


def test_prepare_reports_overlap() -> None:
    file = f"{PLACE}/overlap.json"
    assert prepare.main([GIN, f"--report_overlap={file}", "--tasks=jsonl_quiz"]) == 0
    (content,) = KeyValueStore(PLACE).read("overlap.json")
    assert content and "jsonl_quiz" in json.loads(content)["tasks"]


def test_evaluate() -> None:
    assert evaluate.main([f"--model_dir={RUN}", "--steps=4", "--tasks=jsonl_quiz"]) == 0
    gin.clear_config()
    assert evaluate.main([f"--model_dir={RUN}", "--follow", "--tasks=jsonl_quiz"]) == 0
    scored = Run(RUN).records()
    assert set(scored[scored.task == "jsonl_quiz"].step) == {2, 4}


@pytest.fixture(scope="module")
def published(trained: buckets.Proxy) -> str:
    """The run's last two checkpoints as Hugging Face directories, and a list of them."""
    gin.clear_config()
    convert.main([f"--from={RUN}", "--steps=2,4", f"--to=hf:{PLACE}/hf"])
    rows = "directory,step,tokens\nhf/step2,2,512\nhf/step4,4,1024\n"
    KeyValueStore(PLACE).write({"series.csv": rows.encode()})
    return f"hf:{PLACE}/hf/step4"


def test_convert(published: str) -> None:
    names = KeyValueStore(f"{PLACE}/hf").names()
    assert {"step2/config.json", "step4/model.safetensors", "step4/tokenizer.model"} <= set(names)
    convert.main([f"--from={published}", f"--to={PLACE}/one", "--step=4"])
    gin.clear_config()
    convert.main([f"--from={PLACE}/one", "--step=4", f"--to=hf:{PLACE}/back"])
    first, again = KeyValueStore(PLACE).read(
        *(f"{x}/model.safetensors" for x in ("hf/step4", "back"))
    )
    assert first == again and first is not None
    convert.main([f"--from=hf:{PLACE}/series.csv", f"--to={PLACE}/two"])
    assert [entry.step for entry in Run(f"{PLACE}/two").available()] == [2, 4]


def test_evaluate_published(published: str) -> None:
    output = f"{PLACE}/scored"
    flags = [f"--output={output}", "--tasks=jsonl_quiz", f"--gin.EvalConfig.data_dir={PLACE}/evals"]
    assert evaluate.main([f"--model_dir={published}", "--step=4", "--tokens=1024", *flags]) == 0
    assert set(Run(output).records().step) == {4}


@pytest.mark.parametrize("source", ["run", "published"])
def test_generate(source: str, published: str) -> None:
    output = f"{source}.jsonl"
    generate.main([
        f"--model_dir={RUN if source == 'run' else published}", "--max_new_tokens=4",
        f"--prompts_file={PLACE}/prompts.jsonl", f"--output={PLACE}/{output}",
    ])  # fmt: skip
    (content,) = KeyValueStore(PLACE).read(output)
    assert content and len(content.splitlines()) == 2


def test_analyze(capsys, tmp_path: Path) -> None:
    csv = "run,family,params,tokens,task,metric,value\nother,other,1000,1024,quiz,accuracy,0.5\n"
    KeyValueStore(PLACE).write({"other.csv": csv.encode()})
    for kind in ("html", "csv"):
        flags = [RUN, f"csv:{PLACE}/other.csv", f"--output={PLACE}/{kind}", f"--format={kind}"]
        assert analyze.main(flags) == 0
        assert KeyValueStore(f"{PLACE}/{kind}").names()
    assert analyze.main([f"tensorboard:{RUN}/tensorboard", f"--output={tmp_path}"]) == 0


@pytest.mark.parametrize(
    ("setting", "status"),
    [
        ("MODEL_DIR=gs://nothing/run", None), ("MODEL_DIR=gs://bucket/denied", 403),
        ("DataConfig.cache_dir=gs://nothing/cache", None),
        ("DataConfig.corpus_dir=gs://bucket/denied", 403),
    ],
)  # fmt: skip
def test_a_bucket_of_others_is_one_line(
    trained: buckets.Proxy, monkeypatch, capsys, setting: str, status: int | None
) -> None:
    monkeypatch.setattr("jaxllm.training.launch.train", None)  # nothing gets so far
    trained.rule = lambda method, path: status if "denied" in path else None
    before = KeyValueStore("gs://bucket").names()
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda _: train.main([GIN, f"--gin.MODEL_DIR={PLACE}/new", f"--gin.{setting}"]))
    trained.rule = lambda method, path: None
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "prepared" not in line]
    assert line.startswith("error: ") and setting.partition("=")[2] in line
    assert ended.value.code == 2 and KeyValueStore("gs://bucket").names() == before


@pytest.mark.parametrize(
    "command",
    [
        lambda: analyze.main([RUN]), lambda: generate.main([f"--model_dir={RUN}", "--prompt=a"]),
        lambda: evaluate.main([f"--model_dir={RUN}", "--steps=4"]),
        lambda: convert.main([f"--from={RUN}", "--steps=4", "--to=hf:gs://bucket/converted"]),
    ],
)  # fmt: skip
def test_commands_on_a_denied_run_end_with_one_line(
    trained: buckets.Proxy, capsys, command: Callable[[], int]
) -> None:
    trained.rule = lambda method, path: 403
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda _: command())
    trained.rule = lambda method, path: None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: an object store answers: Forbidden: b/bucket")
    assert ended.value.code == 2
