"""Reproductions on published swarms: RegMix (Pile, 1M and 60M) and BiMix (SlimPajama)."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxllm.analysis.mixtures.choice import fit, ranking
from jaxllm.analysis.mixtures.horizon import BiMix
from jaxllm.analysis.mixtures.laws import LAWS
from jaxllm.analysis.mixtures.propose import propose
from jaxllm.analysis.mixtures.swarm import Swarm
from jaxllm.analysis.mixtures.transfer import predictions, transfer

LAW = LAWS["kernel"]
PILE_CC = "metric/the_pile_pile_cc_val_loss"


@pytest.fixture(scope="module")
def regmix(shared_data: Path) -> dict[str, Swarm]:
    path = shared_data / "reference" / "regmix"
    read = lambda name: pd.read_csv(path / f"{name}.csv.gz", index_col="index")
    swarms = {
        "1M": Swarm.of(read("train_mixture_1m"), read("train_pile_loss_1m")),
        "1M unseen": Swarm.of(read("test_mixture_1m"), read("test_pile_loss_1m")),
        "60M": Swarm.of(read("test_mixture_60m"), read("test_pile_loss_60m")),
    }
    more = Swarm.of(read("tiny_config_1M_pile"), read("tiny_wandb_1M_1000_pile_4B"))
    return swarms | {"1M, all 1000": more}


def ranks(predicted: np.ndarray, swarm: Swarm) -> np.ndarray:
    pairs = zip(predicted.T, swarm.values.T, strict=True)
    return np.array([stats.spearmanr(a, b).statistic for a, b in pairs])


@pytest.fixture(scope="module")
def ours(regmix: dict[str, Swarm]) -> np.ndarray:
    """[256, 13], predicted for mixtures that no proxy trained on."""
    runs, new = regmix["1M"], regmix["60M"].shares
    once = np.ones((1, len(runs)))
    return np.column_stack([LAW.fit(runs.shares, y, once)(new, 1)[0] for y in runs.values.T])


def test_regmix_ranks_every_domain_of_larger_models(
    regmix: dict[str, Swarm], ours: np.ndarray
) -> None:
    """The paper reports 0.9845 (1M) and 0.9864 (60M) for Pile-CC, with its model's rounds chosen
    on these very mixtures. DM Mathematics (0.970) and Ubuntu IRC (0.962) are capped by the size
    itself: their own measured losses at 1M rank the 60M ones at 0.988 and 0.980. LightGBM by the
    paper's recipe, with its look at the test mixtures, ranks them at 0.964 and 0.957 (without it
    0.961 and 0.957); the mean of both methods at 0.967 and 0.961."""
    at_60m = dict(zip(regmix["60M"].targets, ranks(ours, regmix["60M"]), strict=True))
    assert at_60m[PILE_CC] >= 0.989
    assert ranks(ours, regmix["1M unseen"])[regmix["1M"].targets.index(PILE_CC)] >= 0.993
    below = {name.split("_pile_")[1][:6] for name, rank in at_60m.items() if rank < 0.975}
    assert below <= {"ubuntu", "dm_mat"} and min(at_60m.values()) > 0.95
    assert np.mean(list(at_60m.values())) > 0.987


def test_a_thousand_proxies_rank_better_than_512(
    regmix: dict[str, Swarm], ours: np.ndarray
) -> None:
    runs, larger = regmix["1M, all 1000"], regmix["60M"]
    once = np.ones((1, len(runs)))
    columns = [2, 8, 9, 10]
    more = [LAW.fit(runs.shares, runs.values[:, j], once)(larger.shares, 1)[0] for j in columns]
    values = larger.values[:, columns]
    gain = [
        stats.spearmanr(a, y).statistic - stats.spearmanr(b, y).statistic
        for a, b, y in zip(more, ours[:, columns].T, values.T, strict=True)
    ]
    assert min(gain) > 0
    assert stats.spearmanr(more[1], larger.values[:, 8]).statistic >= 0.99


def test_no_domain_is_ranked_worse_than_by_boosted_trees(
    regmix: dict[str, Swarm], ours: np.ndarray
) -> None:
    """RegMix' regressor by another library: over all mixtures, and among the best tenth."""
    ensemble = pytest.importorskip("sklearn.ensemble")
    runs, larger = regmix["1M"], regmix["60M"]
    make = lambda: ensemble.HistGradientBoostingRegressor(
        max_iter=250, learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=10,
        early_stopping=False, random_state=0,
    )  # fmt: skip
    trees = np.column_stack(
        [make().fit(runs.shares, y).predict(larger.shares) for y in runs.values.T]
    )
    for where in ("1M unseen", "60M"):
        own, theirs = ranks(ours, regmix[where]), ranks(trees, regmix[where])
        assert (own > theirs - 0.0005).all() and own.mean() > theirs.mean() + 0.002
    table = {
        name: pd.DataFrame([ranking(p, y) for p, y in zip(q.T, larger.values.T, strict=True)])
        for name, q in (("own", ours), ("trees", trees))
    }
    assert table["own"].top_spearman.mean() > table["trees"].top_spearman.mean()
    spread = larger.values.std(axis=0)
    assert (table["own"].regret / spread).mean() < (table["trees"].regret / spread).mean() + 0.003
    assert (table["own"].regret / spread).max() < 0.1


