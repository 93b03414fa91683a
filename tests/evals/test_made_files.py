"""Sets that are not at hand, on rows made in their published form; and files of the wrong shape."""

import gzip
import json

import pytest

from jaxllm.errors import UserError
from jaxllm.evals import agieval, anli, hellaswag, superglue, truthfulqa
from jaxllm.evals.rows import read_csv, read_labelled
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.selection import locate
from jaxllm.evaluation.tasks import Choice, Prompt


def write(path, *made):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def test_ceval(tmp_path):
    path = tmp_path / "law_val.csv"
    path.write_text('id,question,A,B,C,D,answer\n0,"甲, 乙",一,二,三,四,C\n1,丙,a,b,c,d,A\n')
    (ceval,) = benchmarks().load(["ceval_law"])
    first, _ = ceval.examples(path)
    assert first == Choice(
        "甲, 乙\nA. 一\nB. 二\nC. 三\nD. 四\n答案：", (" A", " B", " C", " D"), 2, "0"
    )
    (solved,) = ceval.examples(_dev(tmp_path))
    assert solved.as_shot.endswith("答案： B")


def _dev(tmp_path):
    path = tmp_path / "law_dev.csv"
    path.write_text("id,question,A,B,C,D,answer,explanation\n0,甲,一,二,三,四,B,因为\n")
    return path


def test_raw_hellaswag(tmp_path):
    row = {
        "ind": 24, "activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he",
        "ctx": "A man sits. he", "split": "val", "split_type": "indomain", "label": 1,
        "endings": ["falls.", "works [substeps] on.", "sings.", "How to rest [title] Lie down."],
        "source_id": "activitynet~v_1",
    }  # fmt: skip
    (example,) = hellaswag.examples(write(tmp_path / "val.jsonl", row))
    assert example == Choice(
        "Roof: A man sits. He",
        (" falls.", " works on.", " sings.", " How to rest. Lie down."), 1, "24",
    )  # fmt: skip


def test_agievals_sets_with_several_answers_and_with_none(tmp_path):
    row = {
        "passage": None,
        "question": "谁?",
        "options": ["(A)甲", "(B)乙", "(C)丙"],
        "other": None,
    }
    made = [row | {"label": label} for label in (["A", "C"], "B", "A C", "BC")]
    path = write(tmp_path / "jec-qa-kd.jsonl", *made)
    found = list(agieval.choices(path, form=agieval.CHINESE_FORM))
    assert [(e.answer, e.also_correct) for e in found] == [(0, (2,)), (1, ()), (0, (2,)), (1, (2,))]
    assert found[0].context == "问题：谁? 选项：(A)甲 (B)乙 (C)丙\n答案：从A到C, 我们应选择"
    row = {"passage": None, "question": "1+1?", "options": None, "label": None, "answer": "2"}
    (cloze,) = agieval.clozes(write(tmp_path / "math.jsonl", row), form=agieval.CLOZES["math"])
    assert cloze == Prompt("Q: 1+1?\nA: The answer is", ("2",), solution=" 2")
    assert agieval.score(" so $x = 2$.", cloze) == {"exact_match": 1.0}
    assert agieval.score(" 3", cloze) == {"exact_match": 0.0}


def test_superglue(tmp_path):
    row = {"premise": "It rains.", "hypothesis": "It is wet.", "label": "not_entailment", "idx": 0}
    (rte,) = superglue.rte(write(tmp_path / "rte.jsonl", row))
    assert rte.context == "It rains.\nQuestion: It is wet. True or False?\nAnswer:"
    assert rte.options[rte.answer] == " False"
    row = {
        "word": "bank", "sentence1": "A river bank.", "sentence2": "The bank lends.",
        "label": False, "start1": 8, "end1": 12, "start2": 4, "end2": 8, "version": 1.1, "idx": 0,
    }  # fmt: skip
    (wic,) = superglue.wic(write(tmp_path / "wic.jsonl", row))
    assert "Question: Is the word 'bank' used in the same way" in wic.context
    assert wic.options[wic.answer] == " no"
    row = {
        "source": "Daily mail",
        "passage": {
            "text": "Ann met Bob and Ann.\n@highlight\nBob left",
            "entities": [{"start": 0, "end": 2}, {"start": 16, "end": 18}, {"start": 8, "end": 10}],
        },
        "qas": [
            {"query": "@placeholder left", "idx": 0, "answers": [{"start": 8, "text": "Bob"}]},
            {"query": "@placeholder met", "idx": 1, "answers": [{"text": "Ann"}, {"text": "Bob"}]},
        ],
        "idx": 0,
    }
    left, met = superglue.record(write(tmp_path / "record.jsonl", row))
    assert left == Choice(
        "Ann met Bob and Ann.\n\n  - Bob left.\n", ("   - Ann left", "   - Bob left"), 1
    )
    assert (met.answer, met.also_correct) == (0, (1,))


