"""Scores do not depend on packing, batches or the mesh, and are Transformers' log-softmax."""

import jax
import numpy as np
import pytest

from jaxllm.evaluation.inference import Decoding
from jaxllm.evaluation.packing import pack
from jaxllm.evaluation.scoring import Interrupted, Scorer, never
from jaxllm.evaluation.spans import Span
from jaxllm.models.batch import Batch
from jaxllm.models.decoder import logits
from jaxllm.models.sampling import Sampling
from tests.evaluation.helpers import TINY, Bytes, Signs, mesh, sharded_params


def make_spans(count=40, longest=40):
    rng = np.random.RandomState(0)
    lengths = rng.randint(1, longest, count)
    return [
        Span(rng.randint(0, TINY.vocab_size, n + 1).astype(np.int32), rng.randint(1, n + 1))
        for n in lengths
    ]


@jax.jit
def full_logits(params, inputs, segments):
    one = jax.numpy.zeros((1, 64), np.int32)
    positions = jax.numpy.arange(64)[None]
    return logits(TINY, params, Batch(inputs, one, one, positions, segments, one[:, 0]))


def scored_alone(params, span):
    """log softmax of the full logits of one span by itself, summed in float64."""
    inputs, segments = np.zeros((2, 1, 64), np.int32)
    inputs[0, : span.length], segments[0, : span.length] = span.tokens[:-1], 1
    values = np.asarray(full_logits(params, inputs, segments), np.float64)
    values = values[0, span.length - span.scored : span.length]
    targets = span.tokens[1:][-span.scored :]
    picked = values[np.arange(span.scored), targets]
    log_likelihood = np.sum(picked - np.log(np.sum(np.exp(values), axis=-1)))
    return log_likelihood, bool(np.all(values.argmax(-1) == targets))


@pytest.mark.parametrize("axes", [{}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2}])
def test_packed_scores_are_those_of_each_span_alone(axes):
    spans, on = make_spans(), mesh(**axes)
    params = sharded_params(TINY, on)
    scorer = Scorer(TINY, on, Bytes(), tokens_per_batch=3 * 64, shortest=16)
    assert scorer.lengths == (16, 64)
    packed = pack(spans, lengths=scorer.lengths, tokens_per_batch=scorer.tokens_per_batch)
    scores = scorer.score(params, packed, never)
    local = jax.device_get(params)
    expected = [scored_alone(local, span) for span in spans]
    np.testing.assert_allclose(
        scores.log_likelihood, [e[0] for e in expected], atol=1e-5, rtol=1e-5
    )
    assert scores.log_likelihood.dtype == np.float64
    assert scores.greedy.tolist() == [e[1] for e in expected]


def test_greedy_is_true_for_what_the_model_would_say():
    on = mesh()
    params = sharded_params(TINY, on)
    scorer = Scorer(TINY, on, Bytes(), tokens_per_batch=2 * 64, shortest=64)
    prompts = [[1, 70, 71, 72], [1, 5], [1, 9, 9, 9, 9, 9, 9]]
    batches = scorer.prompt_batches(prompts)
    texts = scorer.decode_loop.generate(params, batches, Decoding(Signs(), 6))
    answers = list(map(Signs().encode, texts))
    assert [len(a) for a in answers] == [6, 6, 6]
    right = [Span(np.asarray(p + a, np.int32), 6) for p, a in zip(prompts, answers, strict=True)]
    wrong = [Span(np.asarray([*p, *a[:-1], (a[-1] + 1) % 259], np.int32), 6)
             for p, a in zip(prompts, answers, strict=True)]  # fmt: skip
    packed = pack(right + wrong, lengths=(64,), tokens_per_batch=scorer.tokens_per_batch)
    assert scorer.score(params, packed, never).greedy.tolist() == [True] * 3 + [False] * 3


def said(scorer, params, prompts, vocabulary=None, stop=(), **details):
    batches = scorer.prompt_batches(prompts)
    decoding = Decoding(vocabulary or Signs(), 12, stop, **details)
    return scorer.decode_loop.generate(params, batches, decoding)


@pytest.fixture(scope="module")
def many():
    on = mesh(data=2, fsdp=2)
    rng = np.random.RandomState(1)
    prompts = [[1, *rng.randint(3, 259, rng.randint(1, 40)).tolist()] for _ in range(23)]
    scorer = Scorer(TINY, on, Bytes(), tokens_per_batch=4 * 64, shortest=64)
    return scorer, sharded_params(TINY, on), prompts


