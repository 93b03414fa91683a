"""The settings in which runs differ, and the runs that differ in their seed alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from jaxllm.report.numbers import UNKNOWN

# Name a run, and set nothing.
_NAMES = ("TrainConfig.model_dir", "TrainConfig.family")
_LONGEST = 48  # letters of a value


def differences(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Of each run, the settings that differ between the runs: name -> value as text.

    `settings` are those of `Run.settings`, none of a run without a config. A mixture is a setting
    for each domain, its share. A dash stands for what a config does not bind.
    """
    flat = {run: _flat(own) for run, own in settings.items()}
    configs = [own for own in flat.values() if own]
    names = dict.fromkeys(itertools.chain.from_iterable(configs))
    differing = [name for name in names if len({repr(own.get(name)) for own in configs}) > 1]

    def text(value: Any) -> str:
        written, half = str(value), _LONGEST // 2
        return written if len(written) <= _LONGEST else f"{written[:half]}…{written[-half:]}"

    return {
        run: {name: text(own.get(name, UNKNOWN)) for name in differing} for run, own in flat.items()
    }


def seeds(settings: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Groups of two or more runs whose settings are equal but for the seed, and a branch's parent.

    The step at which a branch left it counts. Of runs of one seed, as a run and its averages, the
    first is in the group.
    """
    groups: dict[str, dict[str, str]] = {}
    for run, own in settings.items():
        rest = _flat(own)
        seed = repr({name: rest.pop(name) for name in sorted(rest) if name.endswith("seed")})
        if parent := rest.get("TrainConfig.branch_from"):
            rest["TrainConfig.branch_from"] = str(parent).rpartition("@")[2]
        if rest:
            groups.setdefault(repr(sorted(rest.items())), {}).setdefault(seed, run)
    return [list(runs.values()) for runs in groups.values() if len(runs) > 1]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without macros and the names of runs, with a mixture by domain."""
    own = {name: value for name, value in settings.items() if "." in name and name not in _NAMES}
    weights = own.get("DataConfig.weights")
    if isinstance(weights, Mapping) and (total := sum(weights.values())):
        del own["DataConfig.weights"]
        own |= {f"share of {name}": f"{100 * w / total:.6g}%" for name, w in weights.items()}
    return own
