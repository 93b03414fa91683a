"""Your own benchmark, `jsonl_<file>`: EVAL_DIR/<file>.jsonl (or .jsonl.gz), a question a line.

The fields of the first line determine the format:

    query, choices, gold          which choice continues the query; gold: its index
    question, choices, answer     "Question: …", "Answer:"; answer: index, letter or the text itself
    context, continuation         is every token of the continuation the argmax?
    prompt, text                  perplexity of the text after the prompt (`generate --output`)
    text                          perplexity of the text; also as a token set

A field `id` names a line in the per-example results. A space is inserted before choices and
continuations unless they begin, or the context ends, with one. Shots (`jsonl_<file>_5shot`) are
other questions of the file. Metrics: accuracy (chance 1 / choices), exact_match or perplexity;
domain `own`. Empty texts have no perplexity: they are left out, and their number is logged.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals.letters import LETTERS
from jaxllm.evals.rows import Row, field, question, read_rows, texts
from jaxllm.evaluation.tasks import (
    Choice,
    Document,
    FewShot,
    Prompt,
    TaskDefinition,
    cloze,
    multiple_choice,
    perplexity,
)

_log = logging.getLogger(__name__)
PREFIX = "jsonl_"
DOMAIN = "own"


def choices(path: epath.Path, *, asked: str, answer: str, form: str) -> Iterator[Choice]:
    """The questions of a file, formatted with `form`."""
    for row in read_rows(path):
        context = form.format(field(row, asked))
        options = texts(row, "choices")
        spaced = [_spaced(context, option) for option in options]
        right = _index(row, answer, options)
        yield question(row, context, spaced, right, id=str(row.get("id", "")))


def clozes(path: epath.Path) -> Iterator[Prompt]:
    """The contexts of a file with their continuations."""
    for row in read_rows(path):
        context, target = field(row, "context"), field(row, "continuation")
        if not target.strip():
            raise UserError(f"{row.where}: field 'continuation' is empty")
        yield Prompt(context, (_spaced(context, target),), str(row.get("id", "")))


def documents(path: epath.Path, prompted: bool) -> Iterator[Document]:
    """The texts of a file, after their prompts if they have some."""
    empty = 0
    for number, row in enumerate(read_rows(path)):
        prompt, text = field(row, "prompt") if prompted else "", field(row, "text")
        if text:
            yield Document(text, str(row.get("id", number)), context=prompt.rstrip(" "))
        empty += not text
    if empty:
        _log.warning("%s: %d of %d texts are empty, and left out", path, empty, number + 1)


FORMS: dict[tuple[str, ...], tuple[Callable[..., TaskDefinition], Callable[..., Iterator[Any]]]] = {
    ("query", "choices", "gold"): (
        multiple_choice,
        functools.partial(choices, asked="query", answer="gold", form="{}"),
    ),
    ("question", "choices", "answer"): (
        multiple_choice,
        functools.partial(choices, asked="question", answer="answer", form="Question: {}\nAnswer:"),
    ),
    ("context", "continuation"): (cloze, clozes),
    ("prompt", "text"): (perplexity, functools.partial(documents, prompted=True)),
    ("text",): (perplexity, functools.partial(documents, prompted=False)),
}


def declare(name: str, data_dir: epath.Path | None) -> TaskDefinition:
    """Your own file EVAL_DIR/<file>.jsonl; see `jaxllm.evals.jsonl` for its formats."""
    file = f"{name.removeprefix(PREFIX)}.jsonl"
    if data_dir is None:
        raise UserError(f"task {name} reads {file}: set EvalConfig.data_dir to its directory")
    paths = [path for path in (data_dir / file, data_dir / f"{file}.gz") if path.exists()]
    if not paths:
        raise UserError(f"task {name}: no file {data_dir / file}")
    first = next(read_rows(paths[0]), None)
    for fields, (kind, examples) in FORMS.items():
        if first is not None and all(part in first for part in fields):
            shots = None if kind is perplexity else FewShot()
            return kind(name, examples, domain=DOMAIN, files=(file,), few_shot=shots)
    forms = "; ".join(", ".join(fields) for fields in FORMS)
    raise UserError(f"{paths[0]}:1: fields {', '.join(first or ())}, not one of: {forms}")


def _spaced(context: str, text: str) -> str:
    """Prepend a space to `text`, unless `context` is empty or already separated from it."""
    apart = not context or context[-1].isspace() or text[:1].isspace()
    return text if apart else f" {text}"


def _index(row: Row, name: str, options: tuple[str, ...]) -> int:
    """The index of the option that a field names by index, letter or text."""
    value = field(row, name, (int, str))
    if isinstance(value, int):
        return value
    if value in options:
        return options.index(value)
    if len(value) == 1 and value in LETTERS[: len(options)]:
        return LETTERS.index(value)
    raise UserError(f"{row.where}: field '{name}' is {value[:40]!r}, none of its choices")


FAMILIES = {PREFIX: declare}
