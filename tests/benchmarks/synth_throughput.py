"""`clara synth` against a bare asyncio loop that sends the same requests with the same HTTP client
at the same concurrency, in turn; and the memory of a short and a long run.

The server is a process of its own on loopback that plays a competent model and takes `--delay`
seconds a reply.

python tests/benchmarks/synth_throughput.py --concurrency 1,8,64 --rounds 3
python tests/benchmarks/synth_throughput.py --memory 2000,20000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers.scripted_llm import Asked, Server, competent, read_request, serving, write_towns  # noqa: E402
from peaks import peak_mb  # noqa: E402

from clara_cli.commands import synth  # noqa: E402
from clara_cli.config import SynthConfig  # noqa: E402
from clara_cli.records import NullReport  # noqa: E402


class Forgetful(Server):
    """The scripted server, keeping nothing of what it was asked."""

    def respond(self, body: dict[str, Any], headers: dict[str, str]) -> Any:
        raw = super().respond(body, headers)
        self.asked.clear()
        self.headers.clear()
        return raw


def play(delay: float) -> None:
    """Serve until killed, the address on the first line of stdout."""

    def player(asked: Asked) -> str:
        time.sleep(delay)
        return competent(asked)

    server = Forgetful(player)
    sys.stdout.write(server.url + "\n")
    sys.stdout.flush()
    server.http.serve_forever()


@contextmanager
def another_process(delay: float) -> Iterator[str]:
    """The server's address."""
    command = [sys.executable, __file__, "--serve", "--delay", str(delay)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()


def config(url: str, docs: Path, out: Path, width: int) -> SynthConfig:
    return SynthConfig(documents=(str(docs),), llm=url, llm_model="m", out=out, concurrency=width)


def requests_of(docs: Path, out: Path, width: int) -> list[dict[str, Any]]:
    """What a run asks for, in order."""
    with serving(competent) as server:
        synth.run(config(server.url, docs, out, width), NullReport())
        return [asked.body for asked in server.asked]


async def bare(url: str, bodies: list[dict[str, Any]], width: int) -> None:
    """The same requests, `width` at a time, replies read and thrown away."""
    left = iter(bodies)
    limits = httpx2.Limits(max_connections=width, max_keepalive_connections=width)
    async with httpx2.AsyncClient(timeout=60, limits=limits, trust_env=False) as client:

        async def worker() -> None:
            for body in left:
                reply = await client.post(f"{url}/chat/completions", json=body)
                reply.json()

        await asyncio.gather(*(worker() for _ in range(width)))


def seconds(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def throughput(width: int, rounds: int, delay: float, each: int) -> dict[str, float]:
    """Requests per second both ways, medians, at one concurrency."""
    with tempfile.TemporaryDirectory() as name, another_process(delay) as url:
        folder = Path(name)
        docs = write_towns(folder / "towns.jsonl", range(each * width))
        bodies = requests_of(docs, folder / "recorded.jsonl", width)
        assert all(read_request(body).task != "?" for body in bodies)
        taken: dict[str, list[float]] = {"bare": [], "synth": []}
        for number in range(rounds):
            out = folder / f"{number}.jsonl"
            taken["bare"].append(seconds(lambda: asyncio.run(bare(url, bodies, width))))
            taken["synth"].append(
                seconds(partial(synth.run, config(url, docs, out, width), NullReport()))
            )
    speed = {k: len(bodies) / statistics.median(times) for k, times in taken.items()}
    return {
        "concurrency": width,
        "requests": len(bodies),
        "bare_per_second": round(speed["bare"], 1),
        "synth_per_second": round(speed["synth"], 1),
        "ratio": round(speed["synth"] / speed["bare"], 3),
    }


def memory(passages: int) -> dict[str, float]:
    """Peak memory of a run of simple questions, in megabytes."""
    with tempfile.TemporaryDirectory() as name, another_process(0.0) as url:
        docs = write_towns(Path(name) / "towns.jsonl", range(passages))
        words = ["synth", str(docs), "--llm", url, "--llm-model", "m", "--kinds", "simple"]
        words += ["--rounds", "1", "--quiet", "--concurrency", "16"]
        peak = peak_mb([*words, "--out", str(Path(name) / "out.jsonl")])
    return {"passages": passages, "peak_mb": peak}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=numbers, default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passages", type=int, default=4, help="passages per request in flight")
    parser.add_argument("--delay", type=float, default=0.2, help="seconds a reply takes")
    parser.add_argument("--memory", type=numbers, help="passages of runs to measure memory of")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return play(args.delay)
    for passages in args.memory or []:
        sys.stdout.write(json.dumps(memory(passages)) + "\n")
    for width in [] if args.memory else args.concurrency:
        result = throughput(width, args.rounds, args.delay, args.passages)
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
