#!/usr/bin/env bash
# torch on a CPU: oneDNN's int8 product accepts signed rows, and takes thousands of times as long.
#
# Guess:    onednn.qlinear_pointwise, the product of torch's quantised exports on x86, takes rows in
#           uint8 (zero at 128) or int8 (zero at 0); symmetric int8 spares the offset, and is as fast.
# Happens:  both are right. With int8 rows a product of 128 x 576 by 576 x 576 takes thousands of times
#           as long as with uint8 rows (14,000 here)).
#           There is no warning. torch._int_mm takes the same signed rows and is fast.
# Versions: torch==2.13.0, x86-64 with AVX-512 VNNI and without AVX-VNNI-INT8, one thread
# Matters:  who quantises symmetrically, as most recipes do, waits minutes for what takes milliseconds,
#           and since results are right looks for the fault elsewhere.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$folder/env/bin/python" - <<'PY'
import sys
import time

import torch

torch.manual_seed(0)
rows, width = 128, 576
weight = torch.randint(-127, 128, (width, width), dtype=torch.int8)
packed = torch.ops.onednn.qlinear_prepack(weight, None)
scales, zeros = torch.ones(width), torch.zeros(width, dtype=torch.long)
signed = torch.randint(-127, 128, (rows, width), dtype=torch.int8)
unsigned = (signed.to(torch.int16) + 128).to(torch.uint8)


def onednn(x, zero):
    settings = (packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    return torch.ops.onednn.qlinear_pointwise(x, 1.0, zero, *settings)


ways = {
    "float32": lambda: signed.float() @ weight.float().T,
    "uint8 rows": lambda: onednn(unsigned, 128),
    "int8 rows": lambda: onednn(signed, 0),
    "int8 rows, _int_mm": lambda: torch._int_mm(signed, weight.T),
}
exact, seconds = ways["float32"](), {}
for name, way in ways.items():
    assert torch.equal(way().float(), exact), name
    times = []
    for _ in range(3):
        began = time.perf_counter()
        way()
        times.append(time.perf_counter() - began)
    seconds[name] = min(times)
print("torch", torch.__version__, "all four results equal")
for name, value in seconds.items():
    print(f"{name}: {value / seconds['uint8 rows']:.1f} times the time of uint8 rows")
sys.exit(0 if seconds["int8 rows"] > 50 * seconds["uint8 rows"] else "this has changed")
PY
