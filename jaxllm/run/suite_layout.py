"""The layout of a suite's directory; each run in it has the layout of any run."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from etils import epath

from jaxllm.errors import UserError
from jaxllm.io import is_remote
from jaxllm.run.run import Run


class Declared(NamedTuple):
    """The runs of a suite, as they were begun."""

    runs: dict[str, dict[str, Any]]  # name -> its settings
    rule: str = "deepseek"  # SuiteConfig.rule


class SuiteLayout:
    """The paths of one suite."""

    def __init__(self, directory: epath.PathLike) -> None:
        root = self.root = epath.Path(directory)
        self.runs_file = root / "suite.json"  # its runs with their settings
        self.gin_file = root / "suite.gin"  # of a swarm of mixtures: what defines it
        self.proposal = root / "proposal.gin"  # the mixture that it proposes; with proposal.json
        self.check = root / "check"  # the suite that trains the proposal
        self.stacks = root / "stacks"
        # what runs print stays on this machine
        self.logs = epath.Path("suite_logs") / root.name if is_remote(root) else root / "logs"

    def run(self, name: str) -> epath.Path:
        """The directory of a run."""
        return self.root / name

    def declared(self) -> Declared | None:
        """What suite.json says, or None where there is none; UserError if it is damaged."""
        if not self.runs_file.exists():
            return None
        try:
            said = Declared(**json.loads(self.runs_file.read_text()))
            if all(isinstance(one, dict) for one in said.runs.values()):
                return said
        except (ValueError, TypeError, AttributeError):
            pass
        raise UserError(
            f"{self.runs_file} is damaged: the command that trained the suite writes it again, "
            "once it is removed"
        )


def runs_in(directory: epath.PathLike) -> list[Run]:
    """The begun runs of a suite's directory, or the run that it is; UserError if there are none."""
    layout = SuiteLayout(directory)
    if (suite := layout.declared()) is None:
        return [Run.open(directory)]
    runs = [Run(layout.run(name)) for name in suite.runs]
    begun = [run for run in runs if run.path.exists() and run.entries()]
    if not begun:
        raise UserError(f"{directory}: no run of this suite has begun")
    return begun
