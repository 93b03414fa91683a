"""What a checkpoint has seen, against a reading of every batch that the loader gave it."""

import collections
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.data.loader import Origin, SequenceSource, open_source
from jaxllm.data.mixture import Mixture
from jaxllm.data.permutation import invert, permute
from jaxllm.data.seen import PASSED_OVER, SKIPPED, find_tokens, history
from jaxllm.errors import UserError
from jaxllm.run.manifest import ManifestEntry, Rollback
from jaxllm.run.run import Run
from jaxllm.run.token_losses import TokenSet
from jaxllm.seen import main
from tests.data.conftest import texts, write_jsonl, write_store

BATCH = 5


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 5000), key=st.integers(0, 2**64 - 1), data=st.data())
def test_the_inverse_permutation(size: int, key: int, data) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1)))
    np.testing.assert_array_equal(invert(permute(index, size, key), size, key), index)


@settings(deadline=None, max_examples=5)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(0, 2**40))
def test_the_sequence_of_an_index(weights: list[float], start: int) -> None:
    mixture = Mixture(weights, key=7)
    domains, indices = mixture.sequences(start, 20)
    pairs = zip(domains.tolist(), indices.tolist(), strict=True)
    assert [mixture.sequence(*pair) for pair in pairs] == list(range(start, start + 20))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Sources of a configuration, each opened once; and the texts of their documents."""
    root = tmp_path_factory.mktemp("seen")
    for domain, count in {"prose": 40, "notes": 9, "plays": 3}.items():
        write_jsonl(root / "corpus" / domain / "train.jsonl", texts(domain, count))
    config = DataConfig(
        mixture_or_task_name="corpora", corpus_dir=str(root / "corpus"),
        cache_dir=str(root / "cache"), sequence_length=64,
        vocabulary=VocabularyConfig("bytes"),
    )  # fmt: skip
    held: dict[str, SequenceSource] = {}

    def source(**changes) -> SequenceSource:
        key = repr(sorted(changes.items()))
        if key not in held:
            held[key] = open_source(dataclasses.replace(config, **changes))
        return held[key]

    return source


def entry(step: int, position: int, stage: int = 0, kind: str = "scheduled") -> ManifestEntry:
    empty = dict.fromkeys((field.name for field in dataclasses.fields(ManifestEntry)), 0)
    return ManifestEntry(
        **empty | {"step": step, "data_position": position, "stage": stage, "kind": kind}
    )


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(layout="pack", length=16, weights=None, steps=30, staged=True)
@example(layout="concat", length=48, weights=None, steps=30, staged=True)
@given(
    layout=st.sampled_from(["concat", "concat_masked", "pack"]),
    length=st.sampled_from([16, 48]),
    weights=st.sampled_from([None, {"prose": 3, "notes": 2, "plays": 1}, {"notes": 1}]),
    steps=st.integers(1, 40),
    staged=st.booleans(),
)
def test_every_target_of_the_loader_is_counted(opened, layout, length, weights, steps, staged):
    """Token by token: how often each is a target, and at which steps first and last."""
    first = opened(layout=layout, sequence_length=length, weights=weights)
    stages, entries, sources = [(first, 1, 0, steps, BATCH)], [], [first]
    entries.append(entry(steps, steps * BATCH, int(staged)))
    if staged:  # another mixture, length and batch size
        second = opened(layout=layout, sequence_length=32, weights={"plays": 1, "prose": 2})
        origin = Origin(steps * BATCH, first.tokens_read(steps * BATCH))
        sources.append(SequenceSource(second.config, second.tokenizer, second.prepared, origin))
        stages.append((sources[1], steps + 1, steps * BATCH, 6, 3))
        entries.append(entry(steps + 6, steps * BATCH + 18, 2))
    without = {3: SKIPPED, 5: SKIPPED, 1: PASSED_OVER, 4: PASSED_OVER, 99: PASSED_OVER}
    without |= dict.fromkeys(range(steps - 1, steps + 3), PASSED_OVER) if staged else {}
    seen = history(entries, sources, entries[-1].step, without)
    counts, spans = count_targets(stages, without)
    skips = lambda steps: sum(without.get(step) == SKIPPED for step in steps)
    for task, store in seen.stores.items():
        chosen = range(0, store.counts.documents, 3)
        for number in chosen:
            start, stop = store.document(number)
            (expected, when) = counts[task][start + 1 : stop], spans[task][start + 1 : stop]
            table = seen.reads([seen.document(f"{task}:{number}")])
            if not expected.sum():
                assert table.empty
                continue
            assert table.times[0] == pytest.approx(expected.mean())
            assert table.skipped[0] == pytest.approx(np.mean([skips(steps) for steps in when]))
            assert table.first_step[0] == min(s[0] for s in when if s)
            assert table.last_step[0] == max(s[-1] for s in when if s)
            found = seen.reads([(task, start + 3, start + 8)])  # a part of it
            assert found.times.sum() == pytest.approx(counts[task][start + 3 : start + 8].mean())
    # the other way: what a few updates read
    a, b = max(1, steps - 2), steps + (2 if staged else 0)
    table = seen.updates(a, b)
    for task, store in seen.stores.items():
        for number in range(store.counts.documents):
            start, stop = store.document(number)
            inside = [s for one in spans[task][start + 1 : stop] for s in one if a <= s <= b]
            rows = table[(table.domain == task) & (table.document == number)]
            assert rows.times.sum() == pytest.approx(len(inside) / (stop - start - 1))
            assert rows.skipped.sum() == pytest.approx(skips(inside) / (stop - start - 1))
            if inside:
                assert rows.first_step.item() == min(inside)
                assert rows.last_step.item() == max(inside)

    # and how much of each domain
    tokens, skipped = collections.Counter(), collections.Counter()
    for source, first_step, start, count, size in stages:
        rows = source.sequences(start, count * size)
        for row, domain in enumerate(rows["domains"]):
            step, read = first_step + row // size, rows["inputs"].shape[1]
            tokens[source.domains[domain]] += read * (without.get(step) != PASSED_OVER)
            skipped[source.domains[domain]] += read * (without.get(step) == SKIPPED)
    table = seen.domains().set_index("domain")
    assert {task: n for task, n in table.tokens.items() if n} == +tokens
    end = entries[-1].data_position
    epoch, total = sources[-1].epochs_read(end), sources[-1].tokens_read(end)
    for task, row in table.iterrows():
        if task in epoch and total[task]:
            assert row.times == pytest.approx(epoch[task] * tokens[task] / total[task])
            assert row.skipped == pytest.approx(epoch[task] * skipped[task] / total[task])


def count_targets(stages, without):
    """Of each token of each store: how often sequences had it as a target, and at which steps.

    The sequences are laid out over stores whose tokens are their own offsets.
    """
    stores = {domain.name: domain.store for source, *_ in stages for domain in source.prepared}
    when = {task: [[] for _ in range(store.counts.tokens)] for task, store in stores.items()}
    for source, first_step, start, steps, batch in stages:
        held = source.prepared
        source.prepared = tuple(one._replace(store=Traced(one.store)) for one in held)
        try:
            rows = source.sequences(start, steps * batch)
            for row in range(steps * batch):
                task = source.domains[rows["domains"][row]]
                if without.get(first_step + row // batch) == PASSED_OVER:
                    continue
                for token in rows["targets"][row][rows["segment_ids"][row] > 0]:
                    when[task][token].append(first_step + row // batch)
        finally:
            source.prepared = held
    return {task: np.array([len(steps) for steps in found]) for task, found in when.items()}, when


class Traced:
    """A store whose tokens are their own offsets."""

    def __init__(self, store) -> None:
        self._store = store

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    def start_reads(self, ranges):
        return lambda: [np.arange(start, stop, dtype=np.int32) for start, stop in ranges]


def test_tokens_are_found_wherever_they_begin(tmp_path) -> None:
    """Also where bytes match between two tokens; in several shards; never across documents."""
    ids = np.array([0x0101, 0x0101, 7, 0x0101, 0x0101, 0x0101, 0, 0x0101, 9], np.uint16)
    store = write_store(tmp_path, ids, np.array([3, 4, 2]), parts=2)
    np.testing.assert_array_equal(list(find_tokens(store, np.array([0x0101, 0x0101]))), [0, 3, 4])
    assert [store.document_at(token)[0] for token in range(9)] == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert [store.document(number) for number in range(3)] == [(0, 3), (3, 7), (7, 9)]


def test_a_text_is_found_where_the_corpus_has_it(opened) -> None:
    source = opened(layout="concat", sequence_length=48, weights=None)
    seen = history([entry(60, 300)], [source], 60, {})
    corpus = {
        (domain.name, number): source.tokenizer.decode(store.read(*store.document(number)).tolist())
        for domain in source.prepared
        for store in [domain.store]
        for number in range(store.counts.documents)
    }
    for text in ("no play", "prose 3: ", "ose 3", "play all work"):
        found = [(task, seen.stores[task].document_at(at)[0]) for task, at, _ in seen.search(text)]
        assert found
        for name, document in corpus.items():
            times = sum(document.startswith(text, at) for at in range(len(document)))
            assert found.count(name) == times
    assert not list(seen.search("never written"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--text=never written"], "the run never saw this text"),
        (["--text=prose 3: all"], "prose         3"),
        (["--text=prose 3: all", "--step=1"], "the 1 places with it are to come"),
        (["--text="], "too short"),
        (["--document=notes:0"], "notes         0"),
        (["--steps=2:3"], "first_step"),
        ([], "tokens"),
        ([], "until step 100, 9 steps are passed over: not read; and 2 skipped: read without"),
        (["--steps=20:28"], "the run has not read it"),
        (["--steps=29:29"], "0.13     0.13          29         29"),
        (["--ngrams=notes:1x9"], "passed"),
        (["--ngrams=notes:1x9"], "no trends after 20% of step 20: 2 of 2 checkpoints follow"),
        (["--ngrams=other:1x9"], "error: "),
        (["--memorized=memorization"], "not read        0.000  0.250               0.000"),
        (
            ["--memorized=memorization"],
            " 20  9      1.000             0.000   0.800          0.179",
        ),
        (["--memorized=memorization", "--step=20"], "not read"),
        (["--memorized=other"], "has no results of other at step 40: python -m jaxllm.evaluate"),
        (["--by=x"], "error: --by=x is for --memorized"),
        (["--document=notes:99"], "error: no document notes:99: notes has 9"),
        (["--document=note:9"], "did you mean notes"),
        (["--steps=3"], "error: --steps=3: write A:B"),
        (["--step=999"], "error: --step=999: the run has checkpoints up to step 100"),
    ],
)
def test_the_command(opened, tmp_path, capsys, flags: list[str], says: str) -> None:
    config = opened(layout="concat", sequence_length=48, weights=None).config
    bound = {name: getattr(config, name) for name in ("corpus_dir", "cache_dir", "sequence_length")}
    bound |= {"mixture_or_task_name": "corpora", "batch_size": BATCH}
    lines = [f"DataConfig.{name} = {value!r}" for name, value in bound.items()]
    lines += ["VocabularyConfig.path = 'bytes'", "TrainConfig.steps = 100"]
    (tmp_path / "config.gin").write_text("\n".join(lines))
    manifest = tmp_path / "checkpoints.jsonl"
    last = dataclasses.replace(entry(100, 100 * BATCH), rollbacks=1)
    saved = [last, entry(110, 120 * BATCH)]  # abandoned
    manifest.write_text("".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in saved))
    Run(tmp_path).rollback_lines.append(Rollback(10, 20, 28, "divergence", "")._asdict())
    for step, effect in {27: "skipped", 29: "skipped", 30: "clipped", 90: "skipped"}.items():
        Run(tmp_path).skipped_lines.append({"step": step, "effect": effect})
    table, text = tmp_path / "table.csv", "notes 1: all work and no play " * 4
    ids = [3 + byte for byte in text.encode()]
    losses = Run(tmp_path).token_losses("notes:1x9")
    losses.write_set(TokenSet.of("notes:1x9", [text], [ids], [range(1, len(ids) + 1)]))
    losses.write(10, np.array(ids) / 100.0)
    losses.write(20, np.array([ids.count(id) < 5 for id in ids]) + 0.1)
    trained_at = [1, 10, 19, 28, 37, 99, 99, 99, 99]
    sequences = pd.DataFrame({"id": list("abcdefghi"), "trained_at": trained_at})
    for step, count in {20: 4, 40: 5}.items():  # of nine, those memorized
        extractible = sequences.index < count
        examples = sequences.assign(extractible=extractible, score=np.where(extractible, 1, 0.25))
        Run(tmp_path).trajectory.write(step, "memorization", [], examples)
    if "--step=20" in flags:  # of what comes later nothing is read
        (tmp_path / "trajectory/40/memorization.examples.parquet").write_bytes(b"damaged")
    try:
        assert main([str(tmp_path), *flags, f"--output={table}"]) == 0
        said = capsys.readouterr().out
        assert table.exists()
    except UserError as error:
        said = f"error: {error}"
        assert not table.exists()
    assert says in said
