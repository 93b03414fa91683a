"""The layout of a suite's directory; each run in it has the layout of any run."""

from __future__ import annotations

import json

from etils import epath

from jaxllm.errors import UserError
from jaxllm.io import is_remote
from jaxllm.run.run import Run


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


def runs_in(directory: epath.PathLike) -> list[Run]:
    """The begun runs of a suite's directory, or the run that `directory` is.

    Raises:
      UserError: it is neither, or no run of the suite has begun.
    """
    layout = SuiteLayout(directory)
    if not layout.runs_file.exists():
        return [Run.open(directory)]
    names = json.loads(layout.runs_file.read_text())["runs"]
    runs = [Run(layout.run(name)) for name in names]
    begun = [run for run in runs if run.path.exists() and run.entries()]
    if not begun:
        raise UserError(f"{directory}: no run of this suite has begun")
    return begun
