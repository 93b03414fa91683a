"""Five tasks of SuperGLUE (Wang et al. 2019, 1905.00537): `boolq`, `copa`, `rte`, `wic`, `record`.

Files: EVAL_DIR/superglue/{BoolQ,COPA,RTE,WiC,ReCoRD}/{train,val}.jsonl, from the authors' archives
of version 2. Licences: BoolQ CC BY-SA 3.0, COPA BSD-2-Clause, WiC CC BY-NC 4.0, the others by their
sources.
The val split, shots drawn from train; scored on the texts of the options.

boolq: yes/no questions about a passage, which begins with its title, unlike those of
  google-research-datasets/boolean-questions (Clark et al. 2019, 1905.10044); "Question: …?",
  "Answer:", no or yes. Chance 1/2 (62 % are yes).
copa: which of two sentences is the cause or the effect of the premise; the premise, "because" or
  "therefore". Chance 1/2. Two spaces precede an option, as in the harness.
rte: whether the second sentence follows; "Question: … True or False?", "Answer:". Chance 1/2.
wic: whether a word has the same meaning in two sentences; "Question: Is the word '…' used in the
  same way …", no or yes. Chance 1/2.
record: which entity of a news story fills the blank of a sentence; the story, its highlights, and
  the sentence with each entity. Its accuracy is the harness' em (any of several correct entities
  counts); the harness' token f1 is not computed.
As lm-evaluation-harness' `boolq`, `copa`, `sglue_rte`, `wic` and `record`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals.rows import Row, field, index_of, objects, question, read_rows
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

SOURCES = tuple(
    FileSource(
        f"superglue/{name}/",
        f"https://dl.fbaipublicfiles.com/glue/superglue/data/v2/{name}.zip",
        sha256=digest,
        inside=f"{name}/",
    )
    for name, digest in (
        ("BoolQ", "853fbe7922f70c59629f06a39e8d9ca440c3d740e760fd3b87a5ddf3dcba2436"),
        ("COPA", "405906cddac74bc1e1ce8220f1107d1025b66a25ef10149d91b10bb30651125f"),
        ("RTE", "6310aab3f000424c9d0318a1ff20692e07c7f4aa15e8f17a5972ea0a35c398b9"),
        ("WiC", "ee7e67f4ae9eafbf533780faa198e62167f3cda54256cdf261877be3c0e90900"),
        ("ReCoRD", "30c7b651ab21b8bf8fab986495cd1084333010e040548f861b839eec0044ac18"),
    )
)


def boolq(path: epath.Path) -> Iterator[Choice]:
    """The questions about passages in one file."""
    for row in read_rows(path):
        context = f"{field(row, 'passage')}\nQuestion: {field(row, 'question')}?\nAnswer:"
        yield question(row, context, (" no", " yes"), index_of(row, "label", (False, True)))


def copa(path: epath.Path) -> Iterator[Choice]:
    """The questions about causes and effects in one file."""
    links = ("because", "therefore")
    for row in read_rows(path):
        link = links[index_of(row, "question", ("cause", "effect"))]
        endings = (field(row, "choice1"), field(row, "choice2"))
        options = [f"  {text[:1].lower()}{text[1:]}" for text in endings]
        context = f"{field(row, 'premise').strip()[:-1]} {link}"
        yield question(row, context, options, index_of(row, "label", (0, 1)))


def rte(path: epath.Path) -> Iterator[Choice]:
    """The sentence pairs of one file."""
    for row in read_rows(path):
        asked = f"Question: {field(row, 'hypothesis')} True or False?"
        answer = index_of(row, "label", ("entailment", "not_entailment"))
        context = f"{field(row, 'premise')}\n{asked}\nAnswer:"
        yield question(row, context, (" True", " False"), answer)


def wic(path: epath.Path) -> Iterator[Choice]:
    """The sentence pairs with a common word in one file."""
    for row in read_rows(path):
        first, second = field(row, "sentence1"), field(row, "sentence2")
        word = first[field(row, "start1", int) : field(row, "end1", int)]
        context = (
            f"Sentence 1: {first}\nSentence 2: {second}\nQuestion: Is the word '{word}' used in "
            "the same way in the two sentences above?\nAnswer:"
        )
        yield question(row, context, (" no", " yes"), index_of(row, "label", (False, True)))


def record(path: epath.Path) -> Iterator[Choice]:
    """The sentences with a blank in one file; a news story has several."""
    for row in read_rows(path):
        passage = field(row, "passage", dict)
        text = field(passage, "text")
        marks = objects(passage, "entities")  # `end` is inclusive
        entities = sorted({text[field(m, "start", int) : field(m, "end", int) + 1] for m in marks})
        story, *highlights = text.strip().split("\n@highlight\n")
        context = story + "\n\n" + "".join(f"  - {line}.\n" for line in highlights)
        for asked in objects(row, "qas"):
            yield _blank(asked, context, entities)


def _blank(row: Row, context: str, entities: list[str]) -> Choice:
    answers = sorted({field(answer, "text") for answer in objects(row, "answers")})
    right = [entities.index(answer) for answer in answers if answer in entities]
    if not right:
        raise UserError(f"{row.where}: field 'answers' has none of the passage's entities")
    sentence = field(row, "query")
    options = [f"   - {sentence}".replace("@placeholder", entity) for entity in entities]
    return question(row, context, options, right[0], also_correct=tuple(right[1:]))


TASKS: dict[str, tuple[str, Callable[[epath.Path], Iterator[Choice]], str, float | None]] = {
    "boolq": ("BoolQ", boolq, "reading", 1 / 2),
    "copa": ("COPA", copa, "commonsense", 1 / 2),
    "rte": ("RTE", rte, "reasoning", 1 / 2),
    "wic": ("WiC", wic, "language", 1 / 2),
    "record": ("ReCoRD", record, "reading", None),
}

for name, (folder, examples, domain, chance) in TASKS.items():
    multiple_choice(
        name,
        examples,
        domain=domain,
        files=(f"superglue/{folder}/val.jsonl",),
        few_shot=FewShot(examples, (f"superglue/{folder}/train.jsonl",), exclude_self=True),
        chance=chance,
        version="2",
    )
