"""Corpora as SeqIO sources, tasks and mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from jaxllm.data.files import SPLITS, Corpus
from jaxllm.errors import UserError

# The vocabulary belongs to the run: here the feature is an untokenized string.
TEXT = {
    "text": seqio.Feature(
        seqio.PassThroughVocabulary(size=0), add_eos=False, dtype=tf.string, rank=0
    )
}


class CorpusSource(seqio.DataSource):
    """A SeqIO source over a `Corpus`, which is read in Python."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        super().__init__(splits=corpus.splits)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """A corpus has one shard."""
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        """One shard per split."""
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **_: object,
    ) -> tf.data.Dataset:
        """The documents in order; the loader shuffles sequences, not documents."""
        if shard_info and shard_info.num_shards > 1:
            raise ValueError("a corpus has one shard")

        def texts():  # type: ignore[no-untyped-def]
            for part in self.corpus.parts(split):
                for document in part.documents():
                    yield {"text": document["text"]}

        signature = {"text": tf.TensorSpec((), tf.string)}
        return tf.data.Dataset.from_generator(texts, output_signature=signature)


class NamedTfdsSource(seqio.TfdsDataSource):
    """A TFDS data set whose text is in `feature`."""

    def __init__(self, domain: str, data_set: str | Mapping[str, str], data_dir: str | None):
        settings = {"name": data_set} if isinstance(data_set, str) else dict(data_set)
        name = settings.pop("name", "")
        self.feature = settings.pop("text", "text")
        unknown = settings.keys() - SPLITS.keys()
        if ":" not in name or unknown:
            raise UserError(
                f"DataConfig.tfds: {domain} needs a `name` with a version, as c4/en:3.1.0, and"
                f" takes `text` and the splits {', '.join(SPLITS)}; it is {data_set}"
            )
        splits = {split: settings.get(split, split) for split in SPLITS}
        super().__init__(tfds_name=name, tfds_data_dir=data_dir, splits=splits)


def register(mixture: str, corpora: Mapping[str, Corpus], rates: Mapping[str, float]) -> None:
    """Register a task per corpus, and the mixture of those with a rate above 0."""
    for name, corpus in corpora.items():
        _replace_task(name, CorpusSource(corpus))
    _replace_mixture(mixture, rates)


def register_tfds(
    mixture: str, data_sets: Mapping[str, str | Mapping[str, str]], data_dir: str | None
) -> None:
    """Register TFDS data sets under their domains' names, and their mixture with equal rates."""
    for name, data_set in data_sets.items():
        source = NamedTfdsSource(name, data_set, data_dir)
        rename = seqio.map_over_dataset(lambda row, key=source.feature: {"text": row[key]})
        _replace_task(name, source, rename)
    _replace_mixture(mixture, dict.fromkeys(data_sets, 1.0))


def fingerprint_of(source: seqio.DataSource, split: str) -> str:
    """A string that changes with a corpus; for other sources, their plain-valued settings."""
    if isinstance(source, CorpusSource):
        return source.corpus.fingerprint(split)
    if isinstance(source, seqio.TfdsDataSource):
        loader = source.tfds_dataset
        feature = getattr(source, "feature", "")
        return f"tfds {loader.name} {loader._split_map} {feature}"
    settings = {
        key: value
        for key, value in sorted(vars(source).items())
        if isinstance(value, str | int | float | bool | tuple | dict | list | None)
    }
    return f"{type(source).__qualname__} {settings}"


def split_bytes(source: seqio.DataSource, split: str) -> int:
    """The size of a TFDS split in bytes; 0 for other sources."""
    if not isinstance(source, seqio.TfdsDataSource):
        return 0
    loader = source.tfds_dataset
    return loader.info.splits[loader._map_split(split)].num_bytes or 0


def _replace_task(name: str, source: seqio.DataSource, *preprocessors: Any) -> None:
    if name in seqio.TaskRegistry.names():
        if not isinstance(seqio.TaskRegistry.get(name).source, CorpusSource | NamedTfdsSource):
            raise UserError(f"corpus {name}: another SeqIO task has this name; rename the corpus")
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(name, source, preprocessors=list(preprocessors), output_features=TEXT)


def _replace_mixture(name: str, rates: Mapping[str, float]) -> None:
    if name in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(name)
    rates = {task: float(rate) for task, rate in rates.items() if rate}
    if rates:
        seqio.MixtureRegistry.add(name, sorted(rates.items()))
