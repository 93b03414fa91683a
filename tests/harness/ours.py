"""The same tasks scored by jaxllm, from the same directory."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import jax
import pandas as pd

from jaxllm.data import vocabularies
from jaxllm.evaluation import selection
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.evaluator import Evaluator
from jaxllm.interop import huggingface
from jaxllm.run.records import Record, RunInfo
from jaxllm.run.trajectory import TrajectoryStore
from jaxllm.sharding.mesh import MeshConfig, make_mesh


class Scored:
    """An evaluator on one device, and what it found.

    `config.max_examples` takes the first examples here, as the harness' limit does.
    """

    def __init__(self, directory: Path, work: Path, config: EvalConfig, max_length: int):
        mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
        self.model, self.params = huggingface.load(directory, mesh)
        assert self.model.max_length == max_length
        self.store = TrajectoryStore(work)
        self.evaluator = Evaluator(
            config, self.model, vocabularies.from_directory(directory), mesh, self.store,
            RunInfo(run="parity", family="llama", params=self.model.num_params),
        )  # fmt: skip

    def evaluate(self) -> list[Record]:
        """The records of all tasks."""
        with mock.patch.object(selection, "_subset", lambda examples, limit: examples[:limit]):
            return self.evaluator.evaluate(self.params, step=1, tokens=1, flops=1.0)

    def examples(self, task: str) -> pd.DataFrame:
        """The rows of a task's examples, in their order."""
        return pd.read_parquet(self.store.path / "1" / f"{task}.examples.parquet")

    def evaluate_by_task(self) -> dict[str, tuple[dict[str, float], pd.DataFrame]]:
        """For each task as it was asked for, its metrics and its rows of examples."""
        found = {}
        for name in self.evaluator.definitions:
            with mock.patch.object(selection, "_subset", lambda examples, limit: examples[:limit]):
                records = self.evaluator.evaluate(
                    self.params, step=1, tokens=1, flops=1.0, tasks=(name,)
                )
            assert records[0].status == "ok", records[0].status
            found[name] = {r.metric: r.value for r in records}, self.examples(name)
        return found
