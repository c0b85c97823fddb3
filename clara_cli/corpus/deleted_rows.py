"""The rows of a corpus that are deleted: a sorted list of numbers in a small file that the manifest
names. Their memory and text stay in the shards, where nobody reads them, until a vacuum.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clara_cli.corpus.manifest import REPAIR, ListFile, Manifest
from clara_cli.errors import ArtefactError
from clara_cli.storage import files
from clara_cli.storage.artefact import read_bytes

if TYPE_CHECKING:
    import numpy as np

LISTS = "documents"
_FORMAT = "<i8"


def write_deleted_rows(folder: Path, rows: np.ndarray) -> ListFile | None:
    """Write the numbers [N] of all deleted rows, sorted and each once, into a corpus whose manifest
    is to name them; None where there are none. Raises ClaraError."""
    if not len(rows):
        return None
    data = rows.astype(_FORMAT).tobytes()
    digest = files.sha256_bytes(data)
    files.make_folder(folder, LISTS)
    files.write_atomic(folder, name := f"{LISTS}/{digest[:16]}.rows", data)
    return ListFile(name, digest, len(data), len(rows))


def read_deleted_rows(folder: Path, manifest: Manifest) -> np.ndarray:
    """The numbers of the deleted rows, sorted: int64 [N]. Raises ArtefactError where the file is
    missing or damaged, or its numbers are no rows."""
    import numpy as np

    listed = manifest.edits.deleted
    if listed is None:
        return np.empty(0, np.int64)
    path = folder / listed.file
    data = read_bytes(path, REPAIR)
    if data is None or files.sha256_bytes(data) != listed.sha256:
        what = "missing" if data is None else "damaged, its SHA-256 is not the recorded one"
        raise ArtefactError(f"{path}: {what}", REPAIR)
    rows = np.frombuffer(data, _FORMAT).astype(np.int64) if len(data) % 8 == 0 else np.empty(0)
    sorted_once = len(rows) == listed.count and bool((np.diff(rows) > 0).all())
    if not sorted_once or rows[0] < 0 or rows[-1] >= manifest.rows:
        raise ArtefactError(f"{path}: not {listed.count} of {manifest.rows} rows", REPAIR)
    return rows
