"""Measure which text the bundled `nano` knows, and write `familiar_text.json`.

The nats a token of the first tokens of three passages under nano's bare backbone: held-out passages
of the invented world, and paragraphs of SQuAD dev, in draws of three. The threshold is the middle
between the highest of the one and the lowest of the other. From the repository's root:

    python recipes/nano/familiar_text.py dev.jsonl.xz --out clara_cli/models/nano/familiar_text.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import lzma
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import world

from clara_cli.answering.familiar_text import (
    FILE,
    FORMAT,
    PASSAGES,
    TOKENS,
    VERSION,
    nats_per_token,
)
from clara_cli.bundled import BUNDLED
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.core.model import ClaraModel
from clara_cli.storage.artefact import encode

DRAWS = 2000


def held_out(seed: int, count: int) -> list[str]:
    """Passages of the invented world that nano was not trained on."""
    return [entry.text for entry in itertools.islice(world.entries(seed, held_out=True), count)]


def paragraphs(squad: Path, count: int, rng: random.Random) -> list[str]:
    """Paragraphs of SQuAD, from all of its articles."""
    with lzma.open(squad, "rt", encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    return rng.sample(texts, count)


def measure(model: ClaraModel, texts: Sequence[str], rng: random.Random) -> list[float]:
    """Nats a token of draws of as many passages as are looked at, in order; the mean of theirs, as
    `nats_per_token` of several."""
    nats = [value for text in texts if (value := nats_per_token(model, [text])) is not None]
    return sorted(sum(rng.sample(nats, PASSAGES)) / PASSAGES for _ in range(DRAWS))


def figures(values: Sequence[float]) -> dict[str, float]:
    """The ends, the middle and the inner 90 % of what was measured."""
    at = {"least": 0, "p5": 0.05, "median": 0.5, "p95": 0.95, "most": 1}
    return {name: round(values[round(share * (len(values) - 1))], 3) for name, share in at.items()}


def record(model: ClaraModel, fingerprint: str, squad: Path, seed: int) -> dict[str, Any]:
    """The file's object."""
    rng = random.Random(seed)
    known = measure(model, held_out(seed, 200), rng)
    unknown = measure(model, paragraphs(squad, 200, rng), rng)
    return {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": fingerprint,
        "most_nats": round((known[-1] + unknown[0]) / 2, 2),
        "measured": {
            "by": "recipes/nano/familiar_text.py",
            "draws": DRAWS,
            "passages": PASSAGES,
            "tokens": TOKENS,
            "invented world, held out": figures(known),
            "SQuAD dev": figures(unknown),
        },
    }


def main() -> None:
    """Read the command line, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("squad", type=Path)
    parser.add_argument("--out", type=Path, default=Path(FILE))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    loaded = load(LoadOptions(str(BUNDLED["nano"]), device="cpu"))
    found = record(loaded.model, loaded.info.fingerprint, args.squad, args.seed)
    args.out.write_bytes(encode(found))
    print(json.dumps({"most_nats": found["most_nats"], **found["measured"]}))


if __name__ == "__main__":
    main()
