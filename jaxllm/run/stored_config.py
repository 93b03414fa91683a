"""Gin files of strangers, read as data, without running code from them.

A gin file may import modules and call registered functions, and some of our fields name code. The
config.gin of a run directory may come from anywhere: it may only bind macros and our configs. So
may, with `--safe_gin`, every gin file, which may also include others.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import zlib
from typing import Any

from etils import epath

from jaxllm.errors import UserError
from jaxllm.run.layout import Layout

_SUM = "# CRC-32: "
# Fields that run code (modules that are not jaxllm's own, programs that a model writes) or tell
# others, with the value that does not. Only the command line can grant them, not the run directory.
_PERMISSIONS: dict[str, Any] = {
    "DataConfig.modules": (), "EvalConfig.modules": ("jaxllm.evals",),
    "EvalConfig.run_code": False, "AlarmConfig.command": None, "AlarmConfig.url": None,
}  # fmt: skip


def parse(model_dir: str) -> None:
    """Bind the settings of MODEL_DIR/config.gin; UserError if there is none, or it does more."""
    import gin

    path = Layout(model_dir).config
    if not path.exists():
        raise UserError(f"{model_dir} is no run: it has no config.gin")
    read(path)
    gin.parse_config(checked(path))
    withdraw_permissions(str(path), "a run directory")


def with_checksum(text: str) -> str:
    """The text of a config.gin with its CRC-32 in a comment at its end."""
    return f"{text}{_SUM}{zlib.crc32(text.encode())}\n"


def readable(path: epath.Path) -> tuple[str, tuple[str, ...]]:
    """As `read`, but empty if it is damaged, with the problem in a line."""
    try:
        return read(path), ()
    except UserError as problem:
        return "", (str(problem),)


def read(path: epath.Path) -> str:
    """The text of a config.gin; empty if there is none, UserError if its CRC-32 is of another."""
    content = path.read_bytes() if path.exists() else b""
    text, found, rest = content.partition(_SUM.encode())
    crc, _, added = rest.partition(b"\n")
    if found and crc != b"%d" % zlib.crc32(text):
        raise UserError(
            f"{path} is damaged, or edited: if it is right, remove its line {_SUM.strip()}"
        )
    return (text + added).decode(errors="replace")


def checked(path: epath.Path, includes: bool = False) -> io.StringIO:
    """The text of a gin file that only binds macros and our configs, or includes others.

    UserError if it does more, or is not gin.
    """
    try:
        text = path.read_text()
        _check(text, str(path), includes)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text ({error})") from error
    except (SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        place = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{path}{place} is not gin: {error.args[0]}") from error
    return _named(text, str(path))


def withdraw_permissions(origin: str, kind: str) -> None:
    """Unset the permissions that are bound so far, in any scope, and report each."""
    import gin

    for (scope, selector), fields in list(gin.config._CONFIG.items()):
        for field, value in list(fields.items()):
            name = f"{selector.rpartition('.')[2]}.{field}"
            names = value if isinstance(value, tuple) else ("",)
            ours = all(re.fullmatch(r"jaxllm(\.\w+)+", str(module)) for module in names)
            if name not in _PERMISSIONS or not value or value == _PERMISSIONS[name] or ours:
                continue
            gin.bind_parameter((scope, selector, field), _PERMISSIONS[name])
            print(
                f"{origin} sets {name} = {value!r}, which is not taken from {kind}: "
                f"where you trust it, say so with --gin.{name}=…",
                file=sys.stderr,
            )


def changes(before: str, after: str) -> list[str]:
    """The bindings that differ between two configs, as 'a.b = 2 (was 1)'."""
    old, new = _bindings(before), _bindings(after)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{n} = {new.get(n, 'its default')} (was {old.get(n, 'its default')})" for n in names]


def settings(text: str) -> dict[str, Any]:
    """The values that a config binds; of a macro, the macro's. None of a damaged config."""
    try:
        values = {name: ast.literal_eval(value) for name, value in _bindings(text).items()}
    except (SyntaxError, ValueError, tokenize.TokenError):
        return {}
    known = {name: value for name, value in values.items() if "." not in name}
    return {n: known.get(v, v) if isinstance(v, str) else v for n, v in values.items()}


def mixture(text: str) -> dict[str, float]:
    """Domain -> share by DataConfig.weights; empty for none, for stages, or a damaged config."""
    known = settings(text)
    weights = {} if known.get("TrainConfig.stages") else known.get("DataConfig.weights") or {}
    return {name: share / sum(weights.values()) for name, share in weights.items()}


class References:
    """A delegate of gin's parser that records references, without look-ups or calls."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def configurable_reference(self, name: str, evaluate: bool) -> str:
        """Record `@scope/name`."""
        self.names.append(name.rsplit("/", 1)[-1])
        return name

    def macro(self, name: str) -> str:
        """Accept `%name`."""
        return name


def _bindings(text: str) -> dict[str, str]:
    from gin import config_parser

    statements = config_parser.ConfigParser(text, References())
    named = [s for s in statements if isinstance(s, config_parser.BindingStatement)]
    return {".".join(filter(None, (s.selector, s.arg_name))): repr(s.value) for s in named}


def _check(text: str, path: str, includes: bool) -> None:
    """Raise UserError at the first statement that does more than bind our configs, or include."""
    from gin import config_parser

    references = References()
    for statement in config_parser.ConfigParser(_named(text, path), references):
        used = list(references.names)
        references.names.clear()
        if isinstance(statement, config_parser.ImportStatement):
            does = f"imports {statement.module}"
        elif isinstance(statement, config_parser.IncludeStatement):
            does = "" if includes else f"includes {statement.filename}"
        else:
            if isinstance(statement, config_parser.BlockDeclaration) or statement.arg_name:
                used.append(statement.selector)
            foreign = [name for name in used if not _is_ours(name)]
            does = f"names {foreign[0]}" if foreign else ""
        if does:
            raise UserError(
                f"{path}, line {statement.location.line_num} {does}: "
                f"{'with --safe_gin, a file' if includes else 'the config of a run is data, and'} "
                "may only bind macros and our own configs; take the line out, or give what you "
                f"trust of it with --gin{'.NAME=VALUE' if includes else '_file'}"
            )


def _is_ours(name: str) -> bool:
    import gin

    matches = gin.config._REGISTRY.matching_selectors(name)
    return bool(matches) and all(match.startswith("jaxllm.") for match in matches)


def _named(text: str, name: str) -> io.StringIO:
    """A text stream with the name that gin's errors state."""
    stream = io.StringIO(text)
    stream.name = name
    return stream
