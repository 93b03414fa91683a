"""What differs between the runs of a report: settings, mixtures, or the seed alone."""

import pandas as pd

from jaxllm.report import page, tables
from jaxllm.report.differences import differences, seeds
from jaxllm.report.token_runs import RunData
from jaxllm.run.run import Run
from tests.report.pages import Page
from tests.simulated_run import simulate

CONFIG = """
MODEL_DIR = 'runs/{name}'
SEED = {seed}
TrainConfig.model_dir = %MODEL_DIR
TrainConfig.seed = %SEED
TrainConfig.optimizer = @AdamWConfig()
ScheduleConfig.peak_lr = {lr}
DataConfig.weights = {{'web': 1.0, 'code': {code}}}
"""


def settings(tmp_path, name: str, seed: int, lr: float = 1e-3, code: float = 1.0) -> dict:
    path = tmp_path / name
    path.mkdir()
    (path / "config.gin").write_text(CONFIG.format(name=name, seed=seed, lr=lr, code=code))
    return Run(path).settings()


def test_only_what_differs_is_told(tmp_path) -> None:
    runs = {
        "a": settings(tmp_path, "a", 1),
        "b": settings(tmp_path, "b", 1, lr=2e-3, code=3.0),
        "imported": {},
    }
    told = differences(runs)
    assert told["a"] == {
        "ScheduleConfig.peak_lr": "0.001", "share of web": "50%", "share of code": "50%"
    }  # fmt: skip
    assert list(told["b"].values()) == ["0.002", "25%", "75%"]
    assert set(told["imported"].values()) == {"–"}
    assert differences({"a": runs["a"], "imported": {}}) == {"a": {}, "imported": {}}
    del runs["b"]["ScheduleConfig.peak_lr"]
    assert differences(runs)["b"]["ScheduleConfig.peak_lr"] == "–"


def test_seeds_are_runs_that_differ_in_nothing_else(tmp_path) -> None:
    long = {"EvalConfig.tasks": "x" * 100}  # differs beyond what a table would show
    runs = {
        "a": settings(tmp_path, "a", 1),
        "b": settings(tmp_path, "b", 2),
        "c": settings(tmp_path, "c", 3, lr=2e-3),
        "d": long,
        "e": {"EvalConfig.tasks": "x" * 101},
        "average of a": settings(tmp_path, "average", 1),
        "damaged": {},
        "imported": {},
    }
    assert seeds(runs) == [["a", "b"]]


def test_branches_of_seeds_are_seeds_if_they_left_at_one_step(tmp_path) -> None:
    def branch(seed: int, step: int) -> dict:
        parent = {"TrainConfig.branch_from": f"runs/seed{seed}@{step}"}
        return settings(tmp_path, f"seed{seed}_{step}", seed) | parent

    runs = {"a": branch(1, 40), "b": branch(2, 40), "c": branch(3, 50)}
    assert seeds(runs) == [["a", "b"]]


def test_families_with_seeds_of_one_run_are_one() -> None:
    families = {"s1": "A", "s2": "B", "s3": "C", "l1": "A", "l2": "B", "other": "D"}
    runs = [RunData(n, pd.DataFrame({"family": [f]}), pd.DataFrame()) for n, f in families.items()]
    joined = tables._families(runs, [["s1", "s2", "s3"], ["l1", "l2"]])
    found = {run.name: run.records.family[0] for run in joined}
    assert found == dict.fromkeys(families, "A–C") | {"other": "D"}


def test_a_damaged_config_has_no_settings(tmp_path) -> None:
    (tmp_path / "config.gin").write_text("TrainConfig.steps = = 3")
    assert Run(tmp_path).settings() == {}


def test_the_page_has_the_differences_and_the_spread_over_seeds(tmp_path) -> None:
    runs = [simulate(tmp_path / name, run=name, seed=n) for n, name in enumerate("ab")]
    for n, run in enumerate(runs):
        (run / "config.gin").write_text(CONFIG.format(name=run.name, seed=n, lr=1, code=1))
    report = tables.gather([Run.open(run) for run in runs])
    finals = report.findings[report.findings.task == "copying"].final
    spread = abs(finals.iloc[0] - finals.iloc[1]) / 2**0.5
    assert list(report.seed_means("copying")) == [
        ("a and b", f"{100 * finals.mean():.1f}% ± {100 * spread:.1f}")
    ]
    text = Page(page.render(report, [])).text
    assert "TrainConfig.seed" in text and "ScheduleConfig.peak_lr" not in text
    assert "mean ± standard deviation over the seeds a and b" in text
