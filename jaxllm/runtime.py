"""SeqIO brings TensorFlow with it: it is imported late, silently, and kept off the accelerators."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType


def import_seqio() -> ModuleType:
    """`import seqio`, in a process whose accelerators belong to JAX. Takes 4 to 8 s once."""
    if "seqio" not in sys.modules:
        with _stderr_held_back():
            import seqio
            import tensorflow as tf

            tf.config.set_visible_devices([], "GPU")
    import seqio

    return seqio


@contextlib.contextmanager
def _stderr_held_back() -> Iterator[None]:
    """Drops what C++ code logs before any setting can stop it; shows it if something fails."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            log.seek(0)
            os.write(terminal, log.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
