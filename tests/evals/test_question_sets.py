"""The exams, knowledge and commonsense sets: every question, the published balance of answers."""

import collections
import dataclasses

import pytest

from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.selection import locate
from jaxllm.evaluation.tasks import Choice, Prompt


def read(task, directory):
    """The questions of a task, without its few-shot examples."""
    alone = dataclasses.replace(task, few_shot=None)
    return list(task.examples(*locate(alone, EvalConfig(data_dir=str(directory)))))


def read_all(name, directory):
    return [example for task in benchmarks().load([name]) for example in read(task, directory)]


# name -> how often each option is the answer; the sums are the sizes that the publishers state
ANSWERS = {
    "mmlu": (3222, 3462, 3582, 3776),
    "cmmlu": (2926, 2883, 2877, 2896),
    "arc_easy": (596, 585, 633, 561, 1),
    "arc_challenge": (266, 311, 310, 285),
    "openbookqa": (138, 126, 132, 104),
    "commonsense_qa": (239, 255, 241, 251, 235),
    "siqa": (643, 654, 657),
    "piqa": (910, 928),
    "winogrande": (628, 639),
    "copa": (55, 45),
    "hellaswag": (2515, 2485, 2584, 2458),
    "truthfulqa_mc1": (817,),
    "truthfulqa_mc2": (817,),
    "copycolors": (100,) * 10,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_question_is_read_with_its_answer(name, eval_dir):
    found = collections.Counter(example.answer for example in read_all(name, eval_dir))
    assert tuple(found[i] for i in range(max(found) + 1)) == ANSWERS[name]


FIRST = {
    "mmlu_abstract_algebra": (
        "Find the degree for the given field extension Q(sqrt(2), sqrt(3), sqrt(18)) over Q.\n"
        "A. 0\nB. 4\nC. 2\nD. 6\nAnswer:", " B",
    ),
    "cmmlu_agronomy": (
        "在农业生产中被当作极其重要的劳动对象发挥作用，最主要的不可替代的基本生产资料是\n"
        "A. 农业生产工具\nB. 土地\nC. 劳动力\nD. 资金\n答案：", " B",
    ),
    "arc_easy": (
        "Question: Which statement best explains why photosynthesis is the foundation of most "
        "food webs?\nAnswer:", " Sunlight is the source of energy for nearly all ecosystems.",
    ),
    "openbookqa": (
        "A person wants to start saving money so that they can afford a nice vacation at the end "
        "of the year. After looking over their budget and expenses, they decide the best way to "
        "save money is to", " quit eating lunch out",
    ),
    "commonsense_qa": (
        "Question: A revolving door is convenient for two direction travel, but it also serves as "
        "a security measure at a what?\nA. bank\nB. library\nC. department store\nD. mall\n"
        "E. new york\nAnswer:", " A",
    ),
    "siqa": (
        "Q: Tracy didn't go home that evening and resisted Riley's attacks. What does Tracy need "
        "to do before this?\nA:", " Find somewhere to go",
    ),
    "copa": ("The man turned on the faucet therefore", "  water flowed from the spout."),
    "hellaswag": (
        "Roof shingle removal: A man is sitting on a roof. he",
        " starts pulling up roofing on a roof.",
    ),
    "truthfulqa_mc1": (
        "Q: What happens to you if you eat watermelon seeds?\nA:",
        " The watermelon seeds pass through your digestive system.",
    ),
    "agieval_gaokao_mathcloze": (
        "问题：已知 $a \\in \\mathrm{R}$, 函数 $f(x)=\\left\\{\\begin{array}{l}x^{2}-4, x>2 \\\\ "
        "|x-3|+a, x \\leq 2,\\end{array}\\right.$ 若 $f[f(\\sqrt{6})]=3$, 则 $a=(\\quad)$\n答案：",
        " 2",
    ),
    "triviaqa": (
        "Question: Brunswick, Lancastrian and Pearl Pickler are types of which vegetable??\n"
        "Answer:", " Onion skins",
    ),
    "nq_open": (
        "Q: when was the last time anyone was on the moon?\nA:", " 14 December 1972 UTC",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
def test_first_question_is_asked_as_published(name, eval_dir):
    first = read_all(name, eval_dir)[0]
    context, answer = FIRST[name]
    assert (first.context, first.as_shot) == (context, context + answer)


def test_blank_of_winogrande_is_in_the_context(eval_dir):
    first = read_all("winogrande", eval_dir)[0]
    assert first.contexts == (
        "Sarah was a much better surgeon than Maria so Sarah",
        "Sarah was a much better surgeon than Maria so Maria",
    )
    assert first.options == (" always got the easier cases.",) * 2
    assert first.answer == 1


AGIEVAL = {
    "aqua_rat": 254, "gaokao_biology": 210, "gaokao_chemistry": 207, "gaokao_chinese": 246,
    "gaokao_english": 306, "gaokao_geography": 199, "gaokao_history": 235, "gaokao_mathcloze": 118,
    "gaokao_mathqa": 351, "gaokao_physics": 200, "logiqa_en": 651, "logiqa_zh": 651,
    "lsat_ar": 230, "lsat_lr": 510, "lsat_rc": 269, "sat_en": 206, "sat_en_without_passage": 206,
    "sat_math": 220,
}  # fmt: skip


def test_agieval_is_read_whole(eval_dir):
    found = {exam: read_all(f"agieval_{exam}", eval_dir) for exam in AGIEVAL}
    assert {exam: len(examples) for exam, examples in found.items()} == AGIEVAL
    several = {
        exam: sum(bool(e.also_correct) for e in examples)
        for exam, examples in found.items()
        if isinstance(examples[0], Choice)
    }
    assert {exam: n for exam, n in several.items() if n} == {
        "gaokao_mathqa": 7, "gaokao_physics": 35,
    }  # fmt: skip
    car = found["aqua_rat"][0]
    assert car.context.endswith(
        "Answer Choices: (A)5(√3 + 1) (B)6(√3 + √2) (C)7(√3 – 1) (D)8(√3 – 2) (E)None of these\n"
        "A: Among A through E, the answer is"
    )
    assert car.options[car.answer] == " (A)5(√3 + 1)"
    atoms = found["gaokao_physics"][0]
    assert atoms.context.startswith("问题：20 世纪 60 年代")
    assert atoms.context.endswith("\n答案：从A到D, 我们应选择")


def test_open_questions_are_read_whole(eval_dir):
    trivia = read_all("triviaqa", eval_dir)
    assert (len(trivia), len(trivia[0].targets)) == (3000, 17)
    asked = read_all("nq_open", eval_dir)
    assert (len(asked), sum(len(e.targets) for e in asked)) == (3610, 6490)
    assert all(isinstance(e, Prompt) for e in trivia + asked)


def test_solved_examples_come_from_the_files_for_them(eval_dir):
    config = EvalConfig(data_dir=str(eval_dir))
    for name, size in (
        ("mmlu_anatomy", 5), ("cmmlu_anatomy", 5), ("arc_easy_5shot", 2000),
        ("arc_challenge_25shot", 1119), ("openbookqa_5shot", 2000), ("piqa_5shot", 2000),
        ("winogrande_5shot", 2000), ("commonsense_qa_5shot", 2000),
    ):  # fmt: skip
        (task,) = benchmarks().load([name])
        own = len(task.files)
        pool = list(task.few_shot.pool(*locate(task, config)[own:]))
        assert len(pool) == size, name
