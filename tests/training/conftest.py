"""These tests compile far more than they compute, and some train runs whose report nobody reads."""

from collections.abc import Iterator

import jax
import pytest

from jaxllm import train


@pytest.fixture(autouse=True, scope="package")
def quick_compilation() -> Iterator[None]:
    """Compiles in half the time, to slower programs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def no_report() -> Iterator[None]:
    """The runs of a module end without a report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "show", lambda *_, **__: None)
        yield
