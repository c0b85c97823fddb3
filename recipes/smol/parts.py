"""Carries a training leg's inputs to another machine: one archive, cut into parts of bounded size.

    python recipes/smol/parts.py pack PARTS INPUT...
    python recipes/smol/parts.py unpack PARTS FOLDER

Packed are files and folders, each by its last name, with a sum of every part. Unpacked is nothing
that a part lacks, and nothing outside FOLDER.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

MOST = 55_000_000  # bytes of a part
SUMS = "SHA256SUMS"


class Parts(io.RawIOBase):
    """A stream that goes into `part.000`, `part.001`, ... of at most `most` bytes each."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most, self.names = folder, most, list[str]()
        self._room = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Append to the last part, and to new ones as they fill."""
        left = memoryview(data)
        while left:
            if not self._room:
                self.names.append(f"part.{len(self.names):03}")
                self._room = self.most
            piece, left = left[: self._room], left[self._room :]
            with (self.folder / self.names[-1]).open("ab") as part:
                part.write(piece)
            self._room -= len(piece)
        return len(data)


def pack(folder: Path, inputs: Sequence[Path], most: int = MOST) -> list[str]:
    """Write the parts and their sums into a new folder; the names of the parts."""
    folder.mkdir(parents=True)
    parts = Parts(folder, most)
    with tarfile.open(fileobj=parts, mode="w|gz") as archive:
        for path in inputs:
            archive.add(path, path.name)
    lines = [f"{digest(folder / name)}  {name}\n" for name in parts.names]
    (folder / SUMS).write_text("".join(lines))
    return parts.names


def unpack(folder: Path, out: Path) -> None:
    """Put the parts together again, after every sum was compared."""
    joined = out / "joined.tar.gz"
    out.mkdir(parents=True)
    with joined.open("wb") as whole:
        for line in (folder / SUMS).read_text().splitlines():
            expected, name = line.split()
            part = folder / Path(name).name
            if not part.is_file() or digest(part) != expected:
                raise SystemExit(f"{part}: missing, or not what was packed: carry it again")
            whole.write(part.read_bytes())
    with tarfile.open(joined) as archive:
        archive.extractall(out, filter="data")
    joined.unlink()


def digest(file: Path) -> str:
    """The sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("parts", type=Path)
    packing.add_argument("inputs", type=Path, nargs="+")
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("parts", type=Path)
    unpacking.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.command == "pack":
        names = pack(options.parts, options.inputs)
        sys.stdout.write(f"{len(names)} parts in {options.parts}\n")
    else:
        unpack(options.parts, options.folder)


if __name__ == "__main__":
    main()
