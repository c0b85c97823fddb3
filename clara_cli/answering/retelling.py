"""What the generator writes from the memory of one passage: a paraphrase, or its questions with
their answers, by the prompts of SCP (the released stage 1).

Tensor letters: M memory tokens, D hidden.
"""

from __future__ import annotations

import time

from torch import Tensor

from clara_cli.answering.reading import Prompt, generate, refuse_overflow
from clara_cli.core.model import ClaraModel
from clara_cli.core.prompts import PARAPHRASE_INSTRUCTIONS
from clara_cli.records import Passage, Retelling, Task


def task_prompt(model: ClaraModel, task: Task, memory_MD: Tensor, instruction: int) -> Prompt:
    """The stage-1 prompt over one memory; `instruction` picks one of the 13 of a paraphrase."""
    prompter, memory_tokens = model.prompter, memory_MD.shape[0]
    if task == "paraphrase":
        chat = prompter.paraphrase_chat(memory_tokens, instruction % len(PARAPHRASE_INSTRUCTIONS))
    else:
        chat = prompter.list_chat(memory_tokens)
    return Prompt(prompter.prompt(chat), memory_MD, "generator")


def retell(
    model: ClaraModel,
    task: Task,
    passage: Passage,
    memory_MD: Tensor,
    max_new_tokens: int,
    instruction: int = 0,
) -> Retelling:
    """Greedy text from the memory of `passage` alone.

    Raises:
        UsageError: when prompt and text do not fit the backbone's window.
    """
    began = time.monotonic()
    prompt = task_prompt(model, task, memory_MD, instruction)
    refuse_overflow(model, prompt, max_new_tokens)
    (made,) = generate(model, [prompt], max_new_tokens)
    return Retelling(
        task=task,
        passage=passage,
        answer=made.text,
        memory_tokens=memory_MD.shape[0],
        prompt_tokens=len(prompt.ids),
        text_tokens_replaced=passage.tokens,
        seconds={"generate": round(time.monotonic() - began, 4)},
    )
