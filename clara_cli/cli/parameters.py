"""Config dataclasses as the arguments and options of Typer commands."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

from clara_cli.config import Common
from clara_cli.config.fields import (
    INPUT,
    MACHINE,
    METHOD,
    MODEL,
    OUTPUT,
    Setting,
    flag_name,
    settings_of,
)

PANELS = (INPUT, MODEL, METHOD, OUTPUT, MACHINE)  # in the order help shows them

SHARED = {  # flags of every command that are the terminal's business, not the command's
    "json": (OUTPUT, "Print the result as one JSON object, the last line of stdout."),
    "quiet": (OUTPUT, "Print results, warnings and errors, nothing else."),
    "show_config": (MACHINE, "Print every option, its value and where that is from, and stop."),
    "traceback": (MACHINE, "Show where an error came from; so does CLARA_TRACEBACK=1."),
}


LIST_SETTINGS = "list_settings"


def parameters(
    config: type[Common], show_settings: Callable[[typer.Context, list[Setting]], None]
) -> list[inspect.Parameter]:
    """A config's arguments and options as the parameters of a Typer command, in help's order; of
    one with settings, the flag that has them shown as well."""
    hints = typing.get_type_hints(config)
    fields = [f for f in dataclasses.fields(config) if f.metadata["kind"] != "setting"]
    placed = [(f.metadata["panel"], _parameter(f, hints[f.name])) for f in fields]
    for name, (panel, doc) in SHARED.items():
        flag = typer.Option("--" + name.replace("_", "-"), help=doc, rich_help_panel=panel)
        placed.append((panel, _keyword(name, Annotated[bool, flag], False)))
    if any(f.metadata["kind"] == "setting" for f in dataclasses.fields(config)):
        placed.append((METHOD, _keyword(LIST_SETTINGS, _listing(config, show_settings), False)))
    return [parameter for _, parameter in sorted(placed, key=lambda item: PANELS.index(item[0]))]


def _listing(
    config: type[Common], show_settings: Callable[[typer.Context, list[Setting]], None]
) -> Any:
    """A flag that has the settings shown and stops, whatever else is missing."""

    def show(ctx: typer.Context, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            show_settings(ctx, settings_of(config))
            raise typer.Exit

    doc = "List every setting of --set and recipes with its default, and stop."
    flag = typer.Option(
        "--list-settings", help=doc, rich_help_panel=METHOD, callback=show, is_eager=True
    )
    return Annotated[bool, flag]


def _parameter(f: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    doc, panel = f.metadata["doc"], f.metadata["panel"]
    kind: str | None = None
    if typing.get_origin(hint) is tuple:
        (each, *_) = typing.get_args(hint)
        hint, kind = types.GenericAlias(list, (each,)), f"<{each.__name__.lower()}>..."
    if f.metadata["kind"] == "argument":
        info = typer.Argument(help=doc, metavar=f.name.upper())
        return _keyword(f.name, Annotated[hint, info], f.default)
    names = _flags(f, switch=hint is bool)
    info = typer.Option(*names, help=doc, rich_help_panel=panel, metavar=kind)
    return _keyword(f.name, Annotated[hint, info], f.default)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if default is dataclasses.MISSING else default
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _flags(f: dataclasses.Field[Any], *, switch: bool) -> list[str]:
    """The names of an option: `--a-b`, both of `--file/-f`, `--x/--no-x` where x is on already."""
    name = flag_name(f)
    if switch and f.default is True and "/" not in name:
        return [f"{name}/--no-{name.removeprefix('--')}"]
    return [name] if switch else name.split("/")
