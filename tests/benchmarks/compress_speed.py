"""Passages per second of `clara compress` against the plain way, side by side, in alternating
rounds of one process.

The plain way pads every passage to the longest (L_max + 3 + M positions), runs the full causal
language model, adapters unmerged, and keeps all hidden states. Without documents both encode random
tokens with a random 33 M backbone; the figure is the ratio of the medians. With documents, the
bundled model: the whole command on paragraphs of real text (reading, splitting, tokenising,
encoding, writing) against tokenising and encoding, by wall clock and by processor time. `--memory`
compares the peak memory of the command on the documents' first tenth and on all of them.

    python tests/benchmarks/compress_speed.py --rounds 5
    python tests/benchmarks/compress_speed.py --documents wiki.jsonl.xz --passages 30000
    python tests/benchmarks/compress_speed.py --documents wiki.jsonl.xz --passages 30000 --memory
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from helpers.tiny_backbones import byte_tokenizer
from peaks import peak_mb
from untrained import PASSAGE_TOKENS, random_model

from clara_cli.commands import compress
from clara_cli.config import CompressConfig, DocumentOptions
from clara_cli.core.batch_encoding import encode_rows
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.core.model import ClaraModel
from clara_cli.corpus.store import Corpus
from clara_cli.documents.chunk import split_document
from clara_cli.documents.documents import read_documents
from clara_cli.records import Document, NullReport

SLOTS, ROLES = 16, ("compressor",)


def backbone_folder(folder: Path) -> Path:
    """A random Mistral of 33 M parameters (512 wide, 8 layers)."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    MistralForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def plain(model: ClaraModel, rows: list[list[int]], batch: int) -> torch.Tensor:
    """Left-padded to the full width, full causal LM, every hidden state kept."""
    width = PASSAGE_TOKENS + 3
    memory = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        placeholders = model.prompter.memory_ids * SLOTS
        ids = [[0] * (width - len(row)) + row + placeholders for row in part]
        mask = [[0] * (width - len(row)) + [1] * (len(row) + SLOTS) for row in part]
        embeds = model.embed(torch.tensor(ids), model.memory_MD[:SLOTS].repeat(len(part), 1))
        with model.role("compressor"):
            out = model.causal_lm(
                inputs_embeds=embeds, attention_mask=torch.tensor(mask), output_hidden_states=True
            )
        memory.append(out.hidden_states[-1][:, -SLOTS:])
    return torch.cat(memory)


def paragraphs(documents: list[str], most: int, offsets) -> Iterator[str]:
    """Paragraphs of the documents, those longer than `most` tokens cut at sentence ends."""
    for document in read_documents(documents, DocumentOptions(), print, print):
        for text in filter(str.strip, document.text.split("\n")):
            paragraph = Document("", text)
            for passage in split_document(paragraph, most, offsets, "sentences", False):
                yield passage.text or ""


def write_parts(args: argparse.Namespace, offsets, folder: Path) -> list[Path]:
    """The passages as `rounds` files of documents, one passage each."""
    texts, size = paragraphs(args.documents, args.longest, offsets), args.passages // args.rounds
    files = []
    for number in range(args.rounds):
        lines = [json.dumps({"text": text}) + "\n" for text in islice(texts, size)]
        files.append(folder / f"{number}.jsonl")
        files[-1].write_text("".join(lines))
    return files


def clocked(work) -> tuple[float, float]:
    """Seconds of wall clock and of processor time."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used


def real(args: argparse.Namespace) -> dict[str, object]:
    """The bundled model on real text: every round compresses a file, then the plain way encodes
    the first passages of it."""
    reference = load(LoadOptions("nano", None, "cpu", "float32")).model
    seconds: dict[str, list[tuple[float, float]]] = {"clara": [], "plain": []}
    each, tokens = args.baseline // args.rounds, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, file in enumerate(write_parts(args, reference.prompter.offsets, folder)):
            out = folder / f"{number}.clara"
            config = CompressConfig(
                inputs=(str(file),), model="nano", out=out, ratio=16, device="cpu"
            )
            seconds["clara"].append(
                clocked(lambda config=config: compress.run(config, NullReport()))
            )
            tokens += Corpus.open(out).manifest.counts["text_tokens"]
            texts = [json.loads(line)["text"] for line in file.read_text().splitlines()[:each]]
            seconds["plain"].append(
                clocked(
                    lambda texts=texts: plain(
                        reference, [reference.prompter.passage(t) for t in texts], args.batch
                    )
                )
            )
    size = {"clara": args.passages // args.rounds, "plain": each}
    result: dict[str, object] = {
        "passages": size["clara"] * args.rounds,
        "baseline": each * args.rounds,
    }
    result |= {
        "mean_tokens": round(tokens / (size["clara"] * args.rounds), 1),
        "rounds": args.rounds,
    }
    for kind, clock in enumerate(("wall", "processor")):
        pace = {way: size[way] / statistics.median(t[kind] for t in seconds[way]) for way in size}
        result |= {f"{way}_per_second_{clock}": round(pace[way], 2) for way in size}
        result[f"ratio_{clock}"] = round(pace["clara"] / pace["plain"], 2)
    return {**result, "torch": torch.__version__, "threads": torch.get_num_threads()}


def peaks(args: argparse.Namespace) -> dict[str, object]:
    """Peak resident memory, MB, of the command on a tenth of the passages and on all."""
    offsets = load(LoadOptions("nano", None, "cpu", "float32")).model.prompter.offsets
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        args.rounds = 10
        files = list(map(str, write_parts(args, offsets, Path(name))))
        for inputs in (files[:1], files):
            out = Path(name) / f"{len(inputs)}.clara"
            words = ["compress", *inputs, "--model", "nano", "--ratio", "16", "--out", str(out)]
            peak = peak_mb([*words, "--quiet"])
            result[f"peak_mb_{len(Corpus.open(out))}"] = peak
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passages", type=int, default=64)
    parser.add_argument(
        "--mean", type=int, default=96, help="mean length of random passages, tokens"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--documents", nargs="+", help="real text: anything clara compress reads")
    parser.add_argument("--longest", type=int, default=176, help="cut paragraphs beyond, tokens")
    parser.add_argument("--baseline", type=int, default=1000, help="passages for the plain way")
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    if args.documents:
        sys.stdout.write(json.dumps(peaks(args) if args.memory else real(args)) + "\n")
        return
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        reference = random_model(backbone_folder(Path(folder)), ROLES, SLOTS)
        fast = random_model(Path(folder), ROLES, SLOTS)
        fast.merge("compressor")
    begin = fast.prompter.encode_id
    rows = []
    for _ in range(args.passages):
        length = min(PASSAGE_TOKENS, max(8, round(rng.gauss(args.mean, args.mean / 3))))
        rows.append([begin, 1, *(rng.randrange(3, 256) for _ in range(length)), 2])
    ways = {
        "plain": lambda: plain(reference, rows, args.batch),
        "clara": lambda: encode_rows(fast, rows, SLOTS, 8192),
    }
    memories = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "passages": args.passages,
        "mean_tokens": sum(map(len, rows)) / len(rows) - 3,
        "rounds": args.rounds,
        "plain_per_second": round(args.passages / medians["plain"], 2),
        "clara_per_second": round(args.passages / medians["clara"], 2),
        "ratio": round(medians["plain"] / medians["clara"], 2),
        "largest_difference": (memories["plain"] - memories["clara"]).abs().max().item(),
        "parameters": sum(p.numel() for p in fast.causal_lm.parameters()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
