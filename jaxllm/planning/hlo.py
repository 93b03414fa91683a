"""Bytes that a compiled program sends over the links, from its HLO text."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
CROSS_SLICE = [-1]  # stands for a group of one device per slice
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(
    r"(?:calls|body|to_apply|branch_computations)=\{?%?([\w.\-]+(?:, ?%[\w.\-]+)*)"
)


class Traffic(NamedTuple):
    """Traffic of one kind of collective over one kind of link, per device and step: in a group of n
    each device sends (n - 1) / n of the whole array, twice that in an all-reduce, all in a permute.
    """

    kind: str  # one of `_KINDS`
    link: str  # 'ici' within a slice, 'dcn' between slices
    calls: int
    bytes: float  # sent


def traffic(text: str, devices_per_slice: int, num_slices: int = 1) -> tuple[Traffic, ...]:
    """Sum the collectives of `compiled.as_text()`, with loops multiplied by their trip counts.

    A group that spans slices is on the 'dcn'; HLO does not name those of sends between TPU slices.
    """
    computations, entry = _computations(text)
    trip_counts = _trip_counts(computations, entry)
    found: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    seen = set[tuple[str, str]]()
    for name, lines in computations.items():
        for line in lines:
            collective = _collective(line)
            if collective is None or not trip_counts[name]:
                continue
            kind, size, group = collective
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # on TPUs, an all-reduce fused with a slice
            channel = re.search(r"channel_id=\d+", line)
            if channel and (kind, channel[0]) in seen:  # repeated in parts of an async one
                continue
            seen.add((kind, channel[0] if channel else ""))
            members = num_slices if group == CROSS_SLICE else len(group)
            if members < 2:
                continue
            share = (members - 1) / members
            shares = {"all-reduce": 2 * share, "collective-permute": 1}
            several = len({member // devices_per_slice for member in group}) > 1
            sums = found[kind, "dcn" if several or group == CROSS_SLICE else "ici"]
            sums[0] += trip_counts[name]
            sums[1] += trip_counts[name] * (size * shares.get(kind, share))
    return tuple(
        Traffic(kind, link, int(count), size)
        for (kind, link), (count, size) in sorted(found.items())
    )


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Instructions of every computation, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        opened = _COMPUTATION.match(line)
        if opened:
            current = opened[2]
            computations[current] = []
            entry = current if opened[1] else entry
        elif line.rstrip() == "}":  # lines of a kernel's metadata begin with a brace, too
            current = ""
        elif current:
            computations[current].append(line)
    return computations, entry


def _trip_counts(computations: Mapping[str, list[str]], entry: str) -> Mapping[str, int]:
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, lines in computations.items():
        for line in lines:
            called = _CALLED.search(line)
            if not called:
                continue
            trips = _trip_count(line, computations) if " while(" in line else 1
            for other in re.findall(r"[\w.\-]+", called[1]):
                calls[name].append((other, trips))
    trip_counts: dict[str, int] = defaultdict(int)
    pending = [(entry, 1)]
    while pending:
        name, factor = pending.pop()
        trip_counts[name] += factor
        pending += [(other, factor * trips) for other, trips in calls[name]]
    return trip_counts


def _trip_count(line: str, computations: Mapping[str, list[str]]) -> int:
    """Trip count of a loop: the compiler's, or the bound of its counter (`lax.scan`'s, from 0)."""
    known = re.search(r'known_trip_count[^0-9]*"?n"?:"?(\d+)', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    lines = computations.get(condition[1], []) if condition else []
    bounds = re.findall(r"s32\[\][^=]* constant\((\d+)\)", "\n".join(lines))
    return int(bounds[0]) if len(bounds) == 1 else 1


def _collective(line: str) -> tuple[str, float, list[int]] | None:
    """Kind, bytes of the whole array and first device group of a collective; None for others."""
    instruction = _INSTRUCTION.match(line)
    if not instruction:
        return None
    rest = instruction[2]
    between = re.search(r' send\(.*_xla_megascale_transfer_type="([A-Z_]+)"', rest)
    if between:
        kind = between[1].lower().replace("_", "-")
        return kind, _shapes(rest[: between.start()])[0], CROSS_SLICE
    for kind in _KINDS:
        place = re.search(rf" {kind}(-start)?\(", rest)
        if place:
            break
    else:
        return None
    shapes = _shapes(rest[: place.start()])
    if place[1] and kind in ("all-gather", "collective-permute"):
        shapes = shapes[len(shapes) // 2 :]  # a start lists operands, then results
    size = math.fsum(shapes)
    group = _first_group(rest)
    if kind == "reduce-scatter":
        size *= len(group)  # its result is one shard
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest)
        group = [int(pairs[1]), int(pairs[2])] if pairs else [0, 1]
    return kind, size, group


def _shapes(text: str) -> list[float]:
    """Bytes of each array in an HLO type such as (f32[4,2]{1,0}, bf16[8])."""
    sizes = []
    for dtype, dims in re.findall(r"([a-z]+\d*\w*)\[([\d,]*)\]", text):
        width = _BYTES.get(dtype) or int(re.sub(r"\D", "", dtype)[:2] or 8) / 8
        sizes.append(width * math.prod(int(d) for d in dims.split(",") if d))
    return sizes


def _first_group(text: str) -> list[int]:
    """Devices of the first replica group, in any of HLO's three notations."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    if listed:
        return [int(n) for n in listed[1].split(",")]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        groups, shape, order = (
            [int(n) for n in sizes.split(",") if n] for sizes in iota.groups(default="")
        )
        ids = np.arange(math.prod(shape)).reshape(shape)
        return (ids.transpose(order) if order else ids).reshape(groups)[0].tolist()
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", text)
    if mesh:
        sizes = {n: int(s) for n, s in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        grid = np.arange(math.prod(sizes.values())).reshape(*sizes.values())
        axes = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", mesh[3])]
        first = np.moveaxis(grid, axes, range(len(axes)))
        return first.reshape(math.prod(grid.shape[a] for a in axes), -1)[:, 0].tolist()
    return []


def total(found: Iterable[Traffic], link: str) -> float:
    """Bytes sent per device and step over one kind of link."""
    return math.fsum(t.bytes for t in found if t.link == link)
