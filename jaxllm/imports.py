"""Imports that would otherwise talk."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from types import ModuleType


def import_quietly(module: str) -> ModuleType:
    """Imports what pulls TensorFlow in, without the log lines of its C++ part.

    They come before any setting of ours can stop them. If the import fails, they are shown.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            return importlib.import_module(module)
        except BaseException:
            log.seek(0)
            os.write(terminal, log.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
