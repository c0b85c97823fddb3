"""smol against llama.cpp on the same weights, threads and texts, in turn in one process: reading a
text, time to the first token over five passages, and writing.

    pip install xllamacpp
    python tests/benchmarks/llama_cpp.py GGUF CORPUS QUESTIONS --rounds 5 --threads 1

GGUF is smol's backbone, CORPUS one that smol compressed at ratio 4 with its text, QUESTIONS JSON
lines with `question`. Reading: text tokens a second of passages that clara compresses at 16x and
llama.cpp takes as prompts. First token: from the question's arrival, search and query included, the
model loaded; no prompt is cached. Writing: tokens a second after that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xllamacpp

from clara_cli.answering.engine import Clara
from clara_cli.answering.passage_search import AskOptions

PASSAGES, WRITTEN, READ = 5, 32, 8


class LlamaCpp:
    """llama.cpp on a GGUF file, one request at a time."""

    def __init__(self, gguf: Path, threads: int) -> None:
        settings = xllamacpp.CommonParams()
        settings.model.path = str(gguf)
        settings.n_ctx, settings.n_parallel = 8192, 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        settings.warmup = True
        self.server = xllamacpp.Server(settings)

    def complete(self, prompt: str, tokens: int) -> dict[str, Any]:
        """What the server gives after a prompt, with its timings; nothing is kept for the next."""
        request = {
            "prompt": prompt,
            "n_predict": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        reply: dict[str, Any] = self.server.handle_completions(request)
        return reply.get("__verbose", reply)


def timed(run: Callable[[], object]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def first_tokens(clara: Clara, llama: LlamaCpp, question: str) -> dict[str, float]:
    """Seconds to the first token over the same five passages, by way of reading them."""
    hits = clara.search(question, AskOptions(top_k=PASSAGES)).sources
    texts = [hit.passage.text for hit in hits]
    prompter = clara.prompter
    prompt = prompter.render(prompter.text_chat(question, texts), None)

    def ask(**more: Any) -> float:
        return timed(lambda: clara.ask(question, PASSAGES, max_new_tokens=1, **more))

    return {
        "llama.cpp, text": timed(lambda: llama.complete(prompt, 1)),
        "clara, memory 4x": ask(read="memory", ratio=4),
        "clara, memory 16x": ask(read="memory", ratio=16),
        "clara, text": ask(read="text"),
    }


def rates(clara: Clara, llama: LlamaCpp, question: str, texts: list[str]) -> dict[str, float]:
    """Tokens a second of reading texts and of writing."""
    model, prompter = clara.model, clara.prompter
    rows = [prompter.passage(text) for text in texts]
    tokens = sum(len(row) for row in rows)
    with torch.inference_mode():
        compress = timed(lambda: model.encode(rows, "compressor", model.memory_tokens // 4))
    prompts = [llama.complete(text, 1)["timings"] for text in texts]
    read = sum(timing["prompt_n"] for timing in prompts)
    ids = prompter.prompt(prompter.text_chat(question, texts[:1]))
    prefill = timed(lambda: model.generate([ids], None, 1))
    both = timed(lambda: model.generate([ids], None, 1 + WRITTEN, min_new_tokens=1 + WRITTEN))
    written = llama.complete(question, 1 + WRITTEN)["timings"]
    return {
        "clara reads": tokens / compress,
        "llama.cpp reads": read / sum(timing["prompt_ms"] for timing in prompts) * 1000,
        "clara writes": WRITTEN / (both - prefill),
        "llama.cpp writes": written["predicted_n"] / written["predicted_ms"] * 1000,
    }


def matrix_rate(width: int = 576, inner: int = 1536, rows: int = 1024) -> float:
    """Numbers multiplied a second by a bare loop of the backbone's largest products."""
    x, w = torch.randn(rows, width), torch.randn(inner, width)
    count = 20
    torch.nn.functional.linear(x, w)
    seconds = timed(lambda: [torch.nn.functional.linear(x, w) for _ in range(count)])
    return count * rows * width * inner / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = options.questions.read_text("utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines[: options.rounds + 1]]
    clara, llama = Clara.open(options.corpus, device="cpu"), LlamaCpp(options.gguf, options.threads)
    passages = [passage.text for _, passage in zip(range(256), clara.corpus.passages())]  # noqa: B905
    weights = sum(p.numel() for n, p in clara.model.causal_lm.named_parameters() if "layers" in n)
    measured: dict[str, list[float]] = {}
    for number, question in enumerate(questions):
        some = passages[number * READ :][:READ]
        result = first_tokens(clara, llama, question) | rates(clara, llama, question, some)
        result["floor reads"] = matrix_rate() / weights
        if number:  # the first warms up
            for name, value in result.items():
                measured.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in measured.items()}
    told = {name: round(value, 3) for name, value in medians.items()}
    told["first token, memory 4x: times"] = medians["llama.cpp, text"] / medians["clara, memory 4x"]
    told["first token, memory 16x: times"] = (
        medians["llama.cpp, text"] / medians["clara, memory 16x"]
    )
    told["reads: times"] = medians["clara reads"] / medians["llama.cpp reads"]
    told["reads: of the floor"] = medians["clara reads"] / medians["floor reads"]
    told["writes: times"] = medians["clara writes"] / medians["llama.cpp writes"]
    told = {name: round(value, 2) for name, value in told.items()}
    sys.stdout.write(json.dumps({**told, "rounds": options.rounds}) + "\n")


if __name__ == "__main__":
    main()
