"""Definition of an evaluation task: its examples as text, and its metrics.

A benchmark module declares its tasks with the four helpers below, which read no data and import
neither SeqIO nor TensorFlow:

    multiple_choice("capitals", examples, domain="knowledge")

    def examples() -> Iterator[Choice]:
        yield Choice("The capital of France is", (" Paris", " Rome"), answer=0, id="france")

`examples` is called once, before the first checkpoint is scored; with the paths of `files`
(relative to EvalConfig.data_dir), if the task has any. A task with a `FewShot` is available at any
number of shots: `capitals_5shot`. `jaxllm.evaluation.seqio_adapter` creates the SeqIO task.

Domains in use: examination, knowledge, reading, commonsense, reasoning, math, code, language.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from jaxllm.errors import UserError

Kind = Literal["multiple_choice", "cloze", "perplexity", "generation"]
METRICS: Mapping[Kind, tuple[str, ...]] = {
    "multiple_choice": (
        "accuracy", "accuracy_per_token", "accuracy_per_char", "accuracy_per_byte",
        "probability_correct", "probability_raw", "brier", "margin", "answer_bits_per_byte",
        "perplexity_correct", "perplexity_incorrect",
    ),
    "cloze": ("exact_match", "target_bits_per_byte", "perplexity"),
    "perplexity": ("bits_per_byte", "perplexity", "loss"),
}  # fmt: skip
_NAME = re.compile(r"^[A-Za-z0-9_.:]+$")
_SHOTS = re.compile(r"^(?P<base>.+)_(?P<shots>\d+)shot$")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One multiple-choice question, scored as log p(option | context) for each option.

    Attributes:
      context: the text before the options; may be empty.
      options: the continuations, each with its leading space if it needs one.
      answer: index of the correct option.
      id: name of the example in the per-example results; its index if empty.
      contexts: the text before each option, if it differs between options (WinoGrande's blank);
        replaces `context`.
      also_correct: indices of further correct options (TruthfulQA's mc2).
      description: text before the few-shot examples.
      shots: few-shot examples, each with its separator from the next.
    """

    context: str
    options: tuple[str, ...]
    answer: int
    id: str = ""
    contexts: tuple[str, ...] = ()
    also_correct: tuple[int, ...] = ()
    description: str = ""
    shots: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.options) < 2 or not 0 <= self.answer < len(self.options):
            raise ValueError(f"{self}: needs two options or more, and an answer among them")
        if not all(self.options):
            raise ValueError(f"{self}: an option is empty")
        if self.contexts and len(self.contexts) != len(self.options):
            raise ValueError(f"{self}: needs a context for each option")

    @property
    def as_shot(self) -> str:
        """The question with its answer, for use as a few-shot example."""
        context = self.contexts[self.answer] if self.contexts else self.context
        return context + self.options[self.answer]


