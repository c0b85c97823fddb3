#!/usr/bin/env bash
# torch on a CPU: the infinity norm of rows takes ten times as long as abs().amax().
#
# Guess:    torch.linalg.vector_norm(x, inf, dim=-1) reads x once, so it is at least as fast as
#           x.abs().amax(-1), which writes |x| first.
# Happens:  for 128 rows of 576 numbers in float32 it takes about ten times as long; for one row both
#           are alike. Values are equal.
# Versions: torch==2.13.0, x86-64, one thread
# Matters:  the largest value of a row is what dynamic quantisation asks for before every product: so
#           computed, it took longer than the products themselves.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$folder/env/bin/python" - <<'PY'
import statistics
import sys
import time

import torch

torch.manual_seed(0)
x = torch.randn(128, 576)
ways = {
    "abs().amax()": lambda: x.abs().amax(-1),
    "vector_norm(inf)": lambda: torch.linalg.vector_norm(x, torch.inf, -1),
}
assert torch.equal(*(way() for way in ways.values()))
seconds = {name: [] for name in ways}
for _ in range(200):
    for name, way in ways.items():
        began = time.perf_counter()
        way()
        seconds[name].append(time.perf_counter() - began)
medians = {name: statistics.median(each) for name, each in seconds.items()}
print("torch", torch.__version__, {name: f"{value * 1e6:.0f} us" for name, value in medians.items()})
ratio = medians["vector_norm(inf)"] / medians["abs().amax()"]
print(f"{ratio:.1f} times as long, values equal")
sys.exit(0 if ratio > 3 else "this has changed")
PY
