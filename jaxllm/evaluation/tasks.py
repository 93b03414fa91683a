"""What an evaluation task is: its examples as text, and what its numbers mean.

A benchmark module declares its tasks with the four helpers below; nothing is read yet and
neither SeqIO nor TensorFlow is imported:

    multiple_choice("capitals", examples, domain="knowledge")

    def examples() -> Iterator[Choice]:
        yield Choice("The capital of France is", (" Paris", " Rome"), answer=0, id="france")

`examples` runs once, when the task is first scored. A task that lives in files names them
(`reads`, relative to EvalConfig.data_dir); they are looked for before training starts, and
`examples` is then called with their paths. `jaxllm.evaluation.seqio_tasks` makes the SeqIO task.

Domains in use: examination, knowledge, reading, commonsense, reasoning, math, code, language.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Literal

Kind = Literal["multiple_choice", "cloze", "perplexity", "exact_match"]
PRIMARY_METRICS: dict[Kind, str] = {
    "multiple_choice": "accuracy",
    "cloze": "exact_match",
    "perplexity": "bits_per_byte",
    "exact_match": "exact_match",
}
_NAME = re.compile(r"^[A-Za-z0-9_.]+$")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One multiple-choice question, scored as log p(option | context) for each option.

    Attributes:
      context: the text before the options; may be empty.
      options: the continuations, each with its leading space where it needs one.
      answer: index of the correct option.
      id: names the example in the per-example results; its number where empty.
    """

    context: str
    options: tuple[str, ...]
    answer: int
    id: str = ""

    def __post_init__(self) -> None:
        if len(self.options) < 2 or not 0 <= self.answer < len(self.options):
            raise ValueError(f"{self}: needs two options or more, and an answer among them")
        if not all(self.options):
            raise ValueError(f"{self}: an option is empty")


@dataclasses.dataclass(frozen=True)
class Document:
    """One document whose every token is scored."""

    text: str
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and the texts that answer it (`cloze` scores the first, `exact_match` takes any)."""

    context: str
    targets: tuple[str, ...]
    id: str = ""

    def __post_init__(self) -> None:
        if not self.targets or not all(self.targets):
            raise ValueError(f"{self}: needs at least one target, none of them empty")


Example = Choice | Document | Prompt
Examples = Callable[..., Iterable[Example]]


@dataclasses.dataclass(frozen=True)
class TaskDefinition:
    """A declared task.

    Attributes:
      name: unique; also the file name of its records.
      kind: how it is scored.
      examples: gives the examples; called with the paths of `reads`.
      domain: the capability domain that it is reported under.
      shots: solved examples in each context.
      chance: value of the primary metric for guessing; None is the mean of 1 / options.
      version: raise it when examples or scoring change, so that old records are not mixed in.
      primary_metric: the metric that stands for the task in tables and charts.
      reads: files, relative to the evaluation data directory.
      max_new_tokens: longest answer of an exact_match task.
      stop: texts that end an answer of an exact_match task.
    """

    name: str
    kind: Kind
    examples: Examples
    domain: str
    shots: int
    chance: float | None
    version: str
    primary_metric: str
    reads: tuple[str, ...] = ()
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()


_DEFINITIONS: dict[str, TaskDefinition] = {}


def definitions() -> dict[str, TaskDefinition]:
    """The tasks declared so far, by name."""
    return dict(_DEFINITIONS)


def multiple_choice(
    name: str,
    examples: Callable[..., Iterable[Choice]],
    *,
    domain: str,
    chance: float | None = None,
    version: str = "1",
    shots: int = 0,
    primary_metric: str = "accuracy",
    reads: tuple[str, ...] = (),
) -> TaskDefinition:
    """Declares a multiple-choice task. `chance=None`: the mean of 1 / number of options."""
    return _declare(
        TaskDefinition(
            name, "multiple_choice", examples, domain, shots, chance, version, primary_metric, reads
        )
    )


def cloze(
    name: str,
    examples: Callable[..., Iterable[Prompt]],
    *,
    domain: str,
    chance: float | None = 0.0,
    version: str = "1",
    shots: int = 0,
    reads: tuple[str, ...] = (),
) -> TaskDefinition:
    """Declares a completion task: is every token of the target the model's first choice?

    One forward pass answers what greedy decoding would, as lm-evaluation-harness does for
    LAMBADA; the log-likelihood of the target comes with it.
    """
    metric = PRIMARY_METRICS["cloze"]
    return _declare(
        TaskDefinition(name, "cloze", examples, domain, shots, chance, version, metric, reads)
    )


def perplexity(
    name: str,
    documents: Callable[..., Iterable[Document]],
    *,
    domain: str,
    version: str = "1",
    reads: tuple[str, ...] = (),
) -> TaskDefinition:
    """Declares a task that scores whole documents: bits per byte and token perplexity."""
    metric = PRIMARY_METRICS["perplexity"]
    return _declare(
        TaskDefinition(name, "perplexity", documents, domain, 0, None, version, metric, reads)
    )


def exact_match(
    name: str,
    examples: Callable[..., Iterable[Prompt]],
    *,
    domain: str,
    max_new_tokens: int,
    stop: tuple[str, ...] = ("\n",),
    chance: float | None = 0.0,
    version: str = "1",
    shots: int = 0,
    reads: tuple[str, ...] = (),
) -> TaskDefinition:
    """Declares a task answered by greedy generation, up to `stop` or `max_new_tokens`."""
    metric = PRIMARY_METRICS["exact_match"]
    return _declare(
        TaskDefinition(
            name, "exact_match", examples, domain, shots, chance, version, metric, reads,
            max_new_tokens, stop,
        )
    )  # fmt: skip


def _declare(definition: TaskDefinition) -> TaskDefinition:
    if not _NAME.match(definition.name):
        raise ValueError(f"task name {definition.name!r}: only letters, digits, '_' and '.'")
    known = _DEFINITIONS.get(definition.name)
    if known and _origin(known.examples) != _origin(definition.examples):
        raise ValueError(f"two tasks are called {definition.name}")
    _DEFINITIONS[definition.name] = definition
    return definition


def _origin(examples: Examples) -> str:
    """The module that a task comes from, which may declare it again (when it is reloaded)."""
    while isinstance(examples, functools.partial):
        examples = examples.func
    return examples.__module__
