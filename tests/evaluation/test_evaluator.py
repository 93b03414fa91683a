"""The evaluator: its records, what a failure or a stop leaves, what changes nothing."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest
from scipy import stats

from jaxllm.errors import UserError
from jaxllm.evaluation import evaluator as evaluator_module
from jaxllm.evaluation import selection, tasks
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.evaluator import Evaluator
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.scoring import Interrupted, Scorer
from jaxllm.evaluation.tasks import Choice, Document, Prompt
from jaxllm.run.records import OPTION_PERPLEXITIES, RunInfo
from jaxllm.run.trajectory import TrajectoryStore
from tests.evaluation.helpers import TINY, Bytes, mesh, sharded_params

RUN = RunInfo(run="tiny", family="tinies", params=1234)
WORDS = ("cat", "dog", "tree", "Häuser")


def sentence(rng, longest):
    return " ".join(rng.choice(WORDS, rng.randint(1, longest)))


def questions():
    rng = np.random.RandomState(0)
    for number in range(12):
        options = tuple(f" {sentence(rng, 4)}{i}" for i in range(2 + number % 3))
        yield Choice(sentence(rng, 20), options, number % 2, f"q{number}")


def documents():
    rng = np.random.RandomState(1)
    yield from (Document(sentence(rng, 40)) for _ in range(5))


def prompts():
    rng = np.random.RandomState(2)
    yield from (Prompt(sentence(rng, 6) + " ", ("cat", "dog")) for _ in range(7))


def broken():
    raise RuntimeError("the\nfile is gone")
    yield


CHOICE = tasks.multiple_choice("unit_choice", questions, domain="reading", shots=3, version="7")
tasks.perplexity("unit_text", documents, domain="language")
tasks.cloze("unit_cloze", prompts, domain="language")
tasks.generation("unit_generate", prompts, domain="math", max_new_tokens=5)
tasks.multiple_choice("unit_broken", broken, domain="code")
tasks.multiple_choice("unit_empty", lambda: [], domain="code")
ALL = ("unit_choice", "unit_text", "unit_cloze", "unit_generate")


@pytest.fixture(autouse=True, scope="module")
def short_rows():
    """Two row lengths, as longer contexts have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator_module, "Scorer", functools.partial(Scorer, shortest=16))
        yield


