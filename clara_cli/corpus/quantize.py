"""How memory is stored: the number formats, and the two of eight bits with their scales.

`int8` divides each group of 128 neighbouring values by their largest (scales in fp16), `fp8` each
memory token (scales in float32, e4m3 after that). N passages, M memory tokens, D hidden, G groups.
Knows no files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 128
# our name: safetensors' names of the values and of their scales
DTYPES = {"float32": "F32", "bf16": "BF16", "fp16": "F16", "fp8": "F8_E4M3", "int8": "I8"}
SCALES = {"fp8": "F32", "int8": "F16"}
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1}
_LARGEST = {"fp8": 448.0, "int8": 127.0}


def groups(dtype: str, hidden: int) -> int:
    """G, the scales of one memory token; 0 where a format has none."""
    return {"int8": -(-hidden // GROUP), "fp8": 1}.get(dtype, 0)


def described(dtype: str) -> dict[str, Any] | None:
    """A format's scheme as a manifest says it, None where nothing is scaled."""
    if dtype not in SCALES:
        return None
    group = GROUP if dtype == "int8" else None  # None: a memory token
    return {"scheme": "absmax", "group": group, "scales": SCALES[dtype]}


def passage_bytes(dtype: str, memory_tokens: int, hidden: int) -> int:
    """Bytes of one passage's memory, scales included."""
    scales = groups(dtype, hidden) * BYTES[SCALES.get(dtype, "F16")]
    return memory_tokens * (hidden * BYTES[DTYPES[dtype]] + scales)


def pack(memory_NMD: Tensor, dtype: str) -> dict[str, Tensor]:
    """Memory on the CPU as the tensors that are stored: `memory`, and `scales` (N, M, G) where the
    format has them. Values that are not finite stay so, in `memory` or in `scales`."""
    import torch

    plain = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if dtype in plain:
        return {"memory": memory_NMD.detach().to("cpu", plain[dtype]).contiguous()}
    grouped_NMGE = _grouped(memory_NMD.detach().to("cpu", torch.float32), dtype)
    largest = _LARGEST[dtype]
    scales_NMG = grouped_NMGE.abs().amax(-1) / largest
    scales_NMG = scales_NMG.to(torch.float16 if dtype == "int8" else torch.float32)
    safe_NMG = torch.where(scales_NMG == 0, 1, scales_NMG).float()
    scaled_NMGE = (grouped_NMGE / safe_NMG[..., None]).clamp(-largest, largest)
    values_NMD = scaled_NMGE.flatten(2)[..., : memory_NMD.shape[2]]
    if dtype == "int8":
        stored_NMD = values_NMD.nan_to_num().round().to(torch.int8)
    else:
        stored_NMD = values_NMD.to(torch.float8_e4m3fn)
    return {"memory": stored_NMD.contiguous(), "scales": scales_NMG.contiguous()}


def unpack(stored_NMD: Tensor, scales_NMG: Tensor | None, dtype: str) -> Tensor:
    """Memory (N, M, D) in float32 from what was stored."""
    import torch

    memory_NMD = stored_NMD.to(torch.float32, copy=True)
    if scales_NMG is None:
        return memory_NMD
    grouped_NMGE = _grouped(memory_NMD, dtype) * scales_NMG.float()[..., None]
    return grouped_NMGE.flatten(2)[..., : memory_NMD.shape[2]]


def _grouped(memory_NMD: Tensor, dtype: str) -> Tensor:
    """(N, M, G, E): the values that share a scale, the last group filled up with zeros."""
    import torch.nn.functional as F  # noqa: N812

    hidden = memory_NMD.shape[2]
    count = groups(dtype, hidden)
    width = GROUP if dtype == "int8" else hidden
    return F.pad(memory_NMD, (0, count * width - hidden)).unflatten(2, (count, width))
