"""The benchmarks read the published files: every example, the right answer, the right prompt."""

import gzip
import subprocess
import sys

import pytest

from jaxllm.errors import UserError
from jaxllm.evals import heldout
from jaxllm.evals.rows import read_json, read_rows
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.selection import locate, select
from jaxllm.evaluation.tasks import Choice, Prompt
from tests.conftest import REPOSITORY

# name -> examples, as the publishers count them
SIZES = {
    "basic_arithmetic": 3000,
    "simple_arithmetic_withspaces": 1000,
    "simple_arithmetic_nospaces": 1000,
    "basic_skills_arithmetic": 1047,
    "basic_skills_coding": 1012,
    "basic_skills_common_knowledge": 1037,
    "basic_skills_logical_reasoning": 1118,
    "basic_skills_pattern": 534,
    "basic_skills_string_operations": 1219,
}


def read(name, data_dir):
    (task,) = benchmarks().load([name])
    return list(task.examples(*locate(task, EvalConfig(data_dir=str(data_dir)))))


@pytest.mark.parametrize("name", SIZES)
def test_every_example_is_read(name, shared_data):
    examples = read(name, shared_data / "evals")
    assert len(examples) == SIZES[name]
    for example in examples:
        texts = example.options if isinstance(example, Choice) else example.targets
        assert all(texts)


def test_answers_are_the_right_ones(shared_data):
    data = shared_data / "evals"
    sum_ = read("basic_arithmetic", data)[0]
    assert sum_.context == "Question: Calculate 5 + 91 =\nAnswer:"
    assert sum_.options[sum_.answer] == " 96"
    skill = read("basic_skills_arithmetic", data)[0]
    assert (skill.context, skill.options[skill.answer]) == ("4 * 8 =", " 32")
    assert read("simple_arithmetic_withspaces", data)[0] == Prompt("25 - 759 =", (" -734",))


def test_missing_directory_and_file_are_named():
    (task,) = benchmarks().load(["arc_easy"])
    with pytest.raises(UserError, match=r"arc/ARC-Easy-Test.jsonl: set EvalConfig.data_dir"):
        locate(task, EvalConfig())
    with pytest.raises(UserError, match=r"no file /nowhere/arc/ARC-Easy-Test.jsonl"):
        select(EvalConfig(tasks=("arc_easy",), data_dir="/nowhere"))


def test_broken_files_are_named_with_the_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(UserError, match=r"rows.jsonl:3: broken JSON"):
        list(read_rows(path))
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"[1, 2]")[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "cut.json.gz")
    with pytest.raises(UserError, match="no file"):
        read_json(tmp_path / "none.json")


def test_declaring_tasks_needs_neither_seqio_nor_tensorflow():
    code = (
        "import sys\nfrom jaxllm.evaluation.registry import benchmarks\nbenchmarks().names()\n"
        "assert not {'seqio', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_heldout_passages_are_even_parts_of_the_validation_text(tmp_path, monkeypatch):
    from jaxllm.data import corpora
    from jaxllm.data.config import DataConfig

    monkeypatch.setattr(heldout, "PASSAGES", 4)
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "train.txt").write_text("x" * 10)
    text = "".join(chr(97 + i % 26) * 1024 for i in range(8))
    (folder / "valid.txt").write_text(text)
    corpora.register(DataConfig("letters", corpus_dir=str(tmp_path)))
    (task,) = benchmarks().load(["heldout_letters"])
    assert [d.text[0] for d in task.examples()] == ["a", "c", "e", "g"]
    assert all(len(d.text) == 1024 for d in task.examples())
