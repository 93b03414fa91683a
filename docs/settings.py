"""Writes docs/settings.md from the config dataclasses: `python docs/settings.py`."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

from jaxllm.cli import CONFIG_MODULES

PAGE = Path(__file__).with_name("settings.md")
HEAD = """\
# Settings

Every field that gin can bind, as the dataclasses state it (`python docs/settings.py` writes this
page). Set one with `--gin.CLASS.FIELD=VALUE` or in a gin file; a run file's macros (`MODEL_DIR`,
`TRAIN_STEPS`, … in `gin/runs/base.gin`) stand for what every run sets. A misspelt
name is answered with the nearest, a value of another type with what the field takes.

"""


def configs() -> list[type]:
    """The dataclasses that gin may bind, in the order of their modules."""
    found = []
    for name in CONFIG_MODULES:
        module = importlib.import_module(name)
        for value in vars(module).values():
            ours = inspect.isclass(value) and value.__module__ == name
            if ours and dataclasses.is_dataclass(value) and hasattr(value.__init__, "__wrapped__"):
                found.append(value)
    return found


def page() -> str:
    """The page as it should be."""
    return HEAD + "\n".join(section(config) for config in configs())


def section(config: type) -> str:
    """A config: what it is, and a row per field."""
    said = (inspect.getdoc(config) or "").partition("\n\nAttributes:")[0]
    meanings: dict[str, str] = {}
    for ancestor in reversed(config.__mro__):
        meanings |= attributes(inspect.getdoc(ancestor) or "")
    rows = [f"## {config.__name__}", "", said, "", "| field | default | |", "| --- | --- | --- |"]
    for field in dataclasses.fields(config):
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        meaning = meanings[field.name].replace("|", "\\|")
        rows.append(f"| `{field.name}` | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def attributes(docstring: str) -> dict[str, str]:
    """The text of each entry of a docstring's `Attributes:`."""
    lines = docstring.partition("\nAttributes:\n")[2].splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        begins = re.match(r"  (\w+(?:, \w+)*): (.*)", line)
        if begins:
            names = begins[1].split(", ")
            found |= dict.fromkeys(names, begins[2])
        elif line.startswith("    ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return found


if __name__ == "__main__":
    PAGE.write_text(page())
