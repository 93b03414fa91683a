"""Gin-bindable configurations of the data: corpora, vocabulary, batches."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Literal

from jaxllm.configs import PositiveFloat, checked, configurable
from jaxllm.errors import UserError

BYTES = "bytes"


@configurable
@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """The vocabulary of a run: how text becomes token ids.

    Attributes:
      path: local or gs:// path of a SentencePiece model, a tokenizer.json, or the directory of a
        published model, with special tokens from the JSON files beside it; `bytes` for UTF-8 bytes
        with ByT5's ids and a BOS. None trains a SentencePiece model on the run's corpora.
      size: tokens of a trained vocabulary.
      special_tokens: tokens that begin and end a document, in place of those that the files at
        `path` name: {'bos_token': '<s>', 'eos_token': '</s>'}, or one of the two.
    """

    path: str | None = None
    size: int = 32_000
    special_tokens: Mapping[Literal["bos_token", "eos_token"], str] = dataclasses.field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        if self.path is None and self.size < 512:
            raise UserError(
                f"VocabularyConfig.size = {self.size}: bytes and special tokens need 512 or more"
            )


@checked
@dataclasses.dataclass(frozen=True)
class Source:
    """Documents of a domain.

    Attributes:
      path: a directory, a file, or a pattern of files (`*`, `?`, `[ab]`, `**` for folders of any
        depth), relative to DataConfig.corpus_dir; or `tfds:` and a TFDS data set with its version.
      text: field of the text, with dots for nested fields (TFDS: name of the feature); empty where
        the records of ArrayRecord are the text.
      weight: share of the domain's sequences that come from here (any positive scale).
    """

    path: str = ""
    text: str = "text"
    weight: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("DataConfig.corpora: a source needs a `path`")
        if self.path.startswith("tfds:") and ":" not in self.tfds:
            raise UserError(f"DataConfig.corpora: {self.path} has no version, as tfds:c4/en:3.1.0")

    @property
    def tfds(self) -> str:
        """The TFDS data set; empty for files."""
        return self.path[5:] if self.path.startswith("tfds:") else ""


@configurable
@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The corpora and batches of a run.

    Attributes:
      mixture_or_task_name: SeqIO task or mixture with a `text` feature: `corpora`, the mixture of
        all domains in corpus_dir or `corpora`, one of these domains, or one that `modules`
        register; empty for a model with unknown corpora.
      sequence_length: tokens per sequence.
      batch_size: sequences per global batch, over all hosts.
      weights: domain -> share of the sequences (any positive scale), in place of the mixture's
        rates. Domains without a weight are not read.
      layout: `concat` splits the concatenated documents into sequences, with attention across
        documents, as OpenLLaMA did; `concat_masked` does so without attention across documents;
        `pack` packs whole documents (split only if longer than a sequence), without attention
        across them.
      seed: seed of the order of sequences and the interleaving of domains.
      cache_dir: directory of prepared corpora and trained vocabularies, local, gs:// or s3://; one
        that all hosts see.
      corpus_dir: directory of text, local or a URL that fsspec knows (gs://, s3://, hf://datasets/):
        each directory in it is a domain, unless `corpora` names them. Also TFDS's data_dir.
      corpora: domain -> its documents: a path or pattern; or a mapping with `path`, `text` and
        `weight` (see `Source`); or a list of several of these. Files are .jsonl, .json, .txt,
        .parquet, .arrow and .array_record, plain or compressed, with their split in the path
        (`jaxllm.data.files`).
      modules: Python modules that register further SeqIO tasks, on import or in a function
        `register()`; the quickstart's corpora are in `jaxllm.evals.probes.corpora`.
      vocabulary: how the text is tokenized.
    """

    mixture_or_task_name: str = ""
    sequence_length: int = 512
    batch_size: int = 8
    weights: Mapping[str, float] | None = None
    layout: Literal["concat", "concat_masked", "pack"] = "concat"
    seed: int = 0
    cache_dir: str = "~/.cache/jaxllm"
    corpus_dir: str | None = None
    corpora: Mapping[str, str | Source | tuple[str | Source, ...]] | None = None
    modules: tuple[str, ...] = ()
    vocabulary: VocabularyConfig = dataclasses.field(default_factory=lambda: VocabularyConfig())

    def __post_init__(self) -> None:
        if self.sequence_length < 2 or self.batch_size < 1:
            raise UserError("DataConfig: sequence_length needs 2 or more, batch_size 1 or more")
        if self.weights is not None:
            bad = {name: w for name, w in self.weights.items() if not w > 0}
            if bad or not self.weights:
                raise UserError(f"DataConfig.weights = {dict(self.weights)}: need shares above 0")
        if self.corpora is not None and not (self.corpora and all(self.sources.values())):
            raise UserError("DataConfig.corpora: each domain needs a source")

    @property
    def sources(self) -> dict[str, tuple[Source, ...]]:
        """The sources of the domains in `corpora`."""
        listed = {d: s if isinstance(s, tuple) else (s,) for d, s in (self.corpora or {}).items()}
        as_source = lambda s: s if isinstance(s, Source) else Source(s)
        return {domain: tuple(map(as_source, sources)) for domain, sources in listed.items()}

    @property
    def cache(self) -> str:
        """`cache_dir` with ~ and environment variables expanded."""
        return os.path.expandvars(os.path.expanduser(self.cache_dir))
