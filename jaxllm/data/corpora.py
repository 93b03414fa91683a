"""The corpora of a run, as SeqIO tasks and mixtures of untokenized text.

A corpus task has one feature, the string `text`; the vocabulary belongs to the run, so tokenizing
happens in `prepare`. Besides the tasks that DataConfig.modules register
(`jaxllm.evals.probes.corpora` registers the quickstart's), tasks are created here for the domains
of DataConfig.corpora, or else the directories in DataConfig.corpus_dir: `<domain>`, or where it has
several sources `<domain>:1`, `<domain>:2`, … Their mixture `corpora` has rates by bytes. Splits are
`train`, `validation` and `test`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import inspect
import os
from collections.abc import Iterator, Sequence
from typing import Any

from jaxllm.data.config import DataConfig, Source
from jaxllm.data.files import FileCorpus, directory_corpora, path_corpus
from jaxllm.data.formats import BadLine, Document, OnError, Part, Reading
from jaxllm.errors import UserError, nearest
from jaxllm.runtime import import_seqio


def resolve(config: DataConfig) -> dict[str, float]:
    """Register the corpora of `config`, and resolve the tasks of its mixture or task.

    Returns task -> share of the sequences, sorted by task; the shares sum to 1. A domain is one
    task, or one per source (`domain_of`). UserError for an unknown mixture, task or domain.
    """
    name = config.mixture_or_task_name
    if not name:
        raise UserError("give a --gin_file: DataConfig.mixture_or_task_name is not set")
    if name == "corpora" and config.corpora is None and config.corpus_dir is None:
        raise UserError("the mixture corpora needs DataConfig.corpus_dir or DataConfig.corpora")
    register(config)
    seqio = import_seqio()
    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if name not in known:
        raise UserError(f"no mixture or task {name}{nearest(name, known)}")
    provider = seqio.get_mixture_or_task(name)
    tasks = provider.tasks if isinstance(provider, seqio.Mixture) else [provider]
    for task in tasks:
        if "text" not in task.output_features:
            raise UserError(f"task {task.name} has no feature `text`: it is not a corpus")
    domains = {task.name: domain_of(task.name) for task in tasks}
    if config.weights is not None:
        for domain in (d for d in config.weights if d not in domains.values()):
            raise UserError(
                f"DataConfig.weights names {domain}, which {name} does not have"
                f"{nearest(domain, domains.values())}; it has {', '.join(sorted(domains.values()))}"
            )
        rates = {
            task: config.weights[domain] * getattr(seqio.TaskRegistry.get(task).source, "share", 1)
            for task, domain in domains.items()
            if domain in config.weights
        }
    else:
        rates = {t.name: float(provider.get_rate(t)) if len(tasks) > 1 else 1.0 for t in tasks}
    total = sum(rates.values())
    return {task: rates[task] / total for task in sorted(rates)}


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
    tasks, rates = _sources(config)
    if tasks:
        seqio_source.register("corpora", tasks, rates)


def _sources(config: DataConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The SeqIO sources of the configured domains by task, and their rates in the mixture."""
    from jaxllm.data.seqio_source import CorpusSource, NamedTfdsSource, corpus_of

    opened: dict[str, list[Any]] = {}
    if config.corpora is None and config.corpus_dir is not None:
        found = directory_corpora(config.corpus_dir)
        opened = {domain: [CorpusSource(corpus, domain)] for domain, corpus in found.items()}
    for domain, sources in config.sources.items():
        total = sum(source.weight for source in sources)
        opened[domain] = [
            NamedTfdsSource(source, domain, source.weight / total, config.corpus_dir)
            if source.tfds
            else CorpusSource(_files(source, config), domain, source.weight / total)
            for source in sources
        ]
    tasks: dict[str, Any] = {}
    rates: dict[str, Any] = {}
    for domain, of in opened.items():
        trained = [isinstance(one, NamedTfdsSource) or "train" in one.splits for one in of]
        if any(trained) and not all(trained):
            raise UserError(f"corpus {domain}: a source has no training file")
        names = [domain] if len(of) == 1 else [f"{domain}:{i}" for i in range(1, len(of) + 1)]
        tasks |= dict(zip(names, of, strict=True))
        for name in names if all(trained) else ():  # by bytes, for which TFDS opens its data set
            rates[name] = lambda _, share=tasks[name].share, of=of: (
                share * sum(corpus_of(each).size("train") for each in of)
            )
    if tasks and not rates:
        raise UserError("DataConfig.corpora: no domain has a training file")
    return tasks, rates


def _files(source: Source, config: DataConfig) -> FileCorpus:
    """The files of a source; its path is in `corpus_dir` unless it says where it begins."""
    path = os.path.expanduser(source.path)
    if config.corpus_dir is not None and not path.startswith("/") and "://" not in path:
        path = f"{config.corpus_dir.rstrip('/')}/{path}"
    return path_corpus(path, source.text)


def register_if_unknown(domain: str) -> None:
    """Register the corpora of the configured run unless `domain` is registered.

    Commands that do not train need the corpora only for tasks that are scored on them.
    """
    if not tasks_of(domain):
        register(DataConfig())


def tasks_of(domain: str) -> list[str]:
    """The registered tasks with documents of a domain, or the task of that name."""
    names = import_seqio().TaskRegistry.names()
    return sorted(name for name in names if domain in (name, domain_of(name)))


def domain_of(task: str) -> str:
    """The domain that a registered task is a source of: itself, if it is the only one."""
    return getattr(import_seqio().TaskRegistry.get(task).source, "domain", task)


def documents(domain: str, split: str, on_error: OnError | None = None) -> Iterator[Document]:
    """Documents of a domain or corpus task in order (`text`, `id`); UserError if it is unknown."""
    for task in tasks_of(domain) or [domain]:
        for part in parts(task, split):
            yield from part.documents(on_error)


def parts(task: str, split: str, config: DataConfig | None = None) -> Sequence[Part]:
    """The parts of a split of a registered corpus task, in order.

    UserError if the task is unknown or lacks the split.

    A `CorpusSource` without preprocessors is read directly, for the reader's error messages; the
    documents are those of its `get_dataset`. Any other task goes through SeqIO, shard by shard;
    `config` is what `register` needs in another process that reads them.
    """
    from jaxllm.data.seqio_source import CorpusSource, corpus_of

    provider = _task(task, split)
    if isinstance(provider.source, CorpusSource) and not provider.preprocessors:
        return provider.source.corpus.parts(split)
    count = max(1, len(provider.source.list_shards(split)))
    size = getattr(corpus_of(provider.source), "size", lambda split: 0)(split) // count
    return [TaskPart(task, split, shard, count, size, config) for shard in range(count)]


def notes(task: str, split: str) -> Sequence[str]:
    """What a user should know of a corpus task, in short: files left out, documents held out."""
    from jaxllm.data.seqio_source import corpus_of

    return getattr(corpus_of(_task(task, split).source), "notes", ())


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
    if isinstance(function, functools.partial):
        return f"{_code(function.func)} {function.args} {function.keywords}"
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", type(function).__qualname__)
