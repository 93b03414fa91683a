"""MODEL_DIR/tensorboard: TensorBoard events of a run, during training.

    train/…                        metrics of the training loop
    capability/<domain>/<task>     primary metric of every task, a point per checkpoint
    margins/<domain>/<task>/…      its value ± 1.96 standard errors (low, high), and a guess
    evaluation/<task>/<metric>     other metrics
    config, hparams                config.gin as text and, by setting, as hyperparameters
    trajectories/<domain>          charts of the report, as images, those of the findings by
    health/…, now/…, ahead/…       question; at the end of the run, or by
    early/…, sizes/…               `analyze --format tensorboard`

The custom-scalars dashboard overlays the tasks of each domain by unit, and the domains' losses; and
draws each task with its margins and a guess. Events are written by TensorBoard's own writer, since
`clu.metric_writers` cannot write the session log by which TensorBoard discards the steps that a
killed process had logged beyond its last checkpoint.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar import metadata as scalar_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from jaxllm.analysis.curves import is_share
from jaxllm.analysis.stats import Z95
from jaxllm.io import is_remote
from jaxllm.report.numbers import UNITS, metric_name
from jaxllm.run.records import OK, OPTION_PERPLEXITIES, Record
from jaxllm.run.run import Run
from jaxllm.uploads import Upload

if TYPE_CHECKING:
    from jaxllm.report.items import ReportItem
    from jaxllm.report.tables import Tables

_IMAGE_SCALE = 1.5  # its "actual size" then fits a window of 1,500 pixels
_UPLOAD_BYTES = 4 << 20


class TensorBoardWriter:
    """Writer of the metrics and records of one run as TensorBoard events.

    A session starts where a process begins, and after a rollback; TensorBoard then discards later
    steps of earlier sessions. The stored scores of the newest checkpoint are written again: an
    earlier process may have been killed before it wrote them as events.
    """

    def __init__(self, model_dir: str | os.PathLike[str]):
        self._run = Run(model_dir)
        self._events = _Events(self._run.layout.tensorboard)
        self._primary: dict[str, Record] = {}  # by task

    def begin(self, step: int) -> None:
        """Start a session after `step`."""
        self._events.add(step + 1, session_log=SessionLog(status=SessionLog.START))
        if config := self._run.config():
            self._events.add_config(step + 1, self._run.path.name, config, self._run.settings())
        stored = self._run.trajectory.read()
        newest = stored[stored.step == stored.step[stored.step <= step].max()]
        self._primary = {}  # its layout may be among what is discarded
        if len(newest):
            records = [Record(**row) for row in newest.to_dict("records")]
            self.write_records(records[0].step, records)

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write every number in `metrics` under train/."""
        numbers = {
            f"train/{name}": float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and name != "step"
        }
        units = {tag: UNITS.get(tag.split("/")[1], "") for tag in numbers}
        self._events.add_scalars(step, numbers, units)

    def write_records(self, step: int, records: Sequence[Record]) -> None:
        """Write the scores of a checkpoint; a failed task leaves a gap, as in the report."""
        good = [record for record in records if record.status == OK and math.isfinite(record.value)]
        scalars: dict[str, float] = {}
        about = {}
        for record in good:
            scalars |= _scalars(record)
            about[_tag(record)] = _about(record)
        self._events.add_scalars(step, scalars, about)
        primary = {record.task: record for record in good if record.primary}
        if not primary.keys() <= self._primary.keys():
            self._primary |= primary
            self._events.add_layout(step, [*self._primary.values()])

    def flush(self) -> None:
        """Store all events."""
        self._events.upload()

    def close(self) -> None:
        """Flush and close the event file."""
        self._events.close()


def write_report(
    folder: str | os.PathLike[str], tables: Tables, items: Sequence[ReportItem]
) -> None:
    """Write every chart of a report as an image, at the step of the last checkpoint.

    `folder` is the directory of the event file, local or `gs://`.
    """
    events = _Events(folder)
    events.add_images(int(tables.points.step.max()) if len(tables.points) else 0, tables, items)
    events.close()


def _tag(record: Record) -> str:
    if record.primary:
        return f"capability/{record.domain}/{record.task}"
    return f"evaluation/{record.task}/{record.metric}"


def _about(record: Record) -> str:
    """Description of a record's scalar: what it measures, in which unit."""
    unit = ", a share (0 to 1)" if is_share(record.metric) else ""
    guess = "" if math.isnan(_guess(record)) else f"; a guess has {_guess(record):.3g}"
    of = "tokens" if record.metric in OPTION_PERPLEXITIES else "examples"
    return f"{record.task}: {metric_name(record.metric)}{unit}, {record.n:,} {of}{guess}"


def _guess(record: Record) -> float:
    """Chance, or the best constant answer where that is better."""
    return float(np.fmax(record.chance, record.majority))


