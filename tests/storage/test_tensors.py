"""Files of tensors that are missing, cut, or go while they are opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from clara_cli.errors import ArtefactError
from clara_cli.storage.tensors import open_tensors, read_tensors, save_tensors


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "missing": (Path.unlink, "missing"),
    "cut": (cut, "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "deep": (
        lambda path: path.write_bytes((9_000).to_bytes(8, "little") + b"[" * 9_000),
        "damaged",
    ),
    "huge": (lambda path: path.write_bytes(b"\xff" * 99), "damaged"),
}


def test_what_is_written_may_be_read_as_the_umask_says(tmp_path: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            save_tensors(tmp_path / f"{mode}.safetensors", {"a": torch.zeros(2)})
        finally:
            os.umask(before)
        assert (tmp_path / f"{mode}.safetensors").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("read", [read_tensors, open_tensors])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tmp_path: Path, read, damage: str) -> None:
    path, (change, what) = tmp_path / "t.safetensors", DAMAGE[damage]
    save_tensors(path, {"a": torch.ones(3)})
    read(path, "")
    change(path)
    with pytest.raises(ArtefactError, match=rf"t\.safetensors: {what}") as caught:
        read(path, "mend it")
    assert caught.value.hint == "mend it"


@pytest.mark.parametrize("read", [read_tensors, open_tensors])
def test_a_file_that_goes_while_it_is_opened_is_named(tmp_path: Path, monkeypatch, read) -> None:
    """It was there a moment before: an index is replaced beside its readers."""
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    with pytest.raises(ArtefactError, match=r"t\.safetensors: damaged"):
        read(tmp_path / "t.safetensors", "")


def test_memory_that_does_not_suffice_is_no_damage(tmp_path: Path, monkeypatch) -> None:
    def short(*_args: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.ones(3)})
    monkeypatch.setattr("safetensors.torch.load_file", short)
    with pytest.raises(RuntimeError, match="allocate"):
        read_tensors(path, "")