@dataclasses.dataclass(frozen=True)
class Document:
    """One document whose every token is scored."""

    text: str
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and its reference answers.

    Attributes:
      context: the prompt.
      targets: reference answers: `cloze` scores the first, `generation` may accept any.
      id: name of the example in the per-example results; its index if empty.
      solution: the text after the prompt in a few-shot example (a chain of thought); the first
        target if empty.
      description: text before the few-shot examples.
      shots: few-shot examples, each with its separator from the next.
    """

    context: str
    targets: tuple[str, ...]
    id: str = ""
    solution: str = ""
    description: str = ""
    shots: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.targets or not all(self.targets):
            raise ValueError(f"{self}: needs at least one target, none of them empty")

    @property
    def as_shot(self) -> str:
        """The prompt with its solution, for use as a few-shot example."""
        return self.context + (self.solution or self.targets[0])


Example = Choice | Document | Prompt
Question = Choice | Prompt
Examples = Callable[..., Iterable[Example]]
Score = Callable[[str, Prompt], Mapping[str, float]]


def exact(prediction: str, example: Prompt) -> Mapping[str, float]:
    """exact_match: 1 if the stripped text is one of the targets."""
    targets = {target.strip() for target in example.targets}
    return {"exact_match": float(prediction.strip() in targets)}


@dataclasses.dataclass(frozen=True)
class FewShot:
    """Source and selection of a task's few-shot examples.

    Attributes:
      pool: returns the candidates; called with the paths of `files`. None: the task's own
        examples except the question itself.
      files: paths relative to the evaluation data directory.
      order: `sampled` draws anew for every question, as lm-evaluation-harness 0.4 does (one
        random.Random(1234) per task); `first` takes the first of the pool.
      separator: text after each few-shot example.
      exclude_self: draw one more, and drop the question itself if it was drawn, as the harness
        does for tasks without a test split (implied where the pool is None).
    """

    pool: Examples | None = None
    files: tuple[str, ...] = ()
    order: Literal["sampled", "first"] = "sampled"
    separator: str = "\n\n"
    exclude_self: bool = False


@dataclasses.dataclass(frozen=True)
class TaskDefinition:
    """A declared task.

    Attributes:
      name: unique name; also the file name of its records.
      kind: scoring method.
      examples: returns the examples; called with the paths of `files`.
      domain: the task's domain in the report.
      shots: number of few-shot examples in each context.
      chance: chance level of the primary metric; None is the mean of 1 / options.
      version: increment it when examples or scoring change, to separate old records.
      primary_metric: the task's metric in tables and charts.
      files: paths relative to the evaluation data directory.
      few_shot: source of few-shot examples; None: there are none.
      description: text before the first few-shot example (or the question).
      max_new_tokens: maximum length of a generated answer, in tokens.
      stop: stop strings of generated answers.
      score: metrics of one generated answer (its text up to the first stop string).
      runs_code: whether `score` executes the answer: EvalConfig.run_code must allow it, and the
        primary metric is pass@k of EvalConfig.samples answers.
    """

    name: str
    kind: Kind
    examples: Examples
    domain: str
    shots: int = 0
    chance: float | None = None
    version: str = "1"
    primary_metric: str = ""
    files: tuple[str, ...] = ()
    few_shot: FewShot | None = None
    description: str = ""
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    score: Score = exact
    runs_code: bool = False


_DEFINITIONS: dict[str, TaskDefinition] = {}


def definitions() -> dict[str, TaskDefinition]:
    """The tasks declared so far, by name."""
    return dict(_DEFINITIONS)


def multiple_choice(
    name: str,
    examples: Callable[..., Iterable[Choice]],
    *,
    domain: str,
    primary_metric: str = "accuracy",
    **details: Any,
) -> TaskDefinition:
    """Declare a multiple-choice task.

    Args:
      name: name of the task.
      examples: returns its questions.
      domain: domain of the task.
      primary_metric: one of METRICS["multiple_choice"].
      details: further fields of `TaskDefinition`.
    """
    return _declare(
        TaskDefinition(
            name, "multiple_choice", examples, domain, primary_metric=primary_metric, **details
        )
    )


def cloze(
    name: str, examples: Callable[..., Iterable[Prompt]], *, domain: str, **details: Any
) -> TaskDefinition:
    """Declare a completion task: is every token of the target the argmax?

    One forward pass gives the result of greedy decoding, as in lm-evaluation-harness' LAMBADA, and
    the log-likelihood of the target. `details`: see `TaskDefinition`.
    """
    details = {"primary_metric": "exact_match", "chance": 0.0, **details}
    return _declare(TaskDefinition(name, "cloze", examples, domain, **details))


def perplexity(
    name: str, documents: Callable[..., Iterable[Document]], *, domain: str, **details: Any
) -> TaskDefinition:
    """Declare a task that scores whole documents: bits per byte and token perplexity."""
    details = {"primary_metric": "bits_per_byte", **details}
    return _declare(TaskDefinition(name, "perplexity", documents, domain, **details))


def generation(
    name: str,
    examples: Callable[..., Iterable[Prompt]],
    *,
    domain: str,
    max_new_tokens: int,
    stop: tuple[str, ...] = ("\n",),
    **details: Any,
) -> TaskDefinition:
    """Declare a task answered by generation, up to `stop` or `max_new_tokens`.

    `details`: see `TaskDefinition`; `score` returns the metrics, `primary_metric` is one of them.
    """
    metric = "pass@1" if details.get("runs_code") else "exact_match"
    details = {"primary_metric": metric, "chance": 0.0, **details}
    return _declare(
        TaskDefinition(
            name, "generation", examples, domain,
            max_new_tokens=max_new_tokens, stop=stop, **details,
        )
    )  # fmt: skip


def split_shots(name: str) -> tuple[str, int | None]:
    """`arc_easy_5shot` -> (`arc_easy`, 5); a name without such a suffix -> (name, None)."""
    match = _SHOTS.match(name)
    return (match["base"], int(match["shots"])) if match else (name, None)


def with_shots(task: TaskDefinition, shots: int) -> TaskDefinition:
    """`task` at another number of shots, named `<task>_<shots>shot`.

    Raises:
      UserError: the task has no source of few-shot examples.
    """
    if shots and task.few_shot is None:
        raise UserError(f"task {task.name} has no few-shot examples: it exists at 0 shots only")
    return dataclasses.replace(task, name=f"{task.name}_{shots}shot", shots=shots)


def _declare(definition: TaskDefinition) -> TaskDefinition:
    if not _NAME.match(definition.name):
        raise ValueError(f"task name {definition.name!r}: only letters, digits, '_', '.' and ':'")
    metrics = METRICS.get(definition.kind)
    if metrics and definition.primary_metric not in metrics:
        raise ValueError(
            f"task {definition.name}: primary_metric {definition.primary_metric!r} is not one of "
            f"{', '.join(metrics)}"
        )
    known = _DEFINITIONS.get(definition.name)
    if known and _origin(known.examples) != _origin(definition.examples):
        raise ValueError(f"two tasks are called {definition.name}")
    _DEFINITIONS[definition.name] = definition
    return definition


def _origin(examples: Examples) -> str:
    """The module of a task, which may declare it again (when it is reloaded)."""
    while isinstance(examples, functools.partial):
        examples = examples.func
    return examples.__module__
