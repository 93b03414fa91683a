"""`python -m jaxllm.train` on a disk that takes 50 ms to flush, rename or remove."""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

from jaxllm import cli, train


def slow(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def later(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.05)
        return call(*args, **kwargs)

    return later


if __name__ == "__main__":
    for name in ("fsync", "rename", "replace", "remove", "rmdir"):
        setattr(os, name, slow(getattr(os, name)))
    cli.run(train.main)
