"""Mixtures: names for groups of tasks; `mmlu_0shot` is every task of `mmlu` at 0 shots.

A benchmark module can add its own in a dictionary MIXTURES: name -> names of tasks or mixtures.
"""

from __future__ import annotations

from jaxllm.evals import agieval, ceval, cmmlu, mmlu

# The domains of "The Fine Line" (arXiv 2404.01204). The paper's table of tasks, shots and metrics
# was not accessible: the grouping and the shots are ours. Its domain code (humaneval, mbpp) has to
# be requested by name, because those tasks execute generated programs.
FINE_LINE: dict[str, tuple[str, ...]] = {
    "examination": ("mmlu", "cmmlu", "ceval"),
    "knowledge": ("nq_open_5shot", "triviaqa_5shot"),
    "reading": ("race", "boolq"),
    "commonsense": (
        "hellaswag", "piqa", "siqa", "winogrande", "openbookqa", "arc_easy", "arc_challenge",
    ),
    "math": ("gsm8k",),
}  # fmt: skip

MIXTURES: dict[str, tuple[str, ...]] = {
    "mmlu": tuple(f"mmlu_{subject}" for subject in mmlu.SUBJECTS),
    "cmmlu": tuple(f"cmmlu_{subject}" for subject in cmmlu.SUBJECTS),
    "ceval": tuple(f"ceval_{subject}" for subject in ceval.SUBJECTS),
    "agieval": agieval.TASKS,
    "fine_line": tuple(name for names in FINE_LINE.values() for name in names),
    # the table in OpenLLaMA's README, all at 0 shots
    "open_llama": (
        "anli_r1", "anli_r2", "anli_r3", "arc_challenge", "arc_easy", "boolq", "hellaswag",
        "openbookqa", "piqa", "record", "rte", "truthfulqa_mc1", "truthfulqa_mc2", "wic",
        "winogrande",
    ),
    # the tasks of Amber's trajectories (LLM360, arXiv 2312.06550)
    "amber": ("arc_challenge_25shot", "hellaswag_10shot", "mmlu", "truthfulqa_mc2"),
    # minutes for a small model: the probes, which need no files, and four small benchmarks
    "quick": (
        "closing_bracket", "keyword", "indentation", "word_order", "docstring_continuation",
        "module_members", "induction", "fact_recall", "few_shot_labels", "counting", "addition",
        "row_copy", "addition_exact", "arc_easy", "copa", "openbookqa", "piqa",
    ),
}  # fmt: skip
