"""Which files of a folder are wanted: .gitignore files in it, and globs the user gives.

Knows paths and patterns; opens .gitignore files alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from clara_cli.errors import DataError, UsageError
from clara_cli.storage.file_kinds import read_file, special_file

GITIGNORE = ".gitignore"


@dataclass(frozen=True)
class Patterns:
    """Globs as a .gitignore has them, against paths in the folder: a file must fit one of `include`
    where there are any, and none of `exclude`; `gitignore`: what such files leave out is not
    read."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    gitignore: bool = True


ALL_FILES = Patterns(gitignore=False)


class ChosenFiles:
    """Tells of the files and folders in a folder whether they are wanted. `enter` each folder, the
    outer ones first, before asking of what is in it."""

    def __init__(self, folder: Path, patterns: Patterns) -> None:
        self._folder, self._gitignore = folder, patterns.gitignore
        self._include = _spec(patterns.include, "--include") if patterns.include else None
        self._exclude = _spec(patterns.exclude, "--exclude")
        self._ignored: dict[Path, GitIgnoreSpec] = {}

    def enter(self, parent: str, files: Sequence[str]) -> None:
        """Read the .gitignore among the files of a folder. Raises DataError."""
        if not self._gitignore or GITIGNORE not in files:
            return
        path = Path(parent, GITIGNORE)
        hint = "mend it, or read what it leaves out too: --ignored"
        try:
            lines = read_file(path).decode(errors="surrogateescape").splitlines()
            self._ignored[Path(parent)] = GitIgnoreSpec.from_lines(lines)
        except OSError as error:
            raise DataError(f"{path}: {special_file(path) or error.strerror}", hint) from error
        except ValueError as error:
            raise DataError(f"{path}: not readable as such: {error}", hint) from error

    def why_not(self, path: Path, is_folder: bool = False) -> str:
        """`ignored` or `excluded` for what is not wanted, else empty."""
        inside = path.relative_to(self._folder).as_posix() + "/" * is_folder
        if self._exclude.match_file(inside):
            return "excluded"
        if self._include is not None and not is_folder and not self._include.match_file(inside):
            return "excluded"
        return "ignored" if self._is_ignored(path, is_folder) else ""

    def _is_ignored(self, path: Path, is_folder: bool) -> bool:
        """By the innermost .gitignore that says anything of it."""
        for parent in path.parents:
            if parent in self._ignored:
                inside = path.relative_to(parent).as_posix() + "/" * is_folder
                verdict = self._ignored[parent].check_file(inside).include
                if verdict is not None:
                    return verdict
            if parent == self._folder:
                return False
        return False


def _spec(patterns: Sequence[str], flag: str) -> GitIgnoreSpec:
    try:
        return GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise UsageError(f"{flag} {' '.join(patterns)}: {error}", "for example: '*.md'") from error
