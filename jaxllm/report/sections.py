"""The HTML of the report's parts; every text from the data is escaped here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from jaxllm.analysis import capabilities as analysis
from jaxllm.report import numbers, readings, summary
from jaxllm.report.questions import Answer
from jaxllm.report.tables import Overview, Tables
from jaxllm.run.records import OK

GROWTH_INTRODUCTION = """<p class="intro">A row per task, in the order in which they left chance.
The stronger the colour, the more of its gain a task has made: from chance (or from the first
checkpoint, where there is no chance level) to its best value. <i class="dot"></i> marks where it
left chance: the first of two checkpoints in a row more than two standard errors above it. The final
value stands at the right.</p>"""

FEW_RUNS = """<p class="intro">Of each family its largest run; all runs stand in the trajectories
below and in the table.</p>"""

TRAJECTORY_INTRODUCTION = """<p class="intro">Each task's main metric with its 95% band
(±1.96&nbsp;SE). <span class="key"><i class="dash"></i>chance</span> <span class="key"><i
class="ring"></i>left chance</span></p>"""


# So many sentences are read at a glance; more stand behind a click.
_AT_A_GLANCE = 12

MANY_INTRODUCTION = """<p class="intro">Each task's main metric, a line per run in the colour of its
size; its name stands under the pointer. <span class="key"><i class="dash"></i>chance</span></p>"""

_TABLE_HEAD = ("Final ± SE", "Chance", "Left chance at", "Metric", "n", "Shots")
_NUMERIC = {"Final ± SE", "Chance", "n", "Shots"}


def section(name: str, title: str, content: str) -> str:
    """A titled part of the page."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n{content}</section>'


def part(name: str, title: str, content: str) -> str:
    """A titled part of a section."""
    return f'<h3 id="{name}">{escape(title)}</h3>\n{content}'


def heading(tables: Tables) -> str:
    """What the report is on: the names of the runs, or of their families."""
    names = [overview.run for overview in tables.overviews]
    if not tables.many_runs:
        return numbers.join(names)
    families = list(dict.fromkeys(overview.family for overview in tables.overviews))
    named = numbers.join(families) if len(families) <= 6 else f"{len(families)} families"
    return f"{len(names)} runs of {named}"


def glance(tables: Tables) -> str:
    """The top: names, sizes, and what left chance when."""
    if tables.many_runs:
        facts = _folded("All runs: size, tokens, cost", _overview_table(tables))
    elif tables.several_runs:
        facts = _overview_table(tables)
    else:
        facts = _tiles(tables.overviews[0])
    parts = [f"<h1>{escape(heading(tables))}</h1>"]
    if tables.many_runs:
        parts.append(f'<p class="lead">{escape(summary.of_many(tables.findings))}</p>{facts}')
        return _with_notes(tables, parts)
    parts.append(facts)
    for overview in tables.overviews:
        findings = tables.findings[tables.findings.run == overview.run]
        name = f"<h3>{_swatch(tables, overview.run)}{escape(overview.run)}</h3>"
        parts.append(name if tables.several_runs else "")
        parts.append(f'<p class="lead">{escape(summary.headline(findings))}</p>')
        items = "".join(
            f"<li><b>{_name(task)}</b><span>{escape(when)}</span><em>{escape(how)}</em></li>"
            for when, task, how in summary.milestones(findings)
        )
        if items:
            opened = "" if tables.several_runs else " open"
            listed = f"<summary>In the order of leaving chance</summary><ol>{items}</ol>"
            parts.append(f'<details class="milestones"{opened}>{listed}</details>')
        parts += [f"<p>{escape(text)}</p>" for text in summary.remainder(findings)]
    return _with_notes(tables, parts)


def _with_notes(tables: Tables, parts: list[str]) -> str:
    if tables.notes:
        notes = "1 note" if len(tables.notes) == 1 else f"{len(tables.notes)} notes"
        parts.append(f'<p class="warn"><a href="#notes">{notes} on the data</a> below.</p>')
    return f'<section id="glance">{"".join(parts)}</section>'


def data_notes(tables: Tables) -> str:
    """What is missing or wrong in the data."""
    if not tables.notes:
        return ""
    return section("notes", "Notes on the data", _listed(tables.notes, "notes"))


