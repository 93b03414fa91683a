"""Closed-book question answering: `triviaqa` and `nq_open`.

triviaqa (Joshi et al. 2017, 1705.03551): EVAL_DIR/triviaqa/qa/{web,wikipedia}-{train,dev}.json of
  the authors' release triviaqa-rc 1.0 (mandarjoshi90/triviaqa at commit
  ca43b5820b107f3970cf4b7d67f7db7a98117b79 has the format); Apache-2.0. 17,944 questions. Prompt:
  "Question: …?", "Answer:" (so that questions end in "??", as in the harness).
nq_open (Kwiatkowski et al. 2019; Lee et al. 2019, 1906.00300): EVAL_DIR/nq_open/
  NQ-open.{train,dev}.jsonl, the folder nq_open/ of google-research-datasets/natural-questions at
  commit fb26a3073b1fe636c97302890a27b491d6530130; CC BY-SA 3.0. Prompt: "Answer these questions:",
  "Q: …?", "A:"; shots follow each other on single lines.

Both are generated greedily up to a line end, a full stop or a comma (256 tokens). Metric:
exact_match, the answer is one of the targets, ignoring case and punctuation (in nq_open also
articles); chance 0. 0 shots; papers use 5 or 64, drawn from train. As lm-evaluation-harness' tasks
of these names.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Iterator, Mapping

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals.rows import Row, field, objects, read_object, read_rows, texts
from jaxllm.evaluation.download import FileSource, github
from jaxllm.evaluation.tasks import FewShot, Prompt, generation

SOURCES = (
    FileSource(
        "triviaqa/",
        "http://nlp.cs.washington.edu/triviaqa/data/triviaqa-rc.tar.gz",
        sha256="ef94fac6db0541e5bb5b27020d067a8b13b1c1ffc52717e836832e02aaed87b9",
    ),
    FileSource(
        "nq_open/",
        github(
            "google-research-datasets/natural-questions",
            "fb26a3073b1fe636c97302890a27b491d6530130",
            "nq_open/",
        ),
    ),
)

_UNPUNCTUATED = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:The |the |An |A |The |a |an )")


def triviaqa(*paths: epath.Path) -> Iterator[Prompt]:
    """The questions of several files, one after the other."""
    for path in paths:
        for row in objects(read_object(path), "Data"):
            aliases = texts(field(row, "Answer", dict), "Aliases")
            name = field(row, "QuestionId")
            yield _prompt(row, f"Question: {field(row, 'Question')}?\nAnswer:", aliases, name)


def nq_open(path: epath.Path) -> Iterator[Prompt]:
    """The questions of one file."""
    for row in read_rows(path):
        yield _prompt(row, f"Q: {field(row, 'question')}?\nA:", texts(row, "answer"))


def _prompt(row: Row, context: str, answers: tuple[str, ...], name: str = "") -> Prompt:
    if not answers or not all(answers):
        raise UserError(f"{row.where}: no answer, or an empty one")
    return Prompt(context, answers, name, solution=f" {answers[0]}")


def plain(text: str) -> str:
    """Lower-case a text and strip punctuation."""
    return text.lower().translate(_UNPUNCTUATED)


def without_articles(text: str) -> str:
    """Lower-case a text and strip punctuation and articles before a word."""
    return plain(_ARTICLES.sub("", text))


def score(
    prediction: str, example: Prompt, *, normalise: Callable[[str], str]
) -> Mapping[str, float]:
    """exact_match: 1 if the answer equals one of the targets after normalization."""
    answer = normalise(prediction.strip())
    return {"exact_match": float(answer in {normalise(target) for target in example.targets})}


generation(
    "triviaqa",
    triviaqa,
    domain="knowledge",
    max_new_tokens=256,
    version="2",
    stop=("\n", ".", ","),
    files=("triviaqa/qa/web-dev.json", "triviaqa/qa/wikipedia-dev.json"),
    few_shot=FewShot(
        triviaqa,
        ("triviaqa/qa/web-train.json", "triviaqa/qa/wikipedia-train.json"),
        exclude_self=True,
    ),
    score=functools.partial(score, normalise=plain),
)
generation(
    "nq_open",
    nq_open,
    domain="knowledge",
    max_new_tokens=256,
    version="2",
    stop=("\n", ".", ","),
    files=("nq_open/NQ-open.dev.jsonl",),
    few_shot=FewShot(nq_open, ("nq_open/NQ-open.train.jsonl",), separator="\n", exclude_self=True),
    description="Answer these questions:\n\n",
    score=functools.partial(score, normalise=without_articles),
)
