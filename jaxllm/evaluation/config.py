"""The evaluation settings of a run: tasks, limits, batch size, code execution."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from jaxllm.configs import NonNegativeInt, PositiveInt, configurable
from jaxllm.errors import UserError

MODULES = ("jaxllm.evals",)
TOKEN_SET = re.compile(r"(.+):([1-9]\d*)x([1-9]\d*)")  # a task, documents, tokens of each


@configurable
@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The evaluation of a run.

    Attributes:
      tasks: names of tasks and mixtures (`python -m jaxllm.evaluate --list` shows them); empty
        disables evaluation.
      token_sets: tasks of held-out text of which the loss of each token is stored at every scored
        checkpoint: 'heldout_books', or 'heldout_books:200x1024' for 200 documents (at random) and
        at most 1024 tokens of each (default: 50x2048); see `Run.token_losses`.
      modules: Python modules or packages that declare tasks; add your own to jaxllm's.
      data_dir: directory of the benchmark files (EVAL_DIR); None reads the environment variable
        JAXLLM_DATA_DIR.
      every: the run scores every N-th scheduled checkpoint, and the last; 0 scores none, and
        leaves them to `python -m jaxllm.evaluate --follow`, which may run on another machine.
      max_examples: maximum number of examples of each task, a fixed random subset; None is all.
      tokens_per_batch: tokens in a device batch, rounded up to a number of full-context sequences
        that is divisible by the mesh.
      on_unrunnable: treatment of tasks that fail the check before training (no data, more new
        tokens than the context length): 'refuse' raises an error, 'skip' omits them.
      run_code: whether tasks may execute programs that the model generates (humaneval, mbpp).
        True: only in isolation; 'unisolated': restricted by Python only, at the risk that they
        read and change your files and reach the network. See `jaxllm.evaluation.sandbox_child`.
      samples: programs generated per problem of such a task; a single one is decoded greedily.
      temperature: sampling temperature where samples > 1, with top-p 0.95 (Chen et al. 2021 use
        0.2 for pass@1 and 0.8 for pass@100).
    """

    tasks: tuple[str, ...] = ()
    token_sets: tuple[str, ...] = ()
    modules: tuple[str, ...] = MODULES
    data_dir: str | None = None
    every: NonNegativeInt = 1
    max_examples: PositiveInt | None = None
    tokens_per_batch: PositiveInt = 16_384
    on_unrunnable: Literal["refuse", "skip"] = "refuse"
    run_code: bool | Literal["unisolated"] = False
    samples: PositiveInt = 1
    temperature: float = 0.8

    def __post_init__(self) -> None:
        if self.samples > 1 and not self.temperature > 0:
            raise UserError(
                f"EvalConfig.temperature = {self.temperature}: {self.samples} samples would be "
                "the same; raise it above 0"
            )
        if repeated := [name for name in self.names if self.names.count(name) > 1]:
            raise UserError(f"EvalConfig names {repeated[0]} twice")

    @property
    def names(self) -> tuple[str, ...]:
        """Tasks, mixtures and token sets, with their sizes; `tasks` may have some of these, too."""
        sized = (s if TOKEN_SET.fullmatch(s) else f"{s}:50x2048" for s in self.token_sets)
        return (*self.tasks, *sized)

    def due(self, scheduled: Sequence[int]) -> tuple[int, ...]:
        """The scheduled checkpoints to score: every `every`-th, and the last."""
        return tuple(sorted({*scheduled[:: self.every], *scheduled[-1:]})) if self.every else ()
