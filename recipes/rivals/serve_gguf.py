"""llama.cpp's own OpenAI-compatible server on a GGUF file, from the wheel `xllamacpp`: for machines
without a `llama-server`. Prints its address, and serves until it is stopped.

    pip install xllamacpp
    python recipes/rivals/serve_gguf.py model.gguf --port 8081
"""

from __future__ import annotations

import argparse
import signal

import xllamacpp


def parameters(arguments: argparse.Namespace) -> xllamacpp.CommonParams:
    """The server's settings. `--context` is the window of all requests in flight together."""
    made = xllamacpp.CommonParams()
    made.model.path = arguments.model
    made.hostnames, made.port = [arguments.host], arguments.port
    made.n_ctx, made.n_parallel = arguments.context, arguments.parallel
    made.n_predict = 256
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = arguments.threads
    return made


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a .gguf file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    server = xllamacpp.Server(parameters(parser.parse_args()))
    print(f"{server.listening_address}/v1", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
