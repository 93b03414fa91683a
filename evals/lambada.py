"""LAMBADA: the last word of a passage, predictable only from broad context (Paperno et al. 2016).

`lambada_openai`: EVAL_DIR/lambada/lambada_test.jsonl, the 5,153 passages cleaned by OpenAI for
  GPT-2 (EleutherAI/lambada_openai, data/lambada_test.jsonl; arXiv 1606.06031).
`lambada_standard`: EVAL_DIR/lambada/lambada_test_plain_text.txt of the authors' release
  (zenodo.org/records/2630551), in lower case and with spaces around punctuation.
CC BY 4.0. Prompt: the passage up to its last word; the word is correct if each of its tokens is the
argmax. Metrics: exact_match (the harness' acc), chance 0; perplexity, exp of the mean loss per
word. As lm-evaluation-harness' tasks of these names.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals.rows import Row, field, read_rows, read_text
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import FewShot, Prompt, cloze

SOURCES = (
    FileSource(
        "lambada/lambada_test_plain_text.txt",
        "https://zenodo.org/record/2630551/files/lambada-dataset.tar.gz?download=1",
        sha256="8fbe499096ddbdcbbd0cac406861b5026fb451d15b8fe04e0e4f3d082f2ad5d7",
        inside="lambada_test_plain_text.txt",
    ),
    FileSource(
        "lambada/", "https://huggingface.co/datasets/EleutherAI/lambada_openai/tree/main/data"
    ),
)


def openai(path: epath.Path) -> Iterator[Prompt]:
    """The passages of a JSONL file."""
    for row in read_rows(path):
        yield _last_word(field(row, "text"), row)


def standard(path: epath.Path) -> Iterator[Prompt]:
    """The passages of a text file, one per line."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield _last_word(line, Row({}, f"{path}:{number}"))


def _last_word(text: str, row: Row) -> Prompt:
    context, _, word = text.rpartition(" ")
    if not context or not word:
        raise UserError(f"{row.where}: a passage of {text[:40]!r} has no last word")
    return Prompt(context, (f" {word}",))


cloze(
    "lambada_openai",
    openai,
    domain="reading",
    files=("lambada/lambada_test.jsonl",),
    few_shot=FewShot(),
)
cloze(
    "lambada_standard",
    standard,
    domain="reading",
    files=("lambada/lambada_test_plain_text.txt",),
    few_shot=FewShot(),
)
