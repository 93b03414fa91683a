"""What to score at a checkpoint, and with how much of the machine."""

from __future__ import annotations

import dataclasses

import gin

from jaxllm.errors import UserError


@gin.configurable
@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The evaluation of a run.

    Attributes:
      tasks: names of tasks in `evals/`; none switches evaluation off.
      data_dir: directory that the file names of tasks are relative to (EVAL_DIR).
      every: a run scores every so many of its scheduled checkpoints, and the last; 0 leaves them
        all to `python -m jaxllm.evaluate --follow`, on another machine perhaps.
      max_examples: at most so many examples of each task, always the same ones; None is all.
      rows_per_batch: sequences of the model's full context length scored at once. Batches of
        shorter rows hold as many tokens.
      shortest_row: rows of a quarter, a sixteenth, … of the context length are used for short
        examples, down to this many tokens. Every length is compiled once.
    """

    tasks: tuple[str, ...] = ()
    data_dir: str | None = None
    every: int = 1
    max_examples: int | None = None
    rows_per_batch: int = 8
    shortest_row: int = 128

    def __post_init__(self) -> None:
        if isinstance(self.tasks, str):
            raise UserError(f"EvalConfig.tasks = '{self.tasks}': write a tuple, ('{self.tasks}',)")
        object.__setattr__(self, "tasks", tuple(self.tasks or ()))
        for name in ("max_examples", "rows_per_batch", "shortest_row"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"EvalConfig.{name} = {value}: must be 1 or more")
        if self.every < 0:
            raise UserError(f"EvalConfig.every = {self.every}: must be 0 or more")
        if len(set(self.tasks)) < len(self.tasks):
            twice = next(t for t in self.tasks if self.tasks.count(t) > 1)
            raise UserError(f"EvalConfig.tasks names {twice} twice")
