"""What a report says of a swarm of mixtures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxllm.analysis.finding import Finding
from jaxllm.analysis.mixtures.check import check
from jaxllm.analysis.mixtures.propose import propose
from jaxllm.analysis.mixtures.swarm import NATURAL
from jaxllm.analysis.registry import DATA, Study, analysis
from jaxllm.analysis.stats import Z95
from jaxllm.errors import UserError

STEP = 0.1  # of the training data, which a domain takes the place of


@analysis(
    DATA, "The swarm", place=10, needs=Study.several_mixtures,
    caption="The share of each domain in the training data of each run, in percent. The runs are "
    "in the order of the mean of all targets, the best first.",
    method="A swarm of small runs on random mixtures, as RegMix (Liu et al. 2024).",
)  # fmt: skip
def swarm_shares(study: Study) -> Finding:
    """The runs in the order of their mean target: `run, domain, share, mean`."""
    if isinstance(fitted := study.mixture_laws, str):
        return Finding.refuse(fitted)
    runs = fitted.swarm
    mean = runs.values.mean(axis=1)
    order = np.argsort(mean)
    names = [runs.names[i] for i in order]
    table = pd.DataFrame(runs.shares[order], columns=list(runs.domains))
    table = table.assign(run=names, mean=mean[order]).melt(["run", "mean"], var_name="domain",
                                                          value_name="share")  # fmt: skip
    own = [place for place, name in enumerate(names, 1) if name.split("_")[0] == NATURAL]
    natural = f"; the natural mixture is number {own[0]}" if own else ""
    return Finding(
        f"{len(runs)} runs on mixtures of {len(runs.domains)} domains: the mean of "
        f"{len(runs.targets)} targets goes from {mean.min():.4g} ({names[0]}) to {mean.max():.4g} "
        f"({names[-1]}){natural}.",
        table[["run", "domain", "share", "mean"]],
        notes=runs.notes,
    )


@analysis(
    DATA, "Mixtures left out", place=20, needs=Study.several_mixtures,
    caption="What laws that have not seen a mixture predict of it (cross-validation), against what "
    "its run measured; the line is a perfect prediction.",
    method="Of each target the best of five laws by cross-validation, RegMix's linear regression "
    "(Liu et al. 2024) and the data mixing law (Ye et al. 2024) among them.",
)  # fmt: skip
def left_out_mixtures(study: Study) -> list[Finding]:
    """Predicted against measured on mixtures left out: `target, run, predicted, measured, law`."""
    if isinstance(fitted := study.mixture_laws, str):
        return []
    refused = tuple(f"{name}: {why}." for name, why in fitted.refused().items())
    if not fitted.chosen:
        return [Finding.refuse("no target has a law: " + " ".join(refused).rstrip("."))]
    runs, parts = fitted.swarm, []
    for target, law in fitted.chosen.items():
        column = runs.targets.index(target)
        parts.append(pd.DataFrame({
            "target": target, "run": runs.names, "predicted": fitted.left_out[:, column],
            "measured": runs.values[:, column], "law": law,
        }))  # fmt: skip
    scores = fitted.scores[fitted.scores.chosen]
    worst = scores.loc[scores.spearman.idxmin()]
    lines = [
        f"{row.target}: {row.law}, error {row.error:.2g}, rank correlation {row.spearman:.3f}"
        + (f" ({row.top_spearman:.2f} among the predicted best tenth)" if len(runs) > 99 else "")
        + f"; the run predicted to be the best is {row.regret:.2g} above the best."
        for row in scores.itertuples()
    ]
    return [
        Finding(
            f"The laws of {len(scores)} targets rank mixtures that they have not seen with a "
            f"correlation of {scores.spearman.median():.3f} (median; least {worst.spearman:.3f}, "
            f"of {worst.target}).",
            pd.concat(parts, ignore_index=True),
            lines=(*lines, *refused),
        )
    ]


@analysis(
    DATA, "What each domain does", place=30, needs=Study.several_mixtures,
    caption=f"The change of each target if a domain takes the place of {STEP:.0%} of the natural "
    "training data, by the target's law: blue is better, orange worse, and in parentheses what "
    "bootstrap draws (95%) do not tell from nothing.",
    method="The laws' difference, with intervals from a bootstrap over mixtures (Efron 1979).",
)  # fmt: skip
def domain_effects(study: Study) -> list[Finding]:
    """The effect of more of each domain on each target: `domain, target, effect, low, high`.

    The mixture (1 - STEP) natural + STEP domain, less the natural one; the mean of the swarm stands
    for an unknown natural mixture. Intervals: 95 % of the bootstrap over mixtures.
    """
    fitted = study.mixture_laws
    if isinstance(fitted, str) or not fitted.chosen:
        return []
    runs = fitted.swarm
    natural = runs.shares.mean(axis=0) if runs.natural is None else runs.natural
    changed = (1 - STEP) * natural + STEP * np.eye(len(natural))
    rows = []
    for target, law in fitted.predict.items():
        effects = law(changed, None) - law(natural[None], None)
        for domain, effect in zip(runs.domains, effects.T, strict=True):
            reach = Z95 * float(effect[1:].std())
            rows.append((domain, target, effect[0], effect[0] - reach, effect[0] + reach))
    table = pd.DataFrame(rows, columns=["domain", "target", "effect", "low", "high"])
    lines = []
    for target, own in table.groupby("target", sort=False):
        helps, harms = own.loc[own.effect.idxmin()], own.loc[own.effect.idxmax()]
        lines.append(f"{target}: {_effect(helps)}, {_effect(harms)}.")
    sure = table[(table.low > 0) | (table.high < 0)]
    text = f"{len(sure)} of {len(table)} effects are beyond what the choice of runs explains"
    if len(sure):
        best = sure.loc[sure.effect.idxmin()]
        text += f"; the largest gain is {best.domain}'s on {best.target} ({best.effect:+.3g})"
    return [Finding(f"{text}.", table, lines=tuple(lines))]


def _effect(row: pd.Series) -> str:
    return f"{row.domain} {row.effect:+.3g} ({row.low:+.3g} to {row.high:+.3g})"


@analysis(
    DATA, "The proposal", place=40, needs=Study.several_mixtures,
    caption="The best mixture that the runs support, beside the natural one, and what DoReMi "
    "learned where a run of it is there. What else it is held to, jaxllm.mix propose says.",
    method="The mean of the mixtures predicted best, as RegMix (Liu et al. 2024), shrunk towards "
    "the natural shares until every guard holds; DoReMi: Xie et al. (2023).",
)  # fmt: skip
def mixture_proposal(study: Study) -> list[Finding]:
    """The saved proposal, or that for the mean of all targets, beside natural and DoReMi's shares:
    `domain, mixture, share`.
    """
    fitted = study.mixture_laws
    if isinstance(fitted, str) or not fitted.chosen:
        return []
    found = study.proposal
    if found is None:
        try:
            found = propose(fitted, dict.fromkeys(fitted.chosen, 1.0))
        except UserError as error:
            return [Finding.refuse(str(error))]
    if found.status == "refused":
        return [Finding.refuse(found.reason)]
    shares = found.table.set_index("domain")[["natural", "proposed"]]
    for run, weights in study.domain_weights.items():
        name = "DoReMi" if len(study.domain_weights) == 1 else f"DoReMi, {run}"
        shares[name] = shares.index.map(weights).fillna(0.0)
    rows = found.predicted.set_index("mixture").loc["difference"]
    targets = ", ".join(found.objective) if len(found.objective) < 4 else (
        f"the mean of {len(found.objective)} targets")  # fmt: skip
    remark = "; as that includes 0, train both" if found.within_noise else ""
    return [
        Finding(
            f"For {targets} the proposal is predicted to change the natural mixture's value by "
            f"{rows.value:+.3g} ({rows.low:+.3g} to {rows.high:+.3g}){remark}.",
            shares.rename_axis("domain").reset_index().melt(
                "domain", var_name="mixture", value_name="share"
            ),
            lines=(f"{found.status}: {found.reason}.",) if found.reason else (),
        )
    ]  # fmt: skip


@analysis(
    DATA, "The check", place=50, needs=lambda study: study.checked is not None,
    caption="New runs on the proposal less those on the natural mixture, predicted and measured, "
    "with 95% intervals: of the law, and of the means over seeds.",
    method="Student's t interval of the mean over seeds, against the law's own interval.",
)  # fmt: skip
def mixture_check(study: Study) -> Finding:
    """Whether the runs that were trained to check the proposal bear it out: `Check.table`."""
    assert study.proposal is not None and study.checked is not None
    try:
        return check(study.proposal, study.checked)
    except UserError as error:
        return Finding.refuse(str(error))
