"""Greedy tokens after a prompt of embeddings, by whichever model there is. "Greedy" is the argmax:
of a backbone's own settings for writing only its ends count.

B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from clara_cli.core.llama import Cache, Llama, Processor
from clara_cli.core.loading import plain_generation


def write(
    causal_lm: Any,
    embeds_BTD: Tensor,
    mask_BT: Tensor,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    end_ids: Sequence[int] = (),
    streamer: Any = None,
    processors: Sequence[Processor] = (),
    stop: Callable[[Tensor, Any], Tensor] | None = None,
    positions_BT: Tensor | None = None,
    opening: Cache | None = None,
) -> Tensor:
    """Ids (B, new) after prompts padded on the left, whose mask is 0 there. A row that has ended is
    filled with its first end token; none ends before `min_new_tokens`. A `streamer` receives the
    ids of each step, `processors` see its logits (B, V), `stop` says which rows end there.
    `positions_BT` are those of the prompts' ids where they do not follow one another. `opening` is
    what a `Llama` keeps of how all prompts begin; then these are the rest of them."""
    if isinstance(causal_lm, Llama):
        return causal_lm.write(
            embeds_BTD,
            mask_BT,
            max_new_tokens,
            min_new_tokens,
            end_ids,
            streamer,
            processors,
            stop,
            positions_BT,
            opening,
        )
    config = plain_generation(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens or None,
        eos_token_id=list(end_ids) or None,
        pad_token_id=end_ids[0] if end_ids else 0,
    )
    placed = {} if positions_BT is None else {"position_ids": positions_BT}
    ids_BT: Tensor = causal_lm.generate(
        **placed,
        inputs_embeds=embeds_BTD,
        attention_mask=mask_BT,
        generation_config=config,
        streamer=streamer,
        logits_processor=list(processors),
        stopping_criteria=None if stop is None else [stop],
    )
    return ids_BT


def end_tokens(causal_lm: Any) -> list[int]:
    """The tokens that end an answer by a backbone's own settings for writing."""
    settings = getattr(causal_lm, "generation_config", None)
    own = getattr(settings, "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return [i for i in listed if type(i) is int and i >= 0]


def forget_settings(causal_lm: Any, eos: int | None = None) -> None:
    """Make a backbone write greedily from here on unless it is called otherwise: of its own
    settings for writing only its ends are kept, beside the tokenizer's `eos`."""
    ends = dict.fromkeys([*([] if eos is None else [eos]), *end_tokens(causal_lm)])
    causal_lm.generation_config = plain_generation(eos_token_id=list(ends) or None)
