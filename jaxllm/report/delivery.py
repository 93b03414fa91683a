"""Delivery of alarms to a command and a webhook, which neither delays nor outlives a run."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import shlex
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from jaxllm.configs import configurable
from jaxllm.errors import UserError, first_line
from jaxllm.io import finite

PAUSES = (2.0, 10.0, 60.0)  # seconds between two tries
GRACE = 10.0  # seconds that messages have which are left when the run ends


@configurable
@dataclasses.dataclass(frozen=True)
class AlarmConfig:
    """Where alarms go besides the terminal and alarms.jsonl; not taken from a run directory.

    Attributes:
      command: run for each alarm and all-clear, which it reads as JSON from its standard input:
        'python notify.py'. No shell: write 'sh -c "…"' for one.
      url: each is posted there as JSON, whose `text` chat services show. `$NAME` is a variable of
        the environment, so that a secret address is not in config.gin.
    """

    command: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if self.url is not None and not self.url.startswith(("http://", "https://", "$")):
            raise UserError(f"AlarmConfig.url = {self.url!r}: write https://… or $NAME")


class Delivery:
    """A thread that delivers messages in order; `say` is told of what could not be delivered."""

    def __init__(self, name: str, way: Callable[[bytes], None], say: Callable[[str], None]) -> None:
        self._name, self._way, self._say = name, way, say
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Deliver a message soon."""
        self._queue.put(json.dumps(finite(message)).encode())

    def close(self) -> None:
        """Wait up to `GRACE` seconds for what is left."""
        self._queue.put(None)
        self._closing.set()
        self._thread.join(GRACE)

    def _work(self) -> None:
        while (message := self._queue.get()) is not None:
            for pause in (*PAUSES, None):
                try:
                    self._way(message)
                    break
                except Exception as error:
                    if pause is None:
                        self._say(f"{self._name}: no alarm was delivered: {first_line(error)}")
                    elif self._closing.wait(pause):
                        time.sleep(0.1)


def deliveries(config: AlarmConfig, say: Callable[[str], None]) -> list[Delivery]:
    """One for the command and one for the URL, where there are."""

    def run(message: bytes) -> None:  # in a session of its own, which Ctrl-C does not end
        subprocess.run(
            shlex.split(config.command or ""), input=message, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=30, check=True, start_new_session=True,
        )  # fmt: skip

    def post(message: bytes) -> None:
        about = {"Content-Type": "application/json", "User-Agent": "jaxllm"}
        request = urllib.request.Request(os.path.expandvars(config.url or ""), message, about)
        if request.type not in ("http", "https"):
            raise ValueError("its address is not one of http or https")
        urllib.request.urlopen(request, timeout=10).close()

    ways = {"command": run, "url": post}
    of = {name: way for name, way in ways.items() if getattr(config, name) is not None}
    return [Delivery(f"AlarmConfig.{name}", way, say) for name, way in of.items()]
