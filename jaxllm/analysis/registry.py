"""Registry of the report's analyses: each is a function with a question, title, caption, method.

    @analysis(
        NOW, "Sudden or gradual", caption="Decades of tokens from 10 to 90 % of a gain.",
        method="Profile likelihood of smooth rises (Bates and Watts 1988).",
    )
    def emergence(study: Study) -> Finding: ...

Every module of `jaxllm.analysis` is imported, which registers its analyses. `jaxllm.report` draws a
finding with the chart function of the same name, if there is one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pandas as pd

from jaxllm import analysis as package
from jaxllm.analysis.curves import Curves, curves
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.mixtures.choice import Fit, fit
from jaxllm.analysis.mixtures.propose import Proposal
from jaxllm.analysis.mixtures.swarm import Swarm, swarm_of
from jaxllm.analysis.stats import Array
from jaxllm.analysis.tokens.runs import TokenStudy
from jaxllm.errors import UserError

HEALTH, NOW, AHEAD, EARLY = "health", "now", "ahead", "early"
SIZES, TOKENS, DATA = "sizes", "tokens", "data"
QUESTIONS = {
    HEALTH: "Is the run healthy?",
    NOW: "What can it do now?",
    AHEAD: "What will it be able to do?",
    EARLY: "Which tasks tell me early?",
    SIZES: "How does it compare across sizes?",
    TOKENS: "Which tokens does it learn and forget?",
    DATA: "Which data?",
}
_NO_LOSSES = pd.DataFrame(columns=["run", "params", "tokens", "flops", "loss"], dtype=float)


@dataclasses.dataclass(frozen=True)
class Study:
    """Input of the analyses: the runs of one report. Most need `Study(records)` only."""

    records: pd.DataFrame  # all metrics of the charted tasks (or benchmarks)
    raw_records: pd.DataFrame | None = None  # those before tasks were pooled to benchmarks, if so
    # Rows of metrics.jsonl, with a column `run`.
    logged: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    # Logged training loss, thinned where dense: `run, params, tokens, flops, loss`.
    losses: pd.DataFrame = dataclasses.field(default_factory=lambda: _NO_LOSSES)
    # By run: planned total tokens of those in progress; planned learning rate of each update.
    planned_tokens: Mapping[str, float] = dataclasses.field(default_factory=dict)
    planned_rates: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    # Of each branch, the run that it left and the tokens at which it did.
    parents: Mapping[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
    # By run and domain: share of the training sequences; times read; share learned by DoReMi.
    mixtures: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    epochs: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    domain_weights: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    token_studies: tuple[TokenStudy, ...] = ()  # the losses of held-out tokens, by token set
    layers: tuple[pd.DataFrame, ...] = ()  # similarities; see `jaxllm.run.run.SIMILARITY`
    proposal: Proposal | None = None  # that was saved beside these runs
    checked: Swarm | None = None  # runs that were trained to check it
    registered: tuple[Mapping[str, Any], ...] = ()  # files of `--preregister`
    backtested: bool = False  # whether to backtest the forecasts on finished runs

    @functools.cached_property
    def all_curves(self) -> Curves:
        """Curves of all metrics of the charted tasks that have a direction."""
        return curves(self.records).directed()

    @functools.cached_property
    def curves(self) -> Curves:
        """One curve for every run and task; see `Curves.main` and `Curves.comparable`."""
        return self.all_curves.main().comparable()

    @functools.cached_property
    def mixture_laws(self) -> Fit | str:
        """Laws from the mixtures of the runs to what was measured, or why there are none."""
        raw = self.records if self.raw_records is None else self.raw_records
        try:
            return fit(swarm_of(raw, self.mixtures))
        except UserError as error:
            return str(error)

    @functools.cached_property
    def runs(self) -> tuple[str, ...]:
        """Names of all runs, scored or logged, in order of appearance."""
        return tuple(dict.fromkeys([*self.records.get("run", []), *self.logged.get("run", [])]))

    @functools.cached_property
    def params(self) -> dict[str, float]:
        """Parameter count of every run where it is known."""
        if self.records.empty:
            return {}
        known = self.records.groupby("run", sort=False).params.max()
        return {str(run): float(params) for run, params in known[known > 0].items()}

    @functools.cached_property
    def families(self) -> dict[str, str]:
        """Family of every run that has a record."""
        return dict(self.records.groupby("run", sort=False).family.last())

    def log_of(self, run: str) -> pd.DataFrame:
        """The logged steps of one run."""
        return self.logged[self.logged.run == run] if "run" in self.logged else self.logged

    def several_mixtures(self) -> bool:
        """Whether the runs are a swarm: three mixtures or more."""
        return len({tuple(sorted(one.items())) for one in self.mixtures.values()}) > 2

    def several_sizes(self) -> bool:
        """Whether there are three sizes, the fewest that a scaling law can be fitted to."""
        return len(set(self.params.values())) > 2


@dataclasses.dataclass(frozen=True)
class Analysis:
    """One analysis of the report."""

    question: str  # one of `QUESTIONS`
    title: str  # default title of its findings
    caption: str  # how to read the chart, and its assumptions
    method: str  # its name and source
    function: Callable[..., Finding | list[Finding]]  # a finding, or several with titles
    needs: Callable[[Study], bool]  # whether a study has the required data
    place: int  # sort key within the question

    @property
    def name(self) -> str:
        """Name of the function, and of the chart function in `jaxllm.report`."""
        return self.function.__name__

    def run(self, study: Study) -> list[Finding]:
        """Findings on a study, as a list."""
        result = self.function(study)
        return result if isinstance(result, list) else [result]


_REGISTERED: dict[str, Analysis] = {}
F = TypeVar("F", bound=Callable[..., Finding | list])


def analysis(
    question: str,
    title: str,
    *,
    caption: str,
    method: str,
    needs: Callable[[Study], bool] = lambda study: True,
    place: int = 100,
) -> Callable[[F], F]:
    """Register a function of a `Study` as an analysis of the report; see `Analysis`."""

    def register(function: F) -> F:
        entry = Analysis(question, title, caption, method, function, needs, place)
        _REGISTERED[entry.name] = entry
        return function

    return register


def analyses() -> list[Analysis]:
    """All analyses, ordered by question and place."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    order = list(QUESTIONS)
    return sorted(_REGISTERED.values(), key=lambda one: (order.index(one.question), one.place))
