"""Compression-native RAG in the terminal: documents become memory tokens, answers come from them.

Importing this package loads nothing heavy: `Clara` (the Python API) and `__version__` are found on
first use. It knows nothing of how either works.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clara_cli.answering.engine import Clara

    __version__: str

__all__ = ["Clara", "__version__"]


def __getattr__(name: str) -> object:
    """`Clara` and `__version__`, looked up late (PEP 562)."""
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("clara-cli")
        except metadata.PackageNotFoundError:
            return "0.1.0"
    if name == "Clara":
        from clara_cli.answering.engine import Clara

        return Clara
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
