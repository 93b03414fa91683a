"""Token losses come back within the stated error, of the right tokens and the right checkpoint."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.errors import UserError
from jaxllm.run.run import Run
from jaxllm.run.token_losses import HEADER, TokenSet
from tests.buckets import Proxy

SET = TokenSet.of("books:3x4", ("abc", "", "déf"), [[5, 6, 7], [], [8, 9]], [[1, 2, 3], [], [1, 4]])


def losses(step: int, n: int = 5) -> np.ndarray:
    return np.random.RandomState(step).gamma(2.0, 2.0, n).astype(np.float32)


def filled(path: Path | str, steps: tuple[int, ...] = (1, 2, 10)) -> Run:
    run = Run(path)
    ledger = run.token_losses(SET.name)
    ledger.write_set(SET)
    for step in steps:
        ledger.write(step, losses(step), step + 0.5)
    return run


def same(one: TokenSet, other: TokenSet) -> bool:
    return all(
        np.array_equal(getattr(one, f.name), getattr(other, f.name))
        for f in dataclasses.fields(TokenSet)
    )


floats = st.one_of(
    st.floats(0, 60, width=32), st.floats(width=32), st.sampled_from([65_504.0, 65_519.9, 1e30])
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(floats, min_size=1, max_size=30),
    st.slices(30),
    st.lists(st.integers(0, 10**12), min_size=1, max_size=3, unique=True),
)
def test_losses_come_back_within_the_stated_error(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], chosen: slice, steps: list[int]
) -> None:
    ledger = Run(tmp_path_factory.mktemp("run")).token_losses("any")
    n, written = len(values), np.asarray(values, np.float32)
    ledger.write_set(TokenSet.of("any", ("x" * n,), [range(n)], [range(1, n + 1)]))
    for step in steps:
        ledger.write(step, written)
    found = ledger.read(tokens=chosen)
    expected = written[chosen].astype(np.float64)
    assert found.dtype == np.float32 and found.shape == (len(steps), len(expected))
    finite = np.isfinite(expected)
    for row in found:
        np.testing.assert_array_equal(row[~finite], expected[~finite])
        stored = np.clip(expected[finite], -65_504, 65_504)
        error = np.abs(row[finite] - stored)
        assert np.all(error <= np.maximum(np.abs(stored) * 2.0**-11, 2.0**-25))
    assert ledger.steps() == tuple(sorted(steps))
    assert {h["not_finite"] for h in ledger.headers().values()} == {(~np.isfinite(written)).sum()}


def test_a_set_comes_back_with_its_fingerprint(tmp_path: Path) -> None:
    run = filled(tmp_path)
    assert run.token_set_names() == ("books:3x4",)
    assert same(run.token_losses("books:3x4").token_set(), SET)
    assert SET.documents.tolist() == [0, 0, 0, 2, 2]
    assert SET.positions.tolist() == [0, 1, 2, 0, 1]
    texts = [SET.texts[d].encode()[: SET.ends[i]] for i, d in enumerate(SET.documents)]
    assert [text.decode() for text in texts] == ["a", "ab", "abc", "d", "déf"]


def test_losses_of_other_tokens_are_refused_with_the_way_out(tmp_path: Path) -> None:
    run = filled(tmp_path)
    content = run.token_losses(SET.name).read()
    others = (
        TokenSet.of(SET.name, SET.texts, [[5, 6, 7], [], [8, 1]], [[1, 2, 3], [], [1, 4]]),
        TokenSet.of(SET.name, ("abC", "", "déf"), [[5, 6, 7], [], [8, 9]], [[1, 2, 3], [], [1, 4]]),
        TokenSet.of(SET.name, SET.texts, [[5, 6], [7], [8, 9]], [[1, 2], [1], [1, 4]]),
    )
    for other in others:
        with pytest.raises(UserError, match=r"losses of other tokens .* move that directory away"):
            run.token_losses(SET.name).write_set(other)
    run.token_losses(SET.name).write_set(SET)
    np.testing.assert_array_equal(run.token_losses(SET.name).read(), content)
    with pytest.raises(ValueError, match=r"losses \(4,\) of 5 tokens"):
        run.token_losses(SET.name).write(3, losses(3, 4))


def test_checkpoints_without_losses_are_named_with_the_command_that_adds_them(
    tmp_path: Path,
) -> None:
    run = filled(tmp_path)
    command = f"evaluate --model_dir=hf:… --output={tmp_path} --tasks=books:3x4 --missing"
    with pytest.raises(UserError, match="of checkpoints 3, 20;") as error:
        run.token_losses(SET.name).read([1, 3, 10, 20])
    assert command in str(error.value)
    run.manifest_lines.append({"step": 1, "wall_time": 1.5})
    with pytest.raises(UserError, match=f"--model_dir={tmp_path} --tasks=other:1x1 --missing"):
        run.token_losses("other:1x1").read()
    with pytest.raises(UserError, match="no token set other:1x1"):
        run.token_losses("other:1x1").token_set()
    assert run.token_losses(SET.name).read([10, 1]).shape == (2, 5)


def test_a_checkpoint_saved_again_has_no_losses_until_it_is_scored(tmp_path: Path) -> None:
    run = filled(tmp_path)
    for step, wall_time in ((1, 1.5), (2, 7.0), (10, 10.5)):
        run.manifest_lines.append({"step": step, "wall_time": wall_time})
    ledger = run.token_losses(SET.name)
    assert ledger.steps() == (1, 10)
    assert [ledger.holds(2, 7.0), ledger.holds(2, 2.5), ledger.holds(2), ledger.holds(3)] == [
        False, True, True, False,
    ]  # fmt: skip
    ledger.write(2, losses(5), 7.0)
    assert ledger.steps() == (1, 2, 10) and ledger.holds(2, 7.0)
    for size in (HEADER + 4, HEADER, 7, 0):
        os.truncate(Path(ledger.path) / "2.f16", size)
        assert not ledger.holds(2, 7.0)


def test_a_run_rolled_back_sets_later_losses_aside(tmp_path: Path) -> None:
    run = filled(tmp_path)
    run._forget_after(1)
    assert run.token_losses(SET.name).steps() == (1,)
    (aside,) = run.layout.abandoned.iterdir()
    assert sorted(p.name for p in (aside / "token_losses" / "books:3x4").iterdir()) == [
        "10.f16", "2.f16",
    ]  # fmt: skip
    assert Run(tmp_path / "new").token_set_names() == ()
    run._forget_after(-1)


def test_a_bucket_answers_with_the_asked_bytes_only(bucket: Proxy) -> None:
    n, steps = 50_000, range(1, 9)
    run = Run("gs://bucket/token_losses")
    ledger = run.token_losses("wide")
    ledger.write_set(TokenSet.of("wide", ("x" * n,), [np.arange(n)], [np.arange(n) + 1]))
    for step in steps:
        ledger.write(step, losses(step, n), step + 0.5)
    before, requests = bucket.bytes_sent, bucket.requests.copy()
    assert ledger.holds(3) and not ledger.holds(3, 1.5) and not ledger.holds(9)
    assert bucket.requests - requests == {"GET": 3} and bucket.bytes_sent - before < 3 * 1500
    before = bucket.bytes_sent
    found = Run("gs://bucket/token_losses").token_losses("wide").read(tokens=slice(40_000, 40_100))
    expected = [losses(step, n)[40_000:40_100].astype(np.float16) for step in steps]
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))
    assert bucket.bytes_sent - before < 8 * (HEADER + 200 + 1500)
    assert run.token_set_names() == ("wide",)
