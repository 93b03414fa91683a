"""`python -m jaxllm.mix` on a suite, on tables of anyone, and on what is no swarm."""

import functools
import json
import re
from pathlib import Path

import gin
import numpy as np
import pandas as pd
import pytest
from etils import epath

from jaxllm import cli, mix
from jaxllm.data.config import DataConfig
from jaxllm.errors import UserError
from jaxllm.run.records import Record
from jaxllm.run.trajectory import TrajectoryStore
from jaxllm.suites import training
from jaxllm.suites.launchers import Launcher
from jaxllm.suites.suite import Suite
from tests.docs.workplace import swarm

LAWS = ("--laws=linear,exponential", "--draws=10")
OUTPUTS = ("own.json", "table.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mix")
    swarm(root / "SWARM", root / "MIXTURES.csv", root / "LOSSES.csv")
    both = pd.read_csv(root / "MIXTURES.csv").merge(pd.read_csv(root / "LOSSES.csv"), on="run")
    both.assign(accuracy=both.code, params=[1e6] * 23 + [2e6]).to_parquet(root / "both.parquet")
    return root


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_a_suite_and_its_tables_are_one_swarm(capsys: pytest.CaptureFixture[str]) -> None:
    assert mix.main(["fit", "SWARM", f"--output={OUTPUTS[0]}", *LAWS]) == 0
    table = ("MIXTURES.csv", "--losses=LOSSES.csv")
    assert mix.main(["fit", *table, f"--output={OUTPUTS[1]}", *LAWS]) == 0
    read = lambda name: json.loads(Path(name).read_text())["scores"]
    suite, own = (sorted(read(name), key=lambda row: row["target"]) for name in OUTPUTS)
    assert [row["law"] for row in suite if row["chosen"]] == ["exponential"] * 3
    for a, b in zip(suite, own, strict=True):
        assert a["target"] == b["target"] + "/bits_per_byte"
        assert a["error"] == pytest.approx(b["error"], rel=1e-6, abs=1e-4)
    assert "24 runs, 3 domains, 3 targets" in capsys.readouterr().out


def test_a_proposal_trains(capsys: pytest.CaptureFixture[str]) -> None:
    """Three laws exp(-3 r), each of its own domain: a third of each is best. The binding is one."""
    flags = ("--natural=code=3,wiki=5,web=2", "--tokens=code=1e9,wiki=1e9,web=1e9", "--budget=1e9")
    for name in ("best.gin", "best.json", "best.csv"):
        assert mix.main(["propose", "SWARM", f"--output={name}", *flags, *LAWS]) == 0
    gin.parse_config_file("best.gin")
    weights = DataConfig().weights
    assert weights is not None
    np.testing.assert_allclose([weights[d] for d in ("code", "wiki", "web")], 1 / 3, atol=0.05)
    written = json.loads(Path("best.json").read_text())
    assert written["weights"] == dict(weights) and written["status"] in ("proposed", "shrunk")
    table = pd.read_csv("best.csv")
    np.testing.assert_allclose(table.natural, [0.3, 0.5, 0.2])
    np.testing.assert_allclose(table.epochs, table.proposed)
    out, err = capsys.readouterr()
    assert "DataConfig.weights = {" in out and "KL from the natural shares" in out
    assert "includes 0" not in err  # a gain of 0.03, measured to 1e-4
    mix.main(["propose", "SWARM", "--natural=code=1,wiki=1,web=1", *LAWS])  # the best is natural
    assert "the difference to natural includes 0: train both" in capsys.readouterr().err


def test_an_objective_moves_the_proposal_and_a_refusal_is_an_exit_code() -> None:
    goal = "--objective=heldout_code/bits_per_byte=4,heldout_web/bits_per_byte"
    assert mix.main(["propose", "SWARM", goal, "--output=code.json", *LAWS]) == 0
    weights = json.loads(Path("code.json").read_text())["weights"]
    assert weights["code"] > weights["web"] + 0.1 and "wiki" not in weights
    few = ("--tokens=code=1,wiki=1e9,web=1", "--natural=code=1,wiki=0,web=0", "--budget=1e9")
    assert mix.main(["propose", "SWARM", *few, "--output=no.gin", *LAWS]) == 1
    assert not Path("no.gin").exists()


def test_columns_of_any_table() -> None:
    flags = ["--shares=code,w*", "--targets=heldout_*,accuracy", "--higher=acc*", "--name=run"]
    where = ["--params=params", "--where=params=1e6", "--output=any.csv"]
    assert mix.main(["fit", "both.parquet", *flags, *where, *LAWS]) == 0
    scores = pd.read_csv("any.csv").set_index(["target", "law"])
    assert scores.error[("-accuracy", "linear")] < 1e-4 and "accuracy" not in scores.index


