"""What a corpus of many passages takes, computed from rates and sizes that were measured on small
ones.

    python recipes/large-corpora/plan.py --passages 21015324 --gpu-rate 21.67

Prints the tables of README.md. The rate of your own machine is in the last line of `clara compress`
on a part of the documents (`passages_per_second` of `--json`).
"""

from __future__ import annotations

import argparse

from clara_cli.corpus.quantize import passage_bytes

DPR_PASSAGES = (
    21_015_324  # Wikipedia of 2018-12-20 in passages of 100 words (Karpukhin et al. 2020)
)
HIDDEN = 4096  # of Mistral-7B
RATIOS = {16: 16, 2: 128}  # ratios by memory tokens, of passages of 256 tokens
SHARD = 1024
H100_RATE = 20 / 0.92285  # passages a second: the authors' 922.85 ms for 20 documents at 16x
CORE_RATE = 4.03  # smol, float32, one core that others used too: 657 tokens a second, 163 each
TEXT_BYTES = 275.4  # of passages/, a passage of 100 words of Wikipedia
LIST_BYTES = 39.7  # of documents/, a document
SHARD_RECORD_BYTES = 350  # of manifest.json, a shard
KEY_BYTES, KEY_SECONDS = 780, 5.5 / 20_000  # hnsw over pca-128, 20,000 passages
WORDS_BYTES = 520  # of the word index, a passage of SQuAD
SCAN_VALUES = 305e6  # a second, of an exact scan of fp8, one core (bf16: 571e6)
EDIT_BYTES = 500  # of main memory, a document, while the corpus is edited


def size(count: float) -> str:
    """Bytes in the unit that leaves at most four digits before the point."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = 0
    while count >= 1000 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    return f"{count:,.1f} {units[power]}" if count < 100 else f"{count:,.0f} {units[power]}"


def memory_rows(passages: int) -> list[str]:
    """A line for each ratio: the memory in each store format, and a shard of it."""
    rows = [
        "| memory tokens | bf16 | fp8 | nf4 | a shard, fp8 | exact scan of fp8, one core |",
        "|---|---|---|---|---|---|",
    ]
    for tokens, ratio in RATIOS.items():
        each = {d: passage_bytes(d, tokens, HIDDEN) for d in ("bf16", "fp8", "nf4")}
        sizes = [size(passages * number) for number in each.values()]
        minutes = passages * tokens * HIDDEN / SCAN_VALUES / 60
        shard = size(SHARD * each["fp8"])
        rows.append(f"| {tokens} ({ratio}x) | {' | '.join(sizes)} | {shard} | {minutes:,.1f} min |")
    return rows


def other_rows(passages: int) -> list[str]:
    """What else lies on the disk, and what is held in main memory."""
    shards = -(-passages // SHARD)
    parts = (
        ("text (`passages/`)", passages * TEXT_BYTES, "on disk"),
        ("list of documents", passages * LIST_BYTES, "on disk"),
        (f"manifest, {shards:,} shards", shards * SHARD_RECORD_BYTES, "read at each start"),
        ("graph, pca-128", passages * KEY_BYTES, "in main memory, of one machine or of Milvus"),
        ("words (BM25)", passages * WORDS_BYTES, "in main memory, where text was kept"),
        ("`--into`", passages * EDIT_BYTES, "in main memory, during an edit"),
    )
    rows = ["| part | bytes | where |", "|---|---|---|"]
    return [*rows, *(f"| {name} | {size(count)} | {where} |" for name, count, where in parts)]


def time_rows(passages: int, gpu_rate: float) -> list[str]:
    """Hours of computing, and by how many machines they are shared."""
    gpu_hours = passages / gpu_rate / 3600
    core_hours = passages / CORE_RATE / 3600
    build_hours = passages * KEY_SECONDS / 3600
    nodes = ", ".join(f"{gpu_hours / 8 / count:,.1f}" for count in (1, 2, 4))
    return [
        "| work | hours | on 1, 2 and 4 nodes of 8 GPUs |",
        "|---|---|---|",
        f"| compress, 7B, H100 ({gpu_rate:.1f} passages/s) | {gpu_hours:,.0f} GPU | {nodes} |",
        f"| compress, smol, CPU ({CORE_RATE} passages/s) | {core_hours:,.0f} core | |",
        f"| graph, pca-128, at least | {build_hours:,.1f} core | one process |",
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--passages", type=int, default=DPR_PASSAGES)
    parser.add_argument("--gpu-rate", type=float, default=H100_RATE, help="passages a second")
    options = parser.parse_args()
    passages = options.passages
    tables = (memory_rows(passages), other_rows(passages), time_rows(passages, options.gpu_rate))
    print("\n\n".join("\n".join(rows) for rows in tables))


if __name__ == "__main__":
    main()