def test_anli(tmp_path):
    row = {"uid": "u", "context": "It rains.", "hypothesis": "It is dry.", "label": "c"}
    (example,) = anli.examples(write(tmp_path / "test.jsonl", row))
    assert example.context == "It rains.\nQuestion: It is dry. True, False, or Neither?\nAnswer:"
    assert example.options[example.answer] == " False"


def test_packed_files_are_found_by_their_plain_names(tmp_path):
    packed = tmp_path / "piqa" / "dev.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(b'{"goal": "g", "sol1": "a", "sol2": "b"}\n'))
    (tmp_path / "piqa/dev-labels.lst").write_text("1\n")
    (task,) = benchmarks().load(["piqa"])
    paths = locate(task, EvalConfig(data_dir=str(tmp_path)))
    assert paths[0] == packed
    assert list(task.examples(*paths)) == [Choice("Question: g\nAnswer:", (" a", " b"), 1)]


OPTIONS = [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]
ARC = {"id": "1", "answerKey": "A", "question": {"stem": "?", "choices": OPTIONS}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "1"}, r"Test.jsonl:2: no field 'question' \(it has id\)"),
        (ARC | {"question": "?"}, r":2: field 'question' is '\?', not a dict"),
        (ARC | {"answerKey": "C"}, r":2: field 'answerKey' is 'C', not one of A, B"),
        (ARC | {"question": {"stem": "?", "choices": ["x"]}}, r":2: field 'choices' is not a list"),
        (ARC | {"question": {"stem": "?", "choices": OPTIONS[:1]}}, r":2: 1 options, a question"),
        (
            ARC | {"question": {"stem": "?", "choices": [*OPTIONS, {"text": "", "label": "C"}]}},
            r":2: option 3 is empty",
        ),
    ],
)  # fmt: skip
def test_a_row_of_the_wrong_shape_is_named_with_its_field(row, message, tmp_path):
    path = write(tmp_path / "ARC-Easy-Test.jsonl", ARC, row)
    (task,) = benchmarks().load(["arc_easy"])
    with pytest.raises(UserError, match=message):
        list(task.examples(path))


def test_tables_and_labels_of_the_wrong_length_are_named(tmp_path):
    table = tmp_path / "anatomy_test.csv"
    table.write_text("q,a,b,c,d,A\nq,a,b,c,d\n")
    (task,) = benchmarks().load(["mmlu_anatomy"])
    with pytest.raises(UserError, match=r"anatomy_test.csv:2: 5 columns, not 6"):
        list(task.examples(table))
    assert not list(read_csv(write(tmp_path / "empty.csv")))
    asked = write(tmp_path / "valid.jsonl", {"goal": "g"}, {"goal": "h"})
    labels = tmp_path / "valid-labels.lst"
    labels.write_text("1\n")
    with pytest.raises(UserError, match=r"valid-labels.lst: 1 labels for the 2 rows of"):
        list(read_labelled(asked, labels))


def test_truthfulqa_without_a_true_answer_is_refused(tmp_path):
    path = tmp_path / "mc_task.json"
    path.write_text(json.dumps([{"question": "?", "mc1_targets": {"a": 0, "b": 0}}]))
    with pytest.raises(UserError, match="question 0: field 'mc1_targets' has no true answer"):
        list(truthfulqa.examples(path, targets="mc1_targets"))


def test_winogrande_without_a_blank_is_refused(tmp_path):
    (task,) = benchmarks().load(["winogrande"])
    row = {"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}
    with pytest.raises(UserError, match=r"dev.jsonl:1: field 'sentence' has no blank"):
        list(task.examples(write(tmp_path / "dev.jsonl", row)))
