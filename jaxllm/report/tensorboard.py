"""MODEL_DIR/tensorboard: TensorBoard events of a run, during training.

    train/…                        metrics of the training loop
    capability/<domain>/<task>     primary metric of every task, a point per checkpoint
    evaluation/<task>/<metric>     other metrics
    trajectories/<domain>          charts of the report, as images, those of the findings by
    health/…, now/…, ahead/…       question; at the end of the run, or by
    early/…, sizes/…               `analyze --format tensorboard`

The custom-scalars dashboard overlays the tasks of each domain, and the domains' losses. Events are
written by TensorBoard's own writer, since `clu.metric_writers` cannot write the session log by
which TensorBoard discards the steps that a killed process had logged beyond its last checkpoint.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from jaxllm.io import is_remote
from jaxllm.run.records import OK, Record
from jaxllm.run.run import Run
from jaxllm.uploads import Upload

if TYPE_CHECKING:
    from jaxllm.report.items import ReportItem
    from jaxllm.report.tables import Tables

_IMAGE_SCALE = 1.5
_UPLOAD_BYTES = 4 << 20


class TensorBoardWriter:
    """Writer of the metrics and records of one run as TensorBoard events.

    A process starts a session at its first step, at which TensorBoard discards later steps of
    earlier processes. It then writes the stored scores of the newest checkpoint, since an earlier
    process may have been killed before it wrote them as events.
    """

    def __init__(self, model_dir: str | os.PathLike[str]):
        self._run = Run(model_dir)
        self._events = _Events(self._run.layout.tensorboard)
        self._in_session = False
        self._domains: set[str] = set()

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write every number in `metrics` under train/."""
        if unseen := self._begin_session(step):
            self._write_scores(unseen[0].step, unseen)
        numbers = {
            f"train/{name}": float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and name != "step"
        }
        self._events.add_scalars(step, numbers)

    def write_records(self, step: int, records: Sequence[Record]) -> None:
        """Write the scores of a checkpoint; a failed task leaves a gap, as in the report."""
        # The metrics of this step are already written, so the session starts after it.
        unseen = [record for record in self._begin_session(step + 1) if record.step == step]
        scores = {(record.task, record.metric): record for record in (*unseen, *records)}
        self._write_scores(step, [*scores.values()])

    def flush(self) -> None:
        """Store all events."""
        self._events.upload()

    def close(self) -> None:
        """Flush and close the event file."""
        self._events.close()

    def _begin_session(self, step: int) -> list[Record]:
        """Start the session, once; return the stored scores of the checkpoint before `step`."""
        if self._in_session:
            return []
        self._in_session = True
        self._events.add(step, session_log=SessionLog(status=SessionLog.START))
        stored = self._run.trajectory.read()
        newest = stored[stored.step == stored.step[stored.step < step].max()]
        return [Record(**row) for row in newest.to_dict("records")]

    def _write_scores(self, step: int, records: Sequence[Record]) -> None:
        good = [record for record in records if record.status == OK and math.isfinite(record.value)]
        self._events.add_scalars(step, {_tag(record): record.value for record in good})
        domains = self._domains | {record.domain for record in good if record.primary}
        if domains != self._domains:
            self._domains = domains
            self._events.add_layout(step, sorted(domains))


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


class _Events:
    """A new event file; in an object store several, each small enough to be uploaded again."""

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = epath.Path(folder)
        self._remote = is_remote(folder)
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

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.add(step, summary=Summary(value=scalars))
        self.flush()

    def add_images(self, step: int, tables: Tables, items: Sequence[ReportItem]) -> None:
        """Add the charts of a report by question, each with its sentence as the description."""
        from jaxllm.report import files

        for item, picture in files.pictures(tables, files.figures(items), scale=_IMAGE_SCALE):
            # A PNG states its width and height in the bytes 16 to 24.
            width, height = (str(int.from_bytes(picture[at : at + 4])) for at in (16, 20))
            group = "trajectories" if item.domain else item.question
            about = image_metadata.create_summary_metadata(item.title, item.sentence)
            content = [width.encode(), height.encode(), picture]
            self._add_tensor(step, f"{group}/{item.title}", about, content)
        self.flush()

    def add_layout(self, step: int, domains: Sequence[str]) -> None:
        """Add a custom-scalars layout with a chart per domain; TensorBoard uses the last one."""

        def charts(tags: Mapping[str, str]) -> list[dict[str, Any]]:
            return [{"title": name, "multiline": {"tag": [tag]}} for name, tag in tags.items()]

        tasks = {domain: f"^capability/{re.escape(domain)}/" for domain in domains}
        losses = {"by domain": "^train/loss(/|$)"}
        layout = layout_pb2.Layout(
            category=[
                {"title": "Capabilities", "chart": charts(tasks)},
                {"title": "Loss", "chart": charts(losses)},
            ]
        )
        about = layout_metadata.create_summary_metadata()
        tag, content = layout_metadata.CONFIG_SUMMARY_TAG, layout.SerializeToString()
        self._add_tensor(step, tag, about, content)

    def _add_tensor(self, step: int, tag: str, about: SummaryMetadata, content: Any) -> None:
        value = Summary.Value(tag=tag, metadata=about, tensor=make_tensor_proto(content))
        self.add(step, summary=Summary(value=[value]))
