"""The loss of each held-out token: a task's perplexity, and Transformers' cross-entropy."""

import io
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.evaluation import tasks
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.evaluator import Evaluator
from jaxllm.evaluation.scoring import Interrupted
from jaxllm.evaluation.selection import SelectedTask, select
from jaxllm.evaluation.tasks import Document
from jaxllm.evaluation.token_sets import read_examples
from jaxllm.run.records import RunInfo
from jaxllm.run.run import Run
from jaxllm.run.trajectory import TrajectoryStore
from jaxllm.sharding.mesh import stack_mesh
from tests.evaluation.helpers import TINY, Bytes, mesh, sharded_params

RUN = RunInfo(run="tiny", family="tinies", params=1234)
TEXTS = ("ä cat sat on the tree. " * 9, "dog", "中文字" * 5, "", "the end of it")
NAME = "unit_novels:5x1000"

tasks.perplexity("unit_novels", lambda: map(Document, TEXTS), domain="language")
tasks.perplexity("unit_prompts", lambda: [Document("b", context="a")], domain="language")
tasks.perplexity("unit_noise", lambda: [Document("b", noise="delete_20")], domain="language")
tasks.perplexity("unit_gone", lambda path: (), domain="language", files=("gone",))
tasks.multiple_choice("unit_no_text", lambda: iter(()), domain="code")


def evaluator(path: Any, sets: Sequence[str] = (NAME,), **config: Any) -> Evaluator:
    config = {"tokens_per_batch": 2 * 64, "token_sets": sets, **config}
    return Evaluator(EvalConfig(**config), TINY, Bytes(), mesh(), TrajectoryStore(path), RUN)


@pytest.fixture(scope="module")
def params() -> Any:
    return sharded_params(TINY, mesh())


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, params: Any) -> Any:
    """The text scored as a task and as a token set."""
    path = tmp_path_factory.mktemp("scored")
    run = evaluator(path, tasks=("unit_novels",))
    records = run.evaluate(params, 5, 600, 7e9, checkpoint=1.5)
    assert {r.status for r in records} == {"ok"}
    return path, run, records


def test_losses_sum_to_the_perplexity_of_the_task(scored: Any) -> None:
    path, run, records = scored
    value = {(r.task, r.metric): r.value for r in records}
    for metric in ("loss", "perplexity", "bits_per_byte"):
        assert value[NAME, metric] == value["unit_novels", metric]
    ledger = Run(path).token_losses(NAME)
    (losses,), of = ledger.read().astype(np.float64), ledger.token_set()
    assert of.texts == TEXTS and len(losses) == sum(len(t.encode()) for t in TEXTS)
    table = TrajectoryStore(path).read_examples(5, "unit_novels")
    sums = np.bincount(of.documents, losses, len(TEXTS))
    np.testing.assert_allclose(sums, -table.log_likelihood, rtol=2.0**-11)
    prepared = run._prepare(NAME)
    exact = run._scorer.run(sharded_params(TINY, mesh()), prepared).each.astype(np.float64)
    assert -exact.mean() == pytest.approx(value["unit_novels", "loss"], rel=1e-9)
    assert np.all(np.abs(losses + exact) <= np.abs(exact) * 2.0**-11 + 2.0**-25)


def test_each_loss_is_transformers_cross_entropy(scored: Any, params: Any) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.models.transformers_families import reference

    ledger = Run(scored[0]).token_losses(NAME)
    (losses,), of = ledger.read(), ledger.token_set()
    twin = reference("Llama", TINY, jax.device_get(params))
    for document, text in enumerate(TEXTS):
        ids = [Bytes.bos_id, *Bytes().encode(text)]
        expected: list[float] = []
        for start in range(0, len(ids) - 1, TINY.max_length):  # rolling windows
            end = min(start + TINY.max_length, len(ids) - 1) + 1
            window = torch.tensor(ids[max(0, end - TINY.max_length - 1) : end])
            with torch.no_grad():
                logits = twin(window[None, :-1]).logits[0].double()
            loss = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
            expected += loss[-(end - 1 - start) :].tolist()
        own = of.documents == document
        assert of.tokens[own].tolist() == ids[1:]
        np.testing.assert_allclose(losses[own], expected, rtol=2.0**-10, atol=1e-4)


def test_what_lacks_losses_is_missing_and_a_stop_leaves_none(tmp_path: Any, params: Any) -> None:
    run = evaluator(tmp_path)
    asked: list[int] = []
    with pytest.raises(Interrupted):
        run.evaluate(params, 5, 6, 7.0, should_stop=lambda: bool(asked.append(0)) or len(asked) > 1)
    assert run.missing(5) == (NAME,) and Run(tmp_path).token_set_names() == ()
    run.evaluate(params, 5, 6, 7.0, checkpoint=1.5)
    assert run.missing(5, 1.5) == () and run.missing(5, 2.5) == (NAME,)
    (tmp_path / "token_losses" / NAME / "5.f16").unlink()
    assert run.missing(5, 1.5) == (NAME,)
    run.evaluate(params, 5, 6, 7.0, checkpoint=2.5)
    assert run.missing(5, 2.5) == () and Run(tmp_path).token_losses(NAME).steps() == (5,)


