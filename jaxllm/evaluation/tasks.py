"""Definition of an evaluation task: its examples as text, and its metrics.

A benchmark module declares its tasks with the four helpers below:

    multiple_choice("capitals", examples, domain="knowledge")

    def examples() -> Iterator[Choice]:
        yield Choice("The capital of France is", (" Paris", " Rome"), answer=0, id="france")

`examples` is called once, before the first checkpoint is scored, with the paths of the task's
`files`. A task with a `FewShot` exists at any number of shots: `capitals_5shot`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxllm.errors import UserError
from jaxllm.run.records import OPTION_PERPLEXITIES

Kind = Literal[
    "multiple_choice", "cloze", "perplexity", "generation", "training_loss", "memorization"
]
OF_RUN = ("training_loss", "memorization")  # kinds with examples from the run's own training data

# The metrics of a kind (see `metrics`), by default the first as primary metric.
METRICS: Mapping[Kind, tuple[str, ...]] = {
    "multiple_choice": (
        "accuracy", "accuracy_per_token", "accuracy_per_char", "accuracy_per_byte",
        "probability_correct", "probability_raw", "brier", "margin", "answer_bits_per_byte",
        *OPTION_PERPLEXITIES,
    ),
    "cloze": ("exact_match", "target_bits_per_byte", "perplexity"),
    "perplexity": ("bits_per_byte", "perplexity", "loss"),
    "training_loss": ("loss",),
    "memorization": ("extractible", "score"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Choice:
    """One multiple-choice question, scored as log p(option | context) for each option."""

    context: str  # the text before the options; may be empty
    options: tuple[str, ...]  # the continuations, each with its leading space if it needs one
    answer: int  # index of the correct option
    id: str = ""  # name of the example in the per-example results; its index if empty
    # replaces `context` where it differs between options (WinoGrande's blank)
    contexts: tuple[str, ...] = ()
    also_correct: tuple[int, ...] = ()  # indices of further correct options (TruthfulQA's mc2)
    description: str = ""  # text before the few-shot examples
    shots: tuple[str, ...] = ()  # few-shot examples, each with its separator from the next

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
    """One document whose every token is scored; `ids` are those, if not as `text` is encoded."""

    text: str
    id: str = ""
    ids: tuple[int, ...] | None = None
    context: str = ""  # the text before it, not scored
    noise: str = ""  # <kind>_<percent> of its tokens to be corrupted, see `noise.corrupt`


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and its reference answers; `id`, `description` and `shots` are as in `Choice`."""

    context: str  # the prompt
    targets: tuple[str, ...]  # `cloze` scores the first, `generation` may accept any
    id: str = ""
    solution: str = ""  # in place of the first target in a few-shot example (a chain of thought)
    description: str = ""
    shots: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.targets or not all(self.targets):
            raise ValueError(f"{self}: needs at least one target, none of them empty")

    @property
    def as_shot(self) -> str:
        """The prompt with its solution, for use as a few-shot example."""
        return self.context + (self.solution or self.targets[0])


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingSequence:
    """A sequence of the run's training data, arrays [T] as in `models.batch.Batch`.

    For memorization, `inputs` are K of its tokens, and `targets` the next L.
    """

    id: str  # <step>/<its place in the batch>
    step: int  # the update that reads it
    domain: str
    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    segment_ids: np.ndarray


Question = Choice | Prompt
Example = Question | Document | TrainingSequence
Examples = Callable[..., Iterable[Example]]
Sample = Callable[[int], Sequence[TrainingSequence]]  # so many of each sampled batch
Score = Callable[[str, Prompt], Mapping[str, float]]


def exact(prediction: str, example: Prompt) -> Mapping[str, float]:
    """exact_match: 1 if the stripped text is one of the targets."""
    targets = {target.strip() for target in example.targets}
    return {"exact_match": float(prediction.strip() in targets)}


@dataclasses.dataclass(frozen=True)
class FewShot:
    """Source and selection of a task's few-shot examples."""

    # returns the candidates; called with the paths of `files`. None: the task's own examples except
    # the question itself.
    pool: Examples | None = None
    files: tuple[str, ...] = ()  # paths relative to the evaluation data directory
    # `sampled` draws anew for every question, as lm-evaluation-harness 0.4 does (one
    # random.Random(1234) per task); `first` takes the first of the pool
    order: Literal["sampled", "first"] = "sampled"
    separator: str = "\n\n"  # text after each few-shot example
    # draw one more, and drop the question itself if it was drawn, as the harness does for tasks
    # without a test split (implied where the pool is None)
    exclude_self: bool = False


