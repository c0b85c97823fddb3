"""Packed training data: numpy arrays, each one an xz-compressed file, and a manifest.

A folder is all that a machine without a network needs beside this directory: token ids only, no
text is parsed there. Ragged rows are two arrays, `NAME_tokens` and `NAME_ends`; row i is
`tokens[ends[i - 1]:ends[i]]`. Knows nothing of tensors or of what the rows mean.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT, VERSION = "nano-packed", 1
MANIFEST = "manifest.json"
SOURCES = ("world", "squad", "wiki", "hotpotqa", "musique")  # what `passage_source` numbers


def compress(array: np.ndarray) -> bytes:
    """The array's bytes as xz, the match model told the width of an element."""
    wide = array.dtype.itemsize.bit_length() - 1
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 3 - wide, "lp": wide, "pb": wide}]
    return lzma.compress(array.tobytes(), filters=filters)


def write(folder: Path, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> dict[str, Any]:
    """Write every array, then the manifest; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, array in arrays.items():
        encoded = compress(array)
        (folder / f"{name}.xz").write_bytes(encoded)
        files[name] = {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "bytes": len(encoded),
            "sha256": hashlib.sha256(encoded).hexdigest(),
        }
    total = sum(entry["bytes"] for entry in files.values())
    manifest = {"format": FORMAT, "version": VERSION, "bytes": total, **about, "arrays": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def read(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the manifest. Raises SystemExit on a folder that is damaged or another's."""
    path = folder / MANIFEST
    if not path.exists():
        raise SystemExit(f"{folder}: no {MANIFEST}; make one with recipes/nano/pack.py")
    manifest = json.loads(path.read_text())
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise SystemExit(f"{path}: not {FORMAT} version {VERSION}")
    arrays = {}
    for name, entry in manifest["arrays"].items():
        encoded = (folder / f"{name}.xz").read_bytes()
        if hashlib.sha256(encoded).hexdigest() != entry["sha256"]:
            raise SystemExit(f"{folder / name}.xz: damaged (sha256 differs from the manifest's)")
        flat = np.frombuffer(lzma.decompress(encoded), dtype=np.dtype(entry["dtype"]))
        arrays[name] = flat.reshape(entry["shape"])
    return arrays, manifest


@dataclass(frozen=True)
class Ragged:
    """Rows of token ids of different lengths."""

    tokens: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.tokens[self.ends[row - 1] if row else 0 : self.ends[row]]

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], name: str) -> Ragged:
        return cls(arrays[f"{name}_tokens"], arrays[f"{name}_ends"])


def ragged(name: str, rows: Iterable[Sequence[int]]) -> dict[str, np.ndarray]:
    """The two arrays of some rows."""
    rows = [np.asarray(row, dtype=np.uint16) for row in rows]
    tokens = np.concatenate(rows) if rows else np.zeros(0, np.uint16)
    ends = np.cumsum([len(row) for row in rows], dtype=np.uint32)
    return {f"{name}_tokens": tokens, f"{name}_ends": ends}
