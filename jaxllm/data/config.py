"""Gin-bindable configurations of the data: corpora, vocabulary, batches."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Literal

from jaxllm.configs import configurable
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
      bos_token, eos_token: tokens that begin and end a document, such as `<s>`, in place of those
        that the files at `path` name.
    """

    path: str | None = None
    size: int = 32_000
    bos_token: str | None = None
    eos_token: str | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.size < 512:
            raise UserError(
                f"VocabularyConfig.size = {self.size}: bytes and special tokens need 512 or more"
            )


@configurable
@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The corpora and batches of a run.

    Attributes:
      mixture_or_task_name: SeqIO task or mixture with a `text` feature: a domain of corpus_dir or
        tfds, the mixture `corpus_dir` or `tfds` of all of them, or one that `modules` register;
        empty for a model with unknown corpora.
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
      corpus_dir: directory of corpora, `<domain>/**/<file>`, local or a URL that fsspec knows
        (gs://, s3://, hf://): .jsonl, .json, .txt, .parquet and .arrow files, plain or compressed,
        with their split in the path (`jaxllm.data.files`).
      text_field: field of the text in these files, with dots for nested fields.
      tfds: domain -> TFDS data set with its version, such as `c4/en:3.1.0`; or a mapping with
        `name`, and optionally `text` (name of the text feature) and `train`, `validation`, `test`
        (TFDS slices for these splits, such as `train[1%:]`).
      tfds_data_dir: directory of TFDS data sets, local or gs://; None for TFDS's default.
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
    text_field: str = "text"
    tfds: Mapping[str, str | Mapping[str, str]] | None = None
    tfds_data_dir: str | None = None
    modules: tuple[str, ...] = ()
    vocabulary: VocabularyConfig = dataclasses.field(default_factory=lambda: VocabularyConfig())

    def __post_init__(self) -> None:
        if self.sequence_length < 2 or self.batch_size < 1:
            raise UserError("DataConfig: sequence_length needs 2 or more, batch_size 1 or more")
        if self.weights is not None:
            bad = {name: w for name, w in self.weights.items() if not w > 0}
            if bad or not self.weights:
                raise UserError(f"DataConfig.weights = {dict(self.weights)}: need shares above 0")

    @property
    def cache(self) -> str:
        """`cache_dir` with ~ and environment variables expanded."""
        return os.path.expandvars(os.path.expanduser(self.cache_dir))
