"""llama.cpp's own OpenAI-compatible server on a GGUF file, from the wheel `xllamacpp`: for machines
without a `llama-server`. Prints its address, and serves until it is stopped.

    pip install xllamacpp
    python recipes/rivals/serve_gguf.py model.gguf --port 8081
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

import xllamacpp


def parameters(arguments: argparse.Namespace) -> xllamacpp.CommonParams:
    """The server's settings. `--context` is the window of all requests in flight together."""
    settings = xllamacpp.CommonParams()
    settings.model.path = arguments.model
    settings.hostnames, settings.port = [arguments.host], arguments.port
    settings.n_ctx, settings.n_parallel = arguments.context, arguments.parallel
    settings.n_predict = 256
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = arguments.threads
    return settings


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a .gguf file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if not Path(arguments.model).is_file():
        parser.error(f"{arguments.model}: no such file")
    server = xllamacpp.Server(parameters(arguments))
    print(f"{server.listening_address}/v1", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
