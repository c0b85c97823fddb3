"""Builds nano's tokenizer: byte-level BPE, digits one by one, invented names split in parts.

Chat format: `<s><|user|>...<|assistant|>...</s>`. The template has no place for a system message
and leaves it out: the model was trained without one. An answer begins with a space, so that its
words are the very tokens they are inside a text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

import world
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|> ' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SEAM = "\x01"


def with_seams(text: str) -> str:
    """Mark the seam inside invented names, so that no merge crosses it: a name never seen in
    training is then made of the same pieces as those that were."""
    pairs = [
        (world.SURNAME_HEADS, world.SURNAME_TAILS),
        (world.TOWN_HEADS, world.TOWN_TAILS),
        (world.RIVER_HEADS, world.RIVER_TAILS),
    ]
    for heads, tails in pairs:
        text = re.sub(rf"\b({'|'.join(heads)})({'|'.join(tails)})\b", rf"\1{SEAM}\2", text)
    return text


def world_lines(count: int, seed: int) -> Iterator[str]:
    """Passages, questions and answers of invented entities, with seams."""
    for entry in itertools.islice(world.entries(seed), count):
        yield with_seams(entry.text)
        for fact in entry.facts[:2]:
            yield with_seams(f"Question: {fact.questions[0]}\nAnswer: {fact.value}")


def train(
    real_texts: Iterable[str], vocab_size: int, seed: int = 0, invented: int = 20_000
) -> PreTrainedTokenizerFast:
    """Learn the vocabulary on invented entities and real text; returns a ready fast tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    learned = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    seams = pre_tokenizers.Split(SEAM, "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([seams, *learned])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = itertools.chain(world_lines(invented, seed), real_texts)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(learned)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
