"""What each `--store-dtype` costs: bytes, the error of the stored memory, and what retrieval and
answers make of it, against the same corpus in float32.

    python tests/benchmarks/store_formats.py --documents recipes/sample/corpus.jsonl \
        --questions recipes/sample/questions.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from clara_cli import Clara
from clara_cli.commands import compress
from clara_cli.config import CompressConfig
from clara_cli.corpus.quantize import DTYPES
from clara_cli.corpus.store import Corpus
from clara_cli.documents.examples import read_questions
from clara_cli.records import NullReport


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", nargs="+", required=True)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--ratio", type=int, default=16)
    parser.add_argument("--limit", type=int, default=None, help="questions")
    args = parser.parse_args()
    questions = list(read_questions([args.questions], need_answers=False))[: args.limit]
    exact: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            out = Path(folder) / f"{dtype}.clara"
            common = {"model": args.model, "ratio": args.ratio, "device": "cpu"}
            made = compress.run(
                CompressConfig(inputs=tuple(args.documents), out=out, store_dtype=dtype, **common),
                NullReport(),
            )
            corpus = Corpus.open(out)
            memory_NMD = torch.cat([chunk for _, chunk in corpus.memory_chunks()])
            clara = Clara.open(out, device="cpu")
            asked = [clara.ask(q.question, first_stage="latent") for q in questions]
            hits = [{hit.row for hit in answer.sources} for answer in asked]
            answers = [answer.answer for answer in asked]
            if not exact:
                exact = {"memory": memory_NMD, "hits": hits, "answers": answers}
            same = [len(a & b) / len(b) for a, b in zip(hits, exact["hits"], strict=True)]
            cosines = torch.cosine_similarity(memory_NMD.flatten(1), exact["memory"].flatten(1))
            error = (memory_NMD - exact["memory"]).norm() / exact["memory"].norm()
            result = {
                "dtype": dtype,
                "passages": made.passages,
                "bytes_per_passage": sum(s.bytes_memory for s in corpus.manifest.shards)
                // made.passages,
                "relative_error": float(f"{error.item():.2g}"),
                "least_cosine": round(cosines.min().item(), 6),
                "questions": len(questions),
                "top5_of_float32": round(sum(same) / len(same), 4),
                "answers_changed": sum(
                    a != b for a, b in zip(answers, exact["answers"], strict=True)
                ),
            }
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
