"""TensorBoard's own reader finds the scalars, the layout and the images; a restart forgets."""

import dataclasses
import io
import math
import re
import time

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.util import tensor_util

from jaxllm.analyze import main as analyze
from jaxllm.report.tensorboard import TensorBoardWriter
from jaxllm.run.records import Record
from jaxllm.run.run import Run
from tests.report.pages import Page, build, charts_of
from tests.simulated_run import TASKS, simulate


def scored(run_dir, step: int) -> list[Record]:
    frame = Run.open(run_dir).records()
    return [Record(**row) for row in frame[frame.step == step].to_dict("records")]


def read(run_dir) -> EventAccumulator:
    events = EventAccumulator(
        str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}
    )
    return events.Reload()


def points(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def begun(run_dir, step: int = -1) -> TensorBoardWriter:
    writer = TensorBoardWriter(run_dir)
    writer.begin(step)
    return writer


def restarted(run_dir, step: int) -> TensorBoardWriter:
    """The writer of a later process: files are read in the order of the seconds in their names."""
    time.sleep(1.1)
    return begun(run_dir, step)


@pytest.fixture
def run_dir(tmp_path):
    return simulate(tmp_path / "run", steps=(0, 100, 1000))


def test_scalars_and_layout(run_dir) -> None:
    writer = begun(run_dir)
    writer.write_records(0, scored(run_dir, 0))
    for step in (1, 2):
        writer.write_metrics(step, {"step": step, "loss": 5.0 / step, "loss/code": 1.0, "x": None})
    for step in (100, 1000):
        writer.write_records(step, scored(run_dir, step))
    writer.close()
    events = read(run_dir)
    tags = events.Tags()["scalars"]
    assert {f"capability/{task.domain}/{task.name}" for task in TASKS} <= set(tags)
    assert "evaluation/copying/brier" in tags
    assert points(events, "train/loss") == [(1, 5.0), (2, 2.5)]
    assert "train/x" not in tags
    expected = [(r.step, r.value) for s in (0, 100, 1000) for r in scored(run_dir, s)
                if r.task == "copying" and r.primary]  # fmt: skip
    assert points(events, "capability/reasoning/copying") == [
        (step, pytest.approx(value)) for step, value in expected
    ]


def test_the_layout_overlays_the_tasks_of_each_domain(run_dir) -> None:
    writer = begun(run_dir)
    records = scored(run_dir, 0)
    writer.write_records(0, [r for r in records if r.domain == "code"])
    writer.write_records(100, scored(run_dir, 100))  # more domains: a new layout
    writer.close()
    events = read(run_dir)
    content = events.Tensors("custom_scalars__config__")[-1].tensor_proto
    layout = layout_pb2.Layout.FromString(tensor_util.make_ndarray(content).item())
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    domains = {task.domain for task in TASKS}
    assert set(charts) == domains - {"language"} | {"language, bits per byte"}  # a unit each
    tags = events.Tags()["scalars"]
    matched = {tag for tag in tags for one in charts["code"] if re.match(one, tag)}
    assert matched == {f"capability/code/{t.name}" for t in TASKS if t.domain == "code"}
    for chart in layout.category[1].chart:
        used = {t for s in chart.margin.series for t in (s.value, s.lower, s.upper)}
        assert used <= set(tags) and len(used) == (3 if "text" in chart.title else 4)
    record = next(r for r in scored(run_dir, 100) if r.task == "copying" and r.primary)
    expected = {"low": record.value - 1.96 * record.stderr, "guess": 0.25}
    for name, value in expected.items():
        found = dict(points(events, f"margins/reasoning/copying/{name}"))
        assert found[100] == pytest.approx(value)


def test_a_guess_is_the_best_constant_answer_where_that_is_better(run_dir) -> None:
    one = next(r for r in scored(run_dir, 100) if r.task == "copying" and r.primary)
    writer = begun(run_dir)
    writer.write_records(100, [dataclasses.replace(one, majority=0.635)])
    writer.close()
    events = read(run_dir)
    assert points(events, "margins/reasoning/copying/guess")[-1] == (100, pytest.approx(0.635))


def test_the_config_is_text_and_hyperparameters(run_dir) -> None:
    config = "LR = 0.1\nScheduleConfig.peak_lr = %LR\nModelConfig.tie_embeddings = True\n"
    (run_dir / "config.gin").write_text(config)
    writer = begun(run_dir)
    writer.write_metrics(1, {"loss": 5.0, "mfu": 0.4})
    writer.close()
    events = read(run_dir)
    text = tensor_util.make_ndarray(events.Tensors("config")[0].tensor_proto).item().decode()
    assert text.splitlines()[1] == "    ScheduleConfig.peak_lr = %LR"  # a block of code
    content = events.SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
    session = hparams.parse_session_start_info_plugin_data(content)
    assert session.group_name == "run"
    assert session.hparams["ScheduleConfig.peak_lr"].number_value == 0.1
    assert session.hparams["ModelConfig.tie_embeddings"].bool_value is True
    assert "LR" not in session.hparams
    assert events.SummaryMetadata("train/loss").summary_description == "nats per token"


def test_a_restart_forgets_the_lost_steps(run_dir) -> None:
    first = begun(run_dir)
    for step in (10, 20, 30, 40):
        first.write_metrics(step, {"loss": 1.0 * step})
    first.write_records(20, scored(run_dir, 100))
    first._events.flush()  # killed: never closed, nor with more scores than these
    second = restarted(run_dir, 20)
    second.write_metrics(30, {"loss": 0.5})
    second.close()
    events = read(run_dir)
    assert points(events, "train/loss") == [(10, 10.0), (20, 20.0), (30, 0.5)]
    # of step 0 only what is stored, as no writer was handed it
    assert [step for step, _ in points(events, "capability/code/syntax_pairs")] == [20, 0]


def test_a_rollback_forgets_the_abandoned_steps_at_once(run_dir) -> None:
    """To step 100, by the same writer: of the steps until 1000 neither losses nor scores stay."""
    writer = begun(run_dir)
    for step in (0, 100, 1000):
        if step:
            writer.write_metrics(step - 1, {"loss": 1.0})
        writer.write_records(step, scored(run_dir, step) if step == 1000 else [])
    writer.begin(100)
    writer.close()
    events = read(run_dir)
    assert points(events, "train/loss") == [(99, 1.0)]
    assert [step for step, _ in points(events, "capability/code/syntax_pairs")] == [100]
    assert events.Tensors("custom_scalars__config__"), "the layout is there again"


def test_a_failed_task_leaves_a_gap(run_dir) -> None:
    writer = begun(run_dir)
    good = next(r for r in scored(run_dir, 100) if r.primary)
    failed = Record(
        run="r", family="f", params=1, step=100, tokens=1, flops=1.0, task="lost", domain="math",
        shots=0, metric="accuracy", value=math.nan, primary=True, status="ValueError: no",
    )  # fmt: skip
    writer.write_records(100, [good, failed])
    writer.close()
    tags = read(run_dir).Tags()["scalars"]
    assert tags
    assert not [tag for tag in tags if "lost" in tag]


def test_every_chart_of_the_report_is_an_image(tmp_path) -> None:
    run_dir = simulate(tmp_path / "run")
    index = build([run_dir])
    assert analyze([str(run_dir), "--format", "tensorboard"]) == 0
    events = read(run_dir)
    tags = events.Tags()["tensors"]
    questions = {"health", "now", "ahead", "early", "trajectories"}
    assert {tag.split("/")[0] for tag in tags} == questions
    shown = {tag.split("/", 1)[1] for tag in tags}
    tasks = {task.name for task in TASKS}
    assert set(charts_of(index.read_text())) - tasks == shown - {task.domain for task in TASKS}
    for tag in tags:
        (event,) = events.Tensors(tag)
        assert event.step == 1000
        width, height, picture = tensor_util.make_ndarray(event.tensor_proto)
        drawn = Image.open(io.BytesIO(picture))
        assert drawn.size == (int(width), int(height))
        assert len(drawn.convert("RGB").getcolors(1 << 24)) > 20, tag  # not a blank card
    told = events.SummaryMetadata("early/Correlated gains").summary_description
    for paragraph in told.split("\n\n"):
        assert paragraph in Page(index.read_text()).text


def test_scores_that_a_killed_process_did_not_hand_on_are_written(run_dir) -> None:
    """It was killed in the evaluation of step 100: the store has the scores, no event file has."""
    first = begun(run_dir)
    first.write_records(0, scored(run_dir, 0))
    for step in (50, 100):
        first.write_metrics(step, {"loss": 1.0})
    first.close()
    lacking = scored(run_dir, 100)[:2]
    resumed = restarted(run_dir, 100)
    resumed.write_records(100, lacking)
    resumed.write_metrics(110, {"loss": 0.5})
    resumed.close()
    events = read(run_dir)
    for record in scored(run_dir, 100):
        if record.primary:
            tag = f"capability/{record.domain}/{record.task}"
            assert dict(points(events, tag))[100] == pytest.approx(record.value)
    assert [step for step, _ in points(events, "train/loss")] == [50, 100, 110]
