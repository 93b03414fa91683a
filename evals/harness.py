"""Any task of lm-evaluation-harness, `harness:<name>`, through its own loader (`jaxllm[harness]`).

The harness reads the YAML file of the task (its own, or one below EVAL_DIR) and the data set,
builds prompts with the file's number of shots, and scores generated answers. Log-likelihoods are
computed by jaxllm: `acc`, `acc_norm` and `acc_bytes` are accuracy, accuracy_per_char and
accuracy_per_byte here. Groups are not supported: name their tasks. The harness downloads its data
sets; with HF_HUB_OFFLINE=1 they must be in the local cache.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from jaxllm.errors import UserError, one_line
from jaxllm.evaluation.tasks import (
    Choice,
    Document,
    Example,
    Prompt,
    TaskDefinition,
    cloze,
    generation,
    multiple_choice,
    perplexity,
)

PREFIX = "harness:"
_managers: dict[str | None, Any] = {}  # by data_dir: each reads ten thousand files


@functools.cache
def load(name: str, data_dir: str | None) -> Any:
    """Load a task of the harness, if installed; UserError unless it has one of that name."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"task {PREFIX}{name} needs `pip install jaxllm[harness]`") from error
    try:
        if data_dir not in _managers:
            _managers[data_dir] = TaskManager(include_path=data_dir)
        loaded = _managers[data_dir].load(name)
    except Exception as error:
        raise UserError(f"task {PREFIX}{name}: {one_line(error) or repr(error)}") from error
    if loaded["groups"] or len(loaded["tasks"]) != 1:
        raise UserError(f"{PREFIX}{name} is a group: name its tasks, {', '.join(loaded['tasks'])}")
    return next(iter(loaded["tasks"].values()))


def examples(task: Any) -> Iterator[Example]:
    """The examples of a harness task; an id is the index of the document."""
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    for number, group in itertools.groupby(task.instances, key=lambda instance: instance.doc_id):
        instances = list(group)
        first, doc = instances[0], instances[0].doc
        if task.OUTPUT_TYPE == "multiple_choice":
            gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
            choices = task.doc_to_choice(doc)
            answers = [choices.index(g) if isinstance(g, str) else g for g in _list(gold)]
            pairs = [instance.args for instance in instances[: len(choices)]]
            contexts, options = zip(*pairs, strict=True)
            yield Choice(
                contexts[0], options, answers[0], str(number),
                contexts=contexts if len(set(contexts)) > 1 else (),
                also_correct=tuple(answers[1:]),
            )  # fmt: skip
        elif task.OUTPUT_TYPE == "loglikelihood_rolling":
            yield Document(first.args[0], str(number))
        elif task.OUTPUT_TYPE == "loglikelihood":
            yield Prompt(first.args[0], (first.args[1],), str(number))
        else:
            targets = tuple(map(str, _list(task.doc_to_target(doc))))
            yield Prompt(first.args[0], targets, str(number))


def score(text: str, example: Prompt, *, task: Any) -> Mapping[str, float]:
    """The metrics of one answer, after the task's first filter pipeline."""
    instance = copy.copy(task.instances[int(example.id)])
    instance.resps, instance.filtered_resps = [text], {}
    chain = task._filters[0]
    chain.apply([instance])
    results = task.process_results(instance.doc, [instance.filtered_resps[chain.name]])
    return {name: float(v) for name, v in results.items() if isinstance(v, (bool, int, float))}


def declare(name: str, data_dir: epath.Path | None) -> TaskDefinition:
    """A task of lm-evaluation-harness, its own or of a YAML file below EVAL_DIR."""
    task = load(name.removeprefix(PREFIX), None if data_dir is None else str(data_dir))
    details: dict[str, Any] = {
        "domain": "own",
        "shots": task.config.num_fewshot or 0,
        "version": str(task.VERSION),
    }
    read: Any = functools.partial(examples, task)  # its type depends on the kind
    if task.OUTPUT_TYPE != "generate_until":
        kinds: Mapping[str, Any] = {"multiple_choice": multiple_choice, "loglikelihood": cloze}
        return kinds.get(task.OUTPUT_TYPE, perplexity)(name, read, **details)
    settings = task.config.generation_kwargs or {}
    return generation(
        name, read,
        max_new_tokens=settings.get("max_gen_toks", 256),  # the harness' default
        stop=tuple(_list(settings.get("until", ()))),
        score=functools.partial(score, task=task),
        primary_metric=next(iter(task.aggregation())),
        **details,
    )  # fmt: skip


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


FAMILIES = {PREFIX: declare}
