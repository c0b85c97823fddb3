"""Which documents a corpus holds: a line of JSON for each, in a file for each part of the corpus.

A line says what a document's text is (a hash), the rows of its passages, and where it came from.
The last line of an id counts, and only while its rows are not deleted. Memory grows with the
documents, by some 500 bytes each.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from itertools import groupby
from pathlib import Path

from clara_cli.corpus.deleted_rows import LISTS, read_deleted_rows
from clara_cli.corpus.manifest import REPAIR, ListFile, Manifest, Part
from clara_cli.corpus.store import Corpus
from clara_cli.documents.sources import MAX_LINE_BYTES, lines
from clara_cli.errors import ArtefactError
from clara_cli.records import Document, Passage
from clara_cli.storage import files
from clara_cli.storage.artefact import Fields, fields_of
from clara_cli.storage.file_kinds import open_file
from clara_cli.storage.packed_lines import PackedLines


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document in a corpus: the hash of its `content` (empty where nobody knows it), its first
    stored row and how many passages there are from it on, their tokens, how many were truncated,
    and whether its text is empty; the place it came from (`origin_of`), its file in there, and the
    hash of that file's bytes where the file is the document."""

    id: str
    content: str
    row: int
    passages: int
    tokens: int
    truncated: int
    empty: bool
    origin: str = ""
    label: str = ""
    file: str = ""

    @property
    def rows(self) -> range:
        """The numbers of its rows over all shards."""
        return range(self.row, self.row + self.passages)


def content_of(document: Document) -> str:
    """A hash of all of a document that passages are made of: not its id, nor the line of its file
    that it stands on."""
    first_line = document.first_line if document.is_file else 0
    content = [document.title, document.text, document.metadata, document.parts, first_line]
    if document.headings:
        content.append([astuple(heading) for heading in document.headings])
    encoded = json.dumps(content, sort_keys=True).encode()
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def origin_of(given: str, folder: Path) -> str:
    """The place that an input names, the same from every folder: its path from the folder that the
    corpus lies in, so that both may move together; a dataset and stdin as they are written."""
    if given == "-" or given.startswith("hf:"):
        return given
    return Path(os.path.relpath(Path(given).resolve(), folder.resolve().parent)).as_posix()


class TableWriter:
    """Writes the documents of a part, one by one, to a file that is not there before `finish`.
    Those that come before `begin` are kept in memory."""

    def __init__(self, folder: Path, limit: int) -> None:
        """`limit` is the longest passage, in tokens; `folder` the corpus."""
        self._folder, self._limit = folder, limit
        self._origins: list[str] = []
        self._early: list[StoredDocument] = []
        self._lines: PackedLines | None = None
        self._first_row = self._rows = self._count = 0

    @property
    def origins(self) -> tuple[str, ...]:
        """The places that the documents are from, in the order they came."""
        return tuple(self._origins)

    def begin(self, first_row: int) -> None:
        """Write from now on; the part begins at a stored row. Raises ClaraError."""
        self._first_row = first_row
        self._lines = PackedLines(self._folder, LISTS)
        early, self._early = self._early, []
        for document in early:
            self._write(replace(document, row=document.row + first_row))

    def add(self, document: Document, passages: Sequence[Passage], file: str = "") -> None:
        """Add a document by its passages, which follow those of the one before; `file` is the hash
        of its file (`FileHashes`). Raises ClaraError."""
        stored = StoredDocument(
            id=document.id,
            content=content_of(document),
            row=self._first_row + self._rows,
            passages=len(passages),
            tokens=sum(min(passage.tokens, self._limit) for passage in passages),
            truncated=sum(passage.tokens > self._limit for passage in passages),
            empty=not document.text.strip(),
            origin=origin_of(document.input, self._folder),
            label=document.label,
            file=file,
        )
        self._rows += len(passages)
        if self._lines is None:
            self._early.append(stored)
        else:
            self._write(stored)

    def add_again(self, document: StoredDocument) -> None:
        """Add the record of a document whose rows are in another part: what is known of it has
        changed. Raises ClaraError."""
        self._write(document)

    def _write(self, document: StoredDocument) -> None:
        assert self._lines is not None, "begun before"
        if document.origin not in self._origins:
            self._origins.append(document.origin)
        line = {**asdict(document), "origin": self._origins.index(document.origin)}
        self._lines.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")))
        self._count += 1

    def finish(self) -> ListFile | None:
        """Give the file its name; None where no document was added. Raises ClaraError."""
        assert self._lines is not None, "begun before"
        digest, size = self._lines.finish()
        name = f"{LISTS}/{digest[:16]}.jsonl.gz"
        if self._count:
            self._lines.place(name)
        self.discard()
        return ListFile(name, digest, size, self._count) if self._count else None

    def discard(self) -> None:
        """Leave nothing of a file that was begun and not finished."""
        if self._lines is not None:
            self._lines.discard()
            self._lines = None


