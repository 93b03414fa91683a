"""Reading, reasoning and math sets: whole where they are at hand, else in their published form."""

import collections
import dataclasses
import json
from pathlib import Path

import pytest

from jaxllm.errors import UserError
from jaxllm.evals import bbh, bigbench
from jaxllm.evals.rows import read_json
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.selection import add_few_shot, locate, select
from tests.evals.test_question_sets import read_all


def asked(name, directory):
    """The text before each question of a task, few-shot examples and all."""
    (task,) = benchmarks().load([name])
    found = locate(task, EvalConfig(data_dir=str(directory)))
    own = len(task.files)
    pool = list(task.few_shot.pool(*found[own:])) if task.few_shot.pool else []
    examples = add_few_shot(task, list(task.examples(*found[:own])), pool)
    return ["".join([e.description, *e.shots, e.context]) for e in examples]


ANSWERS = {
    "boolq": (1237, 2033),
    "basic_arithmetic": (749, 754, 747, 750),
    "bigbench_causal_judgment": (99, 91),
    "bigbench_implicatures": (246, 246),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_choices_are_read_with_their_answers(name, eval_dir):
    found = collections.Counter(example.answer for example in read_all(name, eval_dir))
    assert tuple(found[i] for i in range(max(found) + 1)) == ANSWERS[name]


# name -> questions, targets
TARGETS = {
    "squad": (1000, 3254),
    "coqa": (200, 403),
    "coqa_turns": (3256, 6693),
    "drop": (1000, 1426),
    "lambada_openai": (5153, 5153),
    "gsm8k": (1319, 1319),
    "gsm8k_cot": (1319, 1319),
    "svamp_cot": (300, 300),
    "mgsm_native_cot_zh": (250, 250),
    "simple_arithmetic_nospaces": (1000, 1000),
}


@pytest.mark.parametrize("name", TARGETS)
def test_prompts_are_read_with_their_targets(name, eval_dir):
    found = read_all(name, eval_dir)
    assert (len(found), sum(len(e.targets) for e in found)) == TARGETS[name]


# name -> how the first question ends, and its first target
ENDS = {
    "squad": (
        '\n\nQuestion: Harvard - Yale Regatta predates "The Game" by how many years?\n\nAnswer:',
        "23 years",
    ),
    "coqa": (
        "\n\nQ: what is the most urban part?\n\nA: North Shore\n\nQ: which neighborhoods?\n\nA:",
        "St. George, Tompkinsville, Clifton, and Stapleton",
    ),
    "coqa_turns": ("\n\nQ: How many burroughs are there?\n\nA:", "five"),
    "drop": (" Which ancestral group is larger: swedish or united states?", "swedish"),
    "lambada_openai": ("a confident grin, I don't care about", " signs"),
    "gsm8k": ("does she make every day at the farmers' market?\nAnswer:", "18"),
    "gsm8k_cot": ("does she make every day at the farmers' market?\nA:", "18"),
    "svamp_cot": (
        "5 cups of flour. How many more cups of sugar than cups of salt does she need to add "
        "now?\nA:", "1",
    ),
    "mgsm_native_cot_zh": ("她每天在农贸市场赚多少钱？\n逐步解答:", "18"),
    "bbh_fewshot_navigate": ("Take 3 steps right.\nOptions:\n- Yes\n- No\nA:", "No"),
    "bbh_cot_fewshot_navigate": ("- No\nA: Let's think step by step.\n", "No"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_first_prompt_is_asked_as_published(name, eval_dir):
    first = read_all(name, eval_dir)[0]
    assert (first.context[-len(ENDS[name][0]) :], first.targets[0]) == ENDS[name]


def test_bbh_is_read_whole_but_for_what_is_not_at_hand(eval_dir):
    absent = {"penguins_in_a_table", "snarks", "temporal_sequences"}
    sizes = {
        task: len(read_all(f"bbh_fewshot_{task}", eval_dir))
        for task in bbh.TASKS
        if task not in absent
    }
    assert (len(bbh.TASKS), len(sizes), sum(sizes.values())) == (27, 24, 5937)
    assert {task: n for task, n in sizes.items() if n != 250} == {"causal_judgement": 187}


@pytest.mark.parametrize("form", ["fewshot", "cot_fewshot"])
def test_bbh_prompts_are_the_harness_ones(form, eval_dir):
    yaml = pytest.importorskip("yaml")
    harness = pytest.importorskip("lm_eval")
    between = {"fewshot": " ", "cot_fewshot": ""}[form]  # its target_delimiter
    for task in ("boolean_expressions", "dyck_languages", "sports_understanding", "word_sorting"):
        folder = Path(harness.__file__).parent / "tasks/bbh" / form
        theirs = yaml.safe_load((folder / f"{task}.yaml").read_text())

        def form_of(sample, text=theirs["doc_to_text"]):
            return text.replace("{{input}}", sample["input"])

        shots = [
            f"{form_of(s)}{between}{s['target']}\n\n" for s in theirs["fewshot_config"]["samples"]
        ]
        question = read_json(eval_dir / f"bbh/{task}.json.gz")["examples"][0]
        expected = theirs["description"] + "".join(shots) + form_of(question)
        assert asked(f"bbh_{form}_{task}", eval_dir)[0] == expected


def test_chains_of_thought_of_gsm8k_come_before_the_question(eval_dir):
    pytest.importorskip("lm_eval")
    prompt = asked("gsm8k_cot", eval_dir)[0]
    assert prompt.startswith("Q: There are 15 trees in the grove.")
    assert prompt.count("The answer is") == prompt.count("\n\nQ: ") == 8
    assert asked("svamp_cot", eval_dir)[0].startswith(prompt[:200])
    plain = asked("gsm8k", eval_dir)[0]
    assert plain.count("#### ") == plain.count("\n\nQuestion: ") == 5


def test_shots_of_mgsm_are_parsed_from_python(tmp_path, eval_dir):
    path = tmp_path / "mgsm/exemplars.py"
    path.parent.mkdir()
    zh = {
        str(i): {"q": f"问题：{i} + 1?", "a": f"逐步解答：{i}。答案是 {i + 1}。"} for i in range(8)
    }
    path.write_text(f'"""Doc."""\nMGSM_EXEMPLARS = {{"en": {{}}, "zh": {zh!r}}}\n')
    (path.parent / "mgsm_zh.tsv").write_text("3 + 4?\t1,007\n")
    prompt = asked("mgsm_native_cot_zh", tmp_path)[0]
    assert prompt.endswith("\n\n问题： 3 + 4?\n逐步解答:")
    assert "问题：5 + 1?\n逐步解答: 5。答案是 6。\n\n" in prompt
    assert read_all("mgsm_native_cot_zh", tmp_path)[0].targets == ("1007",)
    path.write_text("OTHER = 1\n")
    with pytest.raises(UserError, match=r"exemplars.py: no constant MGSM_EXEMPLARS"):
        asked("mgsm_native_cot_zh", tmp_path)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def race(folder, number, **fields):
    article = {
        "article": "Tom ran.", "id": f"high{number}.txt",
        "questions": ["Who ran?", "Tom  _  .", "Where?"],
        "options": [["Ann", "Tom", "Bob", "Sue"], ["sat", "ran", "ate", "fell"], [*"wxyz"]],
        "answers": ["B", "B", "D"],
    }  # fmt: skip
    write_json(folder / f"race/test/high/{number}.txt", article | fields)


def test_race_solves_all_questions_but_the_last(tmp_path):
    race(tmp_path, 100)
    race(tmp_path, 20)
    last, first = reversed(read_all("race", tmp_path))
    assert (first.id, last.id) == ("20", "100")
    assert first.context == (
        "Article: Tom ran.\n\nQuestion: Who ran?\nAnswer: Tom\nTom ran\nWhere?"
    )
    assert (first.options, first.answer) == ((" w", " x", " y", " z"), 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": ["B"]}, "7.txt: questions, options and answers differ in number"),
        ({"answers": ["B", "B", "E"]}, "7.txt: question 3: field 'answer' is 'E', not one of A"),
        ({"article": 3}, "7.txt: field 'article' is '3', not a str"),
    ],
)
def test_race_of_another_shape_is_refused(tmp_path, fields, message):
    race(tmp_path, 7, **fields)
    with pytest.raises(UserError, match=message):
        read_all("race", tmp_path)


def test_drop_takes_numbers_spans_and_dates(tmp_path):
    nothing = {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": []}
    row = {
        "question": "Who?", "query_id": "q", "answer": nothing | {"spans": ["Ann", "Bob"]},
        "validated_answers": [
            nothing | {"number": "3"},
            nothing | {"date": {"day": "", "month": "May", "year": "1901"}},
            nothing | {"number": "3"},
            nothing,
        ],
    }  # fmt: skip
    story = {"s": {"passage": "A story.", "qa_pairs": [row]}}
    write_json(tmp_path / "drop/drop_dataset_dev.json", story)
    (example,) = read_all("drop", tmp_path)
    assert example.targets == ("Ann\nBob", "3", "May 1901")
    assert example.as_shot == "A story. Who? Ann, Bob"
    row["answer"], row["validated_answers"] = nothing, []
    write_json(tmp_path / "drop/drop_dataset_dev.json", story)
    with pytest.raises(UserError, match=r"s: qa_pairs\[0\]: field 'answer' has no number"):
        read_all("drop", tmp_path)


def test_lambada_standard_is_a_passage_on_each_line(tmp_path):
    path = tmp_path / "lambada/lambada_test_plain_text.txt"
    path.parent.mkdir()
    path.write_text("he said no , no\nword\n")
    with pytest.raises(UserError, match=r"text.txt:2: a passage of 'word' has no last word"):
        read_all("lambada_standard", tmp_path)
    path.write_text("he said no , no\n")
    (example,) = read_all("lambada_standard", tmp_path)
    assert (example.context, example.targets) == ("he said no ,", (" no",))


def test_bigbench_prompt_is_put_together_as_bigbench_does(eval_dir):
    first = read_all("bigbench_implicatures", eval_dir)[0]
    assert first.description + first.context == (
        "Does Speaker 2's answer mean yes or no?\n\n\nQ: Speaker 1: 'But aren't you afraid?' "
        "Speaker 2: 'Ma'am, sharks never attack anybody.' \nA: "
    )
    assert first.options[first.answer] == "no"


def test_two_shots_are_other_questions_of_the_task(eval_dir):
    (task,) = benchmarks().load(["bigbench_dyck_languages_2shot"])
    examples = read_all("bigbench_dyck_languages", eval_dir)[:50]
    solved = add_few_shot(task, examples, [])
    for example in solved:
        assert len(example.shots) == 2 and len(set(example.shots)) == 2
        assert all(shot.endswith("\n ") for shot in example.shots)  # the separator of its file
        assert all(example.context not in shot for shot in example.shots)
        assert example.description.startswith("Complete the rest of the sequence")
    assert len({example.shots for example in solved}) > 40


def test_bigbench_defaults_list_the_choices_in_any_order(tmp_path):
    rows = [{"input": "x?", "target_scores": {"yes": 0.2, "no": 0.9}}] * 30
    write_json(
        tmp_path / "bigbench/made_up/task.json", {"examples": rows, "task_prefix": "Say it."}
    )
    found = read_all("bigbench_made_up", tmp_path)
    counted = collections.Counter(e.description + e.context for e in found)
    beginning, end = "Say it.\nQ: x?", "\nA: "
    assert set(counted) == {
        f"{beginning}\n  choice: yes\n  choice: no{end}",
        f"{beginning}\n  choice: no\n  choice: yes{end}",
    }
    assert min(counted.values()) > 5
    assert {(e.options, e.answer) for e in found} == {(("yes", "no"), 1)}


def test_parts_of_a_bigbench_task_are_read_together_or_alone(tmp_path):
    for part in ("lv0", "lv1"):
        rows = [{"input": part, "target_scores": {"a": 1, "b": 1, "c": 0}}]
        write_json(tmp_path / f"bigbench/units/{part}/task.json", {"examples": rows})
    both = read_all("bigbench_units", tmp_path)
    assert [e.id for e in both] == ["lv0.0", "lv1.0"]
    assert (both[0].answer, both[0].also_correct) == (0, (1,))
    (alone,) = read_all("bigbench_units.lv1", tmp_path)
    assert alone.context.startswith("\nQ: lv1\n  choice: ")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"input": "x", "target": "y"}, r"examples\[0\] has no target_scores"),
        (
            {"input": "x", "target_scores": {"a": 0, "b": 0}},
            r"examples\[0\]: no choice has a score",
        ),
    ],
)
def test_bigbench_task_of_another_kind_is_refused(tmp_path, example, message):
    write_json(tmp_path / "bigbench/odd/task.json", {"examples": [example]})
    with pytest.raises(UserError, match=message):
        read_all("bigbench_odd", tmp_path)


