"""What is wrong with an index, and the command that mends it."""

from __future__ import annotations

from clara_cli.errors import ArtefactError

REBUILD = "build it again: clara index CORPUS"


class OtherCorpusError(ArtefactError):
    """An index that is of another corpus, or of another state of it: `indexed` is its
    fingerprint."""

    def __init__(self, file: object, indexed: str, corpus_sha256: str) -> None:
        pair = f"{indexed[:12]}, this corpus is {corpus_sha256[:12]}"
        super().__init__(f"{file} indexes corpus {pair}", REBUILD)
        self.indexed = indexed
