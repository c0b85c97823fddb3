"""How documents are read: what `compress` and `ask DOCUMENTS` have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from clara_cli.config.fields import INPUT, flag_name, option


@dataclass(frozen=True, kw_only=True)
class DocumentOptions:
    """Options of every command that reads documents."""

    text_field: str | None = option(
        "Field or column that holds the text; default: text, else contents, else the only one "
        "there is of content, body, passage and page_content.",
        None,
        INPUT,
    )
    title_field: str | None = option(
        "Field or column that holds the title; default: title.", None, INPUT
    )
    id_field: str | None = option("Field or column that holds the id; default: id.", None, INPUT)
    strict_fields: bool = option(
        "Take the text from text or contents alone, whatever other fields there are.", False, INPUT
    )
    encoding: str | None = option(
        "Encoding of text, CSV, TSV and JSON files; default: UTF-8; a text file that is not UTF-8 "
        "is read in the encoding it looks like, with a note.",
        None,
        INPUT,
    )
    include: tuple[str, ...] = option(
        "In folders, read only files whose path matches this glob (several: repeat it).",
        (),
        INPUT,
    )
    exclude: tuple[str, ...] = option(
        "In folders, omit what matches this glob, written as in a .gitignore (several: repeat it).",
        (),
        INPUT,
    )
    ignored: bool = option("In folders, also read what a .gitignore leaves out.", False, INPUT)
    max_record_mib: int = option(
        "Largest line, row or text file, in MiB; reading it may take 30 times as much memory.",
        16,
        INPUT,
        low=1,
    )
    file_seconds: float = option(
        "Most seconds that reading one PDF, office, web or mail file may take.",
        60.0,
        INPUT,
        low=0.1,
    )
    skip_bad: bool = option(
        "Count and report bad lines, duplicate ids and what cannot be read instead of stopping.",
        False,
        INPUT,
    )


def changed_options(options: DocumentOptions) -> Iterator[tuple[str, object]]:
    """(flag, value) of each document option that is not at its default, in a fixed order."""
    for field in dataclasses.fields(DocumentOptions):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        for each in value if isinstance(value, tuple) else (value,):
            yield flag_name(field), each
