"""What has to change in a corpus for it to hold the documents given: each is compared, as it is
read, with the one of its id that is stored.

Knows no models. Memory grows with the documents of the corpus.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from clara_cli.corpus.deleted_rows import read_deleted_rows, write_deleted_rows
from clara_cli.corpus.documents_table import Documents, StoredDocument, content_of, origin_of
from clara_cli.corpus.file_hashes import FileHashes
from clara_cli.corpus.manifest import COUNTS, Edits
from clara_cli.documents.listing import Source, is_readable, kind_of
from clara_cli.records import Document, Passage

Place = tuple[str, str]  # the origin of an input, and a file's label in it


class Changes:
    """The changes that some documents ask of a corpus. Ask `is_unchanged` of each file and
    `is_new` of each document, in the order of the input.

    `added`, `replaced`, `unchanged` and `moved` count documents; `removed` are those whose rows are
    to be deleted, by id; `renewed` are unchanged documents whose record is to be written again.
    """

    def __init__(self, documents: Documents, inputs: Sequence[str], encoding: str | None) -> None:
        self.documents = documents
        self._folder = documents.corpus.folder
        self._given = {origin_of(name, self._folder): name for name in inputs}
        self._origins = {name: origin for origin, name in self._given.items()}
        self._seen: set[str] = set()
        self.files = FileHashes(encoding)
        self.removed: dict[str, StoredDocument] = {}
        self.renewed: list[StoredDocument] = []
        self.added = self.replaced = self.unchanged = self.moved = 0

    def is_unchanged(self, source: Source) -> bool:
        """Whether a file that is one document holds the bytes of the stored one, by a hash."""
        digest = self.files.hash(source)
        stored = self.documents.get(source.label)
        if digest is None or stored is None or stored.file != digest:
            return False
        if (stored.origin, stored.label) != (self._origin(source.input), source.label):
            return False
        self._seen.add(stored.id)
        self.unchanged += 1
        return True

    def conflict(self, document: Document) -> str:
        """Why a document is another one than the stored one of its id, which is the name of its
        file in the input: that file is there too. Empty where it is not."""
        stored = self.documents.get(document.id)
        origin = self._origin(document.input)
        if stored is None or not document.is_file or stored.origin in ("", origin):
            return ""
        other = self._folder.resolve().parent / stored.origin
        other = other / stored.label if other.is_dir() else other
        if not other.exists() or (here := Path(document.source)).exists() and here.samefile(other):
            return ""
        return f"its id, {document.id[:60]!r}, is that of {other} already"

    def is_new(self, document: Document) -> bool:
        """Whether a document's passages have to be stored; the ones it replaces are then removed.
        Where nobody knows the stored one's content, `is_same` has to tell."""
        stored = self.documents.get(document.id)
        self._seen.add(document.id)
        if stored is not None and stored.content == content_of(document):
            self._keep(document, stored)
            return False
        return True

    def is_same(self, document: Document, passages: Sequence[Passage]) -> bool:
        """Whether the stored document of unknown content has these passages, but for the place that
        they come from; it is then kept, and its content known."""
        stored = self.documents.get(document.id)
        if stored is None or stored.content or stored.passages != len(passages):
            return False
        before = self.documents.passages_of(stored)  # without text they never are the same
        if list(map(_unplaced, before)) != list(map(_unplaced, passages)):
            return False
        self._keep(document, stored)
        return True

    def store(self, document: Document) -> StoredDocument | None:
        """Count a document that is stored anew; the one whose rows hold its memory already, None
        where there is none."""
        stored = self.documents.get(document.id)
        if stored is None:
            self.added += 1
        else:
            self.replaced += 1
            self.removed[stored.id] = stored
        twin = self.documents.of_content(content_of(document))
        self.moved += stored is None and twin is not None
        return twin

    def gone(self, unread: Iterable[Place], prune_empty: bool) -> list[StoredDocument]:
        """The stored documents of the inputs given that were not among those read, but for what
        `unread` files and folders (input, label) held, or files whose reader is not installed, or,
        unless `prune_empty`, a folder that is empty now, as one that is not mounted is."""
        kept = {(self._origin(name), label) for name, label in unread}
        return [
            document
            for document in self.documents
            if document.origin in self._given
            and document.id not in self._seen
            and not _lies_in(document, kept)
            and not self._cannot_tell(document, prune_empty)
        ]

    def _cannot_tell(self, document: StoredDocument, prune_empty: bool) -> bool:
        folder = Path(self._given[document.origin])
        path = folder / document.label
        if not folder.is_dir():
            return False
        kind = kind_of(path)
        if path.exists() and not is_readable(kind):
            return True
        return not prune_empty and any(_is_empty(parent) for parent in _parents(folder, path))

    def _keep(self, document: Document, stored: StoredDocument) -> None:
        self.unchanged += 1
        origin, file = self._origin(document.input), self.files.of(document)
        renewed = replace(
            stored,
            content=content_of(document),
            origin=origin,
            label=document.label,
            file=file or stored.file,
        )
        if renewed != stored:
            self.renewed.append(renewed)

    def _origin(self, given: str) -> str:
        return self._origins[given]


def deleted(documents: Documents, removed: Iterable[StoredDocument]) -> Edits:
    """Write the rows of documents to those that are deleted; what the manifest then says.

    Raises ClaraError.
    """
    import numpy as np

    corpus = documents.corpus
    before, gone = corpus.manifest.edits, list(removed)
    rows = [np.arange(one.row, one.row + one.passages) for one in gone]
    all_rows = np.concatenate([read_deleted_rows(corpus.folder, corpus.manifest), *rows])
    counts = dict(before.counts)
    for one in gone:
        counts["documents"] += 1
        counts["passages"] += one.passages
        counts["empty"] += one.empty
        counts["truncated"] += one.truncated
        counts["text_tokens"] += one.tokens
    assert counts.keys() == set(COUNTS), "as the manifest has them"
    listed = write_deleted_rows(corpus.folder, np.unique(all_rows))
    return Edits(before.times + 1, listed, counts, before.renumbered)


def _unplaced(passage: Passage) -> Passage:
    return replace(passage, source="")


def _lies_in(document: StoredDocument, places: set[Place]) -> bool:
    """Whether a document is of one of the files, or in one of the folders."""
    label = Path(document.label)
    names = [label.as_posix(), *(parent.as_posix() for parent in label.parents)]
    return any((document.origin, name) in places for name in names)


def _parents(given: Path, path: Path) -> list[Path]:
    return [parent for parent in path.parents if parent == given or given in parent.parents]


def _is_empty(folder: Path) -> bool:
    """Whether a folder is there, with nothing in it."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return False
