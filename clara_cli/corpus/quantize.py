"""How memory is stored: the number formats, and those of eight and four bits with their scales.

A scaled format divides each group of neighbouring values (of a memory token, if it names no group)
by a scale, so that the largest becomes the largest it can hold (absmax). `nf4` then takes the
nearest of sixteen levels, which lie as values of a normal distribution do: on memory a quarter less
is lost than with sixteen even steps. N passages, M memory tokens, D hidden, G groups, E values of a
group, W elements that a memory token is stored in. Knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Format:
    """A number format. `values` and `scales` are safetensors' names of what is stored (`scales`
    None: nothing is scaled), `per_element` says how many values an element holds, `group` how many
    neighbours share a scale (None: a memory token) and `largest` what they are scaled to."""

    values: str
    scales: str | None = None
    group: int | None = None
    largest: float = 1.0
    per_element: int = 1

    def groups(self, hidden: int) -> int:
        """G, the scales of one memory token; 0 where nothing is scaled."""
        if self.scales is None:
            return 0
        return 1 if self.group is None else -(-hidden // self.group)

    def shapes(self, memory_tokens: int, hidden: int) -> dict[str, tuple[str, list[int]]]:
        """The tensors of one passage: what safetensors calls their elements, and their shape."""
        shapes = {"memory": (self.values, [memory_tokens, -(-hidden // self.per_element)])}
        if self.scales is not None:
            shapes["scales"] = (self.scales, [memory_tokens, self.groups(hidden)])
        return shapes


FORMATS = {
    "float32": Format("F32"),
    "bf16": Format("BF16"),
    "fp16": Format("F16"),
    "fp8": Format("F8_E4M3", scales="F32", largest=448.0),
    "int8": Format("I8", scales="F16", group=128, largest=127.0),
    "nf4": Format("U8", scales="F16", group=32, per_element=2),
}
DEFAULT = "fp8"  # the smallest that loses less than a point of F1 and recall: recipes/corpora
EARLIER_DEFAULT = "bf16"
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}
_NF4 = (  # NormalFloat: QLoRA, arXiv 2305.14314, appendix E
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def format_of(computed: torch.dtype) -> str:
    """The format that holds values of a torch dtype as they are."""
    return {"float32": "float32", "bfloat16": "bf16", "float16": "fp16"}[
        str(computed).removeprefix("torch.")
    ]


def described(dtype: str) -> dict[str, Any] | None:
    """A format's scheme as a manifest says it, None where nothing is scaled."""
    stored = FORMATS[dtype]
    if stored.scales is None:
        return None
    scheme = "nf4" if dtype == "nf4" else "absmax"
    return {"scheme": scheme, "group": stored.group, "scales": stored.scales}


def passage_bytes(dtype: str, memory_tokens: int, hidden: int) -> int:
    """Bytes of one passage's memory, scales included."""
    shapes = FORMATS[dtype].shapes(memory_tokens, hidden).values()
    return sum(BYTES[name] * rows * width for name, (rows, width) in shapes)


def pack(memory_NMD: Tensor, dtype: str) -> dict[str, Tensor]:
    """Memory on the CPU as the tensors that are stored: `memory` (N, M, W), and `scales` (N, M, G)
    where the format has them. Values that are not finite stay so, in `memory` or in `scales`."""
    import torch

    plain = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if dtype in plain:
        return {"memory": memory_NMD.detach().to("cpu", plain[dtype]).contiguous()}
    stored = FORMATS[dtype]
    grouped_NMGE = _grouped(memory_NMD.detach().to("cpu", torch.float32), stored)
    scales_NMG = grouped_NMGE.abs().amax(-1) / stored.largest
    scales_NMG = scales_NMG.to(torch.float16 if stored.scales == "F16" else torch.float32)
    safe_NMG = torch.where(scales_NMG == 0, 1, scales_NMG).float()
    scaled_NMGE = (grouped_NMGE / safe_NMG[..., None]).clamp(-stored.largest, stored.largest)
    values_NMD = scaled_NMGE.flatten(2)[..., : memory_NMD.shape[2]]
    if dtype == "fp8":
        stored_NMW = values_NMD.to(torch.float8_e4m3fn)
    elif dtype == "int8":
        stored_NMW = values_NMD.nan_to_num().round().to(torch.int8)
    else:
        stored_NMW = _nearest_levels(values_NMD)
    return {"memory": stored_NMW.contiguous(), "scales": scales_NMG.contiguous()}


def unpack(stored_NMW: Tensor, scales_NMG: Tensor | None, dtype: str, hidden: int) -> Tensor:
    """Memory (N, M, D) in float32 from what was stored; D is `hidden`."""
    import torch

    stored = FORMATS[dtype]
    if dtype == "nf4":
        memory_NMD = _levels(stored_NMW)[..., :hidden]
    elif dtype == "fp8" and hidden % 2 == 0:
        memory_NMD = _widened(stored_NMW)
    else:
        memory_NMD = stored_NMW.to(torch.float32, copy=True)
    if scales_NMG is None:
        return memory_NMD
    grouped_NMGE = _grouped(memory_NMD, stored).mul_(scales_NMG.float()[..., None])
    return grouped_NMGE.flatten(2)[..., :hidden]


def _nearest_levels(values_NMD: Tensor) -> Tensor:
    """The numbers of the levels nearest to values from -1 to 1, two a byte: the first in the low
    bits; an odd row ends in a zero."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    levels = torch.tensor(_NF4)
    even_NMD = F.pad(values_NMD, (0, values_NMD.shape[2] % 2))
    numbers_NMD = torch.bucketize(even_NMD, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    pairs_NMW2 = numbers_NMD.unflatten(2, (-1, 2))
    return pairs_NMW2[..., 0] | (pairs_NMW2[..., 1] << 4)


def _levels(stored_NMW: Tensor) -> Tensor:
    """The levels that are stored, two of each byte, in float32."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    pairs = [(low, high) for high in _NF4 for low in _NF4]  # of the bytes in their order
    return F.embedding(stored_NMW.int(), torch.tensor(pairs)).flatten(2)


def _widened(stored_NMD: Tensor) -> Tensor:
    """fp8 in float32, two values at once by a table: twice as fast as torch's own conversion."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    return F.embedding(stored_NMD.view(torch.int16).int() & 0xFFFF, _fp8_pairs()).flatten(2)


@cache
def _fp8_pairs() -> Tensor:
    """The two fp8 values whose bytes are each number of sixteen bits, (65536, 2) in float32."""
    import torch

    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    return numbers.view(torch.float8_e4m3fn).float().unflatten(0, (-1, 2))


def _grouped(memory_NMD: Tensor, stored: Format) -> Tensor:
    """(N, M, G, E): the values that share a scale, the last group filled up with zeros; a view
    where nothing is to be filled up."""
    import torch.nn.functional as F  # noqa: N812

    hidden = memory_NMD.shape[2]
    count, width = stored.groups(hidden), stored.group or hidden
    if missing := count * width - hidden:
        memory_NMD = F.pad(memory_NMD, (0, missing))
    return memory_NMD.unflatten(2, (count, width))
