"""Which files the inputs of a command name: folders walked, each entry read, left out or refused.

Knows paths and suffixes; opens no file.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from clara_cli.config.documents import DocumentOptions
from clara_cli.documents.chosen_files import ALL_FILES, ChosenFiles, Patterns
from clara_cli.errors import DataError, UsageError
from clara_cli.extras import install_command
from clara_cli.printable import shell_word
from clara_cli.storage.file_kinds import printable_path, special_file, why_unreadable

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".md": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pdf": "pdf",
    ".docx": "docx",
    ".pptx": "pptx",
    ".xlsx": "xlsx",
    ".html": "html",
    ".htm": "html",
    ".epub": "epub",
    ".rst": "rst",
    ".eml": "email",
}
NEEDS = {  # kinds read by the extra `documents`, and the library whose presence says it is there
    "pdf": "pypdf",
    "docx": "docx",
    "pptx": "pptx",
    "xlsx": "openpyxl",
    "html": "bs4",
    "epub": "bs4",
    "rst": "docutils",
    "email": "bs4",
}
HUB = "hf:"  # before the name of a Hugging Face dataset
ACCEPTED = (
    "accepted: .jsonl .json .txt .md .csv .tsv (also .gz, .xz), .parquet, with the extra documents "
    ".pdf .docx .pptx .xlsx .html .epub .rst .eml, a folder, hf:OWNER/DATASET, or - for stdin"
)
TEXT_FIELDS = ("text", "contents")
OTHER_TEXT_FIELDS = ("content", "body", "passage", "page_content")  # where there is only one
_PLAIN_SUFFIX = re.compile(r"\.[a-z0-9_+~-]{1,12}")
_NAMED = 20  # paths that one error names


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read. `label` names its documents, `name` names it in errors; `kind` is jsonl,
    json (lines or an array), text, csv, tsv, parquet, one of `NEEDS`, hub (a dataset, no file), or
    empty where the content decides; a record's text is in the first of `fields` that it has; `url`
    is where a file of a dataset on the Hub is read from; `input` is the input that it is of."""

    path: Path
    label: str
    name: str
    kind: str
    fields: tuple[str, ...] = TEXT_FIELDS
    url: str = ""
    input: str = ""


@dataclass
class Listing:
    """What some inputs name, in order. `left_out` counts the files of folders that are not read,
    by suffix (also `hidden`, `ignored`, `excluded`, `compressed corpus`, `without suffix`,
    `other`); `unreadable` has a line, `path: reason`, for each entry that should be read and cannot
    be, `unread` the input that it is of and its label there."""

    sources: list[Source] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)

    def refuse(self, given: str, label: str, line: str) -> None:
        """Note what cannot be read of an input."""
        self.unreadable.append(line)
        self.unread.append((given, label))


def list_inputs(
    inputs: Sequence[str],
    fields: tuple[str, ...] = TEXT_FIELDS,
    patterns: Patterns = ALL_FILES,
) -> Listing:
    """The files that `inputs` name: `-` is stdin, `hf:...` a dataset, a folder is walked in sorted
    order (hidden entries and compressed corpora left out), anything else is a file.

    Unreadable is a folder that cannot be listed, a file without permission to read it, a name that
    is not UTF-8, a named pipe, a socket, a device, a link to nothing, and inside a folder a link to
    another one; a link given as an input is followed.

    Raises UsageError for a path that is empty or does not exist, a corpus, or a second `-`.
    """
    if list(inputs).count("-") > 1:
        raise UsageError("- is given twice, and stdin can be read once", "give it once")
    names = Counter(Path(item).name for item in inputs)
    listing = Listing()
    for item in inputs:
        path = Path(item)
        if not item:  # as a path, it would be the present folder
            raise UsageError("an empty name among the files", "is a variable unset?")
        if item == "-":
            listing.sources.append(Source(path, "stdin", "<stdin>", "jsonl", fields, input=item))
        elif item.startswith(HUB):
            label = item.removeprefix(HUB)
            listing.sources.append(Source(path, label, item, "hub", fields, input=item))
        elif _is_corpus(path):
            hint = f"ask it: clara ask --corpus {shell_word(item)}"
            raise UsageError(f"{item}: a compressed corpus, not documents", hint)
        elif path.is_dir():
            _walk(path, item, fields, patterns, listing)
        elif path.exists() or path.is_symlink():
            kind = kind_of(path)
            if kind in NEEDS and not is_readable(kind):
                named = "mail" if kind == "email" else kind.upper()
                message = f"{item}: {named} is read with the extra documents, not installed"
                raise DataError(message, install_command("documents"))
            label = path.name if names[path.name] == 1 else path.as_posix()
            _add(listing, Source(path, label, item, kind, fields, input=item))
        else:
            raise UsageError(f"{printable_path(item)}: no such file or folder", ACCEPTED)
    return listing


def list_sources(inputs: Sequence[str], fields: tuple[str, ...] = TEXT_FIELDS) -> list[Source]:
    """The files that `inputs` name, all of which can be read.

    Raises DataError naming those that cannot be, and UsageError as `list_inputs` does.
    """
    listing = list_inputs(inputs, fields)
    refuse_unreadable(listing, "mend it, or name the files to read one by one")
    return listing.sources