def final_table(tables: Tables) -> str:
    """The last value of every task with its standard error, n, chance and onset."""
    if tables.findings.empty:
        return nothing("No checkpoint has been scored yet.")
    several = tables.several_runs
    order = [overview.run for overview in tables.overviews]
    head = ["Task", *(["Run"] if several else []), *_TABLE_HEAD]
    cells = "".join(f'<th scope="col"{_right(h in _NUMERIC)}>{h}</th>' for h in head)
    rows = []
    for domain, tasks in tables.domains.items():
        label = f'<th colspan="{len(head)}" scope="rowgroup">{escape(domain)}</th>'
        rows.append(f'<tr class="group">{label}</tr>')
        for task in tasks:
            found = tables.findings[tables.findings.task == task]
            found = found.sort_values("run", key=lambda run: run.map(order.index))
            rows += [_table_row(tables, row, several) for row in found.itertuples()]
    table = f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    button = '<button type="button" data-all>All charted records as CSV</button>'
    content = f'{_scrolling("Final values", table)}<p class="tools">{button}</p>'
    return _folded(f"{len(rows):,} final values", content) if tables.many_runs else content


def figure(
    key: str, name: str, height: int, meta: str = "", final: str = "", warning: str = "",
    extra: str = "", sentence: str = "",
) -> str:  # fmt: skip
    """A chart's card: name and final value, what it shows, the plot, and its downloads."""
    quoted = escape(name, quote=True)
    tools = "".join(
        f'<button type="button" data-{kind}="{key}" aria-label="{quoted} as {kind.upper()}">'
        f"{kind.upper()}</button>"
        for kind in ("csv", "png")
    )
    return (
        f'<figure id="{key}"><figcaption><h4>{_name(name)}</h4><span class="final">{escape(final)}'
        f'</span><p class="meta">{escape(meta)}</p>{_sentence(sentence)}{extra}</figcaption>'
        f'<div class="plot" style="min-height:{height + 38}px"></div>'
        f'{_warning(warning)}<div class="tools">{tools}</div></figure>'
    )


def failed(name: str, failure: str) -> str:
    """The card of a chart that could not be made."""
    return f"<figure><figcaption><h4>{_name(name)}</h4></figcaption>{_warning(failure)}</figure>"


def answer(key: str, found: Answer, legend: str = "") -> str:
    """A finding's card: its sentence, its chart, what else it says, and its downloads."""
    quoted = escape(found.title, quote=True)
    kinds = [*(["csv"] if len(found.table) else []), *(["png"] if found.chart is not None else [])]
    tools = "".join(
        f'<button type="button" data-{kind}="{key}" aria-label="{quoted} as {kind.upper()}">'
        f"{kind.upper()}</button>"
        for kind in kinds
    )
    read = readings.of(found.title)
    reading = f'<p class="meta">{escape(read)}</p>' if read else ""
    plot = ""
    if found.chart is not None:
        plot = f'<div class="plot" style="min-height:{int(found.chart.height) + 38}px"></div>'
    return (
        f'<figure id="{key}" class="answer"><figcaption><h4>{escape(found.title)}</h4>'
        f'<p class="sentence">{escape(found.sentence)}</p>{reading}{legend}</figcaption>{plot}'
        f"{_listed(found.lines, 'lines')}{_listed(found.notes, 'notes', shown=3)}"
        f'<div class="tools">{tools}</div></figure>'
    )


def unanswered(refused: Sequence[Answer]) -> str:
    """Which questions have no answer, and why."""
    if not refused:
        return ""
    items = "".join(
        f"<li><b>{escape(found.title)}.</b> {escape(found.sentence)}"
        f"{_listed(found.lines, 'lines', shown=3)}</li>"
        for found in refused
    )
    return f'<div class="nothing"><ul class="lines">{items}</ul></div>'


def capability_texts(tables: Tables, task: str) -> dict[str, str]:
    """What stands on the card of a task: final value, metric, chance, n, and what is missing."""
    found = tables.findings[tables.findings.task == task]
    last = found.iloc[0]
    parts = [numbers.metric_name(last.metric)]
    if math.isfinite(last.chance):
        parts.append(f"chance {numbers.value(last.chance, last.metric).replace('.0%', '%')}")
    elif not analysis.lower_is_better(last.metric):
        parts.append("chance unknown")
    parts += ([f"n {last.n:,}"] if last.n else []) + ([f"{last.shots}-shot"] if last.shots else [])
    rows = tables.points[tables.points.task == task]
    bad = rows[rows.value.isna()]
    warning = ""
    if len(bad):
        steps = ", ".join(f"{step:,}" for step in sorted(bad.step.unique())[:4])
        failed = bad[~bad.status.isin([OK, "no record"])]
        reason = f": {failed.status.iloc[-1]}" if len(failed) else ""
        warning = f"No value at {len(bad)} of {len(rows)} checkpoints (step {steps}){reason}"
    value = "" if len(found) > 1 else numbers.value(last.final, last.metric)
    return {"meta": " · ".join(parts), "final": value, "warning": warning}


