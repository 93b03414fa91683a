"""What a run reads, and how: the gin-bindable configurations of the data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from jaxllm.configs import configurable
from jaxllm.errors import UserError

LAYOUTS = ("concat", "concat_masked", "pack")
VOCABULARY_KINDS = ("sentencepiece", "huggingface", "bytes")


@configurable
@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """How text becomes token ids.

    Attributes:
      kind: `sentencepiece`; `huggingface`, the tokenizer of a published model; or `bytes` (UTF-8
        bytes as in ByT5, and a BOS).
      path: local or gs://: a SentencePiece model file, a tokenizer.json, or the directory of a
        published model. Special tokens are those that the JSON files beside it name. Without a
        path, a SentencePiece model is trained on the run's corpora and kept in the cache.
      size: tokens in a vocabulary that is trained here.
      bos_token, eos_token: what begins and ends a document, as `<s>`, where the files at `path`
        name no token for it or another one.
    """

    kind: str = "sentencepiece"
    path: str | None = None
    size: int = 32_000
    bos_token: str | None = None
    eos_token: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in VOCABULARY_KINDS:
            raise UserError(f"VocabularyConfig.kind = {self.kind!r}: one of {VOCABULARY_KINDS}")
        if self.kind == "huggingface" and self.path is None:
            raise UserError("VocabularyConfig.path is not set: kind huggingface needs a directory")
        if self.kind == "sentencepiece" and self.path is None and self.size < 512:
            raise UserError(
                f"VocabularyConfig.size = {self.size}: bytes and special tokens need 512 or more"
            )


@configurable
@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The corpora of a run and the batches that are made of them.

    Attributes:
      mixture_or_task_name: a SeqIO mixture or task with a `text` feature: a domain under
        corpus_dir, of `tfds` or of `modules`, or the mixtures `corpus_dir` and `tfds` of them;
        empty for a model whose corpora are not known.
      sequence_length: tokens of a sequence.
      batch_size: sequences of a global batch, over all hosts.
      weights: domain -> share of the sequences (any positive scale), in place of the mixture's
        rates. Domains that it does not name are not read.
      layout: `concat` chunks the concatenated documents, and a sequence attends across them, as
        OpenLLaMA did; `concat_masked` does the same without attention across documents; `pack`
        puts complete documents into sequences as far as they fit, without attention across them.
      seed: order of documents, sequences and domains.
      cache_dir: where prepared corpora and trained vocabularies are kept (a local directory).
      corpus_dir: a directory of corpora, `<domain>/[<source>/]{train,valid,test}*.<suffix>` with
        .jsonl or .txt files, plain, .gz or .zst. An unsplit file counts as train.
      tfds: domain -> TFDS data set with its version, as `c4/en:3.1.0`; or a mapping with `name`,
        and as needed `text` (the name of the text feature) and `train`, `validation`, `test` (the
        TFDS slices that serve as these splits, as `train[1%:]`).
      tfds_data_dir: where TFDS data sets lie, local or gs://; None for TFDS's own default.
      modules: Python modules that register further SeqIO tasks, when imported or in a function
        `register()`; the quickstart's corpora are in `jaxllm.evals.probes.corpora`.
      vocabulary: how the text is tokenized.
    """

    mixture_or_task_name: str = ""
    sequence_length: int = 512
    batch_size: int = 8
    weights: Mapping[str, float] | None = None
    layout: str = "concat"
    seed: int = 0
    cache_dir: str = "~/.cache/jaxllm"
    corpus_dir: str | None = None
    tfds: Mapping[str, str | Mapping[str, str]] | None = None
    tfds_data_dir: str | None = None
    modules: tuple[str, ...] = ()
    vocabulary: VocabularyConfig = dataclasses.field(default_factory=lambda: VocabularyConfig())

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UserError(f"DataConfig.layout = {self.layout!r}: one of {LAYOUTS}")
        if self.sequence_length < 2 or self.batch_size < 1:
            raise UserError("DataConfig: sequence_length needs 2 or more, batch_size 1 or more")
        if self.weights is not None:
            bad = {name: w for name, w in self.weights.items() if not w > 0}
            if bad or not self.weights:
                raise UserError(f"DataConfig.weights = {dict(self.weights)}: need shares above 0")
        if "://" in self.cache_dir:
            raise UserError(f"DataConfig.cache_dir = {self.cache_dir}: needs a local directory")

    @property
    def cache(self) -> str:
        """`cache_dir` with ~ and variables filled in."""
        return os.path.expandvars(os.path.expanduser(self.cache_dir))
