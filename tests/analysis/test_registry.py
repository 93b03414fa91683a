"""An analysis is found by its decorator, and a study gives it what it reads."""

from jaxllm.analysis import registry
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import EARLY, HEALTH, QUESTIONS, Study, analyses, analysis
from tests.analysis.planted import table


def test_a_decorated_function_is_an_analysis(monkeypatch) -> None:
    analyses()  # registers those of the package, which a module does once
    monkeypatch.setattr(registry, "_REGISTERED", {})

    @analysis(EARLY, "Second", caption="", method="", place=20)
    def second(study: Study) -> list[Finding]:
        return [Finding("one"), Finding("two", title="Second for r")]

    @analysis(EARLY, "First", caption="How to read it.", method="Peano (1889)", place=10)
    def first(study: Study, most: int = 3) -> Finding:
        return Finding(f"{len(study.curves)} curves")

    @analysis(HEALTH, "Never", caption="", method="", needs=Study.several_sizes)
    def never(study: Study) -> Finding:
        return Finding("")

    study = Study(table({"a": [0.1, 0.2], "b": [0.3, 0.4]}))
    mine = [one for one in analyses() if one.function in (first, second, never)]
    assert [one.name for one in mine] == ["never", "first", "second"]
    assert [one.needs(study) for one in mine] == [False, True, True]
    assert mine[1].run(study)[0].sentence == "2 curves"
    assert [finding.title for finding in mine[2].run(study)] == ["", "Second for r"]


def test_every_analysis_has_a_question_and_a_title_of_its_own() -> None:
    every = analyses()
    assert all(one.question in QUESTIONS for one in every)
    assert len({one.title for one in every}) == len(every)


def test_a_refusal_has_a_reason_and_no_table() -> None:
    refused = Finding.refuse("it takes two runs", ("a note",))
    assert refused.sentence == "No answer: it takes two runs."
    assert refused.refused == "it takes two runs"
    assert refused.table.empty and refused.notes == ("a note",)