@dataclasses.dataclass(frozen=True)
class TaskDefinition:
    """A declared task."""

    name: str  # unique name; also the file name of its records
    kind: Kind  # scoring method
    examples: Examples  # returns the examples; called with the paths of `files`
    # examination, knowledge, reading, commonsense, reasoning, math, code, language or own
    domain: str
    shots: int = 0  # number of few-shot examples in each context
    # chance level of the primary metric; None is the mean of 1 / options
    chance: float | None = None
    version: str = "1"  # increment it when examples or scoring change, to separate old records
    primary_metric: str = ""  # the task's metric in tables and charts
    files: tuple[str, ...] = ()  # paths relative to the evaluation data directory
    few_shot: FewShot | None = None  # source of few-shot examples; None: there are none
    description: str = ""  # text before the first few-shot example (or the question)
    max_new_tokens: int = 0  # maximum length of a generated answer, in tokens
    stop: tuple[str, ...] = ("\n",)  # stop strings of generated answers
    score: Score = exact  # metrics of one generated answer (its text up to the first stop string)
    # the texts for a token set, if not the examples; called with nothing
    documents: Examples | None = None
    # whether `score` executes the answer: EvalConfig.run_code must allow it, and the primary metric
    # is pass@k of EvalConfig.samples answers
    runs_code: bool = False


_DEFINITIONS: dict[str, TaskDefinition] = {}


def definitions() -> dict[str, TaskDefinition]:
    """The tasks declared so far, by name."""
    return dict(_DEFINITIONS)


def declare(
    kind: Kind, name: str, examples: Examples, *, domain: str, **details: Any
) -> TaskDefinition:
    """Declare a task; `details` are further fields of `TaskDefinition`.

    multiple_choice: is the most likely option the answer?
    cloze: is every token of the target the argmax? One forward pass gives the result of greedy
      decoding, as in lm-evaluation-harness' LAMBADA, and the log-likelihood of the target.
    perplexity: bits per byte and perplexity of whole documents.
    generation: generate up to `stop` or `max_new_tokens` (required); `score` gives the metrics.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.:]+", name):
        raise ValueError(f"task name {name!r}: only letters, digits, '_', '.' and ':'")
    metrics = METRICS.get(kind) or ("pass@1" if details.get("runs_code") else "exact_match",)
    chance = 0.0 if kind in ("cloze", "generation") else None
    defaults: dict[str, Any] = {"primary_metric": metrics[0], "chance": chance}
    definition = TaskDefinition(name, kind, examples, domain, **defaults | details)
    if kind in METRICS and definition.primary_metric not in metrics:
        raise ValueError(
            f"task {name}: primary_metric {definition.primary_metric!r} is not one of "
            f"{', '.join(metrics)}"
        )
    if kind == "generation" and definition.max_new_tokens < 1:
        raise ValueError(f"task {name}: max_new_tokens must be 1 or more")
    known = _DEFINITIONS.get(name)
    shared = isinstance(examples, functools.partial)  # a reader of several modules' files
    declared = lambda of: (_module(of.examples), of.files if shared else ())
    if known and declared(known) != declared(definition):
        raise ValueError(f"two tasks are called {name}")
    _DEFINITIONS[name] = definition
    return definition


multiple_choice = functools.partial(declare, "multiple_choice")
cloze = functools.partial(declare, "cloze")
perplexity = functools.partial(declare, "perplexity")
training_loss = functools.partial(declare, "training_loss")
memorization = functools.partial(declare, "memorization")
generation = functools.partial(declare, "generation")


def with_shots(task: TaskDefinition, shots: int) -> TaskDefinition:
    """`task` at other shots, named `<task>_<shots>shot`; UserError if it has no shots."""
    if shots and task.few_shot is None:
        raise UserError(f"task {task.name} has no few-shot examples: it exists at 0 shots only")
    return dataclasses.replace(task, name=f"{task.name}_{shots}shot", shots=shots)


def _module(examples: Examples) -> str:
    """The module of a task, which may declare it again (when it is reloaded)."""
    while isinstance(examples, functools.partial):
        examples = examples.func
    return examples.__module__
