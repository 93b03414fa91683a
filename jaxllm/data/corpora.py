"""The corpora that exist, as SeqIO tasks and mixtures at text level.

A SeqIO task says what the text of a domain is: it has one feature, the string `text`. Which
vocabulary the text is read with belongs to the run, so tokenising happens in `prepare`. Tasks that
a user registers (DataConfig.modules) enter in the same way as the ones made here:

    the domains of `embedded` and `generated` in `jaxllm.evals.probes`     mixture `embedded`
    the directories under DataConfig.corpus_dir                           mixture `corpus_dir`
    the TFDS data sets of DataConfig.tfds                                 mixture `tfds`

Splits are `train`, `validation` and `test`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, Protocol

from etils import epath

from jaxllm.data.config import DataConfig
from jaxllm.data.readers import OnBad, file_format, read_documents, refuse
from jaxllm.errors import UserError
from jaxllm.runtime import import_seqio

SPLITS = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test",)}
MODULES = ("jaxllm.evals.probes.embedded", "jaxllm.evals.probes.generated")


class Corpus(Protocol):
    """Documents that Python reads; `jaxllm.data.seqio_source` makes a SeqIO source of it."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have documents."""

    def documents(self, split: str, on_bad: OnBad = refuse) -> Iterator[dict[str, Any]]:
        """The documents of a split in order, as dicts with `text` and `id`."""

    def fingerprint(self, split: str) -> str:
        """Changes when the documents do."""


@dataclasses.dataclass(frozen=True)
class FileCorpus:
    """The files of one domain, by split."""

    root: str
    files: Mapping[str, tuple[str, ...]]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have files."""
        return tuple(self.files)

    def documents(self, split: str, on_bad: OnBad = refuse) -> Iterator[dict[str, Any]]:
        """The documents of the files, file by file in the order of their names."""
        for file in self.files[split]:
            yield from read_documents(file, on_bad)

    def fingerprint(self, split: str) -> str:
        """The names (below the domain), sizes and modification times of the files."""
        stats = []
        for file in self.files[split]:
            stat = epath.Path(file).stat()
            stats.append((file.removeprefix(self.root), stat.length, stat.mtime))
        return repr(stats)

    def size(self, split: str) -> int:
        """Bytes of the files as they lie there."""
        return sum(epath.Path(file).stat().length for file in self.files.get(split, ()))


@dataclasses.dataclass(frozen=True)
class ModuleCorpus:
    """One domain of a module with `DOMAINS` and `documents(domain, split)`."""

    module: ModuleType
    domain: str
    splits: tuple[str, ...] = tuple(SPLITS)

    def documents(self, split: str, on_bad: OnBad = refuse) -> Iterator[dict[str, Any]]:
        """What the module gives."""
        return self.module.documents(self.domain, split)

    def fingerprint(self, split: str) -> str:
        """The module's source, and the Python whose text it may read."""
        source = hashlib.sha256(inspect.getsource(self.module).encode()).hexdigest()
        return f"{source} {sys.version}"


@dataclasses.dataclass(frozen=True)
class Domain:
    """A SeqIO task as part of a run.

    Attributes:
      name: the task's name.
      weight: its share of the rows; the weights of a run's domains sum to 1.
    """

    name: str
    weight: float


def resolve(config: DataConfig) -> tuple[Domain, ...]:
    """Registers what `config` can name, and returns the domains that it does name, by name.

    Raises:
      UserError: no mixture or task is named, or an unknown one, or an unknown domain, with the
        nearest names.
    """
    name = config.mixture_or_task_name
    if not name:
        raise UserError("DataConfig.mixture_or_task_name is not set: name a corpus to read")
    for mixture, setting in (("corpus_dir", config.corpus_dir), ("tfds", config.tfds)):
        if name == mixture and not setting:
            raise UserError(f"the mixture {mixture} needs DataConfig.{mixture}")
    own = _own_mixtures(config).get(name)
    if own is not None:
        _weighted(config, own)  # a mistake need not wait for TensorFlow's import

    seqio = import_seqio()
    register(config)
    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if name not in known:
        raise UserError(f"no mixture or task {name}{_nearest(name, known)}")
    provider = seqio.get_mixture_or_task(name)
    if isinstance(provider, seqio.Mixture):
        rates = {task.name: float(provider.get_rate(task)) for task in provider.tasks}
    else:
        rates = {name: 1.0}
    rates = _weighted(config, rates)
    for domain in rates:
        if "text" not in seqio.TaskRegistry.get(domain).output_features:
            raise UserError(f"task {domain} has no feature `text`: it is not a corpus")
    total = sum(rates.values())
    return tuple(Domain(domain, rates[domain] / total) for domain in sorted(rates))


