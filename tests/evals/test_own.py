"""A user's own benchmark: a module, a JSONL file, or a task of lm-evaluation-harness."""

import json

import pytest

from jaxllm import evaluate
from jaxllm.errors import UserError
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.selection import select
from jaxllm.evaluation.tasks import METRICS, Choice, Document, Prompt


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def read(name, directory):
    """The task's definition and its examples."""
    (task,) = select(EvalConfig(tasks=(name,), data_dir=str(directory))).values()
    return task.definition, task.read_examples()


def test_a_module_of_ones_own_declares_tasks(tmp_path, monkeypatch):
    (tmp_path / "my_own_tasks.py").write_text(
        "from jaxllm.evaluation.tasks import Choice, multiple_choice\n"
        "multiple_choice('my_own', lambda: [Choice('a', (' b', ' c'), 1)], domain='reading')\n"
        "MIXTURES = {'mine': ('my_own', 'induction')}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = EvalConfig(tasks=("mine",), modules=("jaxllm.evals", "my_own_tasks"))
    assert list(select(config)) == ["my_own", "induction"]
    with pytest.raises(UserError, match=r"EvalConfig.modules: cannot import nothing_here"):
        select(EvalConfig(tasks=("mine",), modules=("nothing_here",)))


@pytest.mark.parametrize(
    ("fields", "context"),
    [
        ({"query": "2 + 2 =", "choices": ["3", "4"], "gold": 1}, "2 + 2 ="),
        ({"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}, "Question: 2 + 2?\nAnswer:"),
        ({"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"}, "Question: 2 + 2?\nAnswer:"),
        ({"question": "2 + 2?", "choices": ["3", "4"], "answer": "4"}, "Question: 2 + 2?\nAnswer:"),
    ],
)
def test_questions_of_a_jsonl_file(fields, context, tmp_path):
    write(tmp_path / "sums.jsonl", fields, {**fields, "id": "again"})
    task, (first, second) = read("jsonl_sums", tmp_path)
    assert (task.primary_metric, task.domain) == ("accuracy", "own")
    assert first == Choice(context, (" 3", " 4"), 1, "0")
    assert second.id == "again"
    _, (shown, _) = read("jsonl_sums_1shot", tmp_path)
    assert shown.shots == (f"{context} 4\n\n",)


def test_continuations_of_a_jsonl_file(tmp_path):
    rows = [("The cat", "sat"), ("The cat ", "sat"), ("The cat", " sat")]
    write(tmp_path / "words.jsonl", *({"context": c, "continuation": t} for c, t in rows))
    task, examples = read("jsonl_words", tmp_path)
    assert (task.kind, task.primary_metric) == ("cloze", "exact_match")
    assert {e.context + e.targets[0] for e in examples} == {"The cat sat"}


def test_texts_of_a_jsonl_file_are_a_task_and_a_token_set(tmp_path):
    write(tmp_path / "news.jsonl", {"text": "a b"}, {"text": "c", "id": "second"}, {"text": ""})
    for sets in {"tasks": ("jsonl_news",)}, {"token_sets": ("jsonl_news:9x9",)}:
        (task,) = select(EvalConfig(**sets, data_dir=str(tmp_path))).values()
        assert task.definition.kind == "perplexity"
        assert task.read_examples() == [Document("a b", "0"), Document("c", "second")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": "a"}, r"mine.jsonl:1: fields words, not one of: query, choices, gold; "),
        ({"query": "a", "choices": ["b", "c"], "gold": 2}, "the answer is option 3 of 2"),
        ({"question": "a", "choices": ["b", "c"], "answer": "d"}, "'answer' is 'd', none of its"),
        ({"query": "a", "choices": ["b"], "gold": 0}, "1 options, a question has two or more"),
    ],
)
def test_a_broken_line_is_named(row, message, tmp_path):
    write(tmp_path / "mine.jsonl", row)
    with pytest.raises(UserError, match=message):
        read("jsonl_mine", tmp_path)
    with pytest.raises(UserError, match=r"task jsonl_yours: no file .*yours.jsonl"):
        read("jsonl_yours", tmp_path)


YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
doc_to_text: "Q: {{{{question}}}}\\nA:"
metadata:
  version: 3
"""


@pytest.mark.slow
def test_a_task_of_the_harness_is_read_by_its_own_loader(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"{n} + 1?", "choices": [str(n), str(n + 1)], "answer": 1} for n in (3, 4)]
    write(tmp_path / "sums.jsonl", *rows)
    head = lambda name: YAML.format(name=name, file=tmp_path / "sums.jsonl")
    choice = head("unit_choice") + (
        'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        "metric_list:\n  - metric: acc\n"
    )
    answer = head("unit_answer") + (
        'output_type: generate_until\ndoc_to_target: "{{choices[answer]}}"\n'
        'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 8\n'
        "metric_list:\n  - metric: exact_match\n"
        "filter_list:\n  - name: number\n    filter:\n      - function: regex\n"
        '        regex_pattern: "([0-9]+)"\n      - function: take_first\n'
    )
    (tmp_path / "choice.yaml").write_text(choice)
    (tmp_path / "answer.yaml").write_text(answer)
    task, examples = read("harness:unit_choice", tmp_path)
    assert examples[0] == Choice("Q: 3 + 1?\nA:", (" 3", " 4"), 1, "0")
    assert (task.name, task.version) == ("harness:unit_choice", "3")
    assert task.primary_metric in METRICS["multiple_choice"]
    task, examples = read("harness:unit_answer", tmp_path)
    assert examples[1] == Prompt("Q: 4 + 1?\nA:", ("5",), "1")
    assert (task.stop, task.max_new_tokens) == (("\n",), 8)
    assert task.score(" it is 5.", examples[1]) == {"exact_match": 1.0}
    assert task.score(" it is 4.", examples[1]) == {"exact_match": 0.0}
    with pytest.raises(UserError, match="task harness:unit_nothing: "):
        read("harness:unit_nothing", tmp_path)


def test_the_command_lists_tasks_with_what_they_need(capsys):
    assert evaluate.main(["--list=arc_*"]) == 0
    head, challenge, easy = capsys.readouterr().out.splitlines()
    assert head.split() == ["task", "domain", "metric", "chance", "shots", "files"]
    assert challenge.split()[:4] == ["arc_challenge", "commonsense", "accuracy", "1/options"]
    assert "arc/ARC-Easy-Test.jsonl" in easy and easy.endswith("(--download)")
    assert evaluate.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 300
    assert any(line.startswith("mixture mmlu: 57 names") for line in lines)
    assert any("family jsonl_…: " in line for line in lines)
    assert any("by hand from https://people.eecs.berkeley.edu" in line for line in lines)
    with pytest.raises(UserError, match="no evaluation task has a name like zzz"):
        evaluate.main(["--list=zzz"])
