"""The analyses of the report: each is one function with its question, title and caption.

    @analysis(EARLY, "Change points", caption="Where a line over log tokens needs another slope.")
    def change_points(study: Study) -> Finding: ...

A module of `jaxllm.analysis` that holds such a function is found by itself. `jaxllm.report` draws
its finding with the chart function of the same name, if there is one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import pandas as pd

from jaxllm import analysis as package
from jaxllm.analysis.curves import Curves, curves
from jaxllm.analysis.finding import Finding

HEALTH, NOW, AHEAD, EARLY, SIZES = "health", "now", "ahead", "early", "sizes"
QUESTIONS = {
    HEALTH: "Is the run healthy?",
    NOW: "What can it do now?",
    AHEAD: "What will it be able to do?",
    EARLY: "Which tasks tell me early?",
    SIZES: "How does it compare across sizes?",
}


@dataclasses.dataclass(frozen=True)
class Study:
    """What the analyses read: the runs of one report. `Study(records)` will do for most of them.

    Attributes:
      records: All metrics of the tasks (or benchmarks) that are shown.
      raw_records: The trajectory table as it was read, before tasks were pooled to benchmarks; None
        where it is the same.
      logged: The rows of metrics.jsonl with the column `run`.
      losses: `run, params, tokens, flops, loss`: the logged training loss, thinned where dense.
      planned_tokens: Tokens at the end of the plan of each run that is in progress.
      backtested: Whether the forecasts are to be scored on finished runs.
    """

    records: pd.DataFrame
    raw_records: pd.DataFrame | None = None
    logged: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    losses: pd.DataFrame = dataclasses.field(
        default_factory=lambda: pd.DataFrame(
            columns=["run", "params", "tokens", "flops", "loss"], dtype=float
        )
    )
    planned_tokens: Mapping[str, float] = dataclasses.field(default_factory=dict)
    backtested: bool = False

    @functools.cached_property
    def all_curves(self) -> Curves:
        """The curves of all metrics of the tasks that are shown."""
        return curves(self.records)

    @functools.cached_property
    def curves(self) -> Curves:
        """One curve for every run and task; see `Curves.main` and `Curves.comparable`."""
        return self.all_curves.main().comparable()

    @functools.cached_property
    def runs(self) -> tuple[str, ...]:
        """The names of all runs, scored or logged, in their order."""
        return tuple(dict.fromkeys([*self.records.get("run", []), *self.logged.get("run", [])]))

    @functools.cached_property
    def params(self) -> dict[str, float]:
        """The parameters of every run that states them."""
        if self.records.empty:
            return {}
        known = self.records.groupby("run", sort=False).params.max()
        return {str(run): float(params) for run, params in known[known > 0].items()}

    def log_of(self, run: str) -> pd.DataFrame:
        """The logged steps of one run."""
        return self.logged[self.logged.run == run] if "run" in self.logged else self.logged

    def several_runs(self) -> bool:
        """Whether runs can be compared."""
        return len(self.runs) > 1

    def several_sizes(self) -> bool:
        """Whether there are the three sizes that a law over sizes takes."""
        return len(set(self.params.values())) > 2

    def in_progress(self) -> bool:
        """Whether a run has tokens left to see."""
        return bool(self.planned_tokens)


Function = Callable[..., Finding | list[Finding]]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """One analysis of the report.

    Attributes:
      name: Name of the function, and of the chart function in `jaxllm.report`.
      question: One of `QUESTIONS`.
      title: Heading of its findings, where they have none of their own.
      caption: How its chart is read and what it rests on.
      function: Takes a `Study`; returns a finding, or several with titles of their own.
      needs: Whether a study has what it takes; else it is left out.
      place: Its order among those of the question; later ones are higher.
    """

    name: str
    question: str
    title: str
    caption: str
    function: Function
    needs: Callable[[Study], bool]
    place: int

    def run(self, study: Study) -> list[Finding]:
        """The findings on a study."""
        result = self.function(study)
        return result if isinstance(result, list) else [result]


_REGISTERED: dict[str, Analysis] = {}

P = ParamSpec("P")
R = TypeVar("R", bound=Finding | list[Finding])


def analysis(
    question: str,
    title: str,
    *,
    caption: str = "",
    needs: Callable[[Study], bool] = lambda study: True,
    place: int = 100,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Registers a function of a `Study` as an analysis of the report; see `Analysis`."""

    def register(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__
        known = _REGISTERED.get(name)
        if known is not None and known.function.__module__ != function.__module__:
            raise ValueError(f"two analyses are called {name}")
        _REGISTERED[name] = Analysis(name, question, title, caption, function, needs, place)
        return function

    return register


def analyses() -> list[Analysis]:
    """All analyses, in the order of the questions and of their places."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    order = list(QUESTIONS)
    return sorted(_REGISTERED.values(), key=lambda one: (order.index(one.question), one.place))
