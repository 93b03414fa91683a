"""Runs that begin at a checkpoint of another: as it went on, or with other settings."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gin
import numpy as np
import pytest

from jaxllm import train
from jaxllm.errors import UserError
from jaxllm.report import terminal
from jaxllm.run import data_identity
from jaxllm.run.run import Run
from jaxllm.run.token_losses import TokenSet
from jaxllm.training import launch
from tests.chaos.driver import read_item
from tests.training.processes import make_home
from tests.training.test_loop import exact

MORE = """
BATCH_SIZE = 8
SEQUENCE_LENGTH = 16
ScheduleConfig.kind = 'constant'
TrainConfig.log_every = 5
CheckpointConfig.every_steps = 10
TRAIN_STEPS = 30
"""


def run(*flags: str) -> None:
    gin.clear_config()
    train.main(flags)


@pytest.fixture(scope="module")
def home(no_report: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two domains, a config, and a run `base` with checkpoints 0, 10, 20, 30."""
    home = make_home(tmp_path_factory.mktemp("branches"), MORE)
    shutil.copytree(home / "corpus" / "words", home / "corpus" / "more")
    run(f"--gin_file={home}/tiny.gin", f"--gin.MODEL_DIR={home}/base")
    return home


def branch(home: Path, name: str, *flags: str, at: int | str = 10) -> Run:
    run(f"--branch_from={home}/base@{at}", f"--gin.MODEL_DIR={home}/{name}", *flags)
    return Run.open(home / name)


def test_a_branch_begins_with_the_token_losses_of_its_parent(home: Path) -> None:
    base, name = Run.open(home / "base"), "novels:2x9"
    parent, random = base.token_losses(name), np.random.default_rng(0)
    of = TokenSet.of(name, ["ab", "c"], [[1, 2], [3]], [[1, 2], [1]])
    parent.write_set(of)
    times = {entry.step: entry.wall_time for entry in base.entries()}
    for step in (0, 10, 20):
        parent.write(step, random.random(3) * [1, np.inf, 1e-6], times[step])
    child = branch(home, "with_losses", "--gin.TRAIN_STEPS=20").token_losses(name)
    assert child.steps() == (0, 10) and child.token_set().fingerprint == of.fingerprint
    np.testing.assert_array_equal(child.read(), parent.read([0, 10]))
    assert child.headers()[10]["not_finite"] == 1
    alone = branch(home, "without", "--gin.TRAIN_STEPS=5", at="10:params")
    assert not alone.token_set_names() and alone.entries()[0].skipped_steps == 0


def test_the_last_writes_of_a_run_are_inside_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, held = Run(tmp_path / "run").layout.writer, list[bool]()
    outcome = SimpleNamespace(finished=True, interrupted=False, timing=str)
    monkeypatch.setattr(launch, "train", lambda *_: outcome)
    monkeypatch.setattr(Run, "write_domain_weights", lambda _: held.append(writer.exists()))
    monkeypatch.setattr(terminal, "show_run", lambda *_, **__: held.append(writer.exists()))
    run(f"--gin_file={make_home(tmp_path, MORE)}/tiny.gin", f"--gin.MODEL_DIR={tmp_path}/run")
    assert held == [True, True] and not writer.exists()


def metrics(run: Run, after: int = 10) -> list[Any]:
    return [exact(line) for line in run.metrics_lines.read()[0] if line["step"] > after]


def test_a_branch_with_nothing_but_a_new_name_is_its_parent_bitwise(home: Path) -> None:
    base, child = Run.open(home / "base"), branch(home, "same")
    assert metrics(child) == metrics(base) != []
    for item in ("model", "training"):
        ours, theirs = (read_item(Path(r.layout.checkpoint(30)) / item) for r in (child, base))
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, name)
    ours, theirs = (r.records().drop(columns=["run", "family", "seconds"]) for r in (child, base))
    assert ours.equals(theirs) and set(child.records().run) == {"same"}
    entries = child.entries()
    assert [(e.step, e.kind) for e in entries] == [
        (10, "branched"),
        (20, "scheduled"),
        (30, "final"),
    ]
    assert entries[0].parent == f"{home}/base@10"
    assert [entry.step for entry in child.available()] == [20, 30]
    seen = entries[-1].domain_tokens
    assert seen == base.entries()[-1].domain_tokens and sum(seen.values()) == 30 * 8 * 16
    epochs = entries[-1].domain_epochs
    assert epochs == base.entries()[-1].domain_epochs and all(e > 0 for e in epochs.values())


