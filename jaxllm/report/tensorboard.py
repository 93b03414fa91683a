"""MODEL_DIR/tensorboard: the run as TensorBoard shows it while it is going.

    train/…                        what the loop logs
    capability/<domain>/<task>     the main metric of every task, a point per checkpoint
    evaluation/<task>/<metric>     its other metrics
    trajectories/<domain>          the report's trajectory charts as images
    health/…, now/…, ahead/…       its other charts, by the question that they answer; when the run
    early/…, sizes/…               has ended, or by `analyze --format tensorboard`

The custom-scalars dashboard overlays the tasks of each domain, and the domains' losses. Local
event files are written without TensorFlow, whose import takes longer than a small run's steps.
"""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from absl import logging
from etils import epath

from jaxllm.run.layout import Layout
from jaxllm.run.records import OK, Record

if TYPE_CHECKING:
    from jaxllm.report.figures import Figure
    from jaxllm.report.questions import Answer
    from jaxllm.report.tables import Tables

# Drawing the trajectory images may take this share of a run's wall time while it is going; the
# first time they are expected to take a few seconds.
_IMAGE_SCALE = 1.5
_IMAGE_TIME_SHARE, _FIRST_DRAWING_SECONDS = 0.01, 5.0


class TensorBoardWriter:
    """Writes metrics and records of one run as TensorBoard events.

    The first metrics of a process open a new session at their step, which tells TensorBoard to
    forget what an earlier process had logged from there on: the steps after the checkpoint that
    this process resumed from.
    """

    def __init__(self, model_dir: str | os.PathLike[str]):
        self._model_dir = model_dir
        self._events = _open_events(Layout(model_dir).tensorboard)
        self._in_session = False
        self._domains: set[str] = set()
        self._began = time.monotonic()
        self._drawing_seconds, self._next_drawing_seconds = 0.0, _FIRST_DRAWING_SECONDS

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes every number of `metrics` under train/."""
        from tensorboard.compat.proto import event_pb2

        if not self._in_session:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(step, session_log=start)
            self._in_session = True
        self._scalars(
            step,
            {
                f"train/{name}": float(value)
                for name, value in metrics.items()
                if isinstance(value, int | float) and name != "step"
            },
        )

    def write_records(self, step: int, records: Sequence[Record]) -> None:
        """Writes the scores of a checkpoint; a failed task leaves a gap, as in the report."""
        good = [r for r in records if r.status == OK and math.isfinite(r.value)]
        self._scalars(step, {_tag(record): record.value for record in good})
        new = {record.domain for record in good if record.primary} - self._domains
        if new:
            self._domains |= new
            self._write_layout(step)
        allowed = _IMAGE_TIME_SHARE * (time.monotonic() - self._began)
        if self._drawing_seconds + self._next_drawing_seconds <= allowed:
            try:
                self.write_figures(step)
            except Exception:  # a picture is never worth a run
                logging.exception("the trajectory images of step %d were not drawn", step)
                self._drawing_seconds = math.inf

    def write_figures(self, step: int) -> None:
        """Draws the trajectories of every domain, as far as they are stored, as images."""
        from jaxllm.report import figures, tables
        from jaxllm.run.run import Run

        if not Layout(self._model_dir).trajectory.exists():
            return
        began = time.monotonic()
        report = tables.gather([Run.open(self._model_dir)])
        drawn = [
            ("trajectories", figures.trajectories(domain, report, tasks))
            for domain, tasks in report.domains.items()
        ]
        for group, figure, content in figures.pictures(report, drawn, scale=_IMAGE_SCALE):
            self._add(step, summary=_image(group, figure, content))
        self._events.flush()
        self._next_drawing_seconds = time.monotonic() - began
        self._drawing_seconds += self._next_drawing_seconds

    def close(self) -> None:
        """Brings everything to the disk."""
        self._events.flush()
        self._events.close()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto import summary_pb2

        summary = summary_pb2.Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=value)
        self._add(step, summary=summary)
        self._events.flush()

    def _write_layout(self, step: int) -> None:
        """One overlaid chart per domain; the last layout written is the one that counts."""
        from tensorboard.compat.proto import summary_pb2
        from tensorboard.plugins.custom_scalar import layout_pb2, metadata
        from tensorboard.util import tensor_util

        def category(title: str, charts: Iterable[tuple[str, str]]) -> layout_pb2.Category:
            return layout_pb2.Category(
                title=title,
                chart=[
                    layout_pb2.Chart(
                        title=name, multiline=layout_pb2.MultilineChartContent(tag=[pattern])
                    )
                    for name, pattern in charts
                ],
            )

        domains = sorted(self._domains)
        layout = layout_pb2.Layout(
            category=[
                category("Capabilities", [(d, f"^capability/{re.escape(d)}/") for d in domains]),
                category("Loss", [("by domain", "^train/loss(/|$)")]),
            ]
        )
        summary = summary_pb2.Summary()
        summary.value.add(
            tag=metadata.CONFIG_SUMMARY_TAG,
            metadata=metadata.create_summary_metadata(),
            tensor=tensor_util.make_tensor_proto([layout.SerializeToString()], shape=[]),
        )
        self._add(step, summary=summary)

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto import event_pb2

        self._events.add_event(event_pb2.Event(wall_time=time.time(), step=step, **content))


def _tag(record: Record) -> str:
    if record.primary:
        return f"capability/{record.domain}/{record.task}"
    return f"evaluation/{record.task}/{record.metric}"


def write_report(folder: str | os.PathLike[str], report: Tables, found: Sequence[Answer]) -> None:
    """Writes every figure of a report as an image, at the step of the last checkpoint.

    Args:
      folder: The directory of the event file, local or `gs://`.
      report: The trajectories.
      found: The findings on them.
    """
    from tensorboard.compat.proto import event_pb2

    from jaxllm.report import figures

    step = int(report.points.step.max()) if len(report.points) else 0
    events = _open_events(epath.Path(folder))
    wanted = figures.every(report, found)
    for group, figure, content in figures.pictures(report, wanted, scale=_IMAGE_SCALE):
        summary = _image(group, figure, content)
        events.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
    events.close()


def _image(group: str, figure: Figure, picture: bytes) -> Any:
    """A figure as TensorBoard's summary of an image; its sentence is the description."""
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.image import metadata
    from tensorboard.util import tensor_util

    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    content = [str(width).encode(), str(height).encode(), picture]
    summary = summary_pb2.Summary()
    summary.value.add(
        tag=f"{group}/{figure.name}",
        metadata=metadata.create_summary_metadata(figure.name, figure.sentence),
        tensor=tensor_util.make_tensor_proto(content),
    )
    return summary


class _Events(Protocol):
    def add_event(self, event: Any) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def _open_events(folder: epath.Path) -> _Events:
    """A new event file: written here when local, by TensorFlow's file layer in object stores."""
    if "://" in str(folder):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        return EventFileWriter(str(folder))
    return _LocalEvents(folder)


class _LocalEvents:
    """An event file of length-prefixed records, as TensorBoard reads them."""

    def __init__(self, folder: epath.Path):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a run in the order of their names: that of their times.
        origin = f"{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / f"events.out.tfevents.{origin}").open("wb"))
        self.add_event(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_event(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()
