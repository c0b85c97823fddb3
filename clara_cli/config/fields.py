"""What a config field is, and how recipes fill it.

A field is one typed line with its doc; that doc is `--help` and the recipe's reference. Kinds:
`argument` (positional), `option` (a flag), `setting` (recipe and `--set` only). Recipes are TOML
files of a config's fields; unknown keys are refused. Knows no command.
"""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, TypeVar

from clara_cli.errors import UsageError, nearest
from clara_cli.storage.toml_files import parse_toml, read_toml

Config = TypeVar("Config")
_LARGEST = 2**63

INPUT, MODEL, OUTPUT, METHOD, MACHINE = "Input", "Model", "Output", "Method", "Machine"


def _field(
    kind: str, doc: str, default: Any, panel: str, flag: str | None = None, low: float | None = None
) -> Any:
    metadata = {"kind": kind, "doc": doc, "panel": panel, "flag": flag, "low": low}
    if isinstance(default, (list, tuple)):
        return field(default=tuple(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def argument(doc: str, default: Any = dataclasses.MISSING) -> Any:
    """A positional argument."""
    return _field("argument", doc, default, INPUT)


def option(
    doc: str,
    default: Any = dataclasses.MISSING,
    panel: str = METHOD,
    flag: str | None = None,
    low: float | None = None,
) -> Any:
    """A command-line flag, named after the field unless `flag` says otherwise; `low` is the least
    value accepted."""
    return _field("option", doc, default, panel, flag, low)


def setting(doc: str, default: Any, low: float | None = None) -> Any:
    """A value for recipes and `--set key=value`, without a flag of its own."""
    return _field("setting", doc, default, METHOD, None, low)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A value that recipes and `--set` give: its name, type, default (as TOML writes it; none:
    "none"), least value and doc."""

    name: str
    type: str
    default: str
    low: float | None
    doc: str


def settings_of(config: type) -> list[Setting]:
    """The settings of a config, in the order it has them."""
    hints = typing.get_type_hints(config)
    return [
        Setting(f.name, _type_name(hints[f.name]), _toml(f.default), f.metadata["low"],
                f.metadata["doc"])
        for f in dataclasses.fields(config)
        if f.metadata["kind"] == "setting"
    ]  # fmt: skip


def _type_name(hint: Any) -> str:
    """A type in words a recipe's writer knows."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (types.UnionType, typing.Union):
        return " | ".join("none" if a is type(None) else _type_name(a) for a in args)
    if origin is tuple:
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return f"table of {_type_name(args[1])}"
    names = {int: "whole number", float: "number", bool: "true | false", str: "text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def flag_name(f: dataclasses.Field) -> str:
    """How a user writes this field."""
    if f.metadata["kind"] == "option":
        return f.metadata["flag"] or "--" + f.name.replace("_", "-")
    return f.name


def with_recipe(config: Config, explicit: frozenset[str] = frozenset()) -> Config:
    """Apply a config's own `recipe` and `set` fields. Order of authority, lowest first: defaults,
    recipe, fields given explicitly on the command line (`explicit`), `--set`."""
    values: dict[str, Any] = {}
    recipe = getattr(config, "recipe", None)
    if recipe is not None:
        values.update(_checked(type(config), read_recipe(recipe), str(recipe)))
    values = {key: value for key, value in values.items() if key not in explicit}
    values.update(_checked(type(config), parse_sets(getattr(config, "set", ())), "--set"))
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def read_recipe(path: Path) -> dict[str, Any]:
    """The fields of a TOML recipe."""
    try:
        return read_toml(path)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", "give --recipe the path of a .toml file"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{path}: not a TOML recipe: {error}", "lines look like: learning_rate = 1e-4"
        ) from error


def parse_sets(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`key=value` strings; a value is read as TOML where it is TOML, else taken as a string."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, raw = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: no '='", "write --set learning_rate=1e-4")
        try:
            values[key.strip()] = parse_toml(f"value = {raw}")["value"]
        except ValueError:
            values[key.strip()] = raw
    return values


def _checked(cls: type, values: dict[str, Any], source: str) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    fields_by_name = {
        f.name: f
        for f in dataclasses.fields(cls)
        if f.metadata["kind"] != "argument" and f.name not in ("recipe", "set")
    }
    checked = {}
    for key, value in values.items():
        if key not in fields_by_name:
            raise UsageError(f"{source}: unknown setting {key!r}", nearest(key, fields_by_name))
        checked[key] = _convert(hints[key], value, f"{source}: {key}")
    return checked


def _convert(hint: Any, value: Any, where: str) -> Any:
    """A TOML value as the field's type, or one clear error."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        raise UsageError(f"{where} is {value!r}", f"one of {', '.join(map(str, args))}")
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "none":
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{where} is {value!r}", "expected a table: {name = value}")
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(args[0], item, where) for item in items)
    if isinstance(value, int | float) and not abs(value) < _LARGEST:
        hint = f"give a finite number below {_LARGEST:.1g}"
        raise UsageError(f"{where} is {reprlib.repr(value)}", hint)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and type(value) is str:
        return Path(value)
    if type(value) is not hint:
        raise UsageError(f"{where} is {value!r}", f"expected {getattr(hint, '__name__', hint)}")
    return value
