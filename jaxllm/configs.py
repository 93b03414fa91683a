"""Config dataclasses: fields bound by gin, values checked against their types.

Gin accepts any value for any field, and command-line text that it cannot parse becomes a string:
without this check `run_code=false` would be the string 'false', which is truthy.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import gin

from jaxllm.errors import UserError

_Config = TypeVar("_Config")

# Other spellings of Python's and gin's literals.
_WORDS: Mapping[str, bool | None] = {
    "true": True, "yes": True, "on": True, "false": False, "no": False, "off": False,
    "none": None, "null": None,
}  # fmt: skip
_NAMES: Mapping[Any, str] = {
    bool: "True or False", int: "a whole number", float: "a finite number", str: "text",
    type(None): "None",
}  # fmt: skip
_UNFIT = object()
_UNIONS = (types.UnionType, typing.Union)  # the second where a part is a Literal


def configurable(cls: type[_Config]) -> type[_Config]:
    """Make a dataclass gin-configurable, with checked values (see `checked`)."""
    return gin.configurable(checked(cls))


def checked(cls: type[_Config]) -> type[_Config]:
    """Check the values of a dataclass's fields against their annotations, on instantiation.

    An int is accepted as a float, a list as a tuple, a string as a tuple of strings (split at
    commas) and a mapping of fields as a dataclass. Checks run before `__post_init__`.

    Raises:
      UserError: on instantiation with a value that does not fit its field.
    """
    build = cls.__init__
    signature = inspect.signature(build)

    @functools.wraps(build)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        hints = typing.get_type_hints(cls)
        for name, value in list(given.arguments.items())[1:]:
            given.arguments[name] = _checked(f"{cls.__name__}.{name}", value, hints[name])
        build(*given.args, **given.kwargs)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


def non_defaults(config: Any) -> dict[str, Any]:
    """Fields of a config that differ from their defaults; nested configs become mappings."""
    return {
        field.name: non_defaults(value) if dataclasses.is_dataclass(value) else value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
    }


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` converted to the annotation `hint` of field `name`.

    Raises:
      UserError: the value does not fit.
    """
    fitted = _UNFIT if _meant(value, hint) else _fit(value, hint)
    if fitted is _UNFIT:
        raise UserError(f"{name} = {value!r}: must be {_wanted(hint)}{_instead(value, hint)}")
    return fitted


def _fit(value: Any, hint: Any) -> Any:
    """`value` converted to type `hint`, or `_UNFIT`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return next((f for part in parts if (f := _fit(value, part)) is not _UNFIT), _UNFIT)
    if origin is typing.Literal:
        return value if isinstance(value, str) and value in parts else _UNFIT
    if origin is tuple:
        if isinstance(value, str) and parts == (str, ...):
            value = [word for word in value.split(",") if word]
        if not isinstance(value, (tuple, list)):
            return _UNFIT
        hints = parts if parts[-1] is not ... else parts[:1] * len(value)
        fitted = tuple(map(_fit, value, hints))
        return fitted if len(value) == len(hints) and _UNFIT not in fitted else _UNFIT
    if origin is Mapping:
        fits = isinstance(value, Mapping) and not any(
            _fit(part, part_hint) is _UNFIT
            for item in value.items()
            for part, part_hint in zip(item, parts, strict=True)
        )
    elif isinstance(value, Mapping) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
        names = [field.name for field in dataclasses.fields(hint)]
        for name in set(value) - set(names):
            raise UserError(f"{hint.__name__} has no field {name!r}; it has {', '.join(names)}")
        return hint(**value)
    elif isinstance(value, bool):
        fits = hint is bool
    elif hint is float:
        fits = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    else:
        fits = isinstance(value, hint)
    return value if fits else _UNFIT


def _meant(value: Any, hint: Any) -> str:
    """The literal to write for a word of `_WORDS`; empty for other values and pure text fields.

    A field that takes both a string and the literal refuses the word, too.
    """
    if not isinstance(value, str) or value.lower() not in _WORDS:
        return ""
    meant, allowed = _WORDS[value.lower()], typing.get_args(hint) or (hint,)
    if meant is not None and bool in allowed:
        return str(meant)
    if meant is not True and type(None) in allowed:
        return "None"
    return "()" if meant is not True and typing.get_origin(hint) is tuple else ""


def _wanted(hint: Any) -> str:
    """Description of the values of type `hint`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return " or ".join(_wanted(part) for part in parts)
    if origin is typing.Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        return f"a tuple, ({', '.join('…' if p is ... else _wanted(p) for p in parts)})"
    if origin is Mapping:
        return f"a mapping, {{'name': {_wanted(parts[1])}}}"
    return _NAMES.get(hint) or f"a {hint.__name__}, @{hint.__name__}()"


def _instead(value: Any, hint: Any) -> str:
    """Suggested replacement of `value`; empty where there is none."""
    allowed = typing.get_args(hint) or (hint,)
    if _meant(value, hint):
        return f"; write {_meant(value, hint)}"
    if isinstance(value, float) and int in allowed and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(value, (bool, int, float)) and str in allowed:
        return f"; write '{value}' with its quotes (in a shell \"'{value}'\")"
    return ""
