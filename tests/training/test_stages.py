"""Runs in stages: as the chain of branches, from any interruption, and what is refused."""

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.run.run import Run
from jaxllm.training.learning_rate import ScheduleConfig, make_schedule
from jaxllm.training.loop import Trainer
from jaxllm.training.metrics import MetricsLog
from tests.chaos.driver import read_item
from tests.training.helpers import experiment
from tests.training.processes import make_home
from tests.training.test_branches import MORE, run
from tests.training.test_loop import exact

# 10 steps of 8 x 16 tokens, 10 of 8 x 32, and 10 of 16 x 32
STAGES = """(
    {'tokens': 1280},
    {'tokens': 2560, 'weights': {'more': 3, 'words': 1}, 'sequence_length': 32,
     'rope_theta': 50000.0},
    {'batch_size': 16, 'gradient_accumulation': 2, 'weights': {'more': 3, 'words': 1},
     'sequence_length': 32, 'rope_theta': 50000.0,
     'schedule': {'kind': 'wsd', 'decay_steps': 10, 'end_lr': 0.0}})"""
SECOND = (
    "--gin.DataConfig.weights={'more': 3, 'words': 1}", "--gin.SEQUENCE_LENGTH=32",
    "--gin.ModelConfig.rope_theta=50000.0",
)  # fmt: skip
THIRD = (
    "--gin.BATCH_SIZE=16", "--gin.TrainConfig.gradient_accumulation=2",
    "--gin.ScheduleConfig.kind=wsd", "--gin.ScheduleConfig.decay_steps=10",
    "--gin.ScheduleConfig.end_lr=0.0",
)  # fmt: skip


def staged(home: Path, name: str, stages: str = STAGES, *flags: str) -> Run:
    run(f"--gin_file={home}/tiny.gin", f"--gin.MODEL_DIR={home}/{name}",
        f"--gin.TrainConfig.stages={stages}", *flags)  # fmt: skip
    return Run(home / name)


