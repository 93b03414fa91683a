"""Some of these tests train runs whose report nobody reads."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def no_report() -> Iterator[None]:
    """The runs of a module end without a report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxllm.report.terminal.show_run", lambda *_, **__: None)
        yield
