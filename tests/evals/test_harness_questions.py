"""Each question, at 0 shots and more, is letter by letter lm-evaluation-harness' own.

The harness' task definitions are given the same rows in the form of the Hugging Face data sets.
What no shared file has (few-shot examples of four sets) is stood in for by questions of the set:
the harness then leaves the question itself out, and so must we.
"""

import csv
import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.selection import add_few_shot, locate
from jaxllm.evaluation.tasks import Choice, with_shots
from tests.evals.adapters import rows

pytestmark = pytest.mark.slow
QUESTIONS = 24


def science(row):
    asked = row["question"]
    choices = {key: [c[key] for c in asked["choices"]] for key in ("text", "label")}
    return {
        "id": row["id"], "question": asked["stem"], "question_stem": asked["stem"],
        "choices": choices, "answerKey": row["answerKey"],
    }  # fmt: skip


def jsonl(path, limit=None):
    with open(path) as file:
        return [json.loads(line) for line in itertools.islice(file, limit)]


def labelled(folder, split, label, kind):
    labels = (folder / f"{split}-labels.lst").read_text().split()
    asked = jsonl(folder / f"{split}.jsonl")
    return [{**row, label: kind(x)} for row, x in zip(asked, labels, strict=True)]


def trivia(path):
    return [
        {"question": row["Question"], "answer": {"aliases": row["Answer"]["Aliases"]}}
        for row in json.loads(path.read_text())["Data"]
    ]


def truthful(path):
    made = []
    for row in json.loads(path.read_text()):
        targets = {
            key: {"choices": list(row[key]), "labels": list(row[key].values())}
            for key in ("mc1_targets", "mc2_targets")
        }
        made.append({"question": row["question"], **targets})
    return made


def mmlu(path, subject):
    with open(path, newline="") as file:
        return [
            {"question": q, "choices": options, "answer": "ABCD".index(answer), "subject": subject}
            for q, *options, answer in csv.reader(file)
        ]


def table(path, limit=None):
    text = "\n".join(itertools.islice(_lines(path), limit))
    return list(csv.DictReader(text.splitlines()))


def _lines(path):
    from tests.evals.adapters import lines

    return iter(lines(path))


