"""Which of perplexity, size and compute predicts accuracy, on suites whose answer is planted."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import special

from jaxllm.analysis import perplexity_axis as axis
from jaxllm.analysis.curves import curves
from jaxllm.analysis.registry import Study
from jaxllm.report.charts import findings as charts
from jaxllm.report.charts.specs import legend, split
from tests.analysis.planted import table

SIZES = (10e6, 30e6, 100e6, 300e6)
TOKENS = np.geomspace(1e8, 1e10, 12)
TITLE, ACCURACY = "Held-out perplexity as the axis", "Accuracy by held-out perplexity"
EACH = "Each task by held-out perplexity"
OPTIONS, RISES = "Right and wrong options", "Linear or breakthrough over sizes"
CHANCE = np.array([0.25, 0.5, 0.25, 0.2] * 2)


def suite(
    accuracy, *, sizes=SIZES, text="heldout_books", metric="perplexity", noise=0.3, more=None
):
    """Records of a suite; `accuracy(loss, params)` is the share above chance, of eight tasks."""
    rng, parts = np.random.default_rng(0), []
    for size in sizes:
        # a wobble that neither size nor compute knows of
        loss = 1.5 + 40 * size**-0.2 + 500 * TOKENS**-0.35 + noise * rng.uniform(0, 1, len(TOKENS))
        share = np.broadcast_to(accuracy(loss, size), len(TOKENS))
        tasks = {f"t{i}": c + (1 - c) * share * (0.8 + 0.05 * i) for i, c in enumerate(CHANCE)}
        own = {"run": f"r{size:g}", "params": size, "tokens": TOKENS}
        scored = table(tasks, **own)
        parts.append(scored.assign(chance=CHANCE[scored.task.str[1:].astype(int)]))
        value = loss / math.log(2) if metric == "bits_per_byte" else np.exp(loss)
        if text:
            parts.append(table({text: value}, **own, metric=metric).assign(primary=True))
        for name, factor in (more or {}).items():
            parts.append(table({"t0": np.exp(loss * factor)}, **own, metric=name))
    return pd.concat(parts, ignore_index=True)


def by_perplexity(loss, size):
    return special.expit(3 - 1.2 * loss)


def by_size(loss, size):
    return special.expit(0.9 * np.log(size / 1e9))


def of_title(records, title, **fields):
    return {one.title: one for one in axis.perplexity_axis(Study(records, **fields))}[title]


def answer(records):
    found = of_title(records, TITLE)
    return found, found.table.set_index("predictor")


def test_perplexity_wins_where_it_determines_accuracy():
    found, table = answer(suite(by_perplexity))
    own, other = table.loc[axis.ALONE], table.loc["parameters and FLOPs"]
    assert own.r2 > 0.995 and own.rmse < 0.004 < 4 * own.rmse_high + 0.004 < other.rmse
    assert "perplexity is better" in found.sentence and "4 sizes" in found.sentence
    assert table.rmse_low.le(table.rmse).all() and table.rmse.le(table.rmse_high).all()


def test_parameters_win_where_they_determine_accuracy():
    found, table = answer(suite(by_size))
    assert table.loc["parameters"].rmse < 0.01
    assert table.loc["parameters"].r2 > 0.99
    assert "perplexity is worse" in found.sentence and "without it, parameters" in found.sentence


def test_errors_are_those_of_a_loop_over_sizes():
    """Lines through the logits of the excess over chance, by the normal equations."""
    records = suite(by_perplexity)
    found, table = answer(records)
    points = of_title(records, ACCURACY).table
    points = points[points.tokens >= 0.1 * TOKENS[-1]]
    floor, squares = CHANCE.mean(), []
    logs = np.log(points[["params", "flops"]].to_numpy(float))
    design = np.column_stack([np.ones(len(logs)), (logs - logs.mean(0)) / logs.std(0)])
    share = (points.accuracy.to_numpy() - floor) / (1 - floor)
    for size in SIZES:  # every size has as many checkpoints, so all weigh alike
        out = (points.params == size).to_numpy()
        x, y = design[~out], np.log(share[~out] / (1 - share[~out]))
        beta = np.linalg.inv(x.T @ x) @ x.T @ y
        squares += [*((special.expit(design[out] @ beta) - share[out]) * (1 - floor)) ** 2]
    row = table.loc["parameters and FLOPs"]
    assert row.rmse == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-4)
    assert row.r2 == pytest.approx(1 - np.mean(squares) / points.accuracy.var(ddof=0), rel=1e-4)
    assert f"by {100 * table.loc[axis.ALONE].rmse:.2g} points" in found.sentence


def test_sizes_agree_at_equal_perplexity_only():
    points = of_title(suite(by_perplexity), ACCURACY)
    apart = axis.spreads(points.table)
    assert apart["perplexity"] < 0.1 * min(apart[c] for c in ("flops", "tokens", "step"))
    flat = points.table.assign(
        accuracy=points.table.params.map(dict(zip(SIZES, range(4), strict=True)))
    )
    same = flat.assign(perplexity=flat.tokens, flops=flat.tokens)  # overlap everywhere
    assert axis.spreads(same)["tokens"] == pytest.approx(100 * np.std(range(4), ddof=1))


def test_clocks_are_compared_where_the_curves_overlap_by_each():
    records = suite(by_perplexity, sizes=SIZES[:3])
    far = records.assign(flops=records.flops * np.exp(records.params / 2e6))
    found = of_title(far, ACCURACY)
    assert "nan" not in found.sentence and "equal FLOPs" not in found.sentence
    assert [*axis.spreads(found.table)] == ["perplexity", "tokens", "step"]


def test_two_tasks_decide_nothing_and_what_is_resampled_is_said():
    records = suite(by_perplexity)
    few = records[records.task.isin(["t0", "t1", "heldout_books"])]
    found, _ = answer(few)
    assert "perplexity is not judged by fewer than 8 tasks" in found.sentence
    assert "seeds and sizes not resampled" in answer(records)[0].sentence


@pytest.mark.parametrize("metric", ["perplexity", "bits_per_byte"])
def test_perplexity_is_in_nats_whatever_was_recorded(metric):
    every = suite(by_perplexity, metric=metric)
    loss, name = axis.held_out(curves(every).points)
    assert name == ("heldout_books",)
    (name,) = name
    text = every[every.task == name].set_index(["run", "step"]).value
    wanted = np.log(text) if metric == "perplexity" else text * math.log(2)
    np.testing.assert_allclose(loss.loc[wanted.index], wanted)


def test_texts_are_averaged_and_lambada_stands_in_where_there_is_none():
    two = pd.concat(
        [suite(by_size), suite(by_size, text="heldout_code").query("task == 'heldout_code'")]
    )
    assert axis.held_out(curves(two).points)[1] == ("heldout_books", "heldout_code")
    scored = suite(by_size, text="lambada_openai")
    of = scored.task == "lambada_openai"
    graded = scored[of].assign(metric="accuracy", value=0.5)
    records = pd.concat([scored, graded], ignore_index=True)
    assert "perplexity of the last words of lambada_openai" in of_title(records, ACCURACY).sentence
    assert (
        "accuracy of 8 tasks" in answer(records)[0].sentence
    )  # LAMBADA is not predicted from itself
    both = pd.concat(
        [records, records[records.task == "lambada_openai"].assign(task="lambada_standard")]
    )
    assert "accuracy of 8 tasks" in answer(both)[0].sentence
    assert "words of lambada_openai and lambada_standard" in of_title(both, ACCURACY).sentence


def test_noise_training_data_and_generated_texts_are_no_held_out_text():
    text = suite(by_size).query("task == 'heldout_books'")
    noisy = text.assign(task="noise_replace_20_heldout_books", value=1e4)
    seen = text.assign(task="training_loss", domain="training data", value=2.0)
    made = text.assign(task="jsonl_made", domain="own", value=3.0)
    found = axis.held_out(curves(pd.concat([text, noisy, seen, made], ignore_index=True)).points)
    assert found[1] == ("heldout_books",)


def test_options_part_with_perplexity():
    more = dict(zip(axis.OPTIONS, (0.5, 0.75), strict=True))
    options = of_title(suite(by_perplexity, more=more), OPTIONS)
    table = options.table
    factor = table.options.map({"right options": 0.5, "wrong options": 0.75})
    np.testing.assert_allclose(table.option_perplexity, table.perplexity**factor)
    low, high = table.perplexity.min(), table.perplexity.max()
    assert f"goes from {high:.3g} to {low:.3g}" in options.sentence
    assert f"wrong options {high**0.75:.3g} to {low**0.75:.3g}" in options.sentence


def test_options_count_by_their_tokens():
    """The perplexity of the options of two tasks is that of all their tokens."""
    records = suite(by_perplexity, more=dict.fromkeys(axis.OPTIONS, 0.5))
    own = records[records.metric.isin(axis.OPTIONS)].assign(n=10)
    other = own.assign(task="t1", value=own.value**3, n=30)
    rest = records[~records.metric.isin(axis.OPTIONS)]
    table = of_title(pd.concat([rest, own, other], ignore_index=True), OPTIONS).table
    power = (10 * 0.5 + 30 * 1.5) / 40
    np.testing.assert_allclose(table.option_perplexity, table.perplexity**power)


def test_what_a_branch_has_from_its_parent_counts_once():
    records = suite(by_perplexity)
    branch = records[records.run == "r1e+08"].assign(run="branch")
    parents = {"branch": ("r1e+08", float(TOKENS[-2]))}
    found = of_title(pd.concat([records, branch]), ACCURACY, parents=parents)
    assert (found.table.run == "branch").sum() == 1


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (suite(by_size, sizes=SIZES[:2]), "no family has 3 sizes"),
        (suite(by_size, text=""), "no held-out text was scored"),
        (suite(by_size).query("task == 'heldout_books'"), "0 sizes have accuracies of two tasks"),
        (suite(lambda loss, size: 0.3), "do not vary"),
    ],
    ids=["two sizes", "no text", "no accuracy", "constant"],
)
def test_refuses_what_cannot_be_told(records, reason):
    refused = [one for one in axis.perplexity_axis(Study(records)) if one.refused]
    assert [reason in one.refused for one in refused] == [True]
    assert not refused[0].table.size


@pytest.mark.parametrize(
    ("y", "improvement", "mean_square", "median_square"),
    [
        ([0.2, 0.3, 0.4, 0.5], 0.3, 0.1**2, 0.1**2),  # L = B = 3, a line over four sizes
        ([0.2, 0.2, 0.2, 0.8], 0.6, (2 * 0.01**2 + 0.6**2) / 3, 0.01**2),  # zeros count as 1/n
        ([0.6, 0.3, 0.5, 0.2], -0.4, (0.3**2 + 0.2**2 + 0.3**2) / 3, 0.3**2),  # falls
    ],
)
def test_linearity_and_breakthroughness(y, improvement, mean_square, median_square):
    """Equation 4 of the paper, with argmax minus argmin, by hand."""
    found = axis.linear_and_sudden(np.array(y), 0.01)
    wanted = improvement / np.sqrt([mean_square, median_square])
    np.testing.assert_allclose(found, wanted)


def test_the_most_sudden_task_comes_first():
    records = suite(by_perplexity)
    last = (records.task == "t2") & (records.params == SIZES[-1])
    records.loc[last, "value"] = 0.99
    records.loc[records.task == "t1", "value"] = 0.5 - 0.2 * (records.params == SIZES[-1])
    records.loc[records.task == "t0", "value"] = 0.3 + 0.01 * (records.params == SIZES[-1])
    running = {"r3e+08": 1e12}
    found = of_title(records, RISES)
    assert found.table.task.iloc[0] == "t2" and "is highest in t2," in found.sentence
    assert "of 6 tasks where" in found.sentence and not {"t0", "t1"} & {*found.table.task}
    final = records[records.step == len(TOKENS) - 1].set_index(["task", "params"]).value
    rows = found.table.set_index(["task", "params"]).accuracy
    np.testing.assert_allclose(rows, final.loc[rows.index])
    assert of_title(records, RISES, planned_tokens=running).table.params.nunique() == 3


def test_every_card_has_its_chart_with_a_line_per_size():
    more = dict(zip(axis.OPTIONS, (0.5, 0.75), strict=True))
    study = Study(suite(by_perplexity, more=more))
    found = axis.perplexity_axis(study)
    drawn = {one.title: split(charts.perplexity_axis(one, study)) for one in found}
    assert len(drawn) == 7
    panels = drawn["Accuracy by held-out perplexity"][0]["concat"]
    scales = [panel["layer"][0]["encoding"]["x"] for panel in panels]
    assert [x["field"] for x in scales] == [*axis.CLOCKS]
    assert [x["scale"]["reverse"] for x in scales] == [True, False, False, False]
    layers = drawn["Each task by held-out perplexity"][0]["concat"][0]["layer"]
    assert [layer["encoding"]["y"]["field"] for layer in layers] == ["smoothed", "accuracy"]
    by_size = drawn["Each task by size"][0]["concat"]
    assert {panel["layer"][0]["encoding"]["x"]["field"] for panel in by_size} == {"params"}
    for title in list(drawn)[3:]:
        field, sizes = legend(*drawn[title])
        assert field == "size" and len(sizes) == len(SIZES), title


def test_accuracies_of_tasks_are_smoothed_as_in_the_paper():
    """Each value is half of the one before and half of the new."""
    records = suite(by_perplexity)
    noise = records.assign(value=np.random.default_rng(0).uniform(size=len(records)))
    records = records.where(records.task != "t3", noise)
    found = of_title(records, EACH)
    assert "least in t3 (" in found.sentence and "(1.00)" in found.sentence
    for scored in (found.table, of_title(records, ACCURACY).table):
        keys = [name for name in ("run", "task") if name in scored]
        for _, rows in scored.groupby(keys):
            wanted = [rows.accuracy.iloc[0]]
            for new in rows.sort_values("tokens").accuracy[1:]:
                wanted.append(0.5 * wanted[-1] + 0.5 * new)
            np.testing.assert_allclose(rows.smoothed, wanted)


def test_noise_and_generated_texts_by_size_and_by_held_out_perplexity():
    """Larger models find noise likelier, and what a small one writes against them less so."""
    records = suite(by_perplexity)
    text = records[records.task == "heldout_books"]
    noisy = text.assign(task="noise_replace_20_heldout_books", value=text.value**1.5)
    made = text.assign(task="jsonl_made", value=1e4 / text.value)
    every = pd.concat([records, noisy, made])
    last = every.groupby(["task", "params"]).value.last()
    assert "Each task by size" in {one.title for one in axis.perplexity_axis(Study(every))}
    found = of_title(every, "Noise and other texts by size")
    low, high = (f"{last['jsonl_made', size]:.3g}" for size in SIZES[:: len(SIZES) - 1])
    assert f"in jsonl_made ({low} to {high}), least" in found.sentence
    table = found.table.set_index(["task", "params"]).text_perplexity
    np.testing.assert_allclose(table, last[table.index])
    both = of_title(every, "Noise and other texts by held-out perplexity")
    assert "most in noise_replace_20_heldout_books (1.00)" in both.sentence
    assert "least in jsonl_made (-1.00)" in both.sentence
    of = both.table[both.table.task == "jsonl_made"]
    np.testing.assert_allclose(of.text_perplexity * of.perplexity, 1e4)
    panel = charts.perplexity_axis(both, Study(every)).to_dict()["concat"][0]["layer"][0][
        "encoding"
    ]
    assert [panel[side]["scale"]["reverse"] for side in "xy"] == [True, False]


def test_final_accuracies_by_size_are_those_of_the_last_checkpoints():
    records = suite(by_perplexity)
    found = of_title(records, "Each task by size").table.set_index(["task", "params"]).accuracy
    last = records[records.task.str.startswith("t")].groupby(["task", "params"]).value.last()
    assert len(found) == len(CHANCE) * len(SIZES)
    np.testing.assert_allclose(found, last[found.index])


def test_no_end_is_told_of_a_run_in_progress_and_bits_per_byte_are_per_byte():
    records, title = suite(by_perplexity, metric="bits_per_byte"), "Held-out perplexity by FLOPs"
    told = of_title(records, title, planned_tokens={f"r{SIZES[-1]:g}": 1e12}).sentence
    assert told.startswith("That of heldout_books per byte ends at")
    assert "at 100M" in told and "at 300M" not in told


def test_five_examples_tell_no_rise():
    records = suite(lambda loss, size: np.clip(0.2 * np.log10(size / 1e7), 0, 1))
    found = of_title(records.assign(n=records.n.where(records.task != "t0", 5)), RISES)
    assert set(found.table.task) == {f"t{i}" for i in range(1, 8)}


def test_tasks_at_chance_do_not_rise_over_sizes():
    """The largest of seven shares is above the least by two standard errors in every fourth."""
    rng, sizes, n = np.random.default_rng(0), np.geomspace(1e7, 1e10, 7), 1000
    drawn = rng.binomial(n, 0.25, (200, 7)) / n
    parts = [
        table({f"t{i}": [0.25, of] for i, of in enumerate(drawn[:, k])}, n=n, run=f"r{k}",
              params=size)
        for k, size in enumerate(sizes)
    ]  # fmt: skip
    (found,) = [one for one in axis.perplexity_axis(Study(pd.concat(parts))) if one.title == RISES]
    assert found.table.task.nunique() <= 6


def test_two_families_are_told_apart():
    other = suite(by_size).assign(family="g")
    other = other.assign(run=other.run + "g")
    found = axis.perplexity_axis(Study(pd.concat([suite(by_perplexity), other])))
    assert {one.title.rpartition(", ")[2] for one in found} == {"f", "g"}


def test_pythia_sizes_agree_at_equal_lambada_perplexity(pythia_records):
    """Published runs: at equal perplexity the sizes differ by half of what they do elsewhere."""
    records = pythia_records[pythia_records.family == "pythia-deduped"]
    points = of_title(records, ACCURACY).table
    apart = axis.spreads(points)
    assert 2 * apart["perplexity"] < min(apart[c] for c in ("flops", "tokens", "step"))
    _, table = answer(records)
    assert table.r2[axis.ALONE] > 0.85 and table.rmse.idxmin() == axis.ALONE
