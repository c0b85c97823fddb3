"""What the generator is given: the memory of passages, their text, or the text of the best beside
the memory of the rest; and many prompts answered together.

Tensor letters: K passages, M memory tokens, N memory tokens in all, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clara_cli.core.backbone import window
from clara_cli.core.checkpoint_info import ReadMode
from clara_cli.core.decode import Confidence, RepetitionStop, TextStream
from clara_cli.core.model import ClaraModel
from clara_cli.errors import UsageError

BATCH_ROWS, BATCH_POSITIONS = 64, 16384  # prompts answered together, and their padded positions
CPU_ROWS = 32  # with more, a CPU waits for memory: 64 are no faster, 128 a fifth slower


@dataclass(frozen=True)
class Prompt:
    """Ids, the memory for their memory positions (None: none), who reads them (None: the backbone
    without adapters), and how many of the passages, the first ones, are in it as text."""

    ids: list[int]
    memory_ND: Tensor | None
    role: str | None
    as_text: int = 0


def texts_within(tokens: Sequence[int], budget: int) -> int:
    """How many of the first passages fit a budget of tokens together."""
    kept, spent = 0, 0
    for count in tokens:
        spent += count
        if spent > budget:
            break
        kept += 1
    return kept


def make_prompt(
    model: ClaraModel,
    question: str,
    memory_KMD: Tensor,
    texts: Sequence[str],
    read: ReadMode,
    text_role: str | None,
) -> Prompt:
    """The prompt over K passages. `texts` are those of the first passages that are read as text:
    none (`memory`), all (`text`, by `text_role`), or the best ones (`auto`)."""
    prompter = model.prompter
    if read == "text":
        ids = prompter.prompt(prompter.text_chat(question, texts))
        return Prompt(ids, None, text_role, len(texts))
    rest_KMD = memory_KMD[len(texts) :]
    passages, memory_tokens = rest_KMD.shape[:2]
    ids = prompter.prompt(prompter.answer_chat(question, passages, memory_tokens, texts))
    memory_ND = rest_KMD.flatten(0, 1) if passages else None
    return Prompt(ids, memory_ND, "generator", len(texts))


def refuse_overflow(model: ClaraModel, prompt: Prompt, max_new_tokens: int) -> None:
    """Prompt and answer have to fit the backbone's window.

    Raises:
        UsageError: where they do not.
    """
    limit = window(model.causal_lm)
    taken = model.extent(prompt.ids)
    if limit is not None and taken + max_new_tokens > limit:
        raise UsageError(
            f"{taken} prompt positions and {max_new_tokens} new tokens exceed the "
            f"backbone's window of {limit}",
            "lower --top-k or --max-new-tokens",
        )


@dataclass(frozen=True)
class Generated:
    """A greedy answer: its ids, the text users see, and its mean log-probability a token (0 for an
    empty one)."""

    ids: list[int]
    text: str
    likelihood: float


def generate(
    model: ClaraModel,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    on_text: Callable[[str], None] | None = None,
) -> list[Generated]:
    """The answer to each prompt, computed in batches of like length. `on_text` receives each piece
    of the answer to a single prompt."""
    tokenizer = model.prompter.tokenizer
    generated: dict[int, Generated] = {}

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()

    lengths = [len(prompt.ids) + max_new_tokens for prompt in prompts]
    batches = like_lengths(lengths, model.device)
    for batch in batches if model.backbone.pads else ([i] for i in range(len(prompts))):
        chosen = [prompts[i] for i in batch]
        stream, confidence = None, Confidence()
        if on_text is not None and len(prompts) == 1:
            stream = TextStream(decode, model.end_ids(), on_text)
        memory_ND = joined(model, [prompt.memory_ND for prompt in chosen])
        rows = [prompt.ids for prompt in chosen]
        answer_ids = model.generate(
            rows,
            memory_ND,
            max_new_tokens,
            chosen[0].role,
            streamer=stream,
            listener=confidence,
            stop=RepetitionStop(),
        )
        means = confidence.means([len(ids) for ids in answer_ids])
        for i, ids, mean in zip(batch, answer_ids, means, strict=True):
            generated[i] = Generated(ids, decode(ids), mean)
    return [generated[i] for i in range(len(prompts))]


def like_lengths(lengths: Sequence[int], device: torch.device) -> Iterator[list[int]]:
    """Places of rows of like length: sorted, cut into batches of bounded padded size."""
    most = CPU_ROWS if device.type == "cpu" else BATCH_ROWS
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        full = len(batch) == most or lengths[i] * (len(batch) + 1) > BATCH_POSITIONS
        if batch and full:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def joined(model: ClaraModel, memories: Sequence[Tensor | None]) -> Tensor | None:
    """The memory of several prompts, one after the other, on the model's device."""
    there = [memory_ND for memory_ND in memories if memory_ND is not None]
    return torch.cat(there).to(model.device) if there else None
