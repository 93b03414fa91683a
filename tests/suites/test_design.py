"""The runs of a suite from its gin file, and what is refused before any of them begins."""

import functools
from pathlib import Path

import pytest

from jaxllm import cli
from jaxllm.errors import UserError
from jaxllm.suites import cost
from jaxllm.suites.design import Member
from jaxllm.suites.suite import Suite
from tests.conftest import REPOSITORY


def design(tmp_path: Path, *flags: str, file: str = "quickstart.gin") -> list[Member]:
    """The runs of a suite on top of the quickstart."""
    base = "" if file.startswith("suites/") else f"--gin.SuiteConfig.directory={tmp_path}"
    argv = [f"--gin_file={file}", *filter(None, [base]), *flags]
    args = cli.parse(cli.parser("test"), argv)
    return Suite.configured(functools.partial(cli.load_gin, args), []).members


def test_axes_make_a_product_named_by_them(tmp_path: Path) -> None:
    runs = design(tmp_path, "--gin.SuiteConfig.axes={'params': (2e5, 1e5), 'SEED': (1, 2)}")
    assert [run.name for run in runs] == [
        "100k_seed1", "100k_seed2", "200k_seed1", "200k_seed2"
    ]  # fmt: skip
    assert [run.experiment.train.seed for run in runs] == [1, 2, 1, 2]
    assert [run.experiment.train.family for run in runs] == ["seed1", "seed2", "seed1", "seed2"]
    assert runs[0].tokens == pytest.approx(2e6, rel=0.01)
    assert runs[0].flops == 6 * runs[0].experiment.model.num_params * runs[0].tokens


def test_labels_lists_and_samples(tmp_path: Path) -> None:
    mixtures = "{'DataConfig.weights': {'code': {'code': 1.0}, 'both': {'code': 1, 'modules': 1}}}"
    runs = design(tmp_path, f"--gin.SuiteConfig.axes={mixtures}")
    assert {run.name: dict(run.experiment.data.weights) for run in runs} == {
        "code": {"code": 1.0}, "both": {"code": 1, "modules": 1},
    }  # fmt: skip
    runs = design(
        tmp_path, "--gin.SuiteConfig.axes=({'SEED': (1, 2)}, {'SEED': 5, 'TRAIN_STEPS': 9})"
    )
    assert {(run.experiment.train.seed, run.steps) for run in runs} == {
        (1, 2700),
        (2, 2700),
        (5, 9),
    }
    axes = "--gin.SuiteConfig.axes={'SEED': (1, 2, 3, 4), 'BATCH_SIZE': (8, 16)}"
    some = design(tmp_path, axes, "--gin.SuiteConfig.sample=3")
    assert len(some) == 3 and some == design(tmp_path, axes, "--gin.SuiteConfig.sample=3")


def test_runs_of_one_budget_cost_the_same(tmp_path: Path) -> None:
    runs = design(tmp_path, "--gin.SuiteConfig.axes={'flops': 1e12, 'params': (1e5, 2e5, 4e5)}")
    assert [run.flops for run in runs] == pytest.approx([1e12] * 3, rel=0.02)


def test_runs_in_stages_cost_what_all_of_them_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = "{'TrainConfig.stages': {'twice': ({'tokens': 1024000}, {'batch_size': 16})}}"
    (run,) = design(tmp_path, f"--gin.SuiteConfig.axes={stages}")
    assert run.tokens == (1000 + 2 * 1700) * 1024
    assert run.flops == 6 * run.experiment.model.num_params * run.tokens
    measured = lambda stage, mesh: cost.Cost(float(stage.data.batch_size), stage.data.batch_size)
    monkeypatch.setattr(cost, "measure", measured)
    mean = cost.costs([run], None)["twice"]  # type: ignore[arg-type]
    assert mean.seconds * 2700 == pytest.approx(8 * 1000 + 16 * 1700) and mean.peak == 16


def test_cooldowns_are_branches_that_end_at_their_share(tmp_path: Path) -> None:
    runs = design(
        tmp_path, "--gin.SuiteConfig.axes={'SEED': 1}", "--gin.TRAIN_STEPS=100",
        "--gin.ScheduleConfig.kind=constant", "--gin.SuiteConfig.cooldowns=(0.5, 1.0)",
    )  # fmt: skip
    trunk, half, whole = runs
    assert trunk.experiment.checkpoints.extra_steps == (45, 90)
    assert {45, 90} <= set(trunk.experiment.scheduled_steps)
    assert half.experiment.train.branch_from == f"{tmp_path}/seed1@45"
    assert (half.begin, half.steps, half.parent) == (45, 50, "seed1")
    assert (whole.begin, whole.steps) == (90, 100)
    assert half.experiment.schedule.kind == "wsd" and half.experiment.schedule.decay_steps == 5
    assert half.experiment.train.family != trunk.experiment.train.family


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("axes={'SEED': (1, 1)}",), "two runs are named seed1"),
        (("axes={'SEED': (1, 2)}", "name=run"), "two runs are named run"),
        (("axes={'SEED': (1, 2)}", "name={seed}"), "the axes are SEED"),
        (("axes={'SEED': ()}",), "SEED has no values"),
        (("axes={'SEED': 1}", "name=a/b"), "no name of a directory"),
        (("axes={'SEED': 1}", "name=1/../../x"), "no name of a directory"),
        (("axes={'SEED': {'logs': 1}}",), "'logs' is no name of a directory"),
        (("axes={'SEED': {'suite.json': 1}}",), "'suite.json' is no name of a directory"),
        (("axes={}",), "'' is no name of a directory"),
        (("axes={'params': 10}",), "need 50,000"),
        (("axes=5",), "must be a mapping, {'name': any value}"),
        (("axes={'SEED': 1}", "cooldowns=(0.5,)"), "the learning rate is not at its peak"),
        (
            ("axes={'SEED': 1}", "cooldowns=(1e-4,)", "kind=constant"),
            "the learning rate is not at its peak",
        ),
        (("axes={'SEED': 1}", "cooldowns=(1.5,)"), "need shares up to 1"),
        (("axes={'ModelConfig.num_layer': 1}",), "num_layer"),
        (("axes={'ModelConfig.num_layers': 'x'}",), "ModelConfig.num_layers = 'x'"),
    ],
)
def test_what_is_no_suite_is_refused(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        design(
            tmp_path,
            *(
                f"--gin.{'ScheduleConfig' if flag.startswith('kind') else 'SuiteConfig'}.{flag}"
                for flag in flags
            ),
        )


@pytest.mark.parametrize("file", sorted((REPOSITORY / "gin" / "suites").glob("*.gin")))
def test_the_suites_that_we_ship_are_suites(tmp_path: Path, file: Path) -> None:
    if file.stem != "base" and "proxies" not in file.stem:  # `mix design` adds their mixtures
        runs = design(tmp_path, f"--gin.SUITE_DIR={tmp_path}", file=f"suites/{file.name}")
        assert len(runs) >= 3
