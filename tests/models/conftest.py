"""Short sequences in several attention blocks and loss chunks, as long ones are computed."""

import pytest

from jaxllm.models import attention, scoring


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK_SIZE", 16)
    monkeypatch.setattr(scoring, "DEFAULT_CHUNK_TOKENS", 20)