def test_a_branch_interrupted_before_its_first_checkpoint_begins_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxllm.training.loop import Trainer

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Trainer, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        branch(home, "again")
    child = branch(home, "again")
    assert metrics(child) == metrics(Run.open(home / "base"))
    assert [entry.step for entry in child.entries()] == [10, 20, 30]
    assert sorted(child.records().step.unique()) == [0, 10, 20, 30]


def test_a_decay_begins_at_once_and_ends_where_it_is_told_to(home: Path) -> None:
    child = branch(
        home, "decayed", "--gin.TRAIN_STEPS=20", "--gin.ScheduleConfig.kind=wsd",
        "--gin.ScheduleConfig.decay_steps=10", "--gin.ScheduleConfig.end_lr=0.0",
    )  # fmt: skip
    rates = [line["learning_rate"] for line in child.metrics_lines.read()[0]]
    np.testing.assert_allclose(rates, [5e-3, 0.0], atol=1e-8)


@pytest.mark.parametrize(
    "flags",
    [
        ("--gin.DataConfig.weights={'more': 3, 'words': 1}",),
        ("--gin.SEQUENCE_LENGTH=32", "--gin.ModelConfig.rope_theta=50000.0"),
        ("--gin.BATCH_SIZE=16",),
    ],
)
def test_other_data_go_on_from_what_each_domain_has_read(home: Path, flags: Sequence[str]) -> None:
    name = flags[0].split(".")[-1].split("=")[0]
    child = branch(home, name, "--gin.TRAIN_STEPS=20", *flags)
    before, (_, last) = Run.open(home / "base").select("10")[0], child.entries()
    batch, length = (16 if "BATCH" in name else 8), (32 if "LENGTH" in name else 16)
    assert last.tokens == before.tokens + 10 * batch * length
    read = {d: n - before.domain_tokens[d] for d, n in last.domain_tokens.items()}
    assert sum(read.values()) == 10 * batch * length
    if "weights" in name:
        assert read["more"] / read["words"] == pytest.approx(3, rel=0.15)
    # and its own checkpoints resume: the identity of its data is saved
    run(f"--branch_from={home}/base@10", f"--gin.MODEL_DIR={home}/{name}", *flags,
        "--gin.TRAIN_STEPS=25")  # fmt: skip
    assert child.entries()[-1].step == 25


def test_no_sequence_is_read_twice_across_the_border_of_a_mixture(home: Path) -> None:
    """In one epoch of a domain: the numbers of its sequences go on, without a gap."""
    gin.parse_config_files_and_bindings(
        [f"{home}/base/config.gin"], [f"DataConfig.cache_dir = '{home}/cache'"]
    )
    from jaxllm.data.config import DataConfig
    from jaxllm.data.loader import Origin, open_source

    before = open_source(DataConfig())
    after = open_source(DataConfig(), {"more": 3.0, "words": 1.0}, origin=Origin(
        80, before.tokens_read(80)))  # fmt: skip
    rows: list[bytes] = []
    for source, start, stop in ((before, 0, 80), (after, 80, 160)):
        read = source.sequences(start, stop - start)
        own = read["domains"] == source.domains.index("more")
        rows += [row.tobytes() for row in read["inputs"][own]]
    assert len(rows) == len(set(rows)) > 80
    counted = sum(np.frombuffer(row, np.int32).size for row in rows)
    assert after.tokens_read(160)["more"] == counted


