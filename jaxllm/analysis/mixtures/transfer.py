"""Whether small models rank mixtures as larger ones do, and by which metric."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array
from jaxllm.analysis.mixtures.choice import Fit, ranking
from jaxllm.analysis.mixtures.swarm import Swarm
from jaxllm.errors import UserError

_DRAWS = 500
_LEVEL = 0.95


def predictions(fit: Fit, larger: Swarm) -> dict[str, Array]:
    """Each target as the law of the proxies predicts it, and their mean, for other mixtures [n];
    UserError if they are of other domains.
    """
    if set(fit.swarm.domains) != set(larger.domains):
        odd = sorted(set(fit.swarm.domains) ^ set(larger.domains))
        raise UserError(f"the larger runs have other domains than the proxies: {', '.join(odd)}")
    order = [larger.domains.index(name) for name in fit.swarm.domains]
    found = {name: law(larger.shares[:, order], 1)[0] for name, law in fit.predict.items()}
    return found | ({"mean": np.mean(list(found.values()), axis=0)} if len(found) > 1 else {})


def transfer(proxies: Mapping[str, Array], larger: Swarm, seed: int = 0) -> pd.DataFrame:
    """How each proxy metric, of values [n] measured or predicted, ranks the mixtures of `larger`
    models.

    Columns: `target, metric, spearman, low, high, top_spearman, regret, best`; with a 95 % interval
    by bootstrap over mixtures; `best` marks the metric of the highest Spearman.
    """
    rng = np.random.default_rng(seed)
    targets = {name: larger.values[:, j] for j, name in enumerate(larger.targets)}
    if len(targets) > 1:
        targets["mean"] = larger.values.mean(axis=1)
    draws = rng.integers(len(larger), size=(_DRAWS, len(larger)))
    ranked = {name: _ranks(values[draws]) for name, values in targets.items()}
    rows = []
    for metric, values in proxies.items():
        drawn = _ranks(values[draws])
        for target, measured in targets.items():
            r = _correlations(drawn, ranked[target])
            low, high = np.nanquantile(r, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
            rows.append(
                {"target": target, "metric": metric, "low": low, "high": high}
                | ranking(values, measured)
            )
    table = pd.DataFrame(rows)
    table["best"] = table.index.isin(table.groupby("target").spearman.idxmax())
    columns = ["target", "metric", "spearman", "low", "high", "top_spearman", "regret", "best"]
    order = {name: number for number, name in enumerate(targets)}
    return table[columns].sort_values(
        ["target", "spearman"], key=lambda c: c.map(order) if c.name == "target" else -c,
        ignore_index=True,
    )  # fmt: skip


def _ranks(values: Array) -> Array:
    ranks = stats.rankdata(values, axis=1)
    return np.asarray(ranks - ranks.mean(axis=1, keepdims=True))


def _correlations(a: Array, b: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray((a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1)))