def evaluator(path, on, names=ALL, **config):
    config = {"tokens_per_batch": 2 * 64, **config}
    return Evaluator(
        EvalConfig(tasks=names, **config), TINY, Bytes(), on, TrajectoryStore(path), RUN
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Everything scored once on one device: the store, the records and the parameters."""
    path = tmp_path_factory.mktemp("scored")
    params = sharded_params(TINY, mesh())
    records = evaluator(path, mesh()).evaluate(params, 5, 600, 7e9)
    return TrajectoryStore(path), records, params


def values(records):
    return {(r.task, r.metric): r.value for r in records if r.metric != "padding"}


def test_records_say_what_was_measured(scored):
    store, records, _ = scored
    first = next(r for r in records if r.task == "unit_choice" and r.metric == "accuracy")
    assert (first.run, first.family, first.params) == ("tiny", "tinies", 1234)
    assert (first.step, first.tokens, first.flops) == (5, 600, 7e9)
    assert (first.domain, first.shots, first.task_version) == ("reading", 3, "7")
    assert (first.n, first.status, first.primary) == (12, "ok", True)
    assert first.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert first.seconds > 0
    primary = {r.task: r.metric for r in records if r.primary}
    assert primary == {
        "unit_choice": "accuracy",
        "unit_text": "bits_per_byte",
        "unit_cloze": "exact_match",
        "unit_generate": "exact_match",
    }
    stored = store.read().to_dict("records")
    key = lambda r: (r["task"], r["metric"])
    ours = [dataclasses.asdict(r) for r in records]
    np.testing.assert_equal(sorted(stored, key=key), sorted(ours, key=key))


def test_every_example_has_its_row(scored):
    store, records, _ = scored
    table = store.read_examples(5, "unit_choice")
    assert table.id.tolist() == [f"q{i}" for i in range(12)]
    assert table.target.tolist() == [i % 2 for i in range(12)]
    assert [len(row) for row in table.log_likelihoods] == [2 + i % 3 for i in range(12)]
    accuracy = values(records)["unit_choice", "accuracy"]
    assert np.mean([np.argmax(row) for row in table.log_likelihoods] == table.target) == accuracy
    texts = store.read_examples(5, "unit_text")
    assert texts.bytes.tolist() == [len(d.text.encode()) for d in documents()]
    assert texts.tokens.tolist() == texts.bytes.tolist()  # a byte vocabulary
    bits = -texts.log_likelihood.sum() / math.log(2) / texts.bytes.sum()
    assert values(records)["unit_text", "bits_per_byte"] == pytest.approx(bits)


def test_the_unigram_level_is_the_entropy_of_the_scored_tokens(scored):
    """In nats a token of a text, and a target of a cloze; bytes are the tokens here."""
    level = {(r.task, r.metric): r.unigram for r in scored[1]}
    nats = stats.entropy(np.bincount(list("".join(d.text for d in documents()).encode())))
    assert level["unit_text", "loss"] == pytest.approx(nats)
    assert level["unit_text", "bits_per_byte"] == pytest.approx(nats / math.log(2))
    # All targets are " cat": a space and three letters, a fourth of the tokens each.
    assert level["unit_cloze", "perplexity"] == pytest.approx(4**4)
    assert level["unit_cloze", "target_bits_per_byte"] == pytest.approx(8 / 3)  # the space is none
    of_options = [value for (task, _), value in level.items() if task == "unit_choice"]
    assert np.isnan(of_options).all()


def test_contexts_that_do_not_fit_are_counted(scored):
    store, records, _ = scored
    long = [
        max(len((q.context + o).encode()) for o in q.options) > TINY.max_length for q in questions()
    ]
    assert 0 < sum(long) < 12
    assert store.read_examples(5, "unit_choice").truncated.tolist() == long
    assert values(records)["unit_choice", "truncated"] == pytest.approx(np.mean(long))
    assert 0 <= next(r.value for r in records if r.metric == "padding") < 1


@pytest.mark.parametrize("axes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_neither_mesh_nor_packing_changes_a_value(axes, scored, tmp_path, monkeypatch):
    on = mesh(**axes)
    monkeypatch.setattr(evaluator_module, "Scorer", Scorer)  # one row length
    other = evaluator(tmp_path, on, tokens_per_batch=5 * 64)
    again = other.evaluate(sharded_params(TINY, on), 5, 600, 7e9)
    expected = values(scored[1])
    assert values(again).keys() == expected.keys()
    for key, value in values(again).items():
        assert value == pytest.approx(expected[key], rel=1e-5, abs=1e-5), key


def test_scoring_twice_is_bitwise_the_same(scored, tmp_path):
    once = evaluator(tmp_path, mesh())
    for step in (1, 2):
        again = once.evaluate(scored[2], step, 600, 7e9)
        np.testing.assert_equal(values(again), values(scored[1]))


def test_a_failing_task_is_recorded_and_the_others_go_on(tmp_path, scored):
    names = ("unit_broken", "unit_empty", "unit_cloze")
    records = evaluator(tmp_path, mesh(), names).evaluate(scored[2], 1, 2, 3.0)
    status = {r.task: r.status for r in records if r.primary}
    assert status["unit_broken"] == "RuntimeError: the file is gone"
    assert status["unit_empty"] == "UserError: task unit_empty has no examples"
    assert status["unit_cloze"] == "ok"
    stored = TrajectoryStore(tmp_path).read()
    failed = stored[stored.task == "unit_broken"].iloc[0]
    assert (failed.metric, failed.n, failed.primary) == ("accuracy", 0, True)
    assert math.isnan(failed.value)


def test_a_stop_leaves_whole_tasks_only(tmp_path, scored):
    asked = []
    run = evaluator(tmp_path, mesh(), ("unit_cloze", "unit_choice"))
    stop = lambda: bool(asked.append(0)) or len(asked) > 3
    with pytest.raises(Interrupted):
        run.evaluate(scored[2], 1, 2, 3.0, should_stop=stop)
    assert run.missing(1) == ("unit_choice",)
    run.evaluate(scored[2], 1, 2, 3.0, tasks=run.missing(1))
    assert run.missing(1) == ()
    assert run.missing(2) == ("unit_cloze", "unit_choice")


def test_max_examples_takes_the_same_few(tmp_path, scored):
    tables = []
    for name in ("a", "b"):
        run = evaluator(tmp_path / name, mesh(), ("unit_choice",), max_examples=5)
        records = run.evaluate(scored[2], 1, 2, 3.0)
        assert {r.n for r in records if r.metric not in OPTION_PERPLEXITIES} == {5}
        tables.append(TrajectoryStore(tmp_path / name).read_examples(1, "unit_choice"))
    assert tables[0].id.tolist() == tables[1].id.tolist()
    assert tables[0].id.tolist() == sorted(tables[0].id, key=lambda i: int(i[1:]))


def test_generation_needs_room_for_the_prompt(tmp_path, scored):
    tasks.generation("unit_wide", prompts, domain="math", max_new_tokens=64)
    (record,) = evaluator(tmp_path, mesh(), ("unit_wide",)).evaluate(scored[2], 1, 2, 3.0)
    assert "64 new tokens leave no room for a prompt in a context of 64" in record.status


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tasks": ("a", "b", "a")}, "names a twice"),
        ({"tokens_per_batch": 0}, "tokens_per_batch = 0"),
    ],
)
def test_impossible_configs_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        EvalConfig(**config)


@pytest.mark.parametrize(
    ("every", "due"), [(1, (0, 1, 2, 4, 8, 9)), (2, (0, 2, 8, 9)), (4, (0, 8, 9)), (0, ())]
)
def test_a_run_scores_every_kth_checkpoint_and_the_last(tmp_path, every, due):
    assert evaluator(tmp_path, mesh(), every=every).config.due((0, 1, 2, 4, 8, 9)) == due


def test_programs_are_drawn_as_often_as_asked(tmp_path, scored):
    """The score looks at the first letter only: what counts is which texts it is given."""
    seen = []
    score = lambda text, example: seen.append((example.id, text)) or {"pass": text < "m"}
    tasks.generation(
        "unit_code", lambda: [Prompt("a", ("b",), str(n)) for n in range(3)], domain="code",
        max_new_tokens=5, stop=(), score=score, runs_code=True,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"unit_code runs .*EvalConfig.run_code=True"):
        evaluator(tmp_path, mesh(), ("unit_code",))

    def texts(name, **config):
        seen.clear()
        run = evaluator(tmp_path / name, mesh(), ("unit_code",), run_code=True, **config)
        records = run.evaluate(scored[2], 1, 2, 3.0)
        assert {r.metric for r in records if r.primary} == {"pass@1"}
        return sorted(seen)

    greedy = texts("greedy")
    assert [name for name, _ in greedy] == ["0", "1", "2"]
    assert len({text for _, text in greedy}) == 1  # the same prompt
    drawn = texts("drawn", samples=10)
    assert [name for name, _ in drawn] == ["0"] * 10 + ["1"] * 10 + ["2"] * 10
    assert len({text for _, text in drawn}) == 30
    assert texts("again", samples=10, tokens_per_batch=8 * 64) == drawn
    metrics = TrajectoryStore(tmp_path / "drawn").read().metric.tolist()
    assert {"pass@1", "pass@10"} <= set(metrics)
    with pytest.raises(UserError, match="10 samples would be the same"):
        EvalConfig(samples=10, temperature=0.0)


def test_what_does_not_fit_is_cut_and_counted(tmp_path, scored):
    """Contexts, and an option that alone is longer than the model's context."""
    long = Choice("a", (" b", " " + "c" * TINY.max_length), 0)
    short = Choice("a", (" b", " c"), 0)
    tasks.multiple_choice("unit_long_option", lambda: [long, short], domain="code")
    asked = [Prompt("x" * n, ("y",)) for n in (10, 58, 59, 200)]  # 64 - 5 hold BOS and 58
    tasks.generation("unit_long_prompt", lambda: asked, domain="code", max_new_tokens=5)
    names = ("unit_long_option", "unit_long_prompt")
    records = evaluator(tmp_path, mesh(), names).evaluate(scored[2], 1, 2, 3.0)
    assert {r.status for r in records} == {"ok"}
    assert values(records)["unit_long_option", "truncated"] == 0.5
    assert values(records)["unit_long_prompt", "truncated"] == 0.5
    options = TrajectoryStore(tmp_path).read_examples(1, "unit_long_option")
    assert [list(row) for row in options.tokens] == [[2, TINY.max_length], [2, 2]]
    rows = TrajectoryStore(tmp_path).read_examples(1, "unit_long_prompt")
    assert rows.truncated.tolist() == [False, False, True, True]


def test_a_model_that_gives_nan_fails_its_tasks(tmp_path, scored):
    """NaN would otherwise be an option that does not exist, and generation the token 0."""
    broken = jax.tree.map(lambda x: x * np.nan, scored[2])
    records = evaluator(tmp_path, mesh()).evaluate(broken, 1, 2, 3.0)
    assert [r.task for r in records] == list(ALL)  # one failed record each
    status = {r.task: r.status for r in records}
    assert status["unit_choice"].startswith(
        "UserError: log-likelihoods of 12 of 12 examples are not finite, first of example q0"
    )
    assert "5 of 5 examples are not finite" in status["unit_text"]
    assert "the model's logits are NaN for" in status["unit_generate"]


def test_a_token_id_beyond_the_model_is_found_once_and_before(tmp_path, scored):
    class Beyond(Bytes):
        def encode(self, s):
            return [300 if byte == ord("t") else byte + 3 for byte in s.encode()]

    config = EvalConfig(tasks=("unit_choice",))
    run = Evaluator(config, TINY, Beyond(), mesh(), TrajectoryStore(tmp_path), RUN)
    message = "task unit_choice: the vocabulary gives token id 300, and the model has 259"
    with pytest.raises(UserError, match=message):
        run.check()
    (record,) = run.evaluate(scored[2], 1, 2, 3.0)
    assert message in record.status


def test_tasks_that_cannot_run_are_found_before_the_first_checkpoint(tmp_path, scored):
    tasks.generation("unit_wide", prompts, domain="math", max_new_tokens=64)
    names = ("unit_wide", "unit_cloze", "unit_empty", "heldout_nowhere")
    with pytest.raises(UserError, match=r"3 of 4 evaluation tasks cannot be scored .*'skip'") as no:
        evaluator(tmp_path, mesh(), names).check()
    for part in ("unit_wide: task unit_wide: 64 new tokens leave no room", "unit_empty has no exam",
                 "heldout_nowhere: no corpus nowhere"):  # fmt: skip
        assert part in str(no.value)
    run = evaluator(tmp_path, mesh(), names, on_unrunnable="skip")
    lines = run.check()
    assert [line.split(":")[0] for line in lines[:3]] == [
        "skipped task unit_wide", "skipped task unit_empty", "skipped task heldout_nowhere",
    ]  # fmt: skip
    assert re.fullmatch(r"unit_cloze: 7 examples in \d+ sequences", lines[3])
    assert {r.task for r in run.evaluate(scored[2], 1, 2, 3.0)} == {"unit_cloze"}


def test_what_is_cut_of_many_tasks_takes_one_line(tmp_path, monkeypatch):
    long = lambda: [Choice("x" * n, (" a", " b"), 0) for n in (10, 80, 90)]
    for number in range(5):
        tasks.multiple_choice(f"unit_long_{number}", long, domain="code")
    registry = dataclasses.replace(
        benchmarks(), mixtures={"unit_exams": tuple(f"unit_long_{n}" for n in range(5))}
    )
    monkeypatch.setattr(selection, "benchmarks", lambda modules: registry)
    lines = evaluator(tmp_path, mesh(), ("unit_exams", "unit_choice")).check()
    assert lines[0].startswith("unit_exams (5 tasks): 15 examples in ")
    assert sum("cut on the left" in line for line in lines) == 1
    assert "examples of 6 tasks, first unit_long_0, do not fit 64 tokens" in lines[-1]


def test_a_store_that_fails_does_not_end_the_run(tmp_path, scored, monkeypatch):
    """Its task stays missing, and says so."""
    run = evaluator(tmp_path, mesh(), ("unit_cloze", "unit_choice"))
    write = run._store.write

    def full(step, task, *args):
        if task == "unit_choice":
            raise OSError("No space left")
        write(step, task, *args)

    monkeypatch.setattr(run._store, "write", full)
    status = {r.task: r.status for r in run.evaluate(scored[2], 1, 2, 3.0)}
    assert status == {"unit_cloze": "ok", "unit_choice": "not stored (OSError: No space left)"}
    assert run.missing(1) == ("unit_choice",)


def test_a_primary_metric_that_is_not_measured_is_refused():
    with pytest.raises(ValueError, match=r"primary_metric 'acc' is not one of accuracy, "):
        tasks.multiple_choice("unit_acc", questions, domain="code", primary_metric="acc")


def test_ids_are_places_in_the_file_whatever_is_drawn(tmp_path, scored):
    run = evaluator(tmp_path, mesh(), ("unit_text",), max_examples=2)
    run.evaluate(scored[2], 1, 2, 3.0)
    rows = TrajectoryStore(tmp_path).read_examples(1, "unit_text")
    every = [len(d.text.encode()) for d in documents()]
    assert rows.bytes.tolist() == [every[int(place)] for place in rows.id]
    assert rows.id.tolist() != ["0", "1"]


def test_an_example_without_a_continuation_fails_its_task_alone(tmp_path, scored):
    tasks.multiple_choice(
        "unit_no_option", lambda: iter([Choice("a", (" b", ""), 0)]), domain="code"
    )
    tasks.cloze("unit_no_target", lambda: iter([Prompt("a", ("",))]), domain="code")
    names = ("unit_no_option", "unit_no_target", "unit_cloze")
    records = evaluator(tmp_path, mesh(), names).evaluate(scored[2], 1, 2, 3.0)
    status = {r.task: r.status for r in records if r.primary}
    assert status["unit_no_option"].startswith("ValueError: Choice(context='a'")
    assert status["unit_no_option"].endswith("an option is empty")
    assert status["unit_no_target"].startswith("ValueError: Prompt(context='a'")
    assert status["unit_no_target"].endswith("none of them empty")
    assert status["unit_cloze"] == "ok"