@pytest.fixture(scope="module")
def home(no_report: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two domains, a config, and a run `whole` of three stages."""
    home = make_home(tmp_path_factory.mktemp("stages"), MORE)
    shutil.copytree(home / "corpus" / "words", home / "corpus" / "more")
    staged(home, "whole")
    return home


def lines(run: Run, after: int = 0, staged: bool = True) -> list[str]:
    """What metrics.jsonl says of the training itself."""
    found = [line for line in run.metrics_lines.read()[0] if line["step"] > after]
    own = () if staged else ("stage", "sequence_length")
    return [exact({k: v for k, v in line.items() if k not in own}) for line in found]


def assert_same(ours: Run, theirs: Run, step: int = 30) -> None:
    """Parameters and optimizer state, bitwise."""
    for item in ("model", "training"):
        a, b = (read_item(Path(r.layout.checkpoint(step)) / item) for r in (ours, theirs))
        assert a.keys() == b.keys()
        for name, value in b.items():
            np.testing.assert_array_equal(a[name], value, name)


def records(run: Run, after: int = 0) -> Any:
    table = run.records().query(f"step > {after}").reset_index(drop=True)
    return table.drop(columns=["run", "family", "seconds"])


def test_a_run_in_stages_is_the_chain_of_branches(home: Path) -> None:
    whole = Run.open(home / "whole")
    run(f"--gin_file={home}/tiny.gin", f"--gin.MODEL_DIR={home}/one", "--gin.TRAIN_STEPS=10")
    run(f"--branch_from={home}/one@10", f"--gin.MODEL_DIR={home}/two", *SECOND,
        "--gin.TRAIN_STEPS=20")  # fmt: skip
    run(f"--branch_from={home}/two@20", f"--gin.MODEL_DIR={home}/three", *THIRD,
        "--gin.TRAIN_STEPS=30")  # fmt: skip
    parts = [Run.open(home / name) for name in ("one", "two", "three")]
    assert lines(whole, staged=False) == [line for part in parts for line in lines(part)]
    assert_same(whole, parts[0], 10)
    assert_same(whole, parts[1], 20)
    assert_same(whole, parts[2], 30)
    assert records(whole).equals(records(parts[2]))
    entries = whole.entries()
    assert [(e.step, e.stage, e.tokens, e.data_position) for e in entries] == [
        (0, 1, 0, 0), (10, 1, 1280, 80), (20, 2, 3840, 160), (30, 3, 8960, 320)
    ]  # fmt: skip
    assert entries[-1].domain_tokens == parts[2].entries()[-1].domain_tokens
    assert sum(entries[-1].domain_tokens.values()) == 8960 == whole.planned_tokens()
    rows = whole.metrics_lines.read()[0]
    assert {(row["stage"], row["sequence_length"]) for row in rows} == {(1, 16), (2, 32), (3, 32)}


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Steps at which a process gets a signal or is killed, once each."""
    at: dict[int, str] = {}
    add, save = MetricsLog.add, Trainer.save

    def added(log: MetricsLog, step: int, metrics: Any) -> None:
        add(log, step, metrics)
        if at.get(step) == "signal":
            at.pop(step)
            os.kill(os.getpid(), signal.SIGTERM)

    def saved(trainer: Trainer, state: Any, kind: str) -> None:
        if at.get(trainer.step) == "killed before it is saved":
            at.pop(trainer.step)
            raise RuntimeError("killed")
        save(trainer, state, kind)

    monkeypatch.setattr(MetricsLog, "add", added)
    monkeypatch.setattr(Trainer, "save", saved)
    return at


def test_interruptions_before_at_and_after_every_border_change_nothing(
    home: Path, interrupted: dict[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    resumed_at = []
    for step, how in (
        (7, "signal"), (10, "signal"), (20, "killed before it is saved"),
        (20, "signal"), (25, "signal"), (None, ""),
    ):  # fmt: skip
        if step:
            interrupted[step] = how
        if "killed" in how:
            with pytest.raises(RuntimeError, match="killed"):
                staged(home, "parts")
        else:
            staged(home, "parts")
        found = re.findall(r"resuming .* at step (\d+)", capsys.readouterr().out)
        resumed_at += [int(number) for number in found]
    assert resumed_at == [7, 10, 10, 20, 25] and not interrupted
    parts, whole = Run.open(home / "parts"), Run.open(home / "whole")
    assert lines(parts) == lines(whole)
    for step in (10, 20, 30):
        assert_same(parts, whole, step)
    assert records(parts).equals(records(whole))
    assert [entry.step for entry in parts.available()] == [0, 10, 20, 30]


def test_stages_to_come_may_change(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the border of the third: it is told to read one domain, for half as long."""
    shutil.copytree(home / "whole", home / "at_20")
    shutil.rmtree(home / "at_20" / "checkpoints" / "30")
    other = STAGES.partition("{'batch_size'")[0] + "{'weights': {'words': 1}})"
    changed = staged(home, "at_20", other, "--gin.TRAIN_STEPS=25")
    said = capsys.readouterr().out
    assert "stage 3, to step 25: batches of 8 x 16 tokens" in said
    assert "changed since the last start: TrainConfig.stages = " in said
    before, last = changed.entries()[-2:]
    assert (last.step, last.stage, last.tokens - before.tokens) == (25, 3, 5 * 8 * 16)
    assert last.domain_tokens["more"] == before.domain_tokens["more"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{'tokens': 1280}", "{'tokens': 1280, 'weights': {'more': 1}}", "tokens of more, not"),
        ("'tokens': 1280", "'tokens': 1408", r"step 30 came after 8960 tokens, not the 8576 of"),
        ("'more': 3", "'more': 2", r"step 30 came after \d+ tokens of \w+, not the \d+ of Trai"),
        (
            STAGES,
            "()",
            "step 30 came after other sequences than those of TrainConfig.stages",
        ),
        ("50000.0,\n     'schedule'", "60000.0,\n     'schedule'", "rope_theta = 50000.0, and th"),
    ],
)
def test_a_stage_that_has_begun_does_not_change(
    home: Path, old: str, new: str, message: str
) -> None:
    assert old in STAGES
    before = {path: path.read_bytes() for path in (home / "whole").glob("*.*") if path.is_file()}
    with pytest.raises(UserError, match=message) as refused:
        staged(home, "whole", STAGES.replace(old, new), "--gin.TRAIN_STEPS=40")
    assert "\n" not in str(refused.value)
    assert before == {p: p.read_bytes() for p in (home / "whole").glob("*.*") if p.is_file()}


def test_a_branch_of_a_run_in_stages_goes_on_in_them(home: Path) -> None:
    run(f"--branch_from={home}/whole@20", f"--gin.MODEL_DIR={home}/same")
    same, whole = Run.open(home / "same"), Run.open(home / "whole")
    assert lines(same) == lines(whole, after=20)
    assert_same(same, whole)
    # without them, its domains still go on from what was read of them
    run(f"--branch_from={home}/whole@20", f"--gin.MODEL_DIR={home}/plain", "--gin.TRAIN_STEPS=25",
        "--gin.TrainConfig.stages=()")  # fmt: skip
    before, after = whole.select("20")[0].domain_tokens, Run(home / "plain").entries()[-1]
    assert sum(after.domain_tokens.values()) == sum(before.values()) + 5 * 8 * 16
    with pytest.raises(UserError, match="step 20 came after 3840 tokens, not the 2560 of"):
        run(f"--branch_from={home}/whole@20", f"--gin.MODEL_DIR={home}/none",
            "--gin.TrainConfig.stages=({'tokens': 2560}, {})")  # fmt: skip
    assert not list((home / "none").glob("*"))


def test_checkpoints_are_scored_and_exported_as_models_of_their_stage(home: Path) -> None:
    from jaxllm import convert, evaluate

    whole = Run.open(home / "whole")
    trained = records(whole)
    gin.clear_config()
    assert evaluate.main([f"--model_dir={home}/whole", "--steps=10,30"]) == 0
    assert records(Run.open(home / "whole")).equals(trained)
    gin.clear_config()
    convert.main([f"--from={home}/whole", "--steps=10,20", f"--to=hf:{home}/hf"])
    configs = [json.loads((home / f"hf/step{n}/config.json").read_text()) for n in (10, 20)]
    bases = [c.get("rope_theta") or c["rope_parameters"]["rope_theta"] for c in configs]
    assert bases == [10_000.0, 50_000.0]
    assert [config["max_position_embeddings"] for config in configs] == [16, 32]


def test_prepare_reports_the_epochs_of_all_stages(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jaxllm import prepare

    gin.clear_config()
    stages = (
        "({'tokens': 1280, 'weights': {'more': 1}}, {'tokens': 81920, 'weights': {'words': 1}})"
    )
    assert prepare.main([f"--gin_file={home}/tiny.gin", "--gin.TRAIN_STEPS=650",
                         f"--gin.TrainConfig.stages={stages}"]) == 0  # fmt: skip
    out, err = capsys.readouterr()
    assert out.count("train, stage ") == 2
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    tokens = {name: int(rows[name][3].replace(",", "")) for name in ("more", "words")}
    assert float(rows["words"][-1]) == pytest.approx(81920 / tokens["words"], abs=0.01)
    assert float(rows["more"][-1]) == pytest.approx(1280 / tokens["more"], abs=0.01)
    assert ("words is read" in err) == (81920 / tokens["words"] > 4)


def test_domains_are_read_as_by_a_run_on_each_alone_across_all_stages(home: Path) -> None:
    """So none of their sequences is read twice before an epoch ends, or left out."""
    from jaxllm.data.loader import open_source
    from jaxllm.training.experiment import Experiment
    from jaxllm.training.stages import open_sources

    weights = (
        {"more": 1, "words": 1},
        {"more": 3, "words": 1},
        {"more": 1},
        {"more": 1, "words": 9},
    )
    stages = tuple({"tokens": 1280, "weights": one} for one in weights)
    gin.parse_config_files_and_bindings(
        [f"{home}/tiny.gin"], [f"TrainConfig.stages = {stages}", "TRAIN_STEPS = 40"]
    )
    parts = Experiment.configured().stages
    sources = open_sources(parts, open_source(parts[0].data))
    read: dict[str, list[bytes]] = {"more": [], "words": []}
    for stage, source in zip(parts, sources, strict=True):
        rows = source.sequences(stage.start.sequences, 80)
        for row, domain in zip(rows["inputs"], rows["domains"], strict=True):
            read[source.domains[domain]].append(row.tobytes())
    for domain, sequences in read.items():
        alone = open_source(parts[0].data, {domain: 1.0}).sequences(0, len(sequences))["inputs"]
        assert sequences == [row.tobytes() for row in alone]
        assert len(sequences) > 40
    assert sources[-1].tokens_read(320) == {name: 16 * len(rows) for name, rows in read.items()}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (({"tokens": 640}, {"tokens": 100}),
         "stage 2 .*: its border after 100 tokens is inside a batch of 8 x 8 = 64 tokens: write "
         "'tokens': 128"),
        (({"tokens": 640, "wieghts": {}}, {}), "item 1: StageConfig has no field 'wieghts'; did "),
        (({"tokens": 640}, {"num_layers": 3}), "item 2: StageConfig has no field 'num_layers'"),
        (({"tokens": 640}, {"batch_size": 0}), "item 2: StageConfig.batch_size = 0: must be"),
        (({"tokens": 640}, {"schedule": {"kin": 1}}), "stage 2 .*: ScheduleConfig has no field 'k"),
        (({"tokens": 640}, {"schedule": {"kind": "x"}}), "stage 2 .*: ScheduleConfig.kind = 'x'"),
        (({}, {"tokens": 640}), "stage 1 .*: it needs `tokens`"),
        (({"tokens": 640}, {"tokens": 640}), "stage 2 .*ends at step 20, .*TRAIN_STEPS=20"),
        (({"tokens": 1280}, {"tokens": 640}, {}), "stage 3 .* begins after step 30 and .* = 30: l"),
    ],
)  # fmt: skip
def test_stages_that_do_not_fit_are_refused(tmp_path: Path, stages: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        print(experiment(tmp_path, steps=30, stages=stages).stages)


def test_what_a_stage_does_not_name_it_shares_with_the_run(tmp_path: Path) -> None:
    """The schedule, over all steps; one of its own counts from the stage's beginning."""
    own = {"kind": "cosine", "peak_lr": 1.0, "end_lr": 0.0}
    again = {"kind": "constant", "peak_lr": 1.0, "warmup_steps": 4}
    e = experiment(
        tmp_path, steps=40, schedule=ScheduleConfig(kind="wsd", warmup_steps=3, decay_steps=20),
        stages=({"tokens": 640}, {"tokens": 640, "schedule": own},
                {"tokens": 640, "schedule": again}, {}),
    )  # fmt: skip
    rates = {
        stage.number: [
            float(make_schedule(stage.schedule, stage.train.steps)(count))
            for count in range(stage.start.step, stage.train.steps)
        ]
        for stage in e.stages
    }
    whole = make_schedule(e.schedule, 40)
    assert rates[1] == [float(whole(count)) for count in range(10)]
    assert rates[4] == [float(whole(count)) for count in range(30, 40)]
    assert rates[2] == pytest.approx([(1 + math.cos(math.pi * s / 10)) / 2 for s in range(1, 11)])
    assert rates[3] == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)
    assert [stage.model for stage in e.stages] == [e.model] * 4
    assert e.scheduled_steps == tuple(sorted({0, 1, 2, *range(4, 41, 4), 10, 30}))
