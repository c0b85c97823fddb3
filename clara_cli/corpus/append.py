"""Adding to a finished corpus: which ids it has already, and which addition an input repeats.

Memory grows with one hashed id per document. Knows no models and no tensors.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from clara_cli.corpus.manifest import Manifest, read_manifest
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError
from clara_cli.printable import shell_word


class Additions:
    """The parts of a corpus, for an input that is about to be added to it.

    The input's first document decides its `part`: an earlier addition that began with the same id
    (the same command again: it resumes, repairs or does nothing), else a new one.
    """

    def __init__(self, folder: Path) -> None:
        """Read every id of a finished corpus. Raises ArtefactError where there is none."""
        manifest = read_manifest(folder)
        if manifest is None:
            hint = (
                f"make it first: clara compress with the documents and --out {shell_word(folder)}"
            )
            raise ArtefactError(f"{folder}: no finished corpus to add to", hint)
        self.folder, self.manifest = folder, manifest
        self.part: int | None = None
        self._unread: ArtefactError | None = None
        self._part_of = self._ids(manifest)

    def _ids(self, manifest: Manifest) -> dict[bytes, int]:
        corpus = Corpus(self.folder, manifest)
        part_of: dict[bytes, int] = {}
        for part in range(len(manifest.parts)):
            for number in manifest.shards_of(part):
                try:
                    ids = {passage.document_id for passage in corpus.passages_of(number)}
                except ArtefactError as error:
                    self._unread = error
                else:
                    part_of.update((_key(document_id), part) for document_id in ids)
        return part_of

    def refuse(self, document_id: str) -> str:
        """Why a document cannot be added, empty where it can. Ask in the order of the input.

        Raises ArtefactError where the corpus is too damaged to say.
        """
        stored_in = self._part_of.get(_key(document_id))
        if self.part is None:
            firsts = {p.first_document: n for n, p in enumerate(self.manifest.parts) if n}
            if document_id in firsts:
                self.part = firsts[document_id]
            elif stored_in is None:
                if self._unread:
                    raise self._unread
                self.part = len(self.manifest.parts)
        if self.part is not None and (stored_in is None or stored_in >= self.part):
            return ""
        return f"the id {document_id[:60]!r} is in {self.folder} already"


def _key(document_id: str) -> bytes:
    return hashlib.blake2b(document_id.encode(), digest_size=12).digest()
