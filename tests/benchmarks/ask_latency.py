"""Time to first token over memory against text, and what starting `clara ask` costs.

    python tests/benchmarks/ask_latency.py --first-token
    python tests/benchmarks/ask_latency.py --cold CORPUS --question "Who ...?"

`--first-token`: five passages of 256 tokens read as text (1,280 tokens) and as memory at ratios 4,
16 and 32, on one random backbone, in alternating rounds: prefill and first token, with the query
reasoner's pass over the question counted where memory is read.
`--cold`: `clara ask` in a new process, against a script that imports torch and the backbone's
class, loads it and generates as many tokens from a prompt as long, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from compress_speed import backbone_folder
from untrained import PASSAGE_TOKENS, random_model

PASSAGES, QUESTION = 5, "Who commanded the ship in the year of the storm?"
ROLES = ("compressor", "query_reasoner", "generator")
BARE = """
import torch
from transformers import LlamaForCausalLM
model = LlamaForCausalLM.from_pretrained({backbone!r}, dtype=torch.float32)
ids = torch.randint(300, 4000, (1, {prompt}), generator=torch.Generator().manual_seed(0))
model.generate(ids, do_sample=False, max_new_tokens={new}, min_new_tokens={new})
"""


def first_token(rounds: int) -> dict[str, object]:
    """Milliseconds to the first token, by way of reading."""
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(backbone_folder(Path(folder)), ROLES, 64)
    prompter, seeded = model.prompter, torch.Generator().manual_seed(0)
    texts = ["x" * PASSAGE_TOKENS] * PASSAGES  # bytes are its tokens

    def over_text() -> None:
        model.generate([prompter.prompt(prompter.text_chat(QUESTION, texts))], None, 1, None)

    def over_memory(memory_tokens: int) -> Callable[[], None]:
        memory_ND = torch.randn(
            PASSAGES * memory_tokens, model.memory_MD.shape[1], generator=seeded
        )

        def read() -> None:
            with torch.inference_mode():
                model.encode([prompter.passage(QUESTION)], "query_reasoner", memory_tokens)
            chat = prompter.answer_chat(QUESTION, PASSAGES, memory_tokens)
            model.generate([prompter.prompt(chat)], memory_ND, 1)

        return read

    ways = {"text": over_text}
    ways |= {f"memory {r}": over_memory(PASSAGE_TOKENS // r) for r in (4, 16, 32)}
    seconds = alternate(ways, rounds)
    result: dict[str, object] = {f"{name}_ms": round(1000 * s, 1) for name, s in seconds.items()}
    for name, spent in seconds.items():
        result[f"{name}_of_text"] = round(spent / seconds["text"], 3)
    return result | {"rounds": rounds, "threads": torch.get_num_threads()}


def cold(corpus: Path, question: str, rounds: int) -> dict[str, object]:
    """Seconds of a fresh `clara ask`, against the bare script."""
    ask = [sys.executable, "-m", "clara_cli", "ask", question, "--corpus", str(corpus), "--json"]
    answer = json.loads(subprocess.run(ask, check=True, capture_output=True).stdout)
    from clara_cli.answering.engine import Clara
    from clara_cli.bundled import BUNDLED

    new = len(Clara.open(corpus, device="cpu").prompter.ids(answer["answer"])) + 1
    prompt = answer["prompt_tokens"]
    bare = BARE.format(backbone=str(BUNDLED["nano"] / "backbone"), prompt=prompt, new=new)

    def run(*words: str) -> Callable[[], None]:
        return lambda: void(subprocess.run([*words], check=True, capture_output=True))

    seconds = alternate({"bare": run(sys.executable, "-c", bare), "clara": run(*ask)}, rounds)
    result: dict[str, object] = {f"{name}_s": round(s, 2) for name, s in seconds.items()}
    ratio = round(seconds["clara"] / seconds["bare"], 3)
    return result | {"ratio": ratio, "prompt": prompt, "new_tokens": new, "rounds": rounds}


def void(_: object) -> None:
    """Nothing."""


def alternate(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, taken in turn, after a first round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first-token", action="store_true")
    parser.add_argument("--cold", type=Path, metavar="CORPUS")
    parser.add_argument("--question", default="Who commanded the Eastern Walrus 58?")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if args.first_token:
        sys.stdout.write(json.dumps(first_token(args.rounds)) + "\n")
    if args.cold is not None:
        sys.stdout.write(json.dumps(cold(args.cold, args.question, args.rounds)) + "\n")


if __name__ == "__main__":
    main()
