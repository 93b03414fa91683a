"""`python -m jaxllm.train` with a save of 30 seconds because of a signal."""

import time
from typing import Any

from jaxllm import cli, train
from jaxllm.run.checkpoints import CheckpointWriter

save = CheckpointWriter.save


def slow(self: CheckpointWriter, entry: Any, *args: Any) -> None:
    if entry.kind == "preempted":
        time.sleep(30)
    save(self, entry, *args)


if __name__ == "__main__":
    CheckpointWriter.save = slow  # type: ignore[method-assign]
    cli.run(train.main)
