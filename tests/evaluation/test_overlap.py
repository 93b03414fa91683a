"""Overlaps of 13 words: what the hashes find is what comparing word by word finds."""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxllm import prepare
from jaxllm.errors import UserError
from jaxllm.evaluation import tasks
from jaxllm.evaluation.overlap import GRAM, Overlap, words
from jaxllm.evaluation.registry import Registry
from jaxllm.evaluation.tasks import Choice, Document, Prompt

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def naive(text):
    said = words(text)
    return {tuple(said[i : i + GRAM]) for i in range(len(said) - GRAM + 1)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat's Hat -- (red)!", ["the", "cats", "hat", "red"]),
        ("snake_case\tand\nlines", ["snakecase", "and", "lines"]),
        ("Ärger über 3,5 %", ["ärger", "über", "35"]),
        ("他说：「好」ok", ["他", "说", "好", "ok"]),
        ("", []),
    ],
)
def test_words_have_neither_case_nor_punctuation(text, expected):
    assert words(text) == expected


# few words, so that long runs of them come again
TEXTS = st.lists(
    st.lists(st.sampled_from("a B c."), min_size=0, max_size=40).map(" ".join),
    min_size=1, max_size=5,
)  # fmt: skip


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(TEXTS, TEXTS)
def test_it_finds_what_comparing_word_by_word_finds(examples, documents):
    sets = Overlap({"t": [Document(text, f"e{n}") for n, text in enumerate(examples)]})
    read = [sets.read(text, f"d{n}") for n, text in enumerate(documents)]
    grams = [naive(text) for text in examples]
    assert read == [any(naive(text) & gram for gram in grams) for text in documents]
    expected = {}
    for number, gram in enumerate(grams):
        shared = [n for n, text in enumerate(documents) if naive(text) & gram]
        if shared:
            expected[f"e{number}"] = f"d{shared[0]}"
    assert {e: document for e, document, _ in sets.tasks["t"].matches.values()} == expected
    assert sets.tasks["t"].short == sum(not gram for gram in grams)
    for number, (_, _, gram) in sets.tasks["t"].matches.items():
        assert tuple(gram.split()) in grams[number]


def test_a_question_is_looked_for_with_each_of_its_answers():
    question = Choice(TEXT.rsplit(" ", 2)[0], (" thirteen.", " 13"), 0, "q")  # 12 words and one
    prompt = Prompt(TEXT.rsplit(" ", 2)[0], ("XIII", "thirteen"))
    blank = Choice("", (" " + TEXT.split(" ", 1)[1],) * 2, 0, contexts=("One", "Two"))
    sets = Overlap({"choice": [question], "prompt": [prompt], "blank": [blank], "none": []})
    assert sets.read(f"Before. {TEXT.title()}! After.", "doc")
    assert {name: len(task.matches) for name, task in sets.tasks.items()} == {
        "choice": 1, "prompt": 1, "blank": 1, "none": 0,
    }  # fmt: skip
    assert sets.tasks["choice"].matches[0][2] == " ".join(TEXT.split()[:13])
    assert not sets.read(" ".join(TEXT.split()[:12]), "twelve words")
    assert not Overlap({}).read(TEXT, "doc")


@pytest.fixture
def corpus(tmp_path):
    for domain, texts in (("web", ["Nothing here.", f"So: {TEXT.upper()}."]), ("zh", ["…"])):
        (tmp_path / domain).mkdir()
        lines = [json.dumps({"text": t, "id": f"{domain}-{n}"}) for n, t in enumerate(texts)]
        (tmp_path / domain / "train.jsonl").write_text("\n".join([*lines, "broken"]))
    return [
        "--gin.DataConfig.mixture_or_task_name=corpora",
        f"--gin.DataConfig.corpus_dir={tmp_path}",
    ]


def test_the_command_lists_planted_overlaps(corpus, tmp_path, capsys):
    tasks.multiple_choice(
        "overlap_planted",
        lambda: [Choice(TEXT, (" a", " b"), 0, "planted"), Choice("Short?", (" a", " b"), 0, "s"),
                 Choice(TEXT[::-1], (" a", " b"), 1, "other")],
        domain="reading",
    )  # fmt: skip
    report = tmp_path / "report.json"
    asked = [*corpus, f"--report_overlap={report}", "--tasks=overlap_planted"]
    assert prepare.main(asked) == 0
    out = capsys.readouterr().out
    assert "web train: 1 of 2 documents overlap" in out and "zh train: 0 of 1" in out
    assert "1 could not be read, first" in out
    assert out.splitlines()[-2].split() == ["overlap_planted", "3", "1", "1", "33.33%"]
    whole = json.loads(report.read_text())
    assert whole["corpora"]["web train"] == {"documents": 2, "overlapping": 1, "unreadable": 1}
    assert whole["tasks"]["overlap_planted"] == {
        "examples": 3, "short": 1, "overlapping": 1, "share": pytest.approx(1 / 3),
        "first": [{
            "example": "planted", "document": "web-1", "gram": " ".join(TEXT.split()[:13]),
        }],
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".partial")] == []


def test_sets_without_files_are_left_out_and_said(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("JAXLLM_DATA_DIR", raising=False)
    with pytest.raises(UserError, match=r"piqa reads piqa/dev.jsonl: set EvalConfig.data_dir"):
        prepare.main([*corpus, f"--report_overlap={tmp_path / 'r.json'}", "--tasks=piqa"])
    assert not (tmp_path / "r.json").exists()
    monkeypatch.setattr(Registry, "names", lambda self: ("piqa", "addition"))
    assert prepare.main([*corpus, f"--report_overlap={tmp_path / 'r.json'}"]) == 0
    whole = json.loads((tmp_path / "r.json").read_text())
    assert list(whole["tasks"]) == ["addition"]
    assert list(whole["left_out"]) == ["piqa"]
    assert "1 tasks left out, as task piqa reads" in capsys.readouterr().out