class Documents:
    """The documents of a corpus, deleted ones apart."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._deleted = set(read_deleted_rows(corpus.folder, corpus.manifest).tolist())
        self._by_id: dict[str, StoredDocument] = {}
        self._by_content: dict[str, StoredDocument] = {}
        for number in range(len(corpus.manifest.parts)):
            for document in documents_of(corpus, number):
                self._take(document)

    def _take(self, document: StoredDocument) -> None:
        if document.content:
            self._by_content[document.content] = document
        if document.row not in self._deleted:
            self._by_id[document.id] = document

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[StoredDocument]:
        return iter(self._by_id.values())

    def __contains__(self, document_id: str) -> bool:
        return document_id in self._by_id

    def get(self, document_id: str) -> StoredDocument | None:
        """The document of an id."""
        return self._by_id.get(document_id)

    def of_content(self, content: str) -> StoredDocument | None:
        """A document of this content whose rows are stored, deleted or not."""
        return self._by_content.get(content)

    def passages_of(self, document: StoredDocument) -> list[Passage]:
        """Its passages, in order."""
        return self.corpus.stored_passages_at(document.rows)


def documents_of(corpus: Corpus, part: int) -> Iterator[StoredDocument]:
    """The documents of a part, deleted ones too, from their list; without one, from the passages.

    Raises ArtefactError where the list is damaged.
    """
    recorded = corpus.manifest.parts[part]
    if recorded.documents is None:
        yield from _from_passages(corpus, part)
    else:
        if corpus.remote is not None:
            listed = recorded.documents
            corpus.remote.copy(listed.file, listed.sha256, listed.bytes)
        yield from _from_table(corpus.folder, recorded, recorded.documents, corpus.manifest)


def _from_table(
    folder: Path, part: Part, listed: ListFile, manifest: Manifest
) -> Iterator[StoredDocument]:
    path = folder / listed.file
    try:
        if files.sha256_file(path) != listed.sha256:
            message = f"{path}: damaged, its SHA-256 is not the recorded one"
            raise ArtefactError(message, REPAIR)
        with (
            open_file(path) as file,
            gzip.GzipFile(fileobj=file, mode="rb") as packed,
            io.BufferedReader(packed) as stream,
        ):
            for number, line in lines(stream, MAX_LINE_BYTES):
                fields = fields_of(line or b"", f"{path}:{number}", REPAIR)
                yield _document(fields, part, manifest.rows)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ArtefactError(f"{path}: {error}", REPAIR) from error


def _document(fields: Fields, part: Part, rows: int) -> StoredDocument:
    row = fields.count("row", most=max(0, rows - 1))
    return StoredDocument(
        id=fields.get("id", str),
        content=fields.get("content", str),
        row=row,
        passages=fields.count("passages", 1, rows - row),
        tokens=fields.count("tokens"),
        truncated=fields.count("truncated"),
        empty=fields.get("empty", bool),
        origin=part.origins[fields.count("origin", most=len(part.origins) - 1)],
        label=fields.get("label", str),
        file=fields.get("file", str),
    )


def _from_passages(corpus: Corpus, part: int) -> Iterator[StoredDocument]:
    """The documents of a part that lists none: their content is not known."""
    places = corpus.manifest.shards_of(part)
    limit = corpus.manifest.identity.options.get("max_passage_tokens", 2**62)
    row = sum(shard.rows for shard in corpus.manifest.shards[: places.start])
    passages = (passage for place in places for passage in corpus.stored_passages(place))
    for document_id, group in groupby(passages, key=lambda passage: passage.document_id):
        pieces = list(group)
        yield StoredDocument(
            id=document_id,
            content="",
            row=row,
            passages=len(pieces),
            tokens=sum(min(piece.tokens, limit) for piece in pieces),
            truncated=sum(piece.tokens > limit for piece in pieces),
            empty=all(_is_empty(piece) for piece in pieces),
        )
        row += len(pieces)


def _is_empty(passage: Passage) -> bool:
    return not passage.tokens if passage.text is None else not passage.text.strip()
