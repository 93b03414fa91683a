"""Places where files lie, as a user writes them."""

from __future__ import annotations

import os


def location(text: str) -> str:
    """A path with `~` filled in and without `file://`; other addresses, as gs://, stay.

    A prefix that says what lies there, as in `hf:~/model`, is kept.
    """
    prefix = "hf:" if text.startswith("hf:") else ""
    return prefix + os.path.expanduser(text.removeprefix(prefix).removeprefix("file://"))