def test_generation_keeps_the_order_of_prompts(many):
    scorer, params, prompts = many
    whole = said(scorer, params, prompts)
    assert [len(text) for text in whole] == [12] * 23
    assert said(scorer, params, prompts[::-1]) == whole[::-1]
    assert said(scorer, params, prompts[3:4]) == whole[3:4]


def test_generation_stops_before_eos_and_before_a_stop_text(many):
    scorer, params, prompts = many
    whole = said(scorer, params, prompts)
    end = whole[0][3]
    expected = [text.split(end)[0] for text in whole]
    assert said(scorer, params, prompts, Signs(eos_id=ord(end) - 0x400)) == expected
    assert said(scorer, params, prompts, stop=(end,)) == expected
    pair = whole[0][3:5]
    assert said(scorer, params, prompts, stop=("never", pair)) == [t.split(pair)[0] for t in whole]


def test_a_batch_ends_when_all_of_its_rows_have(many, monkeypatch):
    scorer, params, prompts = many
    advance, counts = scorer.decode_loop._advance, []
    monkeypatch.setattr(
        scorer.decode_loop, "_advance",
        lambda *args: counts.append(args[4]) or advance(*args),
    )  # fmt: skip
    whole = said(scorer, params, prompts[:2])
    assert counts == [8, 4]
    counts.clear()
    said(scorer, params, prompts[:2], stop=(whole[0][2], whole[1][5]))
    assert counts == [8]


def test_what_is_drawn_depends_on_the_seeds_alone(many):
    scorer, params, prompts = many
    drawn = lambda of, seed: said(scorer, params, of, sampling=Sampling(1.0, top_p=0.95),
                                   seed=seed)  # fmt: skip
    texts = drawn(prompts, lambda number: (7, number, 0))
    assert drawn(prompts[::-1], lambda number: (7, 22 - number, 0))[::-1] == texts
    assert drawn(prompts[5:6], lambda number: (7, 5, 0)) == texts[5:6]
    for other in ((8, 5, 0), (7, 6, 0), (7, 5, 1)):
        assert drawn(prompts[5:6], lambda number, other=other: other) != texts[5:6]


def test_scores_are_transformers_log_softmax():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.models.transformers_families import reference

    on, spans = mesh(), make_spans(20)
    params = sharded_params(TINY, on)
    scorer = Scorer(TINY, on, Bytes(), tokens_per_batch=2 * 64, shortest=16)
    packed = pack(spans, lengths=scorer.lengths, tokens_per_batch=scorer.tokens_per_batch)
    scores = scorer.score(params, packed, never)
    twin = reference("Llama", TINY, jax.device_get(params))
    for span, found in zip(spans, scores.log_likelihood, strict=True):
        tokens = torch.tensor(span.tokens.astype(np.int64))
        with torch.no_grad():
            log_p = twin(tokens[None, :-1]).logits[0].double().log_softmax(-1)
        expected = log_p[-span.scored :].gather(1, tokens[-span.scored :, None]).sum().item()
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_a_stop_request_is_answered_between_batches():
    on = mesh()
    params = sharded_params(TINY, on)
    scorer = Scorer(TINY, on, Bytes(), tokens_per_batch=1 * 64, shortest=64)
    packed = pack(make_spans(), lengths=(64,), tokens_per_batch=64)
    asked = []
    with pytest.raises(Interrupted):
        scorer.score(params, packed, lambda: bool(asked.append(0)) or len(asked) == 3)
    assert len(asked) == 3 < len(packed)


def test_few_shapes_are_compiled():
    on = mesh()
    params = sharded_params(TINY, on)
    scorer = Scorer(TINY, on, Bytes(), tokens_per_batch=2 * 64, shortest=16)
    for seed in range(4):
        spans = make_spans(count=10 + 9 * seed, longest=10 + 9 * seed)
        packed = pack(spans, lengths=scorer.lengths, tokens_per_batch=scorer.tokens_per_batch)
        scorer.score(params, packed, never)
    assert scorer._score._cache_size() <= len(scorer.lengths)


def test_prompts_go_into_the_narrowest_rows_that_hold_them():
    scorer = Scorer(TINY, mesh(), Bytes(), tokens_per_batch=1 * 64, shortest=16)
    prompts = [[7] * n for n in (30, 2, 64, 16, 1, 3, 17)]
    batches = scorer.prompt_batches(prompts)
    assert [b.prompts.shape for b in batches] == [(4, 16), (1, 64), (1, 64), (1, 64)]
    assert [n for b in batches for n in b.numbers] == [4, 1, 5, 3, 6, 0, 2]
    for batch in batches:
        for row, number in enumerate(batch.numbers):
            assert batch.prompts[row, : batch.lengths[row]].tolist() == prompts[number]
