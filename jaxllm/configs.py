"""Config dataclasses: fields bound by gin, values checked against their types and ranges.

Gin accepts any value for any field, and command-line text that it cannot parse becomes a string:
without this check `run_code=no` would be the string 'no', which is truthy.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import gin

from jaxllm.errors import UserError, nearest

PositiveInt = Annotated[int, "> 0"]
NonNegativeInt = Annotated[int, ">= 0"]
PositiveFloat = Annotated[float, "> 0"]
NonNegativeFloat = Annotated[float, ">= 0"]
Fraction = Annotated[float, ">= 0 and < 1"]

_Config = TypeVar("_Config")

_RANGES: Mapping[str, Callable[[float], bool]] = {
    "> 0": lambda value: value > 0,
    ">= 0": lambda value: value >= 0,
    ">= 0 and < 1": lambda value: 0 <= value < 1,
}
_NAMES: Mapping[Any, str] = {
    bool: "True or False", int: "a whole number", float: "a finite number", str: "text",
    type(None): "None", Any: "any value",
}  # fmt: skip
_UNFIT = object()
_UNIONS = (types.UnionType, typing.Union)  # the second where a part is a Literal or Annotated


def configurable(cls: type[_Config]) -> type[_Config]:
    """Make a dataclass gin-configurable, with checked values (see `checked`)."""
    return gin.configurable(checked(cls))


def checked(cls: type[_Config]) -> type[_Config]:
    """Check a dataclass's fields against their annotations, before `__post_init__`; UserError.

    An int is accepted as a float, a list as a tuple, a string as a tuple of strings (split at
    commas) and a mapping of fields as a dataclass.
    """
    build = cls.__init__
    signature = inspect.signature(build)

    @functools.wraps(build)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        hints = typing.get_type_hints(cls, include_extras=True)
        for name, value in list(bound.arguments.items())[1:]:
            bound.arguments[name] = _checked(f"{cls.__name__}.{name}", value, hints[name])
        build(*bound.args, **bound.kwargs)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


def saved_bindings() -> Callable[[], None]:
    """A function that binds again what gin binds now, and nothing else; quicker than parsing."""
    saved = {key: dict(values) for key, values in gin.config._CONFIG.items()}

    def restore() -> None:
        gin.clear_config()
        gin.config._CONFIG.update({key: dict(values) for key, values in saved.items()})

    return restore


def non_defaults(config: Any) -> dict[str, Any]:
    """Fields of a config that differ from their defaults; nested configs become mappings."""
    return {
        field.name: non_defaults(value) if dataclasses.is_dataclass(value) else value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
    }


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` converted to the annotation `hint` of field `name`; UserError if it does not fit."""
    none = isinstance(value, str) and value.lower() in ("none", "null")
    if none and type(None) in typing.get_args(hint):  # which a field of text would take as a name
        raise UserError(f"{name} = {value!r}: must be {_described(hint)}; write None")
    if (fitted := _fit(value, hint)) is _UNFIT:
        raise UserError(f"{name} = {value!r}: must be {_described(hint)}")
    return fitted


def _fit(value: Any, hint: Any) -> Any:
    """`value` converted to type `hint`, or `_UNFIT`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return next((f for part in args if (f := _fit(value, part)) is not _UNFIT), _UNFIT)
    if origin is Annotated:
        fitted = _fit(value, args[0])
        return fitted if fitted is not _UNFIT and _RANGES[args[1]](fitted) else _UNFIT
    if origin is typing.Literal:
        return value if isinstance(value, str) and value in args else _UNFIT
    if origin is tuple:
        if isinstance(value, str) and args == (str, ...):
            value = [word for word in value.split(",") if word]
        if not isinstance(value, (tuple, list)):
            return _UNFIT
        hints = args if args[-1] is not ... else args[:1] * len(value)
        if len(value) != len(hints):
            return _UNFIT
        fitted = tuple(map(_fit_item, itertools.count(1), value, hints))
        return _UNFIT if _UNFIT in fitted else fitted
    if origin is Mapping:
        if not isinstance(value, Mapping):
            return _UNFIT
        items = [tuple(map(_fit, item, args)) for item in value.items()]
        return dict(items) if not any(_UNFIT in item for item in items) else _UNFIT
    if isinstance(value, Mapping) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
        names = [field.name for field in dataclasses.fields(hint)]
        for name in set(value) - set(names):
            wrong = f"{hint.__name__} has no field {name!r}{nearest(str(name), names)}"
            raise UserError(f"{wrong}; it has {', '.join(names)}")
        return hint(**value)
    elif isinstance(value, bool):
        fits = hint is bool
    elif hint is float:
        fits = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    else:
        fits = hint is Any or isinstance(value, hint)
    return value if fits else _UNFIT


def _fit_item(number: int, value: Any, hint: Any) -> Any:
    """`_fit` of an item of a tuple, whose number an error names."""
    try:
        return _fit(value, hint)
    except UserError as error:
        raise UserError(f"item {number}: {error}") from error


def _described(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return " or ".join(_described(part) for part in args)
    if origin is Annotated:
        return f"{_described(args[0])} {args[1]}"
    if origin is typing.Literal:
        return " or ".join(map(repr, args))
    if origin is tuple:
        return f"a tuple, ({', '.join('…' if p is ... else _described(p) for p in args)})"
    if origin is Mapping:
        return f"a mapping, {{'name': {_described(args[1])}}}"
    if hint not in _NAMES and not gin.config._REGISTRY.matching_selectors(hint.__name__):
        return f"a mapping with {', '.join(field.name for field in dataclasses.fields(hint))}"
    return _NAMES.get(hint) or f"a {hint.__name__}, @{hint.__name__}()"
