"""MMLU, `mmlu_<subject>`: 57 exams, four options each (Hendrycks et al. 2021, arXiv 2009.03300).

Files: EVAL_DIR/mmlu/{dev,test}/<subject>_{dev,test}.csv, as in data.tar of hendrycks/test (the
link is in its README at commit 4450500f923c49f1fb1dd3d99108a0bd9717b660); MIT.
Prompt: "The following are multiple choice questions (with answers) about …", the question, the
options listed as "A. …", "Answer:"; scored on the letters. 5 shots: the first of dev.
Metric: accuracy; chance 1/4. As lm-evaluation-harness' `mmlu_<subject>` with --num_fewshot 5; the
mixture `mmlu` names all of them. The paper's mean is over questions, not over subjects.
"""

from __future__ import annotations

from jaxllm.evals.letters import exam
from jaxllm.evaluation.download import FileSource

SOURCES = (FileSource("mmlu/", "https://people.eecs.berkeley.edu/~hendrycks/data.tar"),)

SUBJECTS = tuple(
    """
    abstract_algebra, anatomy, astronomy, business_ethics, clinical_knowledge, college_biology,
    college_chemistry, college_computer_science, college_mathematics, college_medicine,
    college_physics, computer_security, conceptual_physics, econometrics,
    electrical_engineering, elementary_mathematics, formal_logic, global_facts,
    high_school_biology, high_school_chemistry, high_school_computer_science,
    high_school_european_history, high_school_geography, high_school_government_and_politics,
    high_school_macroeconomics, high_school_mathematics, high_school_microeconomics,
    high_school_physics, high_school_psychology, high_school_statistics, high_school_us_history,
    high_school_world_history, human_aging, human_sexuality, international_law, jurisprudence,
    logical_fallacies, machine_learning, management, marketing, medical_genetics, miscellaneous,
    moral_disputes, moral_scenarios, nutrition, philosophy, prehistory, professional_accounting,
    professional_law, professional_medicine, professional_psychology, public_relations,
    security_studies, sociology, us_foreign_policy, virology, world_religions,
    """.replace(",", " ").split()
)
COLUMNS = ("question", "A", "B", "C", "D", "answer")

for subject in SUBJECTS:
    exam(
        f"mmlu_{subject}",
        f"mmlu/test/{subject}_test.csv",
        f"mmlu/dev/{subject}_dev.csv",
        "The following are multiple choice questions (with answers) about "
        f"{subject.replace('_', ' ')}.",
        "Answer:",
        columns=COLUMNS,
    )
