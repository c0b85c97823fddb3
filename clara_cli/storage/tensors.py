"""Tensors in safetensors files, read and written; the errors of the library in ours."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara_cli.errors import ArtefactError, first_line, is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor


def read_tensors(path: Path, hint: str) -> dict[str, Tensor]:
    """The tensors of a file, by name. Raises ArtefactError where it is missing or damaged."""
    from safetensors.torch import load_file

    with _as_artefact_error(path, hint):
        return load_file(path)


def open_tensors(path: Path, hint: str) -> Any:
    """A file whose tensors are sliced on demand; its header and length are checked. Raises
    ArtefactError where it is missing or damaged."""
    from safetensors import safe_open

    with _as_artefact_error(path, hint):
        return safe_open(path, framework="pt")


@contextmanager
def _as_artefact_error(path: Path, hint: str) -> Iterator[None]:
    from safetensors import SafetensorError

    if not path.is_file():
        raise ArtefactError(f"{path}: missing", hint)
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch's own, where it is gone
        if is_out_of_memory(error):
            raise
        raise ArtefactError(f"{path}: damaged ({first_line(error)})", hint) from error


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a file of a folder that is being made, which others may read as the user's
    umask says: safetensors makes it the user's alone. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    Path(path).touch()
    mode = stat.S_IMODE(os.stat(path).st_mode)
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except SafetensorError as error:  # carries the system's error as text only
        if f"os error {errno.ENOSPC}" not in str(error):
            raise
        raise OSError(errno.ENOSPC, "no space left on device", str(path)) from error
    os.chmod(path, mode)
