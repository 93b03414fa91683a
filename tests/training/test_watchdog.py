"""A process that hangs shows where, and ends where it is asked to, whatever it is that hangs."""

import subprocess
import sys

PROGRAM = """
import ctypes, time
from jaxllm.training.watchdog import Watchdog

watchdog = Watchdog({seconds} / 60, exit={exit})

def stuck():
    ctypes.PyDLL(None).usleep(ctypes.c_uint({microseconds}))  # holds the interpreter's lock

{body}
print("went on", flush=True)
"""


def run(body: str, *, exit: bool, seconds: float = 0.5, microseconds: int = 1_500_000) -> tuple:
    program = PROGRAM.format(body=body, exit=exit, seconds=seconds, microseconds=microseconds)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_process_that_hangs_shows_its_stacks_and_goes_on() -> None:
    code, out, err = run("watchdog.heartbeat()\nstuck()\nwatchdog.close()", exit=False)
    assert (code, out) == (0, "went on\n")
    assert err.startswith("Timeout") and err.count("in stuck") >= 2, "it looks again"


def test_a_process_that_hangs_ends_where_it_is_asked_to() -> None:
    body = "watchdog.heartbeat()\nstuck()"
    code, out, err = run(body, exit=True, microseconds=50_000_000)
    assert (code, out) == (1, "")
    assert "in stuck" in err


def test_a_step_below_the_limit_raises_no_alarm() -> None:
    body = "watchdog._on_hang = lambda: print('hangs')\nwatchdog.heartbeat()\ntime.sleep(3.8)\n"
    assert run(body + "watchdog.pause()", exit=True, seconds=4.0) == (0, "went on\n", "")


def test_heartbeats_and_pauses_keep_it_quiet() -> None:
    body = "for _ in range(30):\n    watchdog.heartbeat()\n    time.sleep(0.1)\n"
    body += "watchdog.pause()\nstuck()"
    assert run(body, exit=True, seconds=1.0) == (0, "went on\n", "")
