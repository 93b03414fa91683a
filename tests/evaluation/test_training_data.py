"""Tasks on the run's own training sequences: their losses, and what the model continues."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.evals.training_data import excerpts
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.evaluator import Evaluator
from jaxllm.evaluation.tasks import TrainingSequence
from jaxllm.models.batch import Batch
from jaxllm.models.scoring import score_tokens
from jaxllm.run.manifest import Rollback
from jaxllm.run.records import RunInfo
from jaxllm.run.run import Run
from jaxllm.run.trajectory import TrajectoryStore
from tests.evaluation.helpers import Bytes, mesh
from tests.models.families import FAMILIES
from tests.models.helpers import random_params

RUN = RunInfo(run="tiny", family="tinies", params=1234)
_, LLAMA = FAMILIES["llama"]
LENGTH, K, L = 30, 8, 6


def sequence(step: int, place: int, tokens: np.ndarray, segments=None, weights=None):
    segments = np.ones(len(tokens) - 1, np.int32) if segments is None else segments
    weights = np.ones(len(tokens) - 1, np.float32) if weights is None else weights
    of = tokens[:-1], tokens[1:], weights, segments
    return TrainingSequence(f"{step}/{place}", step, "books", *of)


def random_tokens(rows: int, length: int = LENGTH) -> np.ndarray:
    draw = np.random.default_rng(3)
    return draw.integers(0, LLAMA.vocab_size, (rows, length + 1)).astype(np.int32)


def evaluator(path, rows, tasks: tuple[str, ...], **axes: int) -> Evaluator:
    config = EvalConfig(tasks=tasks, tokens_per_batch=2 * 64)
    sample = lambda count: rows
    store = TrajectoryStore(path)
    return Evaluator(config, LLAMA, Bytes(), mesh(**axes), store, RUN, sample)


@pytest.fixture(scope="module")
def params():
    return random_params(LLAMA)


def test_the_loss_is_that_of_training(tmp_path, params) -> None:
    """With attention across documents, in masked ones, packed ones and padding."""
    tokens = random_tokens(4)
    segments = np.ones((4, LENGTH), np.int32)
    weights = np.ones((4, LENGTH), np.float32)
    weights[1, [0, 9, 10, 29]] = 0  # documents begin there
    segments[2, 11:] = 2
    weights[2, 10] = 0
    segments[3] = np.repeat([1, 2, 3, 0], [7, 12, 5, 6])
    weights[3] = segments[3] > 0
    rows = [sequence(2 * i, 0, tokens[i], segments[i], weights[i]) for i in range(4)]
    positions = [[i - np.flatnonzero(row == row[i])[0] for i in range(LENGTH)] for row in segments]
    batch = Batch(
        inputs=jnp.array(tokens[:, :-1]), targets=jnp.array(tokens[:, 1:]),
        positions=jnp.array(positions, jnp.int32), segment_ids=jnp.array(segments),
        weights=jnp.array(weights), domains=jnp.zeros(4, jnp.int32),
    )  # fmt: skip
    nll = -np.asarray(score_tokens(LLAMA, params, batch).log_likelihood, np.float64) * weights
    scored = evaluator(tmp_path, rows, ("training_loss",))
    values = {r.metric: r for r in scored.evaluate(params, 3, 0, 0.0)}
    assert values["loss"].value == pytest.approx(nll.sum() / weights.sum(), rel=1e-5)
    assert values["loss"].primary and values["loss"].n == 4
    for name, of in {"seen": slice(2), "unseen": slice(2, 4)}.items():
        expected = nll[of].sum() / weights[of].sum()
        assert values[f"loss_{name}"].value == pytest.approx(expected, rel=1e-5)
    table = TrajectoryStore(tmp_path).read_examples(3, "training_loss")
    assert table.id.tolist() == ["0/0", "2/0", "4/0", "6/0"]
    assert table.trained_at.tolist() == [0, 2, 4, 6] and set(table.domain) == {"books"}
    np.testing.assert_allclose(table.loss, nll.sum(1) / weights.sum(1), rtol=1e-5)
    Run(tmp_path).rollback_lines.append(Rollback(0, 1, 3, "hand", "")._asdict())
    values = {r.metric: r.value for r in scored.evaluate(params, 3, 0, 0.0)}
    for name, of in {"": slice(4), "_seen": slice(1), "_unseen": slice(1, 4)}.items():
        expected = nll[of].sum() / weights[of].sum()
        assert values[f"loss{name}"] == pytest.approx(expected, rel=1e-5), "step 2 is not read"
    table = TrajectoryStore(tmp_path).read_examples(3, "training_loss")
    assert table.trained_at.tolist() == [0, np.inf, 4, 6]
    broken = jax.tree.map(lambda x: x * np.nan, params)
    (failed,) = scored.evaluate(broken, 4, 0, 0.0)
    assert (
        "log-likelihoods of 4 of 4 examples are not finite, first of example 0/0" in failed.status
    )


def test_memorization_is_that_of_a_greedy_loop_in_transformers(tmp_path, params) -> None:
    torch = pytest.importorskip("torch")
    families = pytest.importorskip("tests.models.transformers_families")
    model = families.reference("Llama", LLAMA, params)
    tokens = random_tokens(9)
    greedy = np.zeros((9, L), np.int32)
    for row in range(9):
        ids = torch.tensor(tokens[row : row + 1, :K], dtype=torch.long)
        for place in range(L):
            with torch.no_grad():
                new = model(ids).logits[:, -1].argmax(dim=-1, keepdim=True)
            ids, greedy[row, place] = torch.cat([ids, new], dim=1), int(new)
    for row in range(1, 9):  # memorized, but for the tokens that random ones overwrite again
        right = np.arange(L) % 8 != row
        tokens[row, K : K + L][right] = greedy[row][right]
    rows = [sequence(10 * row, 0, tokens[row]) for row in range(9)]
    short = np.repeat(np.arange(1, 6, dtype=np.int32), 6)  # no segment has K + L tokens
    rows.append(sequence(5, 1, tokens[0], segments=short))
    same = greedy == tokens[:9, K : K + L]
    name = f"memorization_{K}_{L}"
    scored = evaluator(tmp_path, rows, (name,), data=2)
    values = {r.metric: r for r in scored.evaluate(params, 35, 0, 0.0)}
    assert values["score"].value == pytest.approx(same.mean())
    assert values["extractible"].value == pytest.approx(same.all(axis=1).mean())
    assert values["extractible"].n == 9 and values["extractible"].primary
    assert 0 < same.all(axis=1).sum() < 9 and len(set(same.mean(axis=1))) > 2
    assert values["score_seen"].value == pytest.approx(same[:4].mean())
    assert values["extractible_unseen"].value == pytest.approx(same[4:].all(axis=1).mean())
    table = TrajectoryStore(tmp_path).read_examples(35, name)
    np.testing.assert_allclose(table.score, same.mean(axis=1))
    assert table.extractible.tolist() == same.all(axis=1).tolist()


def test_an_excerpt_is_of_the_first_segment_that_is_long_enough(tmp_path, params) -> None:
    tokens = random_tokens(1)[0]
    segments = np.repeat(np.array([1, 2, 0], np.int32), [5, 20, 5])
    one = sequence(1, 0, tokens, segments)
    (found,) = excerpts(lambda count: [one], K, L)
    np.testing.assert_array_equal(found.inputs, tokens[5 : 5 + K])
    np.testing.assert_array_equal(found.targets, tokens[5 + K : 5 + K + L])


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("training_loss", "only a run of its own has training sequences"),
        ("memorization_70_2", "contexts of 70 tokens do not fit 62"),
        ("memorization_4_80", "80 new tokens leave no room"),
        ("memorization_4", "no evaluation task is called memorization_4: write"),
    ],
)
def test_what_cannot_be_scored_is_named(tmp_path, task: str, says: str) -> None:
    long = dataclasses.replace(LLAMA, max_length=64)
    rows = [sequence(1, 0, random_tokens(1, 100)[0])]
    with pytest.raises(UserError, match=says):
        sample = None if task == "training_loss" else lambda count: rows
        store = TrajectoryStore(tmp_path)
        config = EvalConfig(tasks=(task,))
        Evaluator(config, long, Bytes(), mesh(), store, RUN, sample).check()