def legend(labels: Sequence[tuple[str, int]], palette: str = "series") -> str:
    """What the colours, by their numbers in the palette, stand for; pressed to hide the series."""
    items = "".join(
        f'<li><button type="button" aria-pressed="true" data-toggle="{escape(label, quote=True)}">'
        f'<i class="swatch" style="background:var(--{palette}-{colour % 8})"></i>{escape(label)}'
        "</button></li>"
        for label, colour in labels
    )
    return f'<ul class="legend" aria-label="Series; press to hide one">{items}</ul>'


def domain_group(domain: str, colour: int | None, figures: Sequence[str]) -> str:
    """The charts of a domain under its name, with its colour where colours stand for domains."""
    dot = f'<i class="swatch" style="background:var(--series-{(colour or 0) % 8})"></i>'
    heading = f"<h3>{dot if colour is not None else ''}{escape(domain)}</h3>"
    style = f"--n:{min(len(figures), 4)}"
    return f'<div class="domain" style="{style}">{heading}{grid(figures, "small")}</div>'


def grid(figures: Sequence[str], size: str) -> str:
    """Charts side by side as far as the page is wide."""
    return f'<div class="grid {size}">{"".join(figures)}</div>'


def nothing(text: str) -> str:
    """A statement that there is nothing to show."""
    return f'<p class="nothing">{escape(text)}</p>'


def _tiles(overview: Overview) -> str:
    facts = _facts(overview)
    tiles = "".join(f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in facts)
    return f'<dl class="tiles">{tiles}</dl>'


def _overview_table(tables: Tables) -> str:
    names = [name for name, _ in _facts(tables.overviews[0])]
    head = "".join(f'<th scope="col" class="right">{name}</th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{_swatch(tables, overview.run)}{escape(overview.run)}</th>'
        + "".join(f'<td class="right">{escape(text)}</td>' for _, text in _facts(overview))
        + "</tr>"
        for overview in tables.overviews
    )
    table = f"<table><thead><tr><th>Run</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return _scrolling("Runs", table)


def _facts(overview: Overview) -> list[tuple[str, str]]:
    loss = overview.final_loss
    share = overview.evaluation_share
    return [
        ("Parameters", numbers.count(overview.params)),
        ("Tokens", numbers.count(overview.tokens)),
        ("FLOPs", numbers.flops(overview.flops)),
        ("Wall time", numbers.duration(overview.wall_seconds)),
        ("Final loss", f"{loss:.3f}" if math.isfinite(loss) else numbers.UNKNOWN),
        ("Checkpoints", str(overview.checkpoints)),
        ("Time in scoring", f"{100 * share:.1f}%" if math.isfinite(share) else numbers.UNKNOWN),
        ("Restarts", str(overview.restarts)),
    ]


def _table_row(tables: Tables, row, several: bool) -> str:  # type: ignore[no-untyped-def]
    left = row.state in (analysis.LEFT, analysis.PROVISIONAL)
    when = summary.moment(row) if left else row.state
    run = f"<td>{_swatch(tables, row.run)}{escape(row.run)}</td>" if several else ""
    final = numbers.with_error(row.final, row.stderr, row.metric)
    chance = numbers.value(row.chance, row.metric)
    metric = numbers.metric_name(row.metric)
    values = (final, chance, when, metric, f"{row.n:,}", str(row.shots))
    cells = "".join(
        f"<td{_right(head in _NUMERIC)}>{escape(text)}</td>"
        for head, text in zip(_TABLE_HEAD, values, strict=True)
    )
    return f'<tr><th scope="row">{_name(row.task)}</th>{run}{cells}</tr>'


def _swatch(tables: Tables, run: str) -> str:
    if run not in tables.colour_of:
        return ""
    number = tables.series.index(tables.colour_of[run])
    return f'<i class="swatch" style="background:var(--series-{number % 8})"></i>'


def _name(name: str) -> str:
    """A task's name, which may break after an underscore where it must."""
    return escape(name).replace("_", "_<wbr>")


def _sentence(text: str) -> str:
    return f'<p class="sentence">{escape(text)}</p>' if text else ""


def _listed(texts: Sequence[str], kind: str, shown: int = _AT_A_GLANCE) -> str:
    """Sentences as a list; what is too much to read at a glance stands behind a click."""
    if not texts:
        return ""
    items = [f"<li>{escape(text)}</li>" for text in texts]
    first, rest = items[:shown], items[shown:]
    if len(rest) == 1:
        first, rest = items, []
    more = f'<ul class="{kind}">{"".join(rest)}</ul>' if rest else ""
    return f'<ul class="{kind}">{"".join(first)}</ul>' + (
        _folded(f"{len(rest)} more", more) if rest else ""
    )


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _warning(text: str) -> str:
    return f'<p class="warn">{escape(text)}</p>' if text else ""


def _scrolling(label: str, table: str) -> str:
    """A table that scrolls by itself where the page is narrower, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def _right(numeric: bool) -> str:
    return ' class="right"' if numeric else ""
