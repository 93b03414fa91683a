"""Vega, Vega-Lite and Vega-Embed as one script: a second of work, which another process does."""

from __future__ import annotations

import functools
import subprocess
import sys

_BUNDLE = "import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())"


@functools.cache
def begin() -> subprocess.Popen[bytes]:
    """Starts the work, so that the script is there when the page is."""
    return subprocess.Popen(
        [sys.executable, "-c", _BUNDLE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


@functools.cache
def script() -> str:
    """The script.

    Raises:
      RuntimeError: it could not be made.
    """
    text, _ = begin().communicate()
    if begin().returncode:
        raise RuntimeError("vl_convert.javascript_bundle() failed")
    return text.decode()
