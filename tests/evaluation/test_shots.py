"""few-shot examples are those that lm-evaluation-harness would choose, and are left out whole."""

import pytest

from jaxllm.errors import UserError
from jaxllm.evaluation.selection import add_few_shot
from jaxllm.evaluation.spans import prompt_span, scored_spans
from jaxllm.evaluation.tasks import Choice, FewShot, Prompt, TaskDefinition, with_shots
from tests.evaluation.helpers import Bytes


def task(shots, **few_shot):
    few = FewShot(**few_shot)
    declared = TaskDefinition(
        "unit", "multiple_choice", lambda: (), "math", description="About: ", few_shot=few
    )  # fmt: skip
    return with_shots(declared, shots)


def questions(count, name):
    return [Choice(f"{name}{i}?", (" a", " b"), i % 2) for i in range(count)]


@pytest.mark.parametrize("shots", [1, 3])
def test_sampled_shots_are_the_harness_ones(shots):
    samplers = pytest.importorskip("lm_eval.api.samplers")
    pool, asked = questions(20, "pool"), questions(7, "test")
    sampler = samplers.ContextSampler(pool, rnd=1234)
    expected = [[p.as_shot + "\n\n" for p in sampler.sample(shots)] for _ in asked]
    found = add_few_shot(task(shots), asked, pool)
    assert [list(example.shots) for example in found] == expected
    assert all(example.description == "About: " for example in found)


def test_a_question_is_never_its_own_shot_and_the_rest_are_the_harness_ones():
    samplers = pytest.importorskip("lm_eval.api.samplers")
    asked = questions(5, "test")
    sampler = samplers.ContextSampler(asked, rnd=1234)
    expected = [[p.as_shot + "\n\n" for p in sampler.sample(3, eval_doc=q)] for q in asked]
    found = add_few_shot(task(3), asked, [])
    assert [list(example.shots) for example in found] == expected
    assert all(q.as_shot + "\n\n" not in q.shots for q in found)


@pytest.mark.parametrize("copies", [1, 3])
def test_with_a_spare_a_question_that_is_in_the_pool_is_left_out(copies):
    samplers = pytest.importorskip("lm_eval.api.samplers")
    asked = questions(6, "test")
    pool = questions(3, "pool") + asked[:2] * copies
    sampler = samplers.ContextSampler(pool, rnd=1234)
    expected = [[p.as_shot + "\n\n" for p in sampler.sample(3, eval_doc=q)] for q in asked]
    found = add_few_shot(task(3, exclude_self=True), asked, pool)
    assert [list(example.shots) for example in found] == expected


def test_first_shots_are_the_first_of_the_pool():
    found = add_few_shot(
        task(2, order="first", separator="\n"), questions(2, "test"), questions(9, "pool")
    )
    assert found[0].shots == found[1].shots == ("pool0? a\n", "pool1? b\n")


def test_too_few_solved_examples_are_refused():
    with pytest.raises(UserError, match="unit_5shot: 5 shots, and only 4"):
        add_few_shot(task(5), questions(5, "test"), [])
    with pytest.raises(UserError, match="0 shots only"):
        with_shots(TaskDefinition("plain", "multiple_choice", lambda: (), "math"), 2)


def test_shots_that_do_not_fit_are_left_out_whole_from_the_left():
    shots = ("one. ", "two. ", "three. ")
    choice = Choice("q", (" yes", " no"), 0, description="P: ", shots=shots)
    for room in range(5, 30):
        spans, dropped = scored_spans(choice, Bytes(), room)
        texts = [Bytes().decode(span.tokens[1:].tolist()) for span in spans]
        whole = [f"P: {''.join(shots[dropped:])}q{option}" for option in choice.options]
        fits = max(map(len, whole)) <= room
        assert texts == whole if fits else dropped == 3
        assert any(span.truncated for span in spans) == (not fits)
        if dropped > 0 and fits:  # and no more than had to go
            assert (
                max(len(f"P: {''.join(shots[dropped - 1 :])}q{o}") for o in choice.options) > room
            )
    prompt = Prompt("q", ("a",), description="P: ", shots=shots)
    (span,), dropped = prompt_span(prompt, Bytes(), 12)
    assert (Bytes().decode(span.tokens[1:].tolist()), dropped) == ("P: three. q", 2)


def test_each_option_can_have_its_own_context():
    choice = Choice(
        "", (" end", " end"), 1, contexts=("Ann", "Bob"), description="", shots=("S. ",)
    )
    spans, _ = scored_spans(choice, Bytes(), 64)
    assert [Bytes().decode(span.tokens[1:].tolist()) for span in spans] == [
        "S. Ann end",
        "S. Bob end",
    ]
    assert choice.as_shot == "Bob end"
