"""What is wrong with an index, and the command that mends it."""

from __future__ import annotations

from collections.abc import Mapping

from clara_cli.errors import ArtefactError
from clara_cli.storage.artefact import Fields

REBUILD = "build it again with clara index"


class OtherCorpusError(ArtefactError):
    """An index that is of another corpus, or of another state of it: `indexed` is its fingerprint,
    `rows` how many it is of."""

    def __init__(self, file: object, indexed: str, rows: int, corpus_sha256: str) -> None:
        pair = f"{indexed[:12]}, this corpus is {corpus_sha256[:12]}"
        super().__init__(f"{file} indexes corpus {pair}", REBUILD)
        self.indexed, self.rows = indexed, rows


def refuse_other_corpus(fields: Fields, states: Mapping[int, str]) -> int:
    """The rows that an index describes itself as being of, once a corpus had a state of so many
    rows (`states`: fingerprints by rows, the present last) with that fingerprint.

    Raises OtherCorpusError where it had none.
    """
    indexed, rows = fields.get("corpus_sha256", str), fields.count("rows")
    if states.get(rows) != indexed:
        present = list(states)[-1]
        if rows not in states and indexed in states.values():
            raise fields.wrong("rows", f"{rows} passages, the corpus has {present}")
        raise OtherCorpusError(fields.file, indexed, rows, states[present])
    return rows
