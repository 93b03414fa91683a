"""What a suite trains at once: a run, or a stack of runs of equal shapes in one program."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from jaxllm.suites.design import Member


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """Runs that train in one process; several are a stack, see `jaxllm.training.stacked`."""

    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """Of a run: its own; of a stack: its first run's, and how many more there are."""
        more = len(self.members) - 1
        return self.members[0].name + (f"-and-{more}-more" if more else "")

    @property
    def runs(self) -> set[str]:
        """The names of its runs."""
        return {one.name for one in self.members}

    @property
    def parents(self) -> set[str]:
        """The runs of which its own are branches."""
        return {one.parent for one in self.members if one.parent}


def jobs(members: Sequence[Member], size: int) -> list[Job]:
    """Group all runs of a suite, trained or not, into stacks of up to `size`, in its order."""
    groups: dict[str, list[Member]] = {}
    for number, one in enumerate(members):
        groups.setdefault(_alike(one) if size > 1 else str(number), []).append(one)
    found = [
        Job(tuple(group[first : first + size]))
        for group in groups.values()
        for first in range(0, len(group), size)
    ]
    return sorted(found, key=lambda job: members.index(job.members[0]))


def _alike(member: Member) -> str:
    from jaxllm.training.stacked import ALONE, shared_settings  # loads the reading of data

    if any(getattr(member.experiment.train, name) for name in ALONE):
        return member.name
    scoring = {name: v for name, v in member.bindings.items() if name.startswith(("Eval", "EVAL_"))}
    shared = shared_settings(member.experiment)
    return json.dumps([member.begin, shared, scoring], default=repr)
