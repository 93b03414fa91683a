"""Read a swarm: a table of mixtures and losses of anyone, or a suite of own proxies.

A table is CSV (plain or gzip) or Parquet with a row per run. Its columns are mapped: lists of names
or patterns (`train_*`) for the shares and targets. Losses may be in a second table, which is joined
by the run's name (a first column that both have, unless told), or else by the order of the rows.
"""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import math
import sys
from collections.abc import Iterable, Sequence

import pandas as pd
from etils import epath

from jaxllm.analysis.mixtures.swarm import Swarm
from jaxllm.errors import UserError, nearest
from jaxllm.interop.importers.table import read_table
from jaxllm.run.run import Run
from jaxllm.run.suite_layout import SuiteLayout

LOSS = " loss"  # behind the name of a target that is also the name of a domain
DEFAULT_TARGETS = ("*/bits_per_byte",)  # of a suite
WEIGHTS = "DataConfig.weights"


@dataclasses.dataclass(frozen=True)
class Columns:
    """The map of a table's columns, by names or patterns."""

    shares: Sequence[str] = ()  # of two tables: if empty, all columns of the first
    targets: Sequence[str] = ()  # of two tables: if empty, all columns of the second
    higher: Sequence[str] = ()  # targets of which more is better: read as their negative
    losses: str = ""  # path of the table of targets, if it is another
    name: str = ""  # column with the runs' names
    params: str = ""  # column with their sizes, if any
    steps: str = ""  # column with their steps, if any
    where: Sequence[tuple[str, str]] = ()  # (column, value) pairs that select rows


def read_swarm(source: str, columns: Columns) -> Swarm:
    """The swarm of a table or of a SUITE_DIR.

    UserError if there is no such file, or it is no table, lacks a column, or is no swarm.
    """
    path = epath.Path(source)
    if not path.exists():
        raise UserError(f"{source}: there is no such table or suite")
    if path.is_dir():
        columns = dataclasses.replace(columns, params="params", steps="steps")
        frame, shares, targets = _suite(path, columns)
    else:
        frame, shares, targets = _table(path, columns)
    _select(frame, [c for c in (columns.params, columns.steps) if c], "params, --steps", source)
    for column, value in columns.where:
        _select(frame, [column], "where", source)
        frame = frame[frame[column].map(lambda cell, value=value: _same(cell, value))]
        if frame.empty:
            raise UserError(f"{source}: no row has {column}={value}")
    for name in [*shares, *targets]:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if name in shares and numbers.isna().any():
            raise UserError(f"{source}: the share {name} is missing or no number in some row")
        frame = frame.assign(**{name: numbers})
    higher = _select(frame[targets], columns.higher, "higher", source)
    values = frame[targets].assign(**{name: -frame[name] for name in higher})
    values = values.rename(columns={name: f"-{name}" for name in higher})
    numbers = {
        axis: None if not column else pd.to_numeric(frame[column], errors="coerce").to_list()
        for axis, column in (("params", columns.params), ("steps", columns.steps))
    }
    try:
        return Swarm.of(frame[shares], values, **numbers)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def own_domains(swarm: Swarm) -> dict[str, str]:
    """Target -> the domain of the same name; UserError if none has one."""
    own = {t: t.removesuffix(LOSS) for t in swarm.targets if t.removesuffix(LOSS) in swarm.domains}
    if not own:
        raise UserError("bimix is of a domain's own share: no target has the name of a domain")
    return own


