"""Delivery of alarms to a command and a webhook, which neither delays nor outlives a run."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import re
import shlex
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxllm.configs import configurable
from jaxllm.errors import UserError, first_line
from jaxllm.io import finite

PAUSES = (2.0, 10.0, 60.0)  # seconds between two tries
GRACE = 10.0  # seconds that all messages have which are left when the run ends


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
        if not re.fullmatch(r"https?://\S+", os.path.expandvars(self.url or "https://…")):
            raise UserError(f"AlarmConfig.url = {self.url!r}: write https://…, or $NAME of one")


class Delivery:
    """A thread that delivers messages in order; `say` is told of what could not be delivered."""

    def __init__(self, name: str, way: Callable[[bytes], None], say: Callable[[str], None]) -> None:
        self._name, self._way, self._say = name, way, say
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Deliver a message soon."""
        self._queue.put(json.dumps(finite(message)).encode())

    def close(self) -> None:
        """End after what is left, without pauses."""
        self._queue.put(None)
        self._closing.set()

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


def close_all(opened: Iterable[Delivery]) -> None:
    """Wait up to `GRACE` seconds for what is left in all."""
    for one in opened:
        one.close()
    end = time.monotonic() + GRACE
    for one in opened:
        one.thread.join(max(0.0, end - time.monotonic()))


def deliveries(config: AlarmConfig, say: Callable[[str], None]) -> list[Delivery]:
    """One for the command and one for the URL, where there are."""

    def command(message: bytes) -> None:  # in a session of its own, which Ctrl-C does not end
        subprocess.run(
            shlex.split(config.command or ""), input=message, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=30, check=True, start_new_session=True,
        )  # fmt: skip

    def url(message: bytes) -> None:
        about = {"Content-Type": "application/json", "User-Agent": "jaxllm"}
        request = urllib.request.Request(os.path.expandvars(config.url or ""), message, about)
        urllib.request.urlopen(request, timeout=10).close()

    set_ = [way for way in (command, url) if getattr(config, way.__name__)]
    return [Delivery(f"AlarmConfig.{way.__name__}", way, say) for way in set_]
