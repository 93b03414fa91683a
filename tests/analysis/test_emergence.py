"""Sudden gains of the model told from those of the metric, and ends of trajectories."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis import emergence as analysis
from jaxllm.analysis.emergence import emergence
from jaxllm.analysis.registry import Study
from tests.analysis.planted import sigmoid, table

TOKENS = np.logspace(8, 11, 46).astype(np.int64)  # 0.07 decades apart
X = np.log10(TOKENS)
JUMP = sigmoid(X, 10, 0.005)
SMOOTH = sigmoid(X, 9.5, 0.25)  # 1.1 decades wide


def task(accuracy, soft, rng, *, stderr=0.005, metric="probability_correct", name="t"):
    """One task under accuracy and a continuous metric, with their sampling noise."""
    accuracy, soft = (values + rng.normal(0, stderr, len(values)) for values in (accuracy, soft))
    chance = 0.25 if "probability" in metric else np.nan
    return pd.concat([
        table({name: accuracy}, tokens=TOKENS, stderr=stderr),
        table({name: soft}, tokens=TOKENS, stderr=stderr, metric=metric, chance=chance),
    ])  # fmt: skip


def verdicts(records) -> pd.Series:
    found = emergence(Study(records))
    assert found.sentence.endswith(".")
    return found.table[found.table.hard].set_index("task").verdict


def share(verdict, accuracy, soft, *, tasks=20, **more) -> float:
    rng = np.random.default_rng(0)
    rows = [task(accuracy, soft, rng, name=f"t{i}", **more) for i in range(tasks)]
    return (verdicts(pd.concat(rows)) == verdict).mean()


class TestVerdicts:
    def test_a_jump_over_a_smooth_probability_is_the_metrics(self) -> None:
        """Schaeffer et al. 2023: a threshold makes a jump of a steady gain."""
        assert share(analysis.METRIC, 0.25 + 0.5 * JUMP, 0.25 + 0.5 * SMOOTH) >= 0.95

    def test_a_jump_under_every_metric_is_the_models(self) -> None:
        assert share(analysis.MODEL, 0.25 + 0.5 * JUMP, 0.25 + 0.3 * JUMP) >= 0.95

    def test_perplexity_says_nothing_without_a_unigram_level(self) -> None:
        """It falls while the frequencies of words are learned, as on LAMBADA."""
        falling = 12 - 8 * SMOOTH
        for soft in (falling, 12 - 8 * JUMP):
            of = share(analysis.UNCLEAR, 0.25 + 0.5 * JUMP, soft, metric="target_bits_per_byte")
            assert of >= 0.95

    def test_from_its_unigram_level_on_perplexity_says_it_is_the_metric(self) -> None:
        falling = 12 - 8 * SMOOTH  # 4.95 where the accuracy jumps
        for level, verdict in ((10.0, analysis.METRIC), (4.9, analysis.UNCLEAR)):
            rng = np.random.default_rng(0)
            rows = [
                task(0.25 + 0.5 * JUMP, falling, rng, name=f"t{i}", metric="target_bits_per_byte")
                for i in range(20)
            ]
            records = pd.concat(rows)
            soft = records.metric == "target_bits_per_byte"
            records["unigram"] = np.where(soft, level, np.nan)
            assert (verdicts(records) == verdict).mean() >= 0.95

    def test_a_probability_that_moves_late_is_no_evidence_against_the_model(self) -> None:
        late = 0.25 + 0.3 * sigmoid(X, 10.5, 0.1)
        assert share(analysis.METRIC, 0.25 + 0.5 * JUMP, late) == 0

    def test_accuracy_alone_cannot_say_why(self) -> None:
        records = task(0.25 + 0.5 * JUMP, SMOOTH, np.random.default_rng(4))
        assert (verdicts(records[records.metric == "accuracy"]) == analysis.UNCLEAR).all()

    def test_smooth_gains_are_gradual_and_never_sudden(self) -> None:
        assert share(analysis.GRADUAL, 0.25 + 0.5 * SMOOTH, 0.25 + 0.5 * SMOOTH) >= 0.9

    @pytest.mark.parametrize("width", [0.5, 1, 2, 3])
    def test_at_most_a_twentieth_of_studies_calls_a_smooth_gain_sudden(self, width) -> None:
        """The rate of false discoveries is that over the tasks of a study."""
        rng = np.random.default_rng(5)
        middles = rng.uniform(8.5, 10.5, 100)
        values = {
            f"t{i}": 0.25 + 0.5 * sigmoid(X, m, width / 4.39) + rng.normal(0, 0.01, len(X))
            for i, m in enumerate(middles)
        }
        found = verdicts(table(values, tokens=TOKENS))
        assert not found.str.startswith("sudden").any()

    def test_noise_has_no_gain(self) -> None:
        rng = np.random.default_rng(3)
        values = {f"t{i}": 0.25 + rng.normal(0, 0.01, len(X)) for i in range(100)}
        found = emergence(Study(table(values, tokens=TOKENS)))
        assert (found.table.verdict == analysis.NO_GAIN).mean() >= 0.97
        assert not found.table.verdict.str.startswith(("sudden", "gradual")).any()


class TestEnds:
    """A hundred trajectories that rise early and end in a line over log tokens."""

    def ends(self, slope, stderr=0.002) -> pd.Series:
        rng = np.random.default_rng(6)
        tokens = np.linspace(2e9, 1e11, 50).astype(np.int64)
        line = 0.5 + slope * np.log2(tokens / tokens[-1])
        values = {f"t{i}": line + rng.normal(0, stderr, len(line)) for i in range(100)}
        return emergence(Study(table(values, tokens=tokens, stderr=stderr))).table.end

    def test_saturated_is_what_gains_less_than_the_margin(self) -> None:
        assert (self.ends(0.0) == analysis.SATURATED).mean() >= 0.95

    def test_at_the_margin_at_the_nominal_rate(self) -> None:
        assert (self.ends(analysis.MARGIN) == analysis.SATURATED).mean() <= 0.09

    def test_noise_that_hides_a_gain_is_no_saturation(self) -> None:
        """A p-value of no trend above 0.05 would call all of these saturated."""
        ends = self.ends(analysis.MARGIN, stderr=0.02)
        assert (ends == analysis.SATURATED).mean() <= 0.09
        assert (ends == analysis.NO_TREND).mean() >= 0.85

    @pytest.mark.parametrize(("slope", "end"), [(0.02, "growing"), (-0.02, "falling")])
    def test_growing_and_falling(self, slope, end) -> None:
        assert (self.ends(slope) == end).mean() >= 0.95


def test_nothing_of_pythia_is_sudden(pythia_records) -> None:
    """Its rises that steps over checkpoints called sudden took 1.29 decades in the median."""
    found = emergence(Study(pythia_records))
    hard = found.table[found.table.hard]
    assert not hard.verdict.str.startswith("sudden").any()
    sciq = hard[(hard.task == "sciq") & (hard.verdict == analysis.GRADUAL)]
    assert len(sciq) >= 9 and sciq.width.between(0.5, 2).all()
    assert "none is shown to be sudden" in found.sentence
    assert hard[hard.task == "logiqa"].verdict.eq(analysis.NO_GAIN).all()