# name -> definition below lm_eval/tasks, shots, and the rows of its splits in the Hugging Face form
SETS = {
    "mmlu_anatomy": ("mmlu/default/mmlu_anatomy.yaml", (0, 5), lambda d: {
        "dev": mmlu(d / "mmlu/dev/anatomy_dev.csv", "anatomy"),
        "test": mmlu(d / "mmlu/test/anatomy_test.csv", "anatomy"),
    }),
    "cmmlu_marxist_theory": ("cmmlu/cmmlu_marxist_theory.yaml", (0, 5), lambda d: {
        "dev": table(d / "cmmlu/dev/marxist_theory.csv.gz"),
        "test": table(d / "cmmlu/test/marxist_theory.csv.gz"),
    }),
    "arc_easy": ("arc/arc_easy.yaml", (0, 3), lambda d: {
        split: [science(row) for row in jsonl(d / f"arc/ARC-Easy-{split.title()}.jsonl")]
        for split in ("train", "test")
    }),
    "arc_challenge": ("arc/arc_challenge.yaml", (25,), lambda d: {
        split: [science(row) for row in jsonl(d / f"arc/ARC-Challenge-{split.title()}.jsonl")]
        for split in ("train", "test")
    }),
    "openbookqa": ("openbookqa/openbookqa.yaml", (0, 5), lambda d: {
        split: [science(row) for row in jsonl(d / f"openbookqa/{split}.jsonl")]
        for split in ("train", "test")
    }),
    "commonsense_qa": ("commonsense_qa/default.yaml", (0, 7), lambda d: {
        "train": [science(row) for row in jsonl(d / "commonsense_qa/train_rand_split.jsonl")],
        "validation": [science(row) for row in jsonl(d / "commonsense_qa/dev_rand_split.jsonl")],
    }),
    "siqa": ("siqa/siqa.yaml", (0, 5), lambda d: {
        "train": labelled(d / "siqa", "train", "label", str),
        "validation": labelled(d / "siqa", "dev", "label", str),
    }),
    "piqa": ("piqa/piqa.yaml", (0, 5), lambda d: {
        "train": labelled(d / "piqa", "train", "label", int),
        "validation": labelled(d / "piqa", "dev", "label", int),
    }),
    "winogrande": ("winogrande/default.yaml", (0, 5), lambda d: {
        "train": jsonl(d / "winogrande/train_xl.jsonl"),
        "validation": jsonl(d / "winogrande/dev.jsonl"),
    }),
    "copa": ("super_glue/copa/default.yaml", (0, 4), lambda d: {
        "train": jsonl(d / "superglue/COPA/train.jsonl"),
        "validation": jsonl(d / "superglue/COPA/val.jsonl"),
    }),
    "hellaswag": ("hellaswag/hellaswag.yaml", (0, 10), lambda d: {
        "train": jsonl(d / "hellaswag/hellaswag_train.jsonl"),
        "validation": jsonl(d / "hellaswag/hellaswag_val.jsonl"),
    }),
    "triviaqa": ("triviaqa/default.yaml", (0, 5), lambda d: {
        split: trivia(d / f"triviaqa/qa/web-{part}.json")
        + trivia(d / f"triviaqa/qa/wikipedia-{part}.json")
        for split, part in (("train", "train"), ("validation", "dev"))
    }),
    "nq_open": ("nq_open/nq_open.yaml", (0, 5), lambda d: {
        "train": jsonl(d / "nq_open/NQ-open.train.jsonl"),
        "validation": jsonl(d / "nq_open/NQ-open.dev.jsonl"),
    }),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", (0,), lambda d: {
        "validation": truthful(d / "truthfulqa/mc_task.json"),
    }),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", (0,), lambda d: {
        "validation": truthful(d / "truthfulqa/mc_task.json"),
    }),
}  # fmt: skip


def harness_task(definition, splits, questions=QUESTIONS):
    pytest.importorskip("lm_eval")
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import _yaml_loader

    config = _yaml_loader.load_yaml(Path(_yaml_loader.__file__).parent / definition)
    asked = "test" if "test" in splits else "validation"
    splits = {**splits, asked: splits[asked][:questions]}
    made = {split: datasets.Dataset.from_list(list(of)) for split, of in splits.items()}
    config = {k: v for k, v in config.items() if k not in ("dataset_path", "dataset_name", "tag")}
    if "validation" not in made:
        config.pop("validation_split", None)
    return ConfigurableTask(config={**config, "custom_dataset": lambda **_: made})


def compared(name, definition, shots, splits, directory):
    """For each number of shots and each question: the task, our example, the harness' task, its
    row and its requests."""
    theirs = harness_task(definition, splits(directory))
    for count in shots:
        theirs.set_fewshot_seed(1234)
        (task,) = benchmarks().load([name])
        task = with_shots(task, count)
        paths = locate(task, EvalConfig(data_dir=str(directory)))
        own = len(task.files)
        asked = list(task.examples(*paths[:own]))[:QUESTIONS]
        pool = list(task.few_shot.pool(*paths[own:])) if count else []
        ours = add_few_shot(task, asked, pool)
        assert ours
        for example, doc in zip(ours, theirs.eval_docs, strict=True):
            context = theirs.fewshot_context(doc, num_fewshot=count)
            requests = theirs.construct_requests(doc, context)
            several = requests if isinstance(requests, list) else [requests]
            yield task, example, theirs, doc, [request.args for request in several]


@pytest.mark.parametrize("name", SETS)
def test_questions_are_the_harness_ones(name, eval_dir_with_shots):
    for task, example, theirs, doc, requests in compared(name, *SETS[name], eval_dir_with_shots):
        before = example.description + "".join(example.shots)
        if isinstance(example, Choice):
            contexts = example.contexts or (example.context,) * len(example.options)
            pairs = [(before + c, o) for c, o in zip(contexts, example.options, strict=True)]
            assert pairs == requests
            check_answer(theirs, doc, example)
        else:
            assert before + example.context == requests[0][0]
            assert tuple(requests[0][1]["until"]) == task.stop
            check_score(theirs, doc, task, example)


