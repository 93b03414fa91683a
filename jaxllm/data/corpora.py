"""The corpora of a run, as SeqIO tasks and mixtures of untokenized text.

A corpus task has one feature, the string `text`; the vocabulary belongs to the run, so tokenizing
happens in `prepare`. Besides the tasks that DataConfig.modules register
(`jaxllm.evals.probes.corpora` registers the quickstart's), tasks are created here for

    the directories under DataConfig.corpus_dir       mixture `corpus_dir`, rates by bytes
    the TFDS data sets of DataConfig.tfds             mixture `tfds`, equal rates

Splits are `train`, `validation` and `test`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from jaxllm.data.config import DataConfig
from jaxllm.data.files import Part, directory_corpora
from jaxllm.data.formats import BadLine, Document, OnError, Reading
from jaxllm.errors import UserError, nearest
from jaxllm.runtime import import_seqio


def resolve(config: DataConfig) -> dict[str, float]:
    """Register the corpora of `config`, and resolve the domains of its mixture or task.

    Returns:
      domain -> share of the sequences, sorted by domain; the shares sum to 1.

    Raises:
      UserError: an unknown mixture, task or domain, with the nearest names.
    """
    name = config.mixture_or_task_name
    if not name:
        raise UserError("DataConfig.mixture_or_task_name is not set: name a corpus to read")
    for mixture, setting in (("corpus_dir", config.corpus_dir), ("tfds", config.tfds)):
        if name == mixture and not setting:
            raise UserError(f"the mixture {mixture} needs DataConfig.{mixture}")
    register(config)
    seqio = import_seqio()
    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if name not in known:
        raise UserError(f"no mixture or task {name}{nearest(name, known)}")
    provider = seqio.get_mixture_or_task(name)
    if isinstance(provider, seqio.Mixture):
        rates = {task.name: float(provider.get_rate(task)) for task in provider.tasks}
    else:
        rates = {name: 1.0}
    if config.weights is not None:
        for domain in (d for d in config.weights if d not in rates):
            raise UserError(
                f"DataConfig.weights names {domain}, which {name} does not have"
                f"{nearest(domain, rates)}; it has {', '.join(sorted(rates))}"
            )
        rates = {domain: float(weight) for domain, weight in config.weights.items()}
    for domain in rates:
        if "text" not in seqio.TaskRegistry.get(domain).output_features:
            raise UserError(f"task {domain} has no feature `text`: it is not a corpus")
    total = sum(rates.values())
    return {domain: rates[domain] / total for domain in sorted(rates)}


def register(config: DataConfig) -> None:
    """Register the corpora of `config`, replacing those of the same name."""
    import_seqio()
    from jaxllm.data import seqio_source

    for module in config.modules:
        try:
            imported = importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"DataConfig.modules: cannot import {module} ({error})") from error
        getattr(imported, "register", lambda: None)()
    if config.tfds:
        seqio_source.register_tfds("tfds", config.tfds, config.tfds_data_dir)
    if config.corpus_dir is not None:
        corpora = directory_corpora(config.corpus_dir, config.text_field)
        rates = {name: corpus.size("train") for name, corpus in corpora.items()}
        seqio_source.register("corpus_dir", corpora, rates)


def register_if_unknown(task: str) -> None:
    """Register the corpora of the configured run unless `task` is registered.

    Commands that do not train need the corpora only for tasks that are scored on them.
    """
    if task not in import_seqio().TaskRegistry.names():
        register(DataConfig())


def documents(task: str, split: str, on_error: OnError | None = None) -> Iterator[Document]:
    """The documents of a registered corpus task in order, as dicts with `text` and `id`.

    Raises:
      UserError: the task is unknown or lacks the split.
    """
    for part in parts(task, split):
        yield from part.documents(on_error)


def parts(task: str, split: str, config: DataConfig | None = None) -> Sequence[Part]:
    """The parts of a registered corpus task in order.

    A `CorpusSource` without preprocessors is read directly, for the reader's error messages; the
    documents are those of its `get_dataset`. Any other task goes through SeqIO, shard by shard.

    Args:
      config: what `register` needs in another process; not needed to read the parts in this one.

    Raises:
      UserError: the task is unknown or lacks the split.
    """
    from jaxllm.data.seqio_source import CorpusSource, split_bytes

    provider = _task(task, split)
    if isinstance(provider.source, CorpusSource) and not provider.preprocessors:
        return provider.source.corpus.parts(split)
    count = max(1, len(provider.source.list_shards(split)))
    size = split_bytes(provider.source, split) // count
    return [TaskPart(task, split, shard, count, size, config) for shard in range(count)]


def files_left_out(task: str, split: str) -> dict[str, int]:
    """The number of files of a corpus task that are not read, by their kind."""
    return dict(getattr(getattr(_task(task, split).source, "corpus", None), "left_out", {}))


@dataclasses.dataclass(frozen=True)
class TaskPart:
    """A shard of a SeqIO task, as a `Part`."""

    task: str
    split: str
    shard: int
    count: int
    size: int
    config: DataConfig | None

    @property
    def file(self) -> str:
        """A name for messages."""
        return f"{self.task} {self.split} shard {self.shard} of {self.count}"

    @property
    def key(self) -> str:
        """See `Part`."""
        held = (fingerprint(self.task, self.split), self.shard, self.count)
        return hashlib.sha256(repr(held).encode()).hexdigest()[:16]

    def documents(self, on_error: OnError | None = None) -> Reading:
        """See `Part`."""
        seqio = import_seqio()
        if self.config and self.task not in seqio.TaskRegistry.names():
            register(self.config)
        shard = seqio.ShardInfo(self.shard, self.count) if self.count > 1 else None
        dataset = _task(self.task, self.split).get_dataset(
            None, self.split, shuffle=False, shard_info=shard
        )
        number = 0
        for number, row in enumerate(dataset.as_numpy_iterator(), 1):
            try:
                text = bytes(row["text"]).decode()
            except UnicodeDecodeError as error:
                bad = BadLine(number, f"invalid UTF-8 at byte {error.start}")
                if on_error is None:
                    raise UserError(f"{self.file}:{bad.line}: {bad.reason}") from error
                on_error(bad)
            else:
                yield {"text": text, "id": f"{self.task}:{self.split}:{self.shard}:{number - 1}"}
        return number


def fingerprint(task: str, split: str) -> str:
    """A hash that changes with the documents of a task's split.

    Unless the source is a `CorpusSource`, it covers the source's settings and the preprocessors'
    code, not the data: a data set that changes under the same name needs a new cache directory.
    """
    from jaxllm.data.seqio_source import fingerprint_of

    provider = _task(task, split)
    parts = [task, split, fingerprint_of(provider.source, split)]
    parts += [_code(function) for function in provider.preprocessors]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _task(name: str, split: str) -> Any:
    import seqio

    if name not in seqio.TaskRegistry.names():
        raise UserError(f"no corpus {name}{nearest(name, seqio.TaskRegistry.names())}")
    task = seqio.TaskRegistry.get(name)
    if split not in task.splits:
        raise UserError(f"{name} has no split {split}; it has {', '.join(task.splits)}")
    return task


def _code(function: Any) -> str:
    """A function's source, if available, and its bound arguments."""
    while isinstance(function, functools.partial):
        return f"{_code(function.func)} {function.args} {function.keywords}"
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", type(function).__qualname__)