def _table(path: epath.Path, columns: Columns) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The rows, indexed by their names, and the columns of shares and targets."""
    frame = _frame(path, columns.name)
    special = {columns.params, columns.steps, *(column for column, _ in columns.where)}
    if not columns.losses:
        if not columns.shares or not columns.targets:
            raise UserError(
                f"{path}: say which columns are --shares and which --targets, or give "
                f"--losses=FILE; columns: {', '.join(map(str, frame.columns[:12]))}"
            )
        shares = _select(frame, columns.shares, "shares", path)
        return frame, shares, _select(frame, columns.targets, "targets", path)
    losses = _frame(epath.Path(columns.losses), columns.name)
    key = frame.columns[0]
    if not columns.name and key == losses.columns[0] and set(frame[key]) >= set(losses[key]):
        return _table(path, dataclasses.replace(columns, name=key))
    numeric = [name for name in frame.select_dtypes("number") if name not in special]
    shares = _select(frame, columns.shares, "shares", path) if columns.shares else numeric
    numeric = [name for name in losses.select_dtypes("number") if name not in special]
    targets = numeric
    if columns.targets:
        targets = _select(losses, columns.targets, "targets", columns.losses)
    renamed = {name: f"{name}{LOSS}" for name in targets if name in frame}
    losses = losses.rename(columns=renamed)
    if not columns.name:
        if len(frame) != len(losses):
            raise UserError(
                f"{columns.losses} has {len(losses)} rows and {path} {len(frame)}: give the column "
                "that names the runs in both, --name=COLUMN"
            )
        joined = frame.join(losses)
    else:
        for name in losses.index[~losses.index.isin(frame.index)]:
            raise UserError(f"{path} has no mixture {name}, which {columns.losses} measures")
        if (twice := frame.index[frame.index.duplicated()]).size:
            raise UserError(f"{path} has two mixtures named {twice[0]}")
        if lost := len(frame.index.difference(losses.index)):
            print(f"note: {lost} of {len(frame)} mixtures have no losses", file=sys.stderr)
        joined = losses.join(frame[[c for c in frame if c not in losses]])
    return joined, shares, [renamed.get(name, name) for name in targets]


def _frame(path: epath.Path, name: str) -> pd.DataFrame:
    """A table, indexed by the column `name`, or by the numbers of its rows."""
    table = read_table(path)
    table.columns = [str(column) for column in table.columns]
    if name:
        _select(table, [name], "name", path)
        table = table.set_index(table[name].astype(str)).drop(columns=name)
    return table


def _select(
    frame: pd.DataFrame, patterns: Iterable[str], flag: str, where: epath.PathLike
) -> list[str]:
    """Columns that names or patterns select, in the frame's order; UserError for one of none."""
    names, found = [str(column) for column in frame], set()
    for pattern in patterns:
        hits = [pattern] if pattern in names else fnmatch.filter(names, pattern)
        if not hits:
            raise UserError(
                f"{where}: no column {pattern} (--{flag}){nearest(pattern, names)}"
                f"; columns: {', '.join(names[:12])}"
            )
        found.update(hits)
    return [name for name in names if name in found]


def _same(cell: object, value: str) -> bool:
    """Whether a cell is `value`, as a number where both are."""
    try:
        return math.isclose(float(str(cell)), float(value))
    except ValueError:
        return str(cell) == value


def _suite(path: epath.Path, columns: Columns) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The runs of a suite that have mixtures of their own: their last records."""
    if (suite := SuiteLayout(path).declared()) is None:
        raise UserError(f"{path}: a directory without suite.json is no suite")
    settings = suite.runs
    rows: dict[str, dict[str, float]] = {}
    shares: dict[str, dict[str, float]] = {}
    drawn = {name: one[WEIGHTS] for name, one in settings.items() if WEIGHTS in one}
    for name, weights in drawn.items():
        run = Run(SuiteLayout(path).run(name))
        if not run.path.exists() or (records := run.records()).empty:
            continue
        last = records[records.step == records.step.max()]
        values = dict(zip(last.task + "/" + last.metric, last.value, strict=True))
        rows[name] = values | {"params": last.params.iloc[0], "steps": float(last.step.iloc[0])}
        of_domain = ast.literal_eval(weights)
        shares[name] = {k: v / sum(of_domain.values()) for k, v in of_domain.items()}
    if not rows:
        raise UserError(
            f"{path}: of its {len(settings)} runs {len(drawn)} have a {WEIGHTS} of their own, and "
            "none of these was scored"
        )
    if len(rows) < len(drawn):
        lost = len(drawn) - len(rows)
        print(f"note: {lost} of {len(drawn)} runs were not scored", file=sys.stderr)
    mixtures = pd.DataFrame.from_dict(shares, orient="index").fillna(0.0)
    frame = pd.DataFrame.from_dict(rows, orient="index")
    targets = _select(frame, columns.targets or DEFAULT_TARGETS, "targets", path)
    mixtures.columns = [f"{name} share" if name in frame else name for name in mixtures]
    return frame.join(mixtures), list(mixtures), targets
