"""What the generator does beside answering: its words as they come, how likely it finds a given
answer, and the words a memory token is nearest to.

Tensor letters: B rows, N vectors, T positions, P answered positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clara_cli.core.backbone import head_logits, inner_model
from clara_cli.core.finite import refuse_nonfinite_outputs
from clara_cli.core.length_grouping import pad_rows, until_end
from clara_cli.core.losses import IGNORE, chunk_size, labelled_positions
from clara_cli.core.model import ClaraModel


class TextStream:
    """Tells an answer piece by piece while transformers generates it (its `streamer` interface).

    The pieces joined are the answer as decoded whole: characters of several tokens wait for their
    last one, white space at the end for what follows it, and nothing after an end token is told.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], ends: list[int], tell: Callable[[str], None]
    ) -> None:
        self._decode, self._ends, self._tell = decode, ends, tell
        self._ids: list[int] = []
        self._told = ""

    def put(self, ids: Tensor) -> None:
        """New ids; the prompt, which comes first, has none here (it is embeddings)."""
        self._ids += ids.flatten().tolist()
        text = self._decode(until_end(self._ids, self._ends)).strip()
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._say(text)

    def end(self) -> None:
        """The last id has come."""
        self._say(self._decode(until_end(self._ids, self._ends)).strip())

    def _say(self, text: str) -> None:
        if text != self._told and text.startswith(self._told):
            self._tell(text[len(self._told) :])
            self._told = text


class RepetitionStop:
    """Ends an answer that repeats itself, while transformers generates it (its stopping criterion's
    interface): its last tokens are the same piece of at most 24 tokens three times over, and twelve
    tokens or more. What was written stays."""

    LONGEST, COPIES, LEAST = 24, 3, 12

    def __call__(self, ids_BT: Tensor, scores: Any, **more: Any) -> Tensor:
        """Which rows end now (B)."""
        ended_B = torch.zeros(len(ids_BT), dtype=torch.bool, device=ids_BT.device)
        for piece in range(1, self.LONGEST + 1):
            copies = max(self.COPIES, -(-self.LEAST // piece))
            if ids_BT.shape[1] >= piece * copies:
                tail_BCP = ids_BT[:, -piece * copies :].unflatten(1, (copies, piece))
                ended_B |= (tail_BCP == tail_BCP[:, :1]).all(-1).all(-1)
        return ended_B


class Confidence:
    """Keeps the log-probability of every greedy token while transformers generates (its logits
    processor's interface); changes nothing."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def __call__(self, ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        """The logits, as they are; the likeliest token is the one that greedy decoding takes."""
        self._steps.append(logits_BV.float().log_softmax(-1).amax(-1))
        return logits_BV

    def means(self, lengths: Sequence[int]) -> list[float]:
        """Mean log-probability of the first tokens of each row, 0 where there are none."""
        logp_BT = torch.stack(self._steps, dim=1).tolist()
        pairs = zip(logp_BT, lengths, strict=True)
        return [sum(row[:length]) / max(length, 1) for row, length in pairs]


@torch.inference_mode()
def log_likelihoods(
    model: ClaraModel,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    memory_ND: Tensor | None,
    role: str | None = "generator",
) -> list[float]:
    """Mean natural log-probability a token of each answer after its prompt, in one batch.

    Every answer has a token at least; `memory_ND` fills the prompts' memory positions in order.
    Raises ArtefactError where a likelihood is not finite.
    """
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    opening = model.opening(role, prompts)
    read = 0 if opening is None else opening.filled
    embeds_BTD = model.embed(pad_rows([row[read:] for row in rows], 0, model.device), memory_ND)
    positions_BT = model.placed(rows)
    if positions_BT is not None:
        positions_BT = positions_BT[:, read:]
    hidden_BTD = model(role, embeds_BTD, None, positions_BT, opening=opening)
    labels = [
        [*[IGNORE] * (len(prompt) - read), *answer]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    hidden_PD, targets_P = labelled_positions(hidden_BTD, pad_rows(labels, IGNORE, model.device))
    size = chunk_size(model.causal_lm.get_output_embeddings().weight.shape[0])
    parts = zip(hidden_PD.split(size), targets_P.split(size), strict=True)
    nll_P = torch.cat(
        [
            F.cross_entropy(head_logits(model.causal_lm, part_PD).float(), part_P, reduction="none")
            for part_PD, part_P in parts
        ]
    )
    refuse_nonfinite_outputs(nll_P, model.backbone.name, "likelihoods")
    return [-one.mean().item() for one in nll_P.cpu().split([len(answer) for answer in answers])]


@torch.inference_mode()
def lens(model: ClaraModel, memory_ND: Tensor, words: int) -> list[list[str]]:
    """The tokens whose output embeddings each memory vector is nearest to, best first (logit lens,
    paper Fig. 4). Memory of the last layer already went through the final norm, so the head reads
    it as it is; memory of an earlier layer goes through it here, where the backbone names it."""
    dtype = model.causal_lm.get_output_embeddings().weight.dtype
    memory_ND = memory_ND.to(model.device, dtype)
    norm = getattr(inner_model(model.causal_lm), "norm", None)
    if model.layout.layer is not None and norm is not None:
        memory_ND = norm(memory_ND)
    logits_NV = head_logits(model.causal_lm, memory_ND)
    logits_NV = logits_NV[:, : len(model.prompter.tokenizer)]
    decode = model.prompter.tokenizer.decode
    return [[decode([i]) for i in row] for row in logits_NV.topk(words).indices.tolist()]
