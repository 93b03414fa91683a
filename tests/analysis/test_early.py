"""Which tasks tell early: definitions, simulations with a known truth, and published runs."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxllm import analyze
from jaxllm.analysis.curves import curves
from jaxllm.analysis.early import choose, early_tasks
from jaxllm.analysis.registry import Study
from jaxllm.analysis.signal import agreement, comparable, comparisons, measure, runs_of, settled
from jaxllm.errors import UserError
from tests.analysis import published
from tests.analysis.planted import table


def units(score, goal, stratum=0):
    frame = pd.DataFrame({"score": score, "goal": goal, "stratum": stratum})
    return frame.assign(unit=np.arange(len(frame)))


def measured(records, shares=(0.1, 0.5)):
    points = comparable(curves(records)).points
    parts = [
        measure(points, one).assign(order=one.order, proxy=one.proxy)
        for one in comparisons(runs_of(points, {}), shares)
    ]
    return pd.concat(parts, ignore_index=True)


class TestDecisionAccuracy:
    def test_is_the_share_of_pairs_of_equal_sign(self) -> None:
        rng = np.random.default_rng(0)
        score, goal = rng.integers(0, 4, 9), rng.integers(0, 4, 9)  # with ties
        stratum = [0, 0, 0, 0, 1, 1, 1, 1, 1]
        same = [
            np.sign(score[i] - score[j]) == np.sign(goal[i] - goal[j])
            for i in range(9)
            for j in range(i)
            if stratum[i] == stratum[j] and goal[i] != goal[j]
        ]
        pairs, share, low, high, _ = agreement(units(score, goal, stratum))
        assert (pairs, share) == (len(same), np.mean(same)) and len(same) < 16
        assert 0 <= low < share < high <= 1

    def test_constant_answers_decide_nothing(self) -> None:
        assert math.isnan(agreement(units([0.5] * 6, [0.5] * 6))[1])
        assert agreement(units([0.5] * 6, range(6)))[1] == 0

    def test_p_is_that_of_kendalls_tau(self) -> None:
        rng = np.random.default_rng(1)
        for _ in range(20):
            score, goal = rng.normal(size=8), rng.normal(size=8)
            exact = stats.kendalltau(score, goal, method="exact", alternative="greater").pvalue
            assert abs(agreement(units(score, goal))[4] - exact) < 0.02

    @pytest.mark.parametrize("runs", [3, 4, 8, 16])
    def test_its_interval_holds_the_truth_for_few_runs(self, runs) -> None:
        rng = np.random.default_rng(runs)
        for rho in (0.0, 0.6, 0.9):
            true, held = 0.5 + math.asin(rho) / math.pi, 0
            for _ in range(200):
                score = rng.normal(size=runs)
                goal = rho * score + math.sqrt(1 - rho**2) * rng.normal(size=runs)
                _, _, low, high, _ = agreement(units(score, goal))
                held += low <= true <= high
            assert held / 200 >= 0.9

    def test_noise_tells_no_more_often_than_claimed(self) -> None:
        rng = np.random.default_rng(2)
        found = [agreement(units(*rng.normal(size=(2, 6))))[4] < 0.05 for _ in range(400)]
        assert np.mean(found) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)

    def test_repeated_recipes_are_no_further_evidence(self) -> None:
        frame = units([1, 2] * 8, [1, 2] * 8, np.repeat(np.arange(8), 2)).assign(unit=[0, 1] * 8)
        pairs, share, low, _, p = agreement(frame)
        assert (pairs, share) == (8, 1) and low < 0.5 and p == 0.5


def test_signal_and_noise_are_the_published_ones_and_detrended() -> None:
    late = np.array([0.50, 0.52, 0.51, 0.54, 0.53, 0.55, 0.56, 0.55, 0.58, 0.57])
    tokens = 1000 + 10 * np.arange(10)
    runs = pd.concat(table({"t": late + 0.1 * i}, tokens=tokens, run=f"r{i}") for i in range(3))
    points = comparable(curves(runs)).points
    whole = pd.DataFrame({"run": ["r0", "r1", "r2"], "unit": 0, "stratum": 0, "until": math.inf})
    one = settled(points, whole, averaged=5).iloc[0]
    assert one.noise == pytest.approx(np.std(late) / np.mean(late))
    line = stats.linregress(tokens, late)
    rest = late - line.intercept - line.slope * tokens
    assert one.scatter == pytest.approx(np.sqrt(rest @ rest / 8) / np.mean(late))
    assert one.score == pytest.approx(late[5:].mean())
    row = measured(runs, shares=(1.0,)).iloc[0]
    level = late[5:].mean() + 0.1
    assert row.signal == pytest.approx(0.2 / level) and row.spread == pytest.approx(0.1 / level)
    relative = [np.std(late) / (late.mean() + 0.1 * i) for i in range(3)]
    assert row.snr == pytest.approx(row.signal / np.sqrt(np.mean(np.square(relative))))


def test_a_constant_answer_has_no_ratio_of_signal_to_noise() -> None:
    flips = np.where(np.arange(40) % 2, 0.62, 0.38)
    runs = [table({"t": np.roll(flips, i)}, run=f"r{i}") for i in range(4)]
    assert measured(pd.concat(runs)).snr_detrended.isna().all()


def recipes(rng, sizes=(1e6, 1e7), count=6, noisy=0.003):
    """Recipes with the same order at every size: `good` tells it, `bad` does not."""
    parts = []
    for size in sizes:
        for i in range(count):
            rise = np.linspace(0, 0.1 + 0.02 * i + 0.1 * math.log10(size / 1e6), 30)
            values = {
                "good": 0.25 + rise + rng.normal(0, noisy, 30),
                "bad": np.where(np.arange(30), 0.6, 0.25) + rng.normal(0, 0.02, 30),
                "below": 0.15 + 0.01 * i * np.sign(np.arange(30) - 12) + rng.normal(0, noisy, 30),
            }
            parts.append(table(values, run=f"{size:g}-{i}", params=size, family=f"f{i}"))
    return pd.concat(parts, ignore_index=True)


def test_names_the_task_that_tells_the_order_of_recipes() -> None:
    found = early_tasks(Study(recipes(np.random.default_rng(0))))
    assert found.sentence.startswith(
        "The order of 6 recipes at 10M is told at 1M parameters by good ("
    )
    told = found.table[found.table.tells]
    assert set(told.task) == {"good"}
    row = told[told.proxy == "1M parameters"].iloc[0]
    assert row.accuracy > 0.9 and row.pairs == 15 and row.snr_detrended > 5


def test_a_task_below_a_guess_tells_nothing_whatever_its_order() -> None:
    found = early_tasks(Study(recipes(np.random.default_rng(1))))
    below = found.table[found.table.task == "below"]
    assert (below.p[below.proxy == "1M parameters"] < 0.01).all() and not below.tells.any()
    early = below[below.order.str.endswith("equal size") & (below.proxy == "10% of the tokens")]
    assert early.accuracy.item() < 0.1  # the order is the reverse of the last


def test_a_run_alone_is_told_by_trend_and_noise() -> None:
    tokens, rng = np.linspace(10, 1000, 100), np.random.default_rng(3)
    shapes = {
        "early": 0.25 + 0.3 * np.clip((tokens - 20) / 100, 0, 1),
        "late": 0.25 + 0.3 * np.maximum(0, (tokens - 600) / 400),
        "never": np.full(100, 0.25),
    }
    values = {name: shape + rng.normal(0, 0.005, 100) for name, shape in shapes.items()}
    study = Study(table(values, tokens=tokens))
    assert early_tasks(study).sentence == (
        "What moves beyond a guess and its noise: early by 10% of the tokens; late by 100% of the "
        "tokens; never not yet."
    )
    chosen = choose(study, tokens=500)
    assert list(chosen.table.task[chosen.table.why == ""]) == ["early"]


def test_chooses_at_a_size_and_a_budget() -> None:
    study = Study(recipes(np.random.default_rng(4)))
    chosen = choose(study, params=2e6, tokens=2000)
    assert chosen.sentence == (
        "1 of 3 tasks tell the order of 6 recipes at 10M at 1M parameters and 2K tokens."
    )
    assert chosen.table.task[0] == "good" and chosen.table.low[0] > 0.5
    assert dict(zip(chosen.table.task, chosen.table.why, strict=True)) == {
        "good": "",
        "below": "is not above a guess",
        "bad": "tells the order no better than a coin",
    }
    with pytest.raises(UserError, match="nothing to choose by"):
        choose(study, tokens=0.1)
    unknown = choose(Study(study.records.assign(params=np.nan, run=study.records.run + "x")))
    assert unknown.sentence.endswith("at – parameters and 2.9K tokens.")


def test_the_command_prints_the_tasks_to_use(tmp_path, capsys) -> None:
    path = tmp_path / "runs.csv"
    recipes(np.random.default_rng(4)).to_csv(path, index=False)
    assert analyze.main([f"csv:{path}", "--choose", "--size", "1M", "--tokens", "2K"]) == 0
    printed = capsys.readouterr().out.split("\n\n")
    assert printed[0].endswith("1 of 3 tasks tell the order of 6 recipes at 10M at 1M parameters "
                               "and 2K tokens.")  # fmt: skip
    assert printed[1].split("\n")[1].split()[:3] == ["good", "accuracy", "5"]
    assert printed[2].startswith("Tasks: good\nLeft out (is not above a guess): below.")
    for wrong in (["--size", "1M"], ["--choose", "--size", "big"], ["--choose", "--tokens", "0"]):
        with pytest.raises(SystemExit, match="2"):
            analyze.main([f"csv:{path}", *wrong])
    assert not list(tmp_path.glob("report"))


class TestPublishedRuns:
    def test_noise_of_the_olmo_ladder(self, shared_data) -> None:
        folder = shared_data / "reference/olmo_ladder"
        expected = pd.read_csv(folder / "published_noise_1B-10xC.csv.gz", index_col="Task")
        points = comparable(curves(published.ladder(shared_data, "1B-10xC"))).points
        whole = pd.DataFrame({"run": ["1B-10xC"], "unit": 0, "stratum": 0, "until": math.inf})
        late = settled(points, whole, averaged=5).set_index(["task", "metric"])
        tasks = {"HellaSwag": "hellaswag_val", "BoolQ": "boolq_val", "PIQA": "piqa_val",
                 "ARC-Easy": "arc_easy_test", "ARC-Challenge": "arc_challenge_test",
                 "Winogrande": "winogrande_val", "CommonsenseQA": "csqa_val",
                 "OpenBookQA": "openbookqa_test", "Social IQa": "socialiqa_val"}  # fmt: skip
        for name, task in tasks.items():
            for metric, column in (("bits_per_byte", "Loss"), ("accuracy", "Accuracy")):
                row = late.loc[(task, metric)]
                assert row.noise == pytest.approx(expected[f"{column} Rel SD (CV)"][name])
                sd = row.noise * abs(row.level)
                assert sd == pytest.approx(expected[f"{column} SD"][name])

    def test_a_rerun_is_told_by_no_task_of_the_olmo_ladder(self, shared_data) -> None:
        found = early_tasks(Study(published.ladder(shared_data, "*-1xC*")))
        assert found.sentence == (
            "No task is shown to tell the last order of runs of equal size better than a coin "
            "(4 pairs)."
        )

    def test_signal_to_noise_predicts_decision_accuracy(self, shared_data) -> None:
        # The six budgets of the OLMo ladder stand for recipes.
        records = published.ladder(shared_data, "1*")
        share = records.tokens / records.groupby("run").tokens.transform("max")
        rows = measured(records.assign(tokens=1e10 * share), shares=())
        assert set(rows.order) == {"the order of 6 recipes at 1.28B"}
        for _, of in rows.dropna(subset="snr").groupby("metric"):
            for ratio in (of.snr, of.snr_detrended):
                assert np.corrcoef(np.log(ratio), of.accuracy)[0, 1] > 0.5

    def test_data_sets_of_dclm(self, shared_data) -> None:
        records = published.dclm(shared_data)
        scores = records[records.task == "lambada_openai"]
        scores = scores[scores.tokens.between(19 * scores.params, 21 * scores.params)]
        mean = (
            scores.groupby(["params", "family"])
            .value.mean()
            .unstack("params")
            .iloc[:, [0, 2]]
            .dropna()
        )
        pairs = list(itertools.combinations(mean.to_numpy(), 2))
        told = np.mean([np.sign(a[0] - b[0]) == np.sign(a[1] - b[1]) for a, b in pairs])
        rows = measured(records).set_index(["proxy", "task"])
        row = rows.loc["412M parameters", "lambada_openai"]
        assert (row.pairs, row.accuracy) == (len(pairs), told)
        assert row.order == f"the order of {len(mean)} recipes at 6.89B" and told > 0.9

    def test_two_data_sets_over_seven_budgets(self, shared_data) -> None:
        rows = measured(published.overtrained(shared_data)).set_index(["proxy", "task"])
        assert rows.pairs.max() == 7
        assert rows.accuracy["154M parameters", "hellaswag"] == 1
        assert (rows.p >= 0.5).all()  # two recipes are one decision


def test_effects_are_measured_on_the_runs_of_the_report() -> None:
    rng, parts = np.random.default_rng(5), []
    for size in (1e6, 1e7):
        for i in range(6):
            rise = np.linspace(0, 0.2 + 0.02 * i, 30)
            values = {
                f"exam_{n}": 0.25 + rise + rng.normal(0, 0.002 if n < 4 else 0.05, 30)
                for n in range(8)
            }
            run = {"run": f"{size:g}-{i}", "params": size, "family": f"f{i}"}
            bits = {task: 2 - value for task, value in values.items()}
            parts += [
                table(values, **run),
                table(bits, metric="bits_per_byte", chance=np.nan, **run),
            ]
    lines = early_tasks(Study(pd.concat(parts, ignore_index=True))).lines
    half = next(line for line in lines if line.startswith("The half of exam"))
    told = [float(word.rstrip("%.")) for word in half.split() if "%" in word]
    assert told[0] == 100 and told[0] >= told[1]  # the noisy half is dropped
    averaging = next(line for line in lines if line.startswith("The mean of up to 5 last"))
    told = [float(word.rstrip("%")) for word in averaging.split() if word.endswith("%")]
    assert told[0] > told[1]
    assert any(line.startswith("Bits per byte tell") for line in lines)