def test_larger_models() -> None:
    table = ("MIXTURES.csv", "--losses=LOSSES.csv", "--name=run", "--output=larger.json")
    larger = ("--larger=MIXTURES.csv", "--larger_losses=LOSSES.csv")
    assert mix.main(["fit", *table, *larger, *LAWS]) == 0
    rows = json.loads(Path("larger.json").read_text())["transfer"]
    own = [row for row in rows if row["target"] == row["metric"]]
    assert len(own) == 4 and all(row["spearman"] > 0.99 and row["best"] for row in own)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit no.csv", "no.csv: there is no such table or suite"),
        ("fit .", "a directory without suite.json"),
        ("fit MIXTURES.csv", "say which columns are --shares and which --targets"),
        ("fit MIXTURES.csv --losses=no.csv", "no.csv: there is no such table"),
        ("fit both.parquet --shares=cod --targets=heldout_*", "no column cod .*mean code"),
        ("fit both.parquet --shares=code,wiki --targets=acc* --name=run", "run mix000 sum"),
        ("fit both.parquet --shares=code,w* --targets=acc* --params=params", "differ in params"),
        ("fit both.parquet --shares=code,w* --targets=run", "no run measured the target run"),
        ("fit both.parquet --shares=code,w* --targets=acc* --where=run=x", "no row has run=x"),
        ("fit both.parquet --shares=code,w* --targets=acc* --laws=bimix", "no target has the name"),
        ("fit SWARM --targets=*/brier", "no column"),
        ("fit SWARM --at_steps=100", "needs three values of it for each mixture"),
        ("fit SWARM --output=x.gin", "need a name in .csv, .json"),
        ("propose SWARM --objective=loss", "no proxy measured loss"),
        ("propose SWARM --budget=1e9", "--budget and --tokens go together"),
        ("propose SWARM --budget=1e9 --tokens=code=0", "need numbers above 0"),
        ("propose SWARM --natural=cod=1", "no domain cod"),
        ("propose SWARM --natural=code", "write NAME=VALUE"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mix.main([*words.split(), *(LAWS if "--laws" not in words else ())])
    assert not Path("x.gin").exists()


def test_mixtures_without_losses_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    pd.read_csv("LOSSES.csv").iloc[2:].to_csv("fewer.csv", index=False)
    assert mix.main(["fit", "MIXTURES.csv", "--losses=fewer.csv", *LAWS]) == 0
    out, err = capsys.readouterr()
    assert "note: 2 of 24 mixtures have no losses" in err and "22 runs" in out


def test_runs_that_were_not_scored_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("SWARM/suite.json").read_text()
    runs = json.loads(text)
    runs["runs"]["mix900"] = {"DataConfig.weights": "{'code': 1.0}"}
    Path("SWARM/suite.json").write_text(json.dumps(runs))
    assert mix.main(["fit", "SWARM", *LAWS]) == 0
    Path("SWARM/suite.json").write_text(text)
    assert "note: 1 of 25 runs were not scored" in capsys.readouterr().err


SWARM_FLAGS = ("--gin_file=suites/proxies.gin", "--gin.EVAL_TASKS=counting", "--count=16")


def measured(suite: Suite, gain: float = 1.0) -> None:
    """Records of all runs of a suite: a loss that falls with the share of code."""
    for number, one in enumerate(suite.members):
        share = dict(one.bindings["DataConfig.weights"])["code"]
        record = Record(
            run=one.name, family=one.name, params=one.experiment.model.num_params, step=one.steps,
            tokens=one.tokens, flops=one.flops, task="heldout", domain="language", shots=0,
            metric="bits_per_byte", value=2 + gain * np.exp(-4 * share) + 1e-4 * (number % 3),
            primary=True,
        )  # fmt: skip
        TrajectoryStore(suite.layout.run(one.name)).write(one.steps, "heldout", [record])


def test_run_does_all_in_turn_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a training that stops the second suite once."""
    monkeypatch.chdir(tmp_path)
    trained: list[str] = []

    def train(suite: Suite, launcher: Launcher, jobs: int, stack: int, log: object) -> list[str]:
        trained.append(f"{suite.layout.root} {stack}")
        measured(suite)
        return ["proposed_seed2"] if len(trained) == 2 else []

    monkeypatch.setattr(training, "train", train)
    command = ["run", "swarm", *SWARM_FLAGS, "--laws=exponential", "--draws=10", "--stack=8"]
    assert mix.main(command) == 1
    assert mix.main(command) == 0
    assert trained == ["swarm 8", "swarm/check 8"] * 2
    out = capsys.readouterr().out
    steps = re.findall(r"^\$ python -m jaxllm\.(?:mix )?(\w+)", out, re.M)
    begun = ["design", "suite", "fit", "propose"]
    assert steps == [*begun, "check", "suite", *begun, "suite", "check"]
    assert re.search(r"The prediction held: the proposal measures -0\.\d+ against", out)
    assert "only the order of the two mixtures is predicted here" in out
    runs = json.loads(Path("swarm/check/suite.json").read_text())["runs"]
    assert set(runs) == {f"{m}_seed{s}" for m in ("natural", "proposed") for s in (1, 2)}
    tokens = [int(runs[n]["BATCH_SIZE"]) * int(runs[n]["TRAIN_STEPS"]) for n in sorted(runs)]
    assert len(set(tokens)) == 1 and tokens[0] * 128 == pytest.approx(4e6, rel=0.01)


def test_a_design_is_a_suite_that_trains(tmp_path: Path) -> None:
    flags = ("--budget=1e8", "--tokens=code=1e6", "--gin.SuiteConfig.axes={'params': 1e5}")
    assert mix.main(["design", str(tmp_path / "new"), *SWARM_FLAGS, *flags]) == 0
    args = cli.parse(cli.parser(""), [f"--gin_file={tmp_path}/new/suite.gin"])
    suite = Suite.configured(functools.partial(cli.load_gin, args), [])
    weights = {one.name: one.experiment.data.weights or {} for one in suite.members}
    assert sorted(weights) == [*(f"mix{n:03}" for n in range(1, 16)), "natural"]
    assert max(one["code"] for name, one in weights.items() if name != "natural") <= 0.04
    assert suite.layout.root == epath.Path(tmp_path / "new")
