"""What to score at a checkpoint, and with how much of the machine."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxllm.configs import configurable
from jaxllm.errors import UserError

MODULES = ("jaxllm.evals",)


@configurable
@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The evaluation of a run.

    Attributes:
      tasks: names of tasks and mixtures (`python -m jaxllm.evaluate --list` shows them); none
        switches evaluation off.
      modules: Python modules or packages that declare tasks; add your own to jaxllm's.
      data_dir: directory that the file names of tasks are relative to (EVAL_DIR); None is
        the environment's JAXLLM_DATA_DIR.
      every: a run scores every so many of its scheduled checkpoints, and the last; 0 leaves them
        all to `python -m jaxllm.evaluate --follow`, on another machine perhaps.
      max_examples: at most so many examples of each task, always the same ones; None is all.
      max_mixture_examples: at most so many examples of each mixture in `tasks`, as many of each
        of its tasks (one at least); None is all.
      tokens_per_batch: tokens scored at once, rounded up to sequences of the model's full context
        length that the mesh divides.
      on_unrunnable: what becomes of tasks that are found before training to fail (no data, more
        new tokens than the context holds): 'refuse' ends the command, 'skip' goes on without.
      run_code: allows tasks that run the programs that the model writes (humaneval, mbpp). True:
        isolated, or not at all; 'unisolated': restricted by Python only, at the risk that they
        read and change your files and reach the network. See `jaxllm.evaluation.sandbox_child`.
      samples: programs that such a task asks for each problem; one is written greedily.
      temperature: that several samples are drawn with, from a nucleus of 0.95 (Chen et al. 2021
        take 0.2 for pass@1 and 0.8 for pass@100).
    """

    tasks: tuple[str, ...] = ()
    modules: tuple[str, ...] = MODULES
    data_dir: str | None = None
    every: int = 1
    max_examples: int | None = None
    max_mixture_examples: int | None = None
    tokens_per_batch: int = 16_384
    on_unrunnable: Literal["refuse", "skip"] = "refuse"
    run_code: bool | Literal["unisolated"] = False
    samples: int = 1
    temperature: float = 0.8

    def __post_init__(self) -> None:
        for name in ("max_examples", "max_mixture_examples", "tokens_per_batch", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"EvalConfig.{name} = {value}: must be 1 or more")
        if self.samples > 1 and not self.temperature > 0:
            raise UserError(
                f"EvalConfig.temperature = {self.temperature}: {self.samples} samples would be "
                "the same; raise it above 0"
            )
        if self.every < 0:
            raise UserError(f"EvalConfig.every = {self.every}: must be 0 or more")
        if len(set(self.tasks)) < len(self.tasks):
            twice = next(t for t in self.tasks if self.tasks.count(t) > 1)
            raise UserError(f"EvalConfig.tasks names {twice} twice")
