"""Options of `clara index`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clara_cli.config.common import PlacementOptions
from clara_cli.config.fields import INPUT, METHOD, MODEL, OUTPUT, argument, option
from clara_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class IndexConfig(PlacementOptions):
    """Make a compressed corpus searchable, and measure the index's recall.

    Examples:
      clara index sample.clara
      clara index sample.clara --engine hnsw --queries questions.jsonl
      clara index sample.clara --engine milvus --uri http://host:19530
      clara index sample.clara --check
      clara index sample.clara --list
      clara index sample.clara --show invented-030
    """

    corpus: Path = argument("A corpus made by clara compress.")
    engine: Literal["auto", "exact", "hnsw", "milvus"] = option(
        "Search structure questions will use; auto decides by the measured recall.", "auto", METHOD
    )
    uri: str | None = option(
        "Where --engine milvus keeps keys: a .db file, or an address like http://host:19530.",
        None,
        OUTPUT,
    )
    queries: Path | None = option(
        "Questions (JSONL) to measure recall with, instead of the passages' first sentences.",
        None,
        INPUT,
    )
    top_k: int = option("k of the measured recall@k.", 5, METHOD, low=1)
    candidates: int | None = option(
        "Passages the index proposes for exact rescoring; default: 20 per k.", None, METHOD, low=1
    )
    model: str | None = option(
        "Checkpoint for the queries; default: what the corpus names.", None, MODEL
    )
    check: bool = option(
        "Verify every file of the corpus against its recorded checksum and stop.", False, OUTPUT
    )

    list: bool = option("List the corpus's documents and stop.", False, OUTPUT)
    show: str | None = option(
        "Show the document of this id, with its passages, and stop.", None, OUTPUT
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = [f"--{name}" for name in ("check", "list", "show") if getattr(self, name)]
        if len(alone) > 1:
            raise UsageError(f"{' and '.join(alone)} do not go together", "give one of them")
        if self.engine == "milvus" and self.uri is None:
            raise UsageError("--engine milvus: no --uri", "a .db file or http://host:19530")
        if self.engine != "milvus" and self.uri is not None:
            what = f"--uri {self.uri} was given with --engine {self.engine}"
            raise UsageError(what, "it goes with --engine milvus")
