"""Configuration sections become frozen dataclasses here; every mistake is a one-line `ConfigError`.

A `ConfigDict` stops at this door. Below it, code receives hashable dataclasses that hold only the numbers it uses.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any


class ConfigError(ValueError):
    """A mistake of the user: the message is one line that names the field, the value, what is allowed and a way out."""


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not in `known`, with the closest match as the way out."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}{hint}")


def parse(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """Builds the frozen dataclass `cls` from a mapping.

    Args:
      cls: a dataclass; nested dataclasses, tuples, Literals, optionals and plain scalars are understood, and unions of
        dataclasses that each have a Literal field `name`, by which the section chooses. If `cls` itself is such a
        union, a section without `name` means its first member.
      values: the section's keys. Lists become tuples and integers are accepted where a float is asked for.
      path: where the section sits in the configuration ("model", "optim.players.critic"); used in messages.
    Returns:
      An instance of `cls`, hashable if its fields are.
    Raises:
      ConfigError: unknown, missing or ill-typed keys, or a relation that `cls.__post_init__` refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}={values!r} must be {_describe(cls)}")
    if isinstance(cls, types.UnionType):
        members = typing.get_args(cls)
        cls = _named(members, {"name": _name(members[0]), **values}, path)
    fields = _fields(cls)
    for key in values:
        if key not in fields:
            raise unknown("key", f"{path}.{key}" if path else key, [f"{path}.{f}" if path else f for f in fields])
    hints = typing.get_type_hints(cls)
    kwargs = {}
    for name, field in fields.items():
        where = f"{path}.{name}" if path else name
        if name in values:
            kwargs[name] = _convert(hints[name], values[name], where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where} is missing; it must be {_describe(hints[name])}")
    try:
        return cls(**kwargs)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _fields(cls: type) -> dict[str, dataclasses.Field]:
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in args)
    if hint is type(None):
        return "None"
    if origin is tuple:
        inner = args[0] if args else Any
        return f"a tuple of {_describe(inner)}" if args[-1:] == (...,) else f"a tuple of {len(args)} values"
    if dataclasses.is_dataclass(hint):
        return f"a section with keys {', '.join(_fields(hint))}"
    return getattr(hint, "__name__", str(hint))


def _named(classes: Iterable[type], value: Mapping[str, Any], where: str) -> type:
    """The one of several dataclasses whose field `name`, a Literal, allows the section's."""
    known = {_name(cls): cls for cls in classes}
    if "name" not in value:
        raise ConfigError(f"{where}.name is missing; it must be one of {', '.join(known)}")
    if value["name"] not in known:
        raise unknown(f"value of {where}.name", value["name"], known)
    return known[value["name"]]


def _name(cls: type) -> str:
    return typing.get_args(typing.get_type_hints(cls)["name"])[0]


def _convert(hint: Any, value: Any, where: str) -> Any:
    def refuse() -> ConfigError:
        text = hint is str or str in typing.get_args(hint)
        quoted = f", written \"'{value}'\"" if text and isinstance(value, (int, float)) else ""
        return ConfigError(f"{where}={value!r} has type {type(value).__name__}; it must be {_describe(hint)}{quoted}")

    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Literal:
        if any(value == a and type(value) is type(a) for a in args):
            return value
        raise unknown(f"value of {where}", value, map(str, args)) if isinstance(value, str) else refuse()
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        if len(inner) == 1 and dataclasses.is_dataclass(inner[0]):
            return _convert(inner[0], value, where)  # its own message says more
        if isinstance(value, Mapping) and all(map(dataclasses.is_dataclass, inner)):
            return _convert(_named(inner, value, where), value, where)
        for arg in inner:
            try:
                return _convert(arg, value, where)
            except ConfigError:
                continue
        raise refuse()
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else parse(hint, value, where)
    if origin is tuple or hint is tuple:
        if not isinstance(value, (list, tuple)):
            raise refuse()
        if args and args[-1] is not Ellipsis and len(args) != len(value):
            raise refuse()
        inner = (
            [args[0] if args[-1] is Ellipsis else args[i] for i in range(len(value))] if args else [Any] * len(value)
        )
        return tuple(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value)))
    if hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise refuse()
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise refuse()
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise refuse()
