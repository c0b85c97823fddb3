"""Options of `clara compress`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clara_cli.config.common import PlacementOptions
from clara_cli.config.documents import DocumentOptions
from clara_cli.config.fields import MACHINE, METHOD, MODEL, OUTPUT, argument, option


@dataclass(frozen=True, kw_only=True)
class CompressConfig(PlacementOptions, DocumentOptions):
    """Compress documents into memory tokens, once.

    Examples:
      clara compress recipes/sample/corpus.jsonl --ratio 16 --out sample.clara
      clara compress notes/ reports.jsonl.gz --out everything.clara
      cat corpus.jsonl | clara compress - --out piped.clara
      clara compress hf:wikimedia/wikipedia/20231101.en --dry-run --out wiki.clara
      clara compress more.jsonl --into sample.clara
      clara compress big.jsonl --nproc 8 --out big.clara
      torchrun --nnodes 2 --nproc-per-node 8 ... -m clara_cli compress big.jsonl --out s/big.clara
    """

    inputs: tuple[str, ...] = argument(
        "Files or folders: .jsonl(.gz/.xz) .json .txt .md .csv .tsv .parquet; with the extra "
        "documents .pdf .docx .pptx .xlsx .html .epub .rst .eml; hf:OWNER/DATASET, also with "
        "/CONFIG and :SPLIT; or - for JSONL on stdin."
    )
    ratio: int | None = option(
        "Text tokens per memory token; default: what the checkpoint was trained at.",
        None,
        METHOD,
        low=1,
    )
    model: str | None = option(
        "Checkpoint: smol, nano, a directory or a Hub id; default: $CLARA_MODEL, else smol where "
        "its backbone is at hand, else nano.",
        None,
        MODEL,
    )
    out: Path | None = option(
        "The corpus to write; default: the first input's name with .clara.", None, OUTPUT
    )
    into: Path | None = option(
        "Add the documents to this finished corpus, with its options, instead of making one; ids "
        "it has are refused.",
        None,
        OUTPUT,
    )
    split: Literal["sentences", "tokens", "none"] = option(
        "How long documents are cut; none keeps one passage per document and truncates it.",
        "sentences",
        METHOD,
    )
    overlap: int = option(
        "Tokens, at most, that a passage repeats of the one before; whole sentences where it can.",
        0,
        METHOD,
        low=0,
    )
    title: bool = option(
        "Prefix each passage with its document's title when compressing.", True, METHOD
    )
    text: bool = option("Keep the passages' text, for sources and BM25.", True, OUTPUT)
    store_dtype: Literal["auto", "float32", "bf16", "fp16", "fp8", "int8"] = option(
        "Stored number format; auto: what --dtype names, else bf16.", "auto", OUTPUT
    )
    shard_size: int = option("Passages per shard, the unit of resume.", 1024, OUTPUT, low=1)
    batch_tokens: int = option(
        "Positions per batch, of text, memory and padding; bounds memory.", 8192, MACHINE, low=1
    )
    nproc: int | None = option(
        "Processes on this machine, each writing its own shards; default: one.",
        None,
        MACHINE,
        low=1,
    )
    dry_run: bool = option(
        "Count passages and bytes and estimate the time; write nothing.", False, OUTPUT
    )