def test_the_74_tasks_of_training_trajectories_have_names():
    assert len(set(bigbench.BIGBENCH_74)) == 74
    subsets = (bigbench.LINEARITY, bigbench.BREAKTHROUGHNESS)
    assert [len(set(subset)) for subset in subsets] == [12, 6]
    assert set().union(*subsets) <= set(bigbench.BIGBENCH_74)
    loaded = benchmarks().load(["bigbench_74"])
    assert (len(loaded), {task.shots for task in loaded}) == (74, {2})
    assert {task.shots for task in benchmarks().load(["bigbench_linearity_0shot"])} == {0}


def test_those_of_the_74_whose_files_are_there_are_scored_as_in_the_paper(eval_dir):
    there = {path.name for path in (eval_dir / "bigbench").iterdir()} & {*bigbench.BIGBENCH_74}
    assert len(there) == 8
    every = EvalConfig(tasks=("bigbench_74",), data_dir=str(eval_dir), on_unrunnable="skip")
    selected = select(every)
    at_hand = {name for name, task in selected.items() if not task.missing}
    assert len(selected) == 74 and at_hand == {f"bigbench_{name}_2shot" for name in there}
    assert {task.definition.primary_metric for task in selected.values()} == {"accuracy_per_token"}
    for name in at_hand:
        examples = selected[name].read_examples()
        assert {len(example.shots) for example in examples} == {2}
        once = collections.Counter(example.as_shot for example in examples)
        assert not any(e.as_shot in e.shots for e in examples if once[e.as_shot] == 1)
    with pytest.raises(UserError, match="task bigbench_anachronisms_2shot: no file"):
        selected["bigbench_anachronisms_2shot"].read_examples()
    with pytest.raises(UserError, match="task bigbench_anachronisms_2shot: no file"):
        select(dataclasses.replace(every, on_unrunnable="refuse"))


@pytest.mark.parametrize(
    "name", ["coqa", "drop", "squad", "boolq", "gsm8k", "race", "bigbench_x", "bbh_fewshot_snarks"]
)
def test_missing_files_are_named(name, tmp_path):
    (task,) = benchmarks().load([name])
    with pytest.raises(UserError, match=f"task {name}: no file"):
        locate(dataclasses.replace(task, few_shot=None), EvalConfig(data_dir=str(tmp_path)))
