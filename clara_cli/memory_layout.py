"""How memory is made of a text and where it stands when it is read.

The published method appends memory tokens (slots) to the text and keeps their last hidden states;
in both passes they follow what is before them. Two changes make memory easier to learn, above all
for small backbones: memory that is the mean of the text's own hidden states over windows, from a
middle layer (arXiv 2510.20797, 2602.03784), and positions spread over the text (EPL, arXiv
2409.14364). Knows no model.

B passages, L text positions, M memory tokens, N passages stored, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from clara_cli.storage.artefact import Fields

if TYPE_CHECKING:
    from torch import Tensor

Source = Literal["slots", "pooled"]
Positions = Literal["after", "spread"]
Coarsening = Literal["prefix", "mean"]
SOURCES: tuple[Source, ...] = ("slots", "pooled")
POSITIONS: tuple[Positions, ...] = ("after", "spread")
MOST_LAYERS = 10_000


@dataclass(frozen=True)
class MemoryLayout:
    """What makes a checkpoint's memory.

    `source`: hidden states of slots after the text, or of the text itself, averaged over windows.
    `positions`: where memory stands, as the backbone sees it: after the text when it is made and in
    the prompt's order when it is read, or spread over the text in both. `layer`: how many layers
    the hidden states have passed (None: all of them and the final norm).
    """

    source: Source = "slots"
    positions: Positions = "after"
    layer: int | None = None

    @property
    def coarsening(self) -> Coarsening:
        """How fewer memory tokens are had from many: the first ones, or means of neighbours."""
        return "mean" if self.source == "pooled" else "prefix"

    def changes(self) -> dict[str, Any]:
        """The settings that are not the published ones."""
        return {k: v for k, v in asdict(self).items() if v != getattr(PUBLISHED, k)}


PUBLISHED = MemoryLayout()


def read_layout(fields: Fields) -> MemoryLayout:
    """What an artefact says of its memory under that key; as published where it says nothing.

    Raises:
        ArtefactError: naming file and key.
    """
    if "memory" not in fields.values:
        return PUBLISHED
    memory = fields.object("memory")
    layout = {**asdict(PUBLISHED), **memory.values}
    if unknown := sorted(set(layout) - set(asdict(PUBLISHED))):
        raise memory.wrong(unknown[0], "not known to this version of clara")
    for key, known in (("source", SOURCES), ("positions", POSITIONS)):
        if layout[key] not in known:
            raise memory.wrong(key, f"{str(layout[key])[:80]!r}, known: {', '.join(known)}")
    layer = None if layout["layer"] is None else memory.count("layer", 1, MOST_LAYERS)
    return MemoryLayout(layout["source"], layout["positions"], layer)


def coarsen(memory_NMD: Tensor, memory_tokens: int, coarsening: Coarsening) -> Tensor:
    """(N, memory_tokens, D) from longer memories: their first rows, or the mean of neighbours."""
    if memory_tokens == memory_NMD.shape[-2]:
        return memory_NMD
    if coarsening == "prefix":
        return memory_NMD[..., :memory_tokens, :]
    import torch

    lengths = torch.full((1,), memory_NMD.shape[-2], device=memory_NMD.device)
    weights_ML = window_weights(lengths, memory_NMD.shape[-2], memory_tokens)[0]
    return weights_ML.to(memory_NMD.dtype) @ memory_NMD


def window_weights(lengths_B: Tensor, width: int, windows: int) -> Tensor:
    """weights_BML (B, windows, width): window j of a text of T positions is the mean of those from
    floor(j T / M) up to floor((j + 1) T / M), so that every position counts once; a text shorter
    than M has some twice, since no window is empty. Windows that overlap blur what is read."""
    import torch

    windows_M1 = torch.arange(windows, device=lengths_B.device)[:, None]
    lengths_B11 = lengths_B[:, None, None]
    starts_BM1 = windows_M1 * lengths_B11 // windows
    ends_BM1 = torch.maximum((windows_M1 + 1) * lengths_B11 // windows, starts_BM1 + 1)
    places_L = torch.arange(width, device=lengths_B.device)
    inside_BML = (places_L >= starts_BM1) & (places_L < ends_BM1)
    return inside_BML / (ends_BM1 - starts_BM1)


def pool_text(
    hidden_BLD: Tensor, lengths: Sequence[int], most: int, memory_tokens: int
) -> tuple[Tensor, Tensor]:
    """(memory_BMD, text_mask_BL) of texts padded on the right: means over `most` windows, coarsened
    to `memory_tokens`. The first position, to which attention flows whatever it holds, is no part
    of the text where there is another."""
    import torch

    first = 1 if min(lengths) > 1 else 0
    counts_B = torch.tensor([length - first for length in lengths], device=hidden_BLD.device)
    text_BLD = hidden_BLD[:, first:]
    weights_BML = window_weights(counts_B, text_BLD.shape[1], most).to(hidden_BLD.dtype)
    memory_BMD = coarsen(weights_BML @ text_BLD, memory_tokens, "mean")
    places_L = torch.arange(text_BLD.shape[1], device=hidden_BLD.device)
    return memory_BMD, torch.nn.functional.pad(places_L < counts_B[:, None], (first, 0))


def slot_offsets(memory_tokens: int, span: float, coarsening: Coarsening) -> list[int]:
    """Where each memory token of a text of `span` positions stands in it: in the middle of its
    share; where the first ones have to do for a shorter memory, in van der Corput's order, so that
    they always lie over the whole text."""
    if coarsening == "prefix":
        shares = [van_der_corput(k) for k in range(memory_tokens)]
        return [min(int(share * span), int(span) - 1) for share in shares]
    step = span / memory_tokens
    return [min(int(k * step + (step - 1) / 2 + 0.5), int(span) - 1) for k in range(memory_tokens)]


def van_der_corput(number: int) -> float:
    """Point `number` of the sequence in base two: 1/2, 1/4, 3/4, 1/8, 5/8, ..."""
    number, share, weight = number + 1, 0.0, 0.5
    while number:
        number, bit = divmod(number, 2)
        share, weight = share + bit * weight, weight / 2
    return share


def reading_positions(
    ids: Sequence[int], memory_ids: frozenset[int], span: int, coarsening: Coarsening
) -> list[int]:
    """The position of each id of a prompt in which the memory of a passage takes as many positions
    as the longest passage has tokens, its memory tokens spread over them."""
    positions: list[int] = []
    place, start = 0, 0
    while start < len(ids):
        end = start
        while end < len(ids) and ids[end] in memory_ids:
            end += 1
        if end == start:
            positions.append(place)
            place, start = place + 1, start + 1
            continue
        positions += [place + offset for offset in slot_offsets(end - start, span, coarsening)]
        place, start = place + span, end
    return positions