def test_the_proposal_for_regmix_is_sane_and_its_interval_holds(regmix: dict[str, Swarm]) -> None:
    """Four of 13 targets, fit to proposal; the notebook of RegMix proposes 0.89 Pile-CC."""
    targets = [PILE_CC, *(t for t in regmix["1M"].targets if t != PILE_CC)][:4]
    found = fit(regmix["1M"].only(targets))
    proposal = propose(found, {PILE_CC: 1.0})
    assert set(found.chosen.values()) == {"kernel"} and not found.refused()
    web = proposal.table.set_index("domain").proposed["train_the_pile_pile_cc"]
    assert 0.75 < web < 0.97
    value = proposal.predicted.set_index("mixture").loc["proposed"]
    best = regmix["1M"].only([PILE_CC]).values.min()
    assert best - 0.1 < value.value < best + 0.05
    unseen = regmix["1M unseen"].only(targets)
    draws = np.mean([found.predict[t](unseen.shares, None) for t in targets], axis=0)
    error = (found.left_out - found.swarm.values).mean(axis=1).std()
    reach = 1.96 * np.hypot(draws[1:].std(axis=0), error)
    inside = np.abs(draws[0] - unseen.values.mean(axis=1)) < reach
    assert inside.mean() >= 0.93
    table = transfer(predictions(found, regmix["60M"].only(targets)), regmix["60M"].only(targets))
    own = table[table.metric == table.target].set_index("target")
    assert own.best[targets].all() and (own.low < own.spearman).all()
    assert own.spearman[PILE_CC] > 0.985 and own.low[PILE_CC] > 0.97


def test_bimix_has_its_published_errors_and_says_where_it_has_no_support(
    shared_data: Path,
) -> None:
    """Fitted as its authors do, on the entropy mixtures. Mean relative errors in per cent on the
    other two, as from SciPy's curve_fit on the five-parameter form."""
    path = shared_data / "reference" / "bimix"
    losses = pd.read_csv(path / "slimpajama_losses.csv.gz")
    mixtures = pd.read_csv(path / "slimpajama_mixtures.csv.gz", index_col="mixture")
    expected = {
        "ArXiv": (0.35, 0.48), "Book": (5.7, 5.9), "C4": (0.38, 0.13), "CommonCrawl": (0.70, 0.67),
        "Github": (1.9, 1.8), "StackExchange": (4.3, 3.2), "Wikipedia": (1.4, 1.1),
    }  # fmt: skip
    fitted = losses[losses.mixture.isin(["SE", "JE", "CE", "VNE"])]
    for domain, errors in expected.items():
        shares = mixtures[domain]
        steps, loss = fitted.global_step.to_numpy("float64"), fitted[domain].to_numpy()
        law = BiMix.fit(shares[fitted.mixture].to_numpy(), steps, loss)
        own = law(shares[fitted.mixture].to_numpy(), steps)
        assert 0.0013 < np.mean(np.abs(own / loss - 1)) < 0.0038
        for name, error in zip(("Baseline", "DoReMi"), errors, strict=True):
            rows = losses[losses.mixture == name]
            share = np.full(len(rows), shares[name])
            predicted = law(share, rows.global_step.to_numpy("float64"))
            assert 100 * np.mean(np.abs(predicted / rows[domain] - 1)) == pytest.approx(
                error, rel=0.04
            )
            if error > 2:
                assert not law.supports(share).any()
        late = fitted.global_step > 100_000
        early = BiMix.fit(shares[fitted.mixture[~late]].to_numpy(), steps[~late], loss[~late])
        ahead = early(shares[fitted.mixture[late]].to_numpy(), steps[late])
        assert np.mean(np.abs(ahead / loss[late] - 1)) < 0.011