def check_answer(theirs, doc, example):
    """The harness gives points for the options that are right to us, and for no others."""
    count = len(example.options)
    for chosen in range(count):
        results = [(0.0 if i == chosen else -1e4, False) for i in range(count)]
        right = chosen in (example.answer, *example.also_correct)
        assert theirs.process_results(doc, results)["acc"] == float(right)


def check_score(theirs, doc, task, example):
    """The harness and we give the same points for texts that are right, nearly so, and wrong."""
    target = example.targets[-1]
    answers = (
        f" {target}", target.upper(), f"The {target}", f"the {target}", f"{target}!", "", "no idea",
        f"a {target}s", f" An {example.targets[0]} ", f"{target} {target}",
    )  # fmt: skip
    for answer in answers:
        expected = theirs.process_results(doc, [answer.strip()])
        assert task.score(answer, example)["exact_match"] == expected["exact_match"], answer


def test_every_subject_is_introduced_as_in_the_harness():
    _yaml_loader = pytest.importorskip("lm_eval.tasks._yaml_loader")
    folder = Path(_yaml_loader.__file__).parent
    forms = {
        "mmlu": ("mmlu/default", "mmlu_"), "cmmlu": ("cmmlu", "cmmlu_"),
        "ceval": ("ceval", "ceval-valid_"),
    }  # fmt: skip
    for name, (where, prefix) in forms.items():
        preambles = {}
        for path in (folder / where).glob(f"{prefix}*.yaml"):
            config = _yaml_loader.load_yaml(path, resolve_func=False)
            preambles[path.stem.replace(prefix, f"{name}_")] = config["description"]
        assert {task.name: task.description for task in benchmarks().load([name])} == preambles


def test_answers_of_agieval_are_compared_as_in_the_harness(eval_dir):
    utils = pytest.importorskip("lm_eval.tasks.agieval.utils")
    from jaxllm.evals._latex import equivalent

    answers = [row["answer"] for row in rows(eval_dir / "agieval/gaokao-mathcloze.jsonl.gz")]
    answers += [
        "so $x=\\frac12$", "the answer is \\boxed{\\dfrac{1}{2}}.", "x = 0.5", "1/2", "$1/2$",
        "$\\sqrt2$", "$\\sqrt{2}$", "$90^\\circ$", "$90$", "$3\\text{ cm}$", "$y = 3$", "$.5$",
        "nothing", "$\\left(1, 2\\right)$", "$(1,2)$", "$\\tfrac{1}{2}$", "12.0", "$ 12 $",
    ]  # fmt: skip
    for ours, theirs in itertools.product(answers, answers):
        assert equivalent(ours, theirs) == utils.is_equiv(ours, theirs), (ours, theirs)


def test_olmes_has_the_same_hellaswag(shared_data, eval_dir):
    """A thousand questions as another project's copy of the harness made them of the raw files.

    The text form that is at hand lost spaces, repeated stops and the capital of ctx_b, so that
    letters and digits are compared.
    """

    def letters(text):
        return "".join(filter(str.isalnum, text.lower()))

    (task,) = benchmarks().load(["hellaswag"])
    by_options = {
        tuple(map(letters, example.options)): example
        for example in task.examples(eval_dir / "hellaswag/hellaswag_val.jsonl")
    }
    for row in rows(shared_data / "evals/hellaswag/validation_olmes1000.jsonl.gz"):
        example = by_options[tuple(map(letters, row["choices"]))]
        assert letters(example.context) == letters(row["query"])
        assert example.answer == row["gold"]


def test_definitions_without_shots_keep_their_preamble():
    (task,) = benchmarks().load(["mmlu_anatomy_0shot"])
    (example,) = add_few_shot(dataclasses.replace(task), [Choice("q", (" A", " B"), 0)], [])
    assert example.description == task.description and not example.shots
