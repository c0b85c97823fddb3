"""Options of `clara compress`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clara_cli.config.common import PlacementOptions
from clara_cli.config.documents import DocumentOptions
from clara_cli.config.fields import INPUT, MACHINE, METHOD, MODEL, OUTPUT, argument, option
from clara_cli.errors import UsageError
from clara_cli.storage.remote_folder import refuse_url


@dataclass(frozen=True, kw_only=True)
class CompressConfig(PlacementOptions, DocumentOptions):
    """Compress documents into memory tokens, once.

    Examples:
      clara compress recipes/sample/corpus.jsonl --ratio 16 --out sample.clara
      clara compress notes/ reports.jsonl.gz --out everything.clara
      cat corpus.jsonl | clara compress - --out piped.clara
      clara compress hf:wikimedia/wikipedia/20231101.en --dry-run --out wiki.clara
      clara compress notes/ --into notes.clara --prune
      clara compress notes/ --into notes.clara --watch
      clara compress more.jsonl --into sample.clara --append
      clara compress --into sample.clara --delete d17
      clara compress big.jsonl --nproc 8 --out big.clara
      torchrun --nnodes 2 --nproc-per-node 8 ... -m clara_cli compress big.jsonl --out s/big.clara
    """

    inputs: tuple[str, ...] = argument(
        "Files or folders: .jsonl(.gz/.xz) .json .txt .md .csv .tsv .parquet; with the extra "
        "documents .pdf .docx .pptx .xlsx .html .epub .rst .eml; hf:OWNER/DATASET, also with "
        "/CONFIG and :SPLIT; or - for JSONL on stdin.",
        (),
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
        "Bring this finished corpus, with its options, to the state of the documents: new ones are "
        "added, changed ones replaced, the others cost nothing.",
        None,
        OUTPUT,
    )
    append: bool = option("With --into: only add; ids the corpus has are refused.", False, OUTPUT)
    prune: bool = option(
        "With --into: delete documents of these inputs that are no longer there; what cannot be "
        "read is kept.",
        False,
        OUTPUT,
    )
    yes: bool = option("Prune without asking, an empty folder too.", False, OUTPUT)
    delete: tuple[str, ...] = option(
        "With --into: delete the document of this id (several: repeat it).", (), OUTPUT
    )
    delete_from: Path | None = option(
        "With --into: delete the documents whose ids stand in this file, one a line.", None, INPUT
    )
    vacuum: bool = option(
        "With --into: take deleted and replaced documents out of the files, too.", False, OUTPUT
    )
    watch: bool = option(
        "With --into: do so again whenever the documents change, until Ctrl-C.", False, OUTPUT
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
    store_dtype: Literal["auto", "float32", "bf16", "fp16", "fp8", "int8", "nf4"] = option(
        "Stored number format; auto: what --dtype names, else fp8.", "auto", OUTPUT
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
        "Count passages and bytes and estimate the time; with --into, count the documents that "
        "would change; write nothing.",
        False,
        OUTPUT,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_url("--out", self.out)
        refuse_url("--into", self.into)
        for name in ("append", "prune", "delete", "delete_from", "vacuum", "watch"):
            if getattr(self, name) and self.into is None:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} without --into", "add --into and the corpus's folder")
        if self.yes and not self.prune:
            raise UsageError("--yes without --prune", "omit it: nothing is asked")
        deletes = bool(self.delete or self.delete_from)
        if not self.inputs and not deletes and not self.vacuum:
            raise UsageError("no documents", "name files or folders, or - for stdin")
        if deletes and self.inputs:
            hint = "give them one after the other: what is among the documents would come back"
            raise UsageError("documents and --delete were both given", hint)
        if self.append and (self.prune or deletes or self.vacuum or self.watch):
            raise UsageError("--append only adds", "omit --append, or the other option")
        if self.watch and (not self.inputs or "-" in self.inputs):
            raise UsageError("--watch needs files or folders to watch", "name them")
        if self.watch and self.prune and not self.yes:
            hint = "add --yes, and what goes from the folders goes from the corpus"
            raise UsageError("--watch --prune asks nobody", hint)
        if self.watch and self.dry_run:
            raise UsageError("--watch with --dry-run", "omit one of them")
        if self.watch and self.nproc:
            raise UsageError("--watch runs in one process", "omit --nproc")
        if (self.prune or self.watch) and not self.inputs:
            raise UsageError("--prune compares with documents", "name files or folders")
