"""Growing files in object stores, where a file can only be replaced."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from jaxllm import kvstore

UPLOAD_SECONDS = 60.0

guards: dict[str, Callable[[], bool]] = {}  # by directory; see `allowed`


def allowed(path: str | os.PathLike) -> bool:
    """Whether this process may write a file; False once it has lost the lease on its run."""
    return all(may() for at, may in [*guards.items()] if os.fspath(path).startswith(f"{at}/"))


class Upload:
    """The newest content of a file, uploaded in the background at most every `seconds`.

    A failed upload is repeated with the next one; only `flush` raises its error. One that is not
    `allowed` is dropped.
    """

    def __init__(self, path: str | os.PathLike, seconds: float = UPLOAD_SECONDS) -> None:
        self._path, self._seconds = path, seconds
        self._content: Callable[[], bytes] | None = None  # not yet uploaded
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()  # of the two above
        self._uploading = threading.Lock()

    def put(self, content: Callable[[], bytes]) -> None:
        """Replace the content, which is called when the upload begins."""
        with self._lock:
            self._content = content
            if self._timer is None:
                self._timer = threading.Timer(self._seconds, self._in_background)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Upload what is not yet uploaded; raise UserError if that fails."""
        with self._uploading:
            with self._lock:
                content, self._content = self._content, None
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
            try:
                if content is not None and allowed(self._path):
                    kvstore.write_file(self._path, content())
            except BaseException:
                with self._lock:
                    self._content = self._content or content
                raise

    def _in_background(self) -> None:
        try:
            self.flush()
        except Exception:
            with self._lock:
                content = self._content
            if content is not None:
                self.put(content)
