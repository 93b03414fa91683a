"""Perplexity of a text with noise in it, as `noise_<kind>_<percent>_<text task>`.

`noise_replace_20_heldout_books` replaces 20 % of the tokens of each passage of `heldout_books` by
random ones; delete, insert and repeat are the other kinds (`jaxllm.evaluation.noise`). Of each
passage the first 100 tokens are taken, as in "Training Trajectories" (arXiv 2212.09803, 4.1). The
whole is scored as there, and the noise (`perplexity_noise`) apart from the text's own tokens that
follow some (`perplexity_after`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evaluation.registry import Registry
from jaxllm.evaluation.tasks import Document, Examples, TaskDefinition, perplexity

PREFIX = "noise_"
PATTERN = re.compile(PREFIX + r"((?:replace|delete|insert|repeat)_(?:[1-9]\d?|100))_(.+)")


def noisy(*files: epath.Path, examples: Examples, noise: str) -> Iterator[Document]:
    """Documents with noise."""
    for document in examples(*files):
        assert isinstance(document, Document)
        yield dataclasses.replace(document, noise=noise)


def declare(name: str, data_dir: epath.Path | None, registry: Registry) -> TaskDefinition:
    """Perplexity of a text task with replaced, deleted, inserted or repeated tokens."""
    if not (match := PATTERN.fullmatch(name)) or match[1] == "delete_100":
        raise UserError(
            f"no evaluation task is called {name}: write {PREFIX}<replace|delete|insert|repeat>_"
            "<percent>_<task>, such as noise_replace_20_heldout_books (delete leaves some)"
        )
    text, *others = registry.load([match[2]], data_dir)
    if others or text.kind != "perplexity":
        raise UserError(f"task {name}: {match[2]} is no task of texts, which noise is put into")
    read = functools.partial(noisy, examples=text.examples, noise=match[1])
    return perplexity(
        name, read, domain=text.domain, version=text.version, files=text.files,
        primary_metric="perplexity",
    )  # fmt: skip


FAMILIES = {PREFIX: declare}
