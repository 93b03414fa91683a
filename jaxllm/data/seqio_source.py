"""Corpora as SeqIO sources, tasks and mixtures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import seqio
import tensorflow as tf

from jaxllm.data.config import Source
from jaxllm.data.files import SPLITS, Corpus
from jaxllm.data.held_out import HELD_OUT
from jaxllm.errors import UserError, first_line

# The vocabulary belongs to the run: here the feature is an untokenized string.
_STRING = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)
TEXT = {"text": _STRING}
HELD_OUT_EXAMPLES = 10_000  # of TFDS, at most


class CorpusSource(seqio.FunctionDataSource):
    """A SeqIO source over a `Corpus`, which is read in Python: a `share` of `domain`.

    Documents come in order: the loader shuffles sequences.
    """

    def __init__(self, corpus: Corpus, domain: str, share: float = 1.0) -> None:
        self.corpus, self.domain, self.share = corpus, domain, share

        def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
            del shuffle_files, seed
            parts = corpus.parts(split)
            texts = lambda: ({"text": d["text"]} for part in parts for d in part.documents())
            signature = {"text": tf.TensorSpec((), tf.string)}
            return tf.data.Dataset.from_generator(texts, output_signature=signature)

        super().__init__(dataset, splits=corpus.splits)


class NamedTfdsSource(seqio.TfdsDataSource):
    """A TFDS data set, a `share` of `domain`; without a validation split, one is held out."""

    def __init__(self, source: Source, domain: str, share: float, data_dir: str | None) -> None:
        self.domain, self.share, self.text = domain, share, source.text
        self.notes: list[str] = []
        super().__init__(tfds_name=source.tfds, tfds_data_dir=data_dir)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the data set, which is opened here."""
        loader = self.tfds_dataset
        try:
            found = loader.info.splits
        except Exception as error:  # TFDS has many, for names, versions, directories, permissions
            raise UserError(f"tfds:{loader.name} cannot be opened ({first_line(error)})") from error
        if not found:
            raise UserError(f"tfds:{loader.name} is not prepared: `tfds build` prepares it")
        if getattr(loader.info.file_format, "value", "") == "array_record":
            raise UserError(
                f"tfds:{loader.name} is prepared as ArrayRecord, which TFDS does not stream: name"
                f" its files in place of it, {loader.info.data_dir}/*array_record*"
            )
        if loader._split_map is None:
            loader._split_map = {split: split for split in SPLITS if split in found}
            if set(loader._split_map) & {"train", "validation"} == {"train"}:
                count = min(int(found["train"].num_examples * HELD_OUT), HELD_OUT_EXAMPLES)
                loader._split_map |= {"train": f"train[{count}:]", "validation": f"train[:{count}]"}
                self.notes = [f"no validation split: the first {count:,} documents are held out"]
        return tuple(loader._split_map)

    def size(self, split: str) -> int:
        """See `Corpus`."""
        if split not in self.splits:
            return 0
        loader = self.tfds_dataset
        return loader.info.splits[loader._map_split(split)].num_bytes or 0

    def fingerprint(self, split: str) -> str:
        """See `Corpus`; the names of the data set and its slices."""
        del split
        return f"tfds {self.tfds_dataset.name} {self.splits and self.tfds_dataset._split_map}"


def register(
    mixture: str,
    sources: Mapping[str, CorpusSource | NamedTfdsSource],
    rates: Mapping[str, float | Callable[[Any], float]],
) -> None:
    """Register a task per source, in place of those for the same domains, and their mixture.

    UserError if SeqIO allows no such name, or another task has it.
    """
    domains = {source.domain for source in sources.values()}
    for name in list(seqio.TaskRegistry.names()):
        old = seqio.TaskRegistry.get(name).source
        if isinstance(old, CorpusSource | NamedTfdsSource) and old.domain in domains:
            seqio.TaskRegistry.remove(name)
    for name, source in sources.items():
        if name in seqio.TaskRegistry.names():
            raise UserError(f"corpus {name}: another SeqIO task has this name; rename the corpus")
        text = getattr(source, "text", "text")
        rename = seqio.map_over_dataset(lambda row, key=text: {"text": row[key]})
        preprocessors = [rename] if isinstance(source, NamedTfdsSource) else []
        try:
            seqio.TaskRegistry.add(name, source, preprocessors=preprocessors, output_features=TEXT)
        except ValueError as error:
            raise UserError(
                f"corpus {name}: a name has letters, digits and _ only: DataConfig.corpora names it"
            ) from error
    if mixture in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(mixture)
    if rates:
        seqio.MixtureRegistry.add(mixture, sorted(rates.items()))


def corpus_of(source: seqio.DataSource) -> Any:
    """What has a source's size, fingerprint and notes, if anything has."""
    return getattr(source, "corpus", source)


def fingerprint_of(source: seqio.DataSource, split: str) -> str:
    """A string that changes with a corpus; for users' sources, their plain-valued settings."""
    if isinstance(source, CorpusSource | NamedTfdsSource):
        return corpus_of(source).fingerprint(split)
    if isinstance(source, seqio.TfdsDataSource):
        return f"tfds {source.tfds_dataset.name} {source.tfds_dataset._split_map}"
    settings = {
        key: value
        for key, value in sorted(vars(source).items())
        if isinstance(value, str | int | float | bool | tuple | dict | list | None)
    }
    return f"{type(source).__qualname__} {settings}"
