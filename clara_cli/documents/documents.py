"""Documents in: one stream of `Document` from files, datasets and stdin, each record checked.

Memory grows with the longest line, not with the corpus.
Knows nothing of tokens, passages or models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from clara_cli.config.documents import DocumentOptions
from clara_cli.documents import hub, listing, sources
from clara_cli.documents.json_lines import array_items, parse_line
from clara_cli.documents.listing import Source
from clara_cli.documents.reader_process import Bounds, ReaderProcess
from clara_cli.documents.sources import BadRecord, FileText, Record, shortened
from clara_cli.documents.tables import read_csv, read_tsv
from clara_cli.documents.text_files import read_text
from clara_cli.errors import DataError, UsageError
from clara_cli.records import Document
from clara_cli.storage.disk_set import DiskSet

SKIP_HINT = "add --skip-bad: it is then left out and counted"
TEXT_HINT = f"save the file as UTF-8, in parts where it is large; or {SKIP_HINT}"
LINE_HINT = 'a line is {"text": "...", "id"?, "title"?}; --skip-bad counts bad lines and goes on'
ROW_MEMORY, FILE_MEMORY = 16, 32  # bytes to read rows, or a whole file, for one of a record's
DROPPED_FIELDS = ("qas",)  # the questions of SQuAD-like lines: not about the text


def read_documents(
    inputs: Sequence[str],
    options: DocumentOptions,
    on_bad: Callable[[str], None],
    on_note: Callable[[str], None],
    refuse: Callable[[str], str] | None = None,
    is_unchanged: Callable[[Source], bool] | None = None,
    may_be_empty: bool = False,
) -> Reading:
    """Stream the documents of `inputs` (files, folders, datasets, `-`), in order, their text kept
    exactly; it is taken from `options.text_field`, else from `text` or `contents`.

    A bad record (not JSON, not an object, no string text, not UTF-8, a wrong id or title, an id
    seen before, or one that `refuse` has a word against) and a file or folder that cannot be read,
    or not to its end, raise DataError, or, with `skip_bad`, are given to `on_bad` and passed over.
    A file that `is_unchanged`, asked of each, says is as it was read before is not read again.
    Raises UsageError at once for a missing path or a type that is not read, and DataError where
    there is no document at all, unless that `may_be_empty`.
    """
    return Reading(inputs, options, on_bad, on_note, refuse, is_unchanged, may_be_empty)


class Reading(Iterator[Document]):
    """The documents of some inputs, and how far into them the reading is. `left_out` counts the
    files of folders that are of no kind read, by suffix; `unread` are the files and folders that
    were not read, or not wholly, as (input, label)."""

    def __init__(
        self,
        inputs: Sequence[str],
        options: DocumentOptions,
        on_bad: Callable[[str], None],
        on_note: Callable[[str], None],
        refuse: Callable[[str], str] | None,
        is_unchanged: Callable[[Source], bool] | None,
        may_be_empty: bool,
    ) -> None:
        listed = listing.list_documents(inputs, options)
        files = [file for source in listed.sources for file in _files_of(source)]
        self._inputs, self._files = list(inputs), [(file, sources.size(file)) for file in files]
        self.left_out = dict(listed.left_out)
        self.unread = set(listed.unread)
        self._is_unchanged, self._may_be_empty = is_unchanged, may_be_empty
        self._seen = DiskSet()
        self._skip_bad, self._on_bad, self._refuse = options.skip_bad, on_bad, refuse
        for line in listed.unreadable:
            on_bad(line)
        self._limit = options.max_record_mib * 2**20
        self._encoding = _checked_encoding(options.encoding)
        self._file_seconds, self._on_note = options.file_seconds, on_note
        self._title_field = options.title_field or "title"
        self._id_field = options.id_field or "id"
        self._repeats: dict[str, int] = {}  # of content ids that came more than once
        self._missing = {name for name in (options.title_field, options.id_field) if name}
        self._child = ReaderProcess(on_note)
        self._total = _sum([size for _, size in self._files])
        self._bytes = 0
        self._documents = self._read()

    def __next__(self) -> Document:
        return next(self._documents)

    @property
    def fraction(self) -> float | None:
        """The share of the files' bytes, as they lie on disk or on the Hub, that was read; None
        where their size is not known (a pipe)."""
        if self._total is None:
            return None
        return min(1.0, self._bytes / self._total) if self._total else 1.0  # nothing is left

    def _read(self) -> Iterator[Document]:
        seen = self._seen
        for source, where, record in self._records():
            try:
                document, has_id = self._document(source, record, where)
                if self._refuse and (reason := self._refuse(document.id)):
                    raise BadRecord(reason)
                if not _is_new(document.id, seen):
                    document = self._told_apart(document, has_id, seen)
            except BadRecord as bad:
                message = f"{where}: {bad}"
                if not self._skip_bad:
                    hint = TEXT_HINT if source.kind == "text" else LINE_HINT
                    raise DataError(message, hint) from None
                self.unread.add((source.input, source.label))
                self._on_bad(message)
            else:
                yield document
        if seen and self._missing:
            named = ", ".join(map(repr, sorted(self._missing)))
            hint = "--title-field and --id-field take a field or column that records have"
            raise DataError(f"no record has the field {named}", hint)
        if not seen and not self._may_be_empty:
            left_out = listing.describe_left_out(self.left_out)
            among = f" (left out: {left_out})" if left_out else ""
            message = f"no documents in {', '.join(self._inputs)}{among}"
            raise DataError(message, listing.ACCEPTED)

    def _document(self, source: Source, record: Any, where: str) -> tuple[Document, bool]:
        """A record as a Document, and whether it says its id: else a file has its label, a record
        its label and a hash of its content, which no line before or after it changes. A field that
        was found for its text is told of."""
        if isinstance(record, dict):
            self._missing -= record.keys()
        document, key = _document(record, where, source.fields, self._title_field, self._id_field)
        document = dataclasses.replace(
            document, input=source.input, label=source.label, is_file=not key
        )
        if key in listing.OTHER_TEXT_FIELDS and len(source.fields) > 1:
            self._on_note(f"{source.name}: the text is taken from {key!r}")
        if document.id or not key:
            return dataclasses.replace(document, id=document.id or source.label), True
        own_id = f"{source.label}#{_content_hash(document)}"
        return dataclasses.replace(document, id=own_id), False

    def _told_apart(self, document: Document, has_id: bool, seen: DiskSet) -> Document:
        """A document whose id was used before: the same content again has a number behind it.
        Raises BadRecord for an id that the record says."""
        if has_id:
            raise BadRecord(f"the id {shortened(document.id)} was used before")
        number = self._repeats[document.id] = self._repeats.get(document.id, 1) + 1
        document = dataclasses.replace(document, id=f"{document.id}-{number}")
        if not _is_new(document.id, seen):
            raise BadRecord(f"the id {shortened(document.id)} was used before")
        return document

    def _records(self) -> Iterator[tuple[Source, str, Any]]:
        """The records of every file, one after another, with the place of each."""
        before = 0
        with contextlib.closing(self._child):
            for source, size in self._files:
                if self._is_unchanged and self._is_unchanged(source):
                    _is_new(source.label, self._seen)
                    before += size or 0
                    continue
                try:
                    for (where, record), position in self._records_of(source):
                        self._bytes = before + position
                        yield source, where, record
                except DataError as error:
                    if not self._skip_bad:
                        raise DataError(error.message, f"{error.hint}; or {SKIP_HINT}") from error
                    self.unread.add((source.input, source.label))
                    self._on_bad(error.message)
                before += size or 0

    def _records_of(self, source: Source) -> Iterator[tuple[Record, int]]:
        """The records of one file, each with the bytes of it that were read so far."""
        with sources.opened(source) as (kind, stream):
            if kind == "parquet" or kind in listing.NEEDS:
                if not stream.seekable():
                    message = f"{source.name}: {kind} needs a file, not a pipe"
                    raise UsageError(message, listing.ACCEPTED)
                memory = self._limit * (ROW_MEMORY if kind == "parquet" else FILE_MEMORY)
                bounds = Bounds(self._limit, memory, self._file_seconds)
                yield from self._child.read(dataclasses.replace(source, kind=kind), bounds)
                return
            if self._encoding and kind in (*_READERS, "text"):
                stream = sources.as_utf8(source, stream, self._encoding)
            if kind == "text":
                yield self._text_of(source, stream), 0
                return
            for record in _READERS[kind](source, stream, self._limit):
                yield record, sources.position(stream) if self._total else 0

    def _text_of(self, source: Source, stream: IO[bytes]) -> Record:
        """A text file, which is one record."""
        data = sources.whole(stream, self._limit)
        if data is None:
            return source.name, BadRecord(sources.too_long("a text", self._limit))
        try:
            return source.name, read_text(source, data, self._on_note)
        except BadRecord as bad:
            return source.name, bad


def _checked_encoding(name: str | None) -> str | None:
    """Raise UsageError for what is no encoding of text."""
    if name is None:
        return None
    try:
        bytes(4).decode(name, "replace")
    except LookupError as error:
        hint = "for example: latin-1, cp1252, utf-16, shift_jis"
        raise UsageError(f"--encoding {name}: {error}", hint) from error
    return name


def _files_of(source: Source) -> Sequence[Source]:
    """A file itself, or those of a dataset by name."""
    return hub.dataset_sources(source) if source.kind == "hub" else [source]


def _sum(sizes: Sequence[int | None]) -> int | None:
    """The sum; None where one is not known."""
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _is_new(document_id: str, seen: DiskSet) -> bool:
    return seen.add(hashlib.blake2b(document_id.encode(), digest_size=12).hexdigest())


def _content_hash(document: Document) -> str:
    content = [document.title, document.text, document.metadata]
    encoded = json.dumps(content, sort_keys=True).encode()
    return hashlib.blake2b(encoded, digest_size=8).hexdigest()


def _document(
    record: Any, where: str, fields: tuple[str, ...], title: str, identifier: str
) -> tuple[Document, str]:
    """A parsed record as a Document, its id empty where it has none, and the field its text is
    from, empty for a file. Its title and id are in the fields of those names. Raises BadRecord
    saying what is wrong with it."""
    if isinstance(record, BadRecord):
        raise record
    if isinstance(record, FileText):
        parts = tuple((start, name) for start, name in record.parts)
        kept = (record.metadata, where, parts, record.first_line, record.headings)
        return Document("", record.text, record.title, *kept), ""
    if not isinstance(record, dict):
        raise BadRecord(f"not a JSON object: {shortened(record)}")
    key = _text_field(record, fields)
    text, heading = record[key], record.get(title)
    if not isinstance(text, str):
        raise BadRecord(f"{key} is {shortened(text)}, not a string")
    if not isinstance(heading, str | None):
        raise BadRecord(f"{title} is {shortened(heading)}, not a string")
    document_id = _id(record.get(identifier))
    taken = {key, fields[0], title, identifier, *DROPPED_FIELDS}
    metadata = {name: value for name, value in record.items() if name not in taken}
    for name, value in (("text", text), ("title", heading or ""), ("id", document_id)):
        _refuse_surrogates(name, value)
    if metadata:
        _refuse_unwritable(metadata)
    return Document(document_id, text, heading or "", metadata, where), key


def _text_field(record: dict[str, Any], fields: tuple[str, ...]) -> str:
    """The field that holds a record's text: the first of `text` and `contents` it has, or the one
    the user named, else the only other one that may. Raises BadRecord."""
    usual = [name for name in fields if name not in listing.OTHER_TEXT_FIELDS] or list(fields)
    for name in usual:
        if record.get(name) is not None:
            return name
    others = [name for name in fields if isinstance(record.get(name), str)]
    if len(others) == 1:
        return others[0]
    if others:
        either = " or ".join(map(repr, others))
        raise BadRecord(
            f"no text, which may be in {either}: --text-field {others[0]} takes that one"
        )
    names = ", ".join(map(str, record)) or "none"
    wanted = " (nor ".join(usual) + ")" * (len(usual) - 1)
    raise BadRecord(f"no {wanted}; its fields: {shortened(names)}")


def _id(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRecord(f"id is {shortened(value)}, neither a string nor an integer")
    return str(value)


def _refuse_surrogates(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # a byte that CSV decoding could not read
            raise BadRecord(f"{name} is not UTF-8: byte 0x{code - 0xDC00:02x}") from None
        raise BadRecord(f"{name} has the lone surrogate \\u{code:04x}, no character") from None


def _refuse_unwritable(metadata: dict[str, Any]) -> None:
    try:
        json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise BadRecord(f"a lone surrogate in the fields {shortened(list(metadata))}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRecord(f"its other fields cannot be kept: {error}") from None


def _read_jsonl(source: Source, stream: IO[bytes], limit: int) -> Iterator[Record]:
    for number, line in sources.lines(stream, limit):
        where = f"{source.name}:{number}"
        if line is None:
            yield where, BadRecord(sources.too_long("a line", limit))
        elif line and not line.isspace():
            try:
                yield where, parse_line(line, limit)
            except BadRecord as bad:
                yield where, bad


def _read_json(source: Source, stream: IO[bytes], limit: int) -> Iterator[Record]:
    """JSON lines, or the items of one array by their number, from 1."""
    if not sources.is_array(stream):
        yield from _read_jsonl(source, stream, limit)
        return
    for number, item in enumerate(array_items(stream, limit), 1):
        yield f"{source.name}:{number}", item


_READERS: dict[str, Callable[[Source, IO[bytes], int], Iterator[Record]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": read_csv,
    "tsv": read_tsv,
}
