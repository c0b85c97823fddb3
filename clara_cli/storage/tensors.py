"""Tensors in safetensors files, read and written; the errors of the library in ours."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clara_cli.errors import ArtefactError

if TYPE_CHECKING:
    from torch import Tensor


def read_tensors(path: Path, hint: str) -> dict[str, Tensor]:
    """The tensors of a file, by name. Raises ArtefactError where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ArtefactError(f"{path}: missing", hint)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path}: damaged ({error})", hint) from error


def check_tensors(path: Path, hint: str) -> None:
    """Raise ArtefactError where a file of tensors is missing, cut or no such file; its numbers are
    not read."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ArtefactError(f"{path}: missing", hint)
    try:
        with safe_open(path, framework="pt"):
            return
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path}: damaged ({error})", hint) from error


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a file of a folder that is being made. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except SafetensorError as error:  # carries the system's error as text only
        if f"os error {errno.ENOSPC}" not in str(error):
            raise
        raise OSError(errno.ENOSPC, "no space left on device", str(path)) from error