def documents(task: str, split: str, on_bad: OnBad = refuse) -> Iterator[dict[str, str]]:
    """The documents of a registered corpus task in order, as dicts with `text` and `id`.

    A task made here without preprocessors is read directly, which gives the same documents as its
    `get_dataset`, and any mistake in them as the reader words it; any other goes through SeqIO.

    Raises:
      UserError: the task is unknown or lacks the split.
    """
    import seqio

    from jaxllm.data.seqio_source import CorpusSource

    if task not in seqio.TaskRegistry.names():
        raise UserError(f"no corpus {task}{_nearest(task, seqio.TaskRegistry.names())}")
    provider = seqio.TaskRegistry.get(task)
    if split not in provider.splits:
        raise UserError(f"{task} has no split {split}; it has {', '.join(provider.splits)}")
    if isinstance(provider.source, CorpusSource) and not provider.preprocessors:
        yield from provider.source.corpus.documents(split, on_bad)
        return
    dataset = provider.get_dataset(None, split, shuffle=False)
    for number, row in enumerate(dataset.as_numpy_iterator()):
        try:
            yield {"text": bytes(row["text"]).decode(), "id": f"{task}:{split}:{number}"}
        except UnicodeDecodeError as error:
            on_bad(f"{task} {split} document {number}: invalid UTF-8 at byte {error.start}")


def fingerprint(task: str, split: str) -> str:
    """A hash that changes when the documents of a task's split do.

    Of a task made elsewhere it knows the source's settings and the preprocessors' code, not the
    data behind them: a data set that changes under the same name needs a new cache directory.
    """
    import seqio

    from jaxllm.data.seqio_source import CorpusSource, describe_source

    provider = seqio.TaskRegistry.get(task)
    parts = [task, split]
    if isinstance(provider.source, CorpusSource):
        parts.append(provider.source.corpus.fingerprint(split))
    else:
        parts.append(describe_source(provider.source))
    parts += [_code(function) for function in provider.preprocessors]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def register(config: DataConfig) -> None:
    """Registers the corpora that `config` gives access to, in place of earlier ones of the name."""
    from jaxllm.data import seqio_source

    for module in config.modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"DataConfig.modules: cannot import {module} ({error})") from error
    own = _own_mixtures(config)
    seqio_source.register("embedded", module_corpora(), own["embedded"])
    if config.tfds:
        seqio_source.register_tfds("tfds", config.tfds, config.tfds_data_dir, own["tfds"])
    if config.corpus_dir is not None:
        corpora = directory_corpora(config.corpus_dir)
        seqio_source.register("corpus_dir", corpora, own["corpus_dir"])


def _own_mixtures(config: DataConfig) -> dict[str, dict[str, float]]:
    """The mixtures made here, as domain -> rate: files by their bytes, the others evenly."""
    mixtures = {"embedded": dict.fromkeys(module_corpora(), 1.0)}
    if config.tfds:
        mixtures["tfds"] = dict.fromkeys(config.tfds, 1.0)
    if config.corpus_dir is not None:
        corpora = directory_corpora(config.corpus_dir)
        mixtures["corpus_dir"] = {
            name: float(size) for name, corpus in corpora.items() if (size := corpus.size("train"))
        }
    return mixtures


def _weighted(config: DataConfig, rates: dict[str, float]) -> dict[str, float]:
    """The rates of the run's domains: the mixture's, or the configuration's in their place."""
    if config.weights is None:
        return rates
    for domain in config.weights:
        if domain not in rates:
            raise UserError(
                f"DataConfig.weights names {domain}, which {config.mixture_or_task_name} does not"
                f" have{_nearest(domain, rates)}; it has {', '.join(sorted(rates))}"
            )
    return {domain: float(weight) for domain, weight in config.weights.items()}


@functools.cache
def module_corpora() -> dict[str, ModuleCorpus]:
    """The domains of the modules that come with jaxllm."""
    loaded = [importlib.import_module(name) for name in MODULES]
    return {domain: ModuleCorpus(module, domain) for module in loaded for domain in module.DOMAINS}


def directory_corpora(directory: epath.PathLike) -> dict[str, FileCorpus]:
    """The domains of a corpus directory: `<domain>/[<source>/]<split>*.<suffix>`.

    Raises:
      UserError: there is no such directory, or nothing to train on in it.
    """
    root = epath.Path(directory)
    if not root.is_dir():
        raise UserError(f"DataConfig.corpus_dir: no directory {root}")
    corpora = {}
    for domain in sorted(path for path in root.iterdir() if path.is_dir()):
        files: dict[str, list[str]] = {}
        for file in sorted(_files_below(domain), key=str):
            files.setdefault(_split_of(file.name), []).append(str(file))
        if files:
            ordered = {split: tuple(files[split]) for split in SPLITS if split in files}
            corpora[domain.name] = FileCorpus(str(domain), ordered)
    if not any("train" in corpus.files for corpus in corpora.values()):
        raise UserError(f"{root}: no <domain>/[<source>/]train*.jsonl or .txt file (.gz, .zst)")
    return corpora


def _files_below(domain: epath.Path) -> Iterator[epath.Path]:
    for path in domain.iterdir():
        found: Iterable[epath.Path] = path.iterdir() if path.is_dir() else [path]
        yield from (file for file in found if file_format(file) and not file.is_dir())


def _split_of(name: str) -> str:
    for split, prefixes in SPLITS.items():
        if name.startswith(prefixes):
            return split
    return "train"


def _code(function: Any) -> str:
    """A function's source, as far as it can be had, with what is bound to it."""
    while isinstance(function, functools.partial):
        return f"{_code(function.func)} {function.args} {function.keywords}"
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", type(function).__qualname__)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""