def _scalars(record: Record) -> dict[str, float]:
    """A record's value by tag, and of a primary one the ends of its band and a guess."""
    if not record.primary:
        return {_tag(record): record.value}
    least, most = (0.0, 1.0) if is_share(record.metric) else (-math.inf, math.inf)
    reach, margins = Z95 * record.stderr, f"margins/{record.domain}/{record.task}"
    values = {
        _tag(record): record.value,
        f"{margins}/low": max(record.value - reach, least),
        f"{margins}/high": min(record.value + reach, most),
        f"{margins}/guess": _guess(record),
    }
    return {tag: value for tag, value in values.items() if math.isfinite(value)}


class _Events:
    """A new event file; in an object store several, each small enough to be uploaded again."""

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = epath.Path(folder)
        self._remote = is_remote(folder)
        self._described: set[str] = set()
        self._begin_file()

    def _begin_file(self) -> None:
        local = tempfile.mkdtemp() if self._remote else os.fspath(self._folder)
        self._writer = EventFileWriter(local)
        if self._remote:
            (self._file,) = Path(local).iterdir()
            self._upload = Upload(self._folder / self._file.name)

    def flush(self) -> None:
        """Make all events visible to a reader; in an object store within UPLOAD_SECONDS."""
        self._writer.flush()
        if self._remote:
            self._upload.put(self._file.read_bytes)
            if self._file.stat().st_size > _UPLOAD_BYTES:
                self.close()
                self._begin_file()

    def upload(self) -> None:
        """Flush, and wait until the file is stored."""
        self.flush()
        if self._remote:
            self._upload.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()
        if self._remote:
            self._upload.put(self._file.read_bytes)
            self._upload.flush()
            shutil.rmtree(self._file.parent)

    def add(self, step: int, **content: Any) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))

    def add_scalars(self, step: int, values: Mapping[str, float], about: Mapping[str, str]) -> None:
        """Add values by tag, with what they are `about` where that is known."""
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        for one in scalars:
            if one.tag in about and one.tag not in self._described:  # the first one counts
                told = scalar_metadata.create_summary_metadata(one.tag, about[one.tag])
                one.metadata.CopyFrom(told)
        self._described |= values.keys()
        self.add(step, summary=Summary(value=scalars))
        self.flush()

    def add_config(self, step: int, run: str, text: str, settings: Mapping[str, Any]) -> None:
        """Add a config as text, and its settings as hyperparameters of the trial `run`."""
        about = text_metadata.create_summary_metadata("config.gin", "")
        self._add_tensor(step, "config", about, textwrap.indent(text, "    "))
        values = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in settings.items()
            if "." in name  # no macro, whose value stands where it is used
        }
        self.add(step, summary=hparams_pb(values, trial_id=run))

    def add_images(self, step: int, tables: Tables, items: Sequence[ReportItem]) -> None:
        """Add the charts of a report by question, each with its method as the description.

        The sentence is in the picture: TensorBoard keeps the first description of a tag.
        """
        from jaxllm.report import files

        for item, picture in files.pictures(tables, files.figures(items), scale=_IMAGE_SCALE):
            # A PNG states its width and height in the bytes 16 to 24.
            width, height = (str(int.from_bytes(picture[at : at + 4])) for at in (16, 20))
            group = "trajectories" if item.domain else item.question
            told = "\n\n".join(filter(None, (item.caption, item.method)))
            about = image_metadata.create_summary_metadata(item.title, told)
            content = [width.encode(), height.encode(), picture]
            self._add_tensor(step, f"{group}/{item.title}", about, content)
        self.flush()

    def add_layout(self, step: int, primary: Sequence[Record]) -> None:
        """Add a custom-scalars layout of some tasks; TensorBoard uses the last one."""
        overlaid: dict[str, list[str]] = {}
        margins = []
        for record in sorted(primary, key=lambda record: (record.domain, record.task)):
            unit = "" if is_share(record.metric) else f", {metric_name(record.metric)}"
            overlaid.setdefault(record.domain + unit, []).append(f"^{re.escape(_tag(record))}$")
            value, *ends = _scalars(record)
            guess = ends[len(ends) // 2 * 2 :]  # after both ends of the band, or alone
            series = [(value, *ends[:2])] * (len(ends) > 1) + [(end,) * 3 for end in guess]
            named = [dict(zip(("value", "lower", "upper"), one, strict=True)) for one in series]
            if named:
                margins.append({"title": record.task, "margin": {"series": named}})
        charts = [{"title": name, "multiline": {"tag": tags}} for name, tags in overlaid.items()]
        losses = {"title": "by domain", "multiline": {"tag": ["^train/loss(/|$)"]}}
        layout = layout_pb2.Layout(
            category=[
                {"title": "Capabilities", "chart": charts},
                {"title": "Capabilities with 95% band and a guess", "chart": margins},
                {"title": "Loss", "chart": [losses]},
            ]
        )
        about = layout_metadata.create_summary_metadata()
        tag, content = layout_metadata.CONFIG_SUMMARY_TAG, layout.SerializeToString()
        self._add_tensor(step, tag, about, content)

    def _add_tensor(self, step: int, tag: str, about: SummaryMetadata, content: Any) -> None:
        value = Summary.Value(tag=tag, metadata=about, tensor=make_tensor_proto(content))
        self.add(step, summary=Summary(value=[value]))
