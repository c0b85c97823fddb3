#!/usr/bin/env bash
# torch on a CPU: the product with int8 weights accepts float32 rows, and is slower than float32.
#
# Guess:    weights of a quarter of the bytes make the product of one row, which waits for memory,
#           faster in every number format that _weight_int8pack_mm (the product of int8 weight-only
#           quantisation) accepts.
# Happens:  with a float32 row it takes three times as long as plain float32; with a bfloat16 row, of
#           the same weights, half as long. Results are right, there is no warning. The int4 product
#           (_weight_int4pack_mm_for_cpu) was seen to behave alike.
# Versions: torch==2.13.0, x86-64 with AVX-512, one thread
# Matters:  who quantises a float32 reader to answer faster on a CPU makes it slower; the rows have to
#           be bfloat16, which changes answers' last digits.
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
size, copies = 2048, 8  # more copies than a cache holds
plain = [torch.randn(size, size) for _ in range(copies)]
packed = [torch.randint(-127, 128, (size, size), dtype=torch.int8) for _ in range(copies)]
scales, row = torch.rand(size), torch.randn(1, size)
ways = {
    "float32": lambda i: row @ plain[i].T,
    "int8, float32 row": lambda i: torch._weight_int8pack_mm(row, packed[i], scales),
    "int8, bfloat16 row": lambda i: torch._weight_int8pack_mm(
        row.bfloat16(), packed[i], scales.bfloat16()
    ),
}
exact = row @ (packed[0].float() * scales[:, None]).T
apart = (ways["int8, float32 row"](0) - exact).abs().max() / exact.abs().max()
seconds = {name: [] for name in ways}
for _ in range(15):
    for name, way in ways.items():
        began = time.perf_counter()
        for i in range(copies):
            way(i)
        seconds[name].append(time.perf_counter() - began)
medians = {name: statistics.median(each) for name, each in seconds.items()}
print("torch", torch.__version__, "largest difference of the int8 product", f"{apart:.1e}")
for name, value in medians.items():
    print(f"{name}: {value / medians['float32']:.2f} of float32's time")
slower = medians["int8, float32 row"] > 1.5 * medians["float32"]
faster = medians["int8, bfloat16 row"] < medians["float32"]
sys.exit(0 if slower and faster else "this has changed")
PY
