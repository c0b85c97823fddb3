"""What a corpus holds, told to people: its documents, and one of them with its passages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from clara_cli.corpus import quantize
from clara_cli.corpus.documents_table import Documents, StoredDocument
from clara_cli.corpus.store import Corpus
from clara_cli.documents.chunk import SEPARATOR
from clara_cli.errors import UsageError, nearest
from clara_cli.records import (
    CorpusContents,
    DocumentContents,
    DocumentRow,
    Passage,
    PassageRow,
)


def list_documents(folder: Path) -> CorpusContents:
    """The documents of a corpus in the order of their rows. Raises ArtefactError."""
    corpus = Corpus.open(folder)
    identity = corpus.manifest.identity
    stored = sorted(Documents(corpus), key=lambda document: document.row)
    return CorpusContents(
        corpus=str(folder),
        model=identity.checkpoint.get("model"),
        ratio=identity.ratio,
        passages=len(corpus),
        bytes=corpus.manifest.bytes,
        documents=tuple(_row(document, corpus) for document in stored),
    )


def show_document(folder: Path, document_id: str) -> DocumentContents:
    """A document of a corpus with its passages.

    Raises:
        UsageError: for an id that there is not, with the nearest.
    """
    corpus = Corpus.open(folder)
    documents = Documents(corpus)
    stored = documents.get(document_id)
    if stored is None:
        hint = nearest(document_id, [document.id for document in documents])
        raise UsageError(f"no document {document_id[:60]!r} in {folder}", hint)
    identity, row = corpus.manifest.identity, _row(stored, corpus)
    passages = documents.passages_of(stored)
    return DocumentContents(
        id=row.id,
        title=_shared_title(passages),
        passages=row.passages,
        tokens=row.tokens,
        bytes=row.bytes,
        source=row.source,
        model=identity.checkpoint.get("model"),
        metadata=passages[0].metadata,
        texts=tuple(
            PassageRow(p.passage_id, p.start, p.end, p.tokens, p.source, p.text) for p in passages
        ),
    )


def _shared_title(passages: Sequence[Passage]) -> str:
    """What the titles of a document's passages, which may end in headings, begin with."""
    titles = [passage.title.split(SEPARATOR) for passage in passages]
    return SEPARATOR.join(os.path.commonprefix(titles))


def _row(document: StoredDocument, corpus: Corpus) -> DocumentRow:
    identity = corpus.manifest.identity
    each = quantize.passage_bytes(identity.dtype, identity.memory_tokens, identity.hidden)
    source = document.origin
    if document.label and Path(document.origin).name != document.label:
        source = f"{document.origin}/{document.label}"
    size = document.passages * each
    return DocumentRow(document.id, document.passages, document.tokens, size, source)
