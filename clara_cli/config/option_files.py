"""Options given in files: `clara.toml` in the present folder, over the user's own.

A table names a command, keys above the tables go to every command that has such an option. What
decides where documents or answers go is read from the user's own file alone: a folder may be
somebody else's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clara_cli.errors import UsageError, nearest
from clara_cli.storage.remote_folder import url_of
from clara_cli.storage.toml_files import read_toml

NAME = "clara.toml"
USERS_ALONE = ("llm", "llm_model", "serve", "log", "out", "into", "uri")
Defaults = dict[str, dict[str, Any]]


def users_file() -> Path:
    """The user's own file: in the platform's folder of settings."""
    from platformdirs import user_config_path

    return user_config_path("clara", appauthor=False) / NAME


def read_defaults(commands: Mapping[str, type]) -> Defaults:
    """The options of each command that the files give, by field.

    Raises:
        UsageError: for a file that is no TOML, or a key that no command has, naming both.
    """
    defaults: Defaults = {name: {} for name in commands}
    for file, users in ((users_file(), True), (Path(NAME), False)):
        if file.exists():
            for name, values in _read(file, commands, users=users).items():
                defaults[name] |= values
    return defaults


def _read(file: Path, commands: Mapping[str, type], *, users: bool) -> Defaults:
    try:
        raw = read_toml(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{file}: {reason}", "lines look like: top-k = 3, below [ask]") from error
    options = {name: _options(config) for name, config in commands.items()}
    everywhere = {key: value for key, value in raw.items() if key not in commands}
    everybody = {field for fields in options.values() for field in fields}
    found: Defaults = {}
    for name, known in options.items():
        table = raw.get(name, {})
        if not isinstance(table, dict):
            raise UsageError(f"{file}: {name} is {table!r}", f"a table: [{name}]")
        own = _fields(f"{file}: [{name}]", table, known, users=users)
        shared = _fields(str(file), everywhere, everybody, users=users)
        found[name] = {key: value for key, value in shared.items() if key in known} | own
    return found


def _options(config: type) -> set[str]:
    fields = dataclasses.fields(config)
    return {f.name for f in fields if f.metadata["kind"] == "option"}


def _fields(where: str, table: dict[str, Any], known: set[str], *, users: bool) -> dict[str, Any]:
    """The values of a table by field, each a known one."""
    values = {key.replace("-", "_"): value for key, value in table.items()}
    for field in values:
        if field not in known:
            raise UsageError(f"{where}: no option {field!r}", nearest(field, sorted(known)))
        if field in USERS_ALONE and not users:
            hint = f"give it on the command line, or in {users_file()}"
            raise UsageError(f"{where}: {field} is not taken from a folder's file", hint)
        if field == "corpus" and not users and _names_url(values[field]):
            hint = f"give it on the command line, or in {users_file()}"
            raise UsageError(f"{where}: a URL is not taken from a folder's file", hint)
    return values


def _names_url(corpora: Any) -> bool:
    listed = corpora if isinstance(corpora, list) else [corpora]
    return any(url_of(Path(str(corpus))) for corpus in listed)
