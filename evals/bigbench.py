"""Any multiple-choice task of BIG-bench, `bigbench_<name>` (Srivastava et al. 2022, 2206.04615).

Files: EVAL_DIR/bigbench/<name>/task.json, the folder bigbench/benchmark_tasks of google/BIG-bench;
Apache-2.0. A task with subtasks (<name>/<part>/task.json) is read whole; `bigbench_<name>.<part>`
is one of them.
Prompt: set by the fields of the file, with the defaults of BIG-bench's json_task.py: the task's
prefix, "Q: …", the choices if the task lists them, "A: "; shots (any of the task's other
questions) follow each other on new lines. Listed choices are shuffled anew for each question, so
that their position is uninformative. Metrics: accuracy (any of several best choices is correct), or
accuracy_per_token for the tasks below; chance 1 / choices.

`bigbench_74` names the tasks of "Training Trajectories of Language Models Across Scales" (arXiv
2212.09803, table 7) as the paper scores them: 2 shots, drawn anew for each question, and the choice
of the highest log-likelihood per token. `bigbench_linearity` and `bigbench_breakthroughness` are
its two subsets. Where some files are missing, name those that are there.
lm-evaluation-harness' tasks of BIG-bench use fixed published prompts, without shots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals.rows import Row, field, objects, question, read_object
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import Choice, FewShot, TaskDefinition, multiple_choice

SOURCES = (
    FileSource(
        "bigbench/", "https://github.com/google/BIG-bench/tree/main/bigbench/benchmark_tasks"
    ),
)

PREFIX = "bigbench_"
DOMAINS = {
    "disambiguation_qa": "language",
    "implicatures": "language",
    "presuppositions_as_nli": "language",
    "movie_recommendation": "knowledge",
    "ruin_names": "knowledge",
    "sports_understanding": "knowledge",
    "causal_judgment": "commonsense",
}
BIGBENCH_74 = tuple(
    """
    anachronisms, analogical_similarity, analytic_entailment, authorship_verification,
    causal_judgment, cause_and_effect, code_line_description, common_morpheme,
    conceptual_combinations, crash_blossom, crass_ai, cryobiology_spanish, dark_humor_detection,
    date_understanding, disambiguation_qa, discourse_marker_prediction, emoji_movie,
    empirical_judgments, english_russian_proverbs, entailed_polarity, entailed_polarity_hindi,
    evaluating_information_essentiality, fantasy_reasoning, figure_of_speech_detection,
    hhh_alignment, hinglish_toxicity, human_organs_senses, identify_math_theorems,
    identify_odd_metaphor, implicatures, implicit_relations, intent_recognition,
    international_phonetic_alphabet_nli, irony_identification, kannada, key_value_maps,
    known_unknowns, logical_args, logical_sequence, mathematical_induction, metaphor_boolean,
    metaphor_understanding, misconceptions, misconceptions_russian, moral_permissibility,
    movie_recommendation, nonsense_words_grammar, odd_one_out, penguins_in_a_table,
    periodic_elements, persian_idioms, phrase_relatedness, physical_intuition, physics,
    presuppositions_as_nli, riddle_sense, ruin_names, salient_translation_error_detection,
    sentence_ambiguity, similarities_abstraction, simple_arithmetic_json_multiple_choice,
    simple_ethical_questions, snarks, social_support, sports_understanding, strange_stories,
    suicide_risk, swahili_english_proverbs, symbol_interpretation, understanding_fables,
    undo_permutation, unit_interpretation, what_is_the_tao, which_wiki_edit,
    """.replace(",", " ").split()
)
LINEARITY = (
    "date_understanding", "fantasy_reasoning", "figure_of_speech_detection", "hhh_alignment",
    "implicit_relations", "intent_recognition", "misconceptions", "similarities_abstraction",
    "simple_ethical_questions", "strange_stories", "undo_permutation", "nonsense_words_grammar",
)  # fmt: skip
BREAKTHROUGHNESS = (
    "code_line_description", "human_organs_senses", "phrase_relatedness",
    "swahili_english_proverbs", "what_is_the_tao", "implicatures",
)  # fmt: skip
SEED = 42  # of the shuffled choices


@dataclasses.dataclass(frozen=True)
class Question(Choice):
    """A question with its file's separator between few-shot examples."""

    separator: str = "\n"

    @property
    def as_shot(self) -> str:
        """The question, its answer and the separator, as a few-shot example."""
        return super().as_shot + self.separator


def examples(folder: epath.Path) -> Iterator[Choice]:
    """The questions of a task or its subtasks; UserError if there are no questions with options."""
    found = _task_files(folder)
    for part in () if found else sorted(folder.iterdir()):
        found += _task_files(part) if part.is_dir() else []
    if not found:
        raise UserError(f"{folder}: no task.json in this folder or in its folders")
    for path in found:
        yield from _questions(read_object(path), path.parent.name if len(found) > 1 else "")


def _task_files(folder: epath.Path) -> list[epath.Path]:
    candidates = (folder / name for name in ("task.json", "task.json.gz"))
    return [path for path in candidates if path.exists()][:1]


def _questions(task: Row, part: str) -> Iterator[Choice]:
    listed = task.get("append_choices_to_input", True)
    choice_prefix = task.get("choice_prefix", "\n  choice: ")
    rng = np.random.RandomState(SEED)
    for number, row in enumerate(objects(task, "examples")):
        if "target_scores" not in row:
            raise UserError(f"{row.where} has no target_scores: not multiple choice")
        scores = field(row, "target_scores", dict)
        choices = tuple(scores)
        best = max(scores.values(), default=0)
        right = [i for i, choice in enumerate(choices) if scores[choice] == best > 0]
        if not right:
            raise UserError(f"{row.where}: no choice has a score above 0")
        text = task.get("example_input_prefix", "\nQ: ") + field(row, "input")
        if listed:
            ordered = sorted(choices)
            text += "".join(choice_prefix + ordered[i] for i in rng.permutation(len(ordered)))
        text += task.get("example_output_prefix", "\nA: ")
        checked = question(row, text, choices, right[0])
        yield Question(
            checked.context, checked.options, checked.answer,
            id=f"{part}.{number}" if part else str(number),
            also_correct=tuple(right[1:]),
            description=task.get("task_prefix", ""),
            separator=task.get("few_shot_example_separator", "\n"),
        )  # fmt: skip


def declare(name: str, data_dir: epath.Path | None = None) -> TaskDefinition:
    """A multiple-choice task of BIG-bench, by the name of its folder."""
    del data_dir
    task = name.removeprefix(PREFIX)
    return multiple_choice(
        name,
        examples,
        domain=DOMAINS.get(task, "reasoning"),
        files=(f"bigbench/{task.replace('.', '/')}",),
        few_shot=FewShot(separator=""),
        primary_metric="accuracy_per_token" if task in BIGBENCH_74 else "accuracy",
        version="2",
    )


FAMILIES = {PREFIX: declare}
MIXTURES = {
    f"{PREFIX}{name}": tuple(f"{PREFIX}{task}_2shot" for task in tasks)
    for name, tasks in (
        ("74", BIGBENCH_74),
        ("linearity", LINEARITY),
        ("breakthroughness", BREAKTHROUGHNESS),
    )
}