def test_parameters_alone_begin_at_step_0(home: Path) -> None:
    child = branch(home, "alone", "--gin.TRAIN_STEPS=10", at="10:params")
    base = Run.open(home / "base")
    ours, theirs = (
        read_item(Path(layout.checkpoint(step)) / "model")
        for layout, step in ((child.layout, 0), (base.layout, 10))
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert child.entries()[0].step == 0 and child.entries()[0].parent == f"{home}/base@10"
    (initial,) = child.records().query("step == 0 and metric == 'bits_per_byte'").value
    (saved,) = base.records().query("step == 10 and metric == 'bits_per_byte'").value
    assert initial == saved
    assert data_identity.load(str(child.path)).position == 0


def test_a_published_model_is_trained_further(home: Path, tmp_path: Path) -> None:
    from jaxllm import convert

    gin.clear_config()
    convert.main([f"--from={home}/base", "--step=30", f"--to=hf:{tmp_path}/hf"])
    flags = (f"--branch_from=hf:{tmp_path}/hf", f"--gin_file={home}/tiny.gin",
             f"--gin.MODEL_DIR={tmp_path}/further", "--gin.TRAIN_STEPS=5")  # fmt: skip
    with pytest.raises(UserError, match=r"imported by one process: .* --to=.*/further/parent,"):
        run(*flags, "--coordinator_address=localhost:1234")
    gin.clear_config()
    run(*flags)
    child, base = Run.open(tmp_path / "further"), Run.open(home / "base")
    saved, began = (r.records().query(f"step == {s} and primary").value.iloc[0]
                    for r, s in ((base, 30), (child, 0)))  # fmt: skip
    assert began == pytest.approx(saved, rel=1e-5)
    gin.clear_config()
    convert.main([f"--from=hf:{tmp_path}/hf", f"--to={tmp_path}/imported"])
    with pytest.raises(UserError, match=r"has parameters alone.*--branch_from=.*imported@0:params"):
        run(f"--gin_file={home}/tiny.gin", f"--gin.MODEL_DIR={tmp_path}/imported")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--branch_from={home}/base",), "write RUN@STEP"),
        (("--branch_from={home}/base@11",), "no checkpoint of step 11; it has 0, 10, 20, 30"),
        (("--branch_from={home}/none@11",), "no such directory"),
        (("--branch_from={home}/base@10", "--gin.MODEL_DIR={home}/base"), "take a new MODEL_DIR"),
        (("--branch_from={home}/base@10", "--gin.ModelConfig.embed_dim=32"),
         r"base/checkpoints/10 is of a model with embed_dim = .*, and this run's config says 32"),
        (("--branch_from={home}/base@10", "--gin.TrainConfig.optimizer=@MuonConfig()"),
         "optimizer state .*--branch_from=.*base@10:params"),
        (("--branch_from={home}/base@10", "--gin.ModelConfig.activation=gelu"), "activation"),
        (("--branch_from={home}/base@10", "--gin.VocabularyConfig.path={home}/other.model"),
         "another vocabulary than that of .*base@10"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_branch_is_refused_and_leaves_nothing(
    home: Path, flags: Sequence[str], message: str
) -> None:
    if not (home / "other.model").exists():
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c d e f g the cat sat"] * 50), vocab_size=270,
            model_prefix=str(home / "other"), byte_fallback=True, minloglevel=2,
        )  # fmt: skip
    flags = [flag.format(home=home) for flag in (f"--gin.MODEL_DIR={home}/refused", *flags)]
    with pytest.raises(UserError, match=message):
        run(*flags)
    assert not list((home / "refused").glob("*"))


def test_a_run_that_began_elsewhere_is_no_branch(home: Path) -> None:
    branch(home, "elsewhere", "--gin.TRAIN_STEPS=15")
    with pytest.raises(UserError, match=r"began at .*base@10, not at .*base@20"):
        branch(home, "elsewhere", at=20)
    assert json.loads((home / "elsewhere" / "data.json").read_text())["parent"].endswith("base@10")


def test_a_branch_goes_on_without_its_parent_and_from_another_directory(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "base", home / "gone")
    monkeypatch.chdir(home)
    flags = ["--branch_from=gone@10", f"--gin.MODEL_DIR={home}/orphan"]
    run(*flags, "--gin.TRAIN_STEPS=15")
    assert Run.open(home / "orphan").entries()[0].parent == f"{home}/gone@10"
    shutil.rmtree(home / "gone")
    run(*flags, "--gin.TRAIN_STEPS=20")
    assert Run.open(home / "orphan").entries()[-1].step == 20