def test_members_of_a_stack_store_their_own_losses(tmp_path: Any, scored: Any, params: Any) -> None:
    both = (sharded_params(TINY, mesh(), seed=1), params)
    on = stack_mesh(2, jax.devices()[:1])
    first = evaluator(tmp_path)
    scores = first.stack_scores(on)
    scores.of(jax.tree.map(lambda *x: np.stack([np.asarray(each) for each in x]), *both))
    for index, of in enumerate(both):
        store = TrajectoryStore(tmp_path / str(index))
        first.for_member(store, RUN, scores, index).evaluate(of, 5, 6, 7.0)
    members = [Run(tmp_path / name).token_losses(NAME).read() for name in "01"]
    alone = Run(scored[0]).token_losses(NAME).read()
    np.testing.assert_allclose(members[1], alone, rtol=2.0**-9)
    assert not np.allclose(members[0], alone, rtol=0.01)
    assert Run(tmp_path).token_set_names() == ()


def test_losses_that_are_not_finite_fail_the_task_and_are_not_stored(
    tmp_path: Any, params: Any
) -> None:
    run = evaluator(tmp_path)
    (record,) = run.evaluate(jax.tree.map(lambda x: x * np.nan, params), 5, 6, 7.0)
    assert "log-likelihoods of 4 of 5 examples are not finite" in record.status
    assert Run(tmp_path).token_set_names() == () and run.missing(5) == (NAME,)
    (record, *_) = run.evaluate(params, 5, 6, 7.0)
    assert record.status == "ok" and run.missing(5) == ()
    assert np.isfinite(Run(tmp_path).token_losses(NAME).read()).all()


def test_a_changed_text_is_refused_before_the_first_checkpoint(
    tmp_path: Any, params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator(tmp_path).evaluate(params, 5, 6, 7.0)
    run = evaluator(tmp_path)
    assert run.check()[0].startswith(f"{NAME}: 5 examples")
    other = evaluator(tmp_path)
    monkeypatch.setattr(Bytes, "encode", lambda self, s: [b + 3 for b in s.upper().encode()])
    with pytest.raises(UserError, match=r"has the losses of other tokens .* move that directory"):
        other.check()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unit_no_text", "token set unit_no_text:50x2048: must be held-out text"),
        ("unit_novels:10000x1001", "up to 10,000,000 tokens"),
        ("unit_novels:5x", "no evaluation task is called unit_novels:5x"),
    ],
)
def test_what_is_no_token_set_gets_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(EvalConfig(token_sets=(name,)))
    with pytest.raises(UserError, match="names unit_novels:50x2048 twice"):
        EvalConfig(token_sets=("unit_novels", "unit_novels:50x2048"))


@pytest.mark.parametrize("name", ["unit_prompts:5x9", "unit_noise:5x9"])
def test_a_token_set_loses_no_prompt_and_no_noise(tmp_path: Any, name: str) -> None:
    with pytest.raises(UserError, match=f"token set {name}: its texts have prompts or noise"):
        evaluator(tmp_path, (name,)).check()
    assert evaluator(tmp_path, tasks=(name.partition(":")[0],)).check()


def test_tasks_without_files_are_skipped_where_that_is_asked_for(tmp_path: Any) -> None:
    wanted = {"tasks": ("unit_novels", "unit_gone"), "data_dir": str(tmp_path)}
    skipped, *lines = evaluator(tmp_path, (), **wanted, on_unrunnable="skip").check()
    assert skipped.startswith("skipped task unit_gone: task unit_gone: no file ")
    assert [line.partition(":")[0] for line in lines] == ["unit_novels"]
    with pytest.raises(UserError, match="task unit_gone: no file"):
        evaluator(tmp_path, (), **wanted)


class Pieces:
    """The vocabulary of a SentencePiece model, as SeqIO wraps it."""

    bos_id, eos_id = 1, 2

    def __init__(self, content: bytes) -> None:
        import sentencepiece

        self.model = sentencepiece.SentencePieceProcessor(model_proto=content)

    def encode(self, s: str) -> list[int]:
        return self.model.encode(s)

    def decode(self, ids: Sequence[int]) -> str:
        return self.model.decode([int(i) for i in ids])


def pieces() -> Pieces:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the tree"] * 50), model_writer=model, minloglevel=2,
        vocab_size=290, model_type="bpe", byte_fallback=True, hard_vocab_limit=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    return Pieces(model.getvalue())


@pytest.mark.parametrize("make", [Bytes, pieces])
@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_ends_cut_the_text_into_its_tokens(make: Any, limit: int) -> None:
    vocabulary = make()
    texts = ("the cat\n sat  on", " a", "ä中文🙂 the", "", "tree " * 40, "\ufffd x and the rest")
    task = tasks.perplexity("unit_cut", lambda: map(Document, texts), domain="language")
    documents, of = read_examples(SelectedTask(task, max_tokens=limit), vocabulary)
    assert of is not None
    for number, (text, document) in enumerate(zip(texts, documents, strict=True)):
        own = of.documents == number
        ids, ends = of.tokens[own].tolist(), of.ends[own].tolist()
        assert ids == vocabulary.encode(text)[:limit]
        assert of.positions[own].tolist() == list(range(len(ids)))
        assert document.text == of.texts[number] and text.startswith(of.texts[number])
        content = of.texts[number].encode()
        assert ends == sorted(ends) and (not ends or ends[-1] == len(content))
        if limit == 1000:
            assert of.texts[number] == text
        for count, end in enumerate(ends, 1):
            before = content[:end].decode()  # never within a character
            decoded = vocabulary.decode(ids[:count])
            if "\ufffd" not in decoded:  # whose spaces at the start are lost
                assert before.lstrip() == decoded.lstrip()
