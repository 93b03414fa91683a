"""The corpora of a run, as SeqIO tasks and mixtures of untokenized text.

A corpus task has one feature, the string `text`; the vocabulary belongs to the run, so tokenizing
happens in `prepare`. Besides the tasks that DataConfig.modules register
(`jaxllm.evals.probes.corpora` registers the quickstart's), tasks are created here for

    the directories under DataConfig.corpus_dir       mixture `corpus_dir`, rates by bytes
    the TFDS data sets of DataConfig.tfds             mixture `tfds`, equal rates

Splits are `train`, `validation` and `test`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from jaxllm.data.config import DataConfig
from jaxllm.data.files import OnError, directory_corpora, raise_on_error
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
        corpora = directory_corpora(config.corpus_dir)
        rates = {name: corpus.size("train") for name, corpus in corpora.items()}
        seqio_source.register("corpus_dir", corpora, rates)


def register_if_unknown(task: str) -> None:
    """Register the corpora of the configured run unless `task` is registered.

    Commands that do not train need the corpora only for tasks that are scored on them.
    """
    if task not in import_seqio().TaskRegistry.names():
        register(DataConfig())


def documents(
    task: str, split: str, on_error: OnError = raise_on_error
) -> Iterator[dict[str, str]]:
    """The documents of a registered corpus task in order, as dicts with `text` and `id`.

    A `CorpusSource` without preprocessors is read directly, for the reader's error messages; the
    documents are those of its `get_dataset`. Any other task goes through SeqIO.

    Raises:
      UserError: the task is unknown or lacks the split.
    """
    from jaxllm.data.seqio_source import CorpusSource

    provider = _task(task, split)
    if isinstance(provider.source, CorpusSource) and not provider.preprocessors:
        yield from provider.source.corpus.documents(split, on_error)
        return
    dataset = provider.get_dataset(None, split, shuffle=False)
    for number, row in enumerate(dataset.as_numpy_iterator()):
        try:
            yield {"text": bytes(row["text"]).decode(), "id": f"{task}:{split}:{number}"}
        except UnicodeDecodeError as error:
            on_error(f"{task} {split} document {number}: invalid UTF-8 at byte {error.start}")


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
