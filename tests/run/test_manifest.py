"""The manifest: what is known of each checkpoint."""

import dataclasses
from pathlib import Path

import pytest

from jaxllm.errors import UserError
from jaxllm.run.manifest import ManifestEntry
from jaxllm.run.run import Run

ENTRY = ManifestEntry(
    step=3, tokens=96, flops=1.5e9, learning_rate=1e-3, loss=2.25, data_position=12,
    dtype="float32", wall_time=1.0, wall_seconds=2.0, code_version="0", restarts=1,
    kind="scheduled",
)  # fmt: skip


def test_the_last_line_of_a_step_counts(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for changes in ({}, {"kind": "final"}, {"step": 7}):
        run.manifest_lines.append(vars(dataclasses.replace(ENTRY, **changes)))
    assert [(e.step, e.kind) for e in run.entries()] == [(3, "final"), (7, "scheduled")]
    run.manifest_lines.keep_until(3)
    assert [e.step for e in run.entries()] == [3]


def test_a_run_of_an_older_version_is_named(tmp_path: Path) -> None:
    row = dict(vars(ENTRY), code_version="0.0.9")
    del row["restarts"]
    Run(tmp_path).manifest_lines.append(row)
    with pytest.raises(UserError, match=r"no 'restarts' at step 3: an older version .*0\.0\.9"):
        Run(tmp_path).entries()