def list_documents(inputs: Sequence[str], options: DocumentOptions) -> Listing:
    """What `inputs` name, as commands list documents.

    Raises DataError for what cannot be read, unless `options.skip_bad`, and UsageError as
    `list_inputs` does.
    """
    if (options.include or options.exclude) and not any(Path(name).is_dir() for name in inputs):
        flag = "--include" if options.include else "--exclude"
        message = f"{flag} chooses among the files of folders, and none was given"
        raise UsageError(message, "omit it")
    patterns = Patterns(options.include, options.exclude, not options.ignored)
    listing = list_inputs(inputs, _text_fields(options), patterns)
    if not options.skip_bad:
        refuse_unreadable(listing, "mend it, or add --skip-bad: it is then left out and counted")
    return listing


def _text_fields(options: DocumentOptions) -> tuple[str, ...]:
    """The fields that may hold the text."""
    if options.text_field and options.strict_fields:
        hint = "omit --strict-fields: no other field is looked for"
        raise UsageError("--text-field and --strict-fields were both given", hint)
    if options.text_field:
        return (options.text_field,)
    return TEXT_FIELDS if options.strict_fields else TEXT_FIELDS + OTHER_TEXT_FIELDS


def refuse_unreadable(listing: Listing, hint: str) -> None:
    """Raise DataError naming what cannot be read, if there is anything."""
    if not listing.unreadable:
        return
    named, more = listing.unreadable[:_NAMED], len(listing.unreadable) - _NAMED
    message = "; ".join(named) + (f"; and {more:,} more" if more > 0 else "")
    raise DataError(message, hint)


def describe_left_out(left_out: dict[str, int]) -> str:
    """`3 .pdf, 1 .docx`: the commonest first; empty where nothing was left out."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {kind}" for kind, number in ordered)


def kind_of(path: Path) -> str:
    """How a file of that name is read; empty where its name does not say."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".xz"):
        suffixes.pop()
    return KINDS.get(suffixes[-1], "") if suffixes else ""


def is_readable(kind: str) -> bool:
    """Whether the library that reads files of this kind is installed."""
    return kind not in NEEDS or find_spec(NEEDS[kind]) is not None


def counts_lines(file: str) -> bool:
    """Whether the lines of a file are those of the text it holds (.txt, .md), not records."""
    return kind_of(Path(file)) == "text"


def _walk(
    folder: Path, given: str, fields: tuple[str, ...], patterns: Patterns, listing: Listing
) -> None:
    """List a folder, `given` as an input: its files in sorted order, then its folders so."""

    def cannot_list(error: OSError) -> None:
        name = printable_path(error.filename)
        label = Path(error.filename).relative_to(folder).as_posix()
        listing.refuse(given, label, f"{name}: cannot be listed: {error.strerror or error}")

    chosen = ChosenFiles(folder, patterns)
    for parent, folders, files in os.walk(folder, onerror=cannot_list):
        chosen.enter(parent, files)
        for name in sorted(files):
            path = Path(parent, name)
            kind = kind_of(path)
            if name.startswith("."):
                listing.left_out["hidden"] += 1
            elif why := chosen.why_not(path):
                listing.left_out[why] += 1
            elif kind and is_readable(kind) or special_file(path):
                label = path.relative_to(folder).as_posix()
                _add(listing, Source(path, label, str(path), kind, fields, input=given))
            else:
                listing.left_out[_suffix(path)] += 1
        kept = []
        for name in sorted(folders):
            if why := "" if name.startswith(".") else chosen.why_not(Path(parent, name), True):
                listing.left_out[f"{why} folder"] += 1
            elif _is_entered(Path(parent, name), folder, given, listing):
                kept.append(name)
        folders[:] = kept


def _add(listing: Listing, source: Source) -> None:
    reason = why_unreadable(source.path)
    if reason is None and not _is_utf8(source.name):
        reason = "its name is not UTF-8"
    if reason is None:
        listing.sources.append(source)
    else:
        line = f"{printable_path(source.name)}: {reason}"
        listing.refuse(source.input, source.label, line)


def _is_entered(path: Path, folder: Path, given: str, listing: Listing) -> bool:
    """Whether a folder inside a folder is walked; one that is not is counted or named."""
    reason = ""
    if path.name.startswith("."):
        listing.left_out["hidden"] += 1
    elif path.is_symlink():
        reason = "a link to a folder, not followed"
    elif not _is_utf8(path.name):
        reason = "its name is not UTF-8"
    elif _is_corpus(path):
        listing.left_out["compressed corpus"] += 1
    else:
        return True
    if reason:
        label = path.relative_to(folder).as_posix()
        listing.refuse(given, label, f"{printable_path(path)}: {reason}")
    return False


def _is_corpus(folder: Path) -> bool:
    marks = (folder / "manifest.json", folder / "journal.json")
    return (folder / "shards").is_dir() and any(mark.is_file() for mark in marks)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _suffix(path: Path) -> str:
    """How a file that is left out is counted."""
    suffix = path.suffix.lower()
    if not suffix:
        return "without suffix"
    return suffix if _PLAIN_SUFFIX.fullmatch(suffix) else "other"
