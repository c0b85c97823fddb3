"""Text to token ids: what the compressor reads and what the generator is prompted with.

The wording is the released model's (version "clara-1"), so released checkpoints behave as they were
trained. Memory stands in a prompt as placeholder tokens that the model replaces by vectors. Text
from users is never parsed as special tokens. Knows nothing of tensors.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from jinja2.exceptions import TemplateError

from clara_cli.core.chat_templates import HINT, LONG_PROBE, PROBE, chat_template, render_chat
from clara_cli.core.losses import IGNORE
from clara_cli.errors import ArtefactError

PROMPT_VERSION = "clara-1"

LIST_SYSTEM = (
    "You are a helpful assistant. Given a document, your task is to generate some single questions "
    "to cover all key information of the document and answer them sequentially."
)
PARAPHRASE_SYSTEM = (
    "You are a helpful assistant. Your task is follow the instructions to paraphrase the "
    "background information."
)
ANSWER_SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from provided "
    "documents and to answer to questions as briefly as possible."
)
PARAPHRASE_INSTRUCTIONS = (
    "Background: {docs} means the same as",
    "Background: {docs} Can you put the above sentences in your own terms?",
    "Background: {docs} Please provide a reinterpretation of the preceding background text.",
    "These two expressions are equivalent in essence:\n(1) {docs}\n(2)",
    "Background: {docs} is a paraphrase of what?",
    "Background: {docs} Could you give me a different version of the background sentences above?",
    "In other words, background: {docs} is just another way of saying:",
    "You're getting across the same point whether you say background: {docs} or",
    "Background: {docs} After unpacking the ideas in the background information above, we got:",
    "Background: {docs} Please offer a restatement of the background sentences I've just read.",
    "Background: {docs}, which also means:",
    "Strip away the mystery, and you'll find background: {docs} is simply another rendition of:",
    "The essence of background: {docs} is captured again in the following statement:",
)


@dataclass(frozen=True)
class Markers:
    """The added tokens: one or several for memory positions, one before a text to compress, one
    after every passage's memory. `others` are added to keep the released numbering."""

    memory: tuple[str, ...] = ("<|memory|>",)
    others: tuple[str, ...] = ()
    encode: str = "<|encode|>"
    separator: str = "<|separator|>"

    @property
    def all(self) -> list[str]:
        """In the order they are added."""
        return [*self.memory, *self.others, self.encode, self.separator]


SEAM = "<|seam|>"
HOLE = "\u2983answer\u2984"  # stands for the answer while a chat template is rendered


class Prompter:
    """Tokenises passages and prompts for one tokenizer. `max_passage` counts backbone tokens."""

    def __init__(self, tokenizer: Any, max_passage: int, markers: Markers | None = None) -> None:
        self.tokenizer, self.max_passage, self.markers = (
            tokenizer,
            max_passage,
            markers or Markers(),
        )
        self.table_rows = sys.maxsize  # of the backbone's embeddings; its model knows
        tokenizer.add_tokens([*self.markers.all, SEAM], special_tokens=True)
        ids = tokenizer.convert_tokens_to_ids
        self.memory_ids: list[int] = ids(list(self.markers.memory))
        self.encode_id: int = ids(self.markers.encode)
        self.separator_id: int = ids(self.markers.separator)
        self._seam_id: int = ids(SEAM)
        self.bos, self.eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
        specials = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
        self._specials = re.compile("|".join(re.escape(s) for s in specials if len(s) > 1))

    def plain(self, text: str) -> str:
        """Text in which special tokens are spelt so that they are read as plain characters."""
        return self._specials.sub(lambda match: match[0][0] + SEAM + match[0][1:], text)

    def ids(self, text: str) -> list[int]:
        """Token ids of a string whose special tokens count as such; seams vanish.

        Raises:
            ArtefactError: where the backbone has no embedding of one: the tokenizer is another's.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [i for i in ids if i != self._seam_id]
        if ids and max(ids) >= self.table_rows:
            self._refuse_strange(ids)
        return ids

    def _refuse_strange(self, ids: Sequence[int]) -> None:
        """Refuse ids that are neither the backbone's nor markers'."""
        own = set(self.tokenizer.convert_tokens_to_ids(self.markers.all))
        strange = next((i for i in ids if i >= self.table_rows and i not in own), None)
        if strange is not None:
            token = self.tokenizer.convert_ids_to_tokens(strange)
            raise ArtefactError(
                f"{self.tokenizer.name_or_path}: its tokenizer has the token {token!r} with id "
                f"{strange}, the backbone has embeddings of {self.table_rows} tokens",
                "tokenizer and weights do not belong together: restore the backbone from a copy",
            )

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """(start, end) code points of each token of a text, specials read as plain text."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        return [tuple(pair) for pair in encoded["offset_mapping"]]

    def passage(self, text: str) -> list[int]:
        """What the compressor reads: encode, BOS, text, EOS, cut on the right
        at `max_passage` + 3 (a text at the limit loses its EOS, as in the released code)."""
        return self.query(text)[: self.max_passage + 3]

    def query(self, text: str) -> list[int]:
        """What the query reasoner reads: a question in a passage's form, at its own length."""
        return self.ids(f"{self.markers.encode}{self.bos}{self.plain(text)}{self.eos}")

    def text_of(self, row: Sequence[int]) -> str:
        """The text of a row that the compressor reads, as far as it was not cut."""
        special = {self.encode_id, *self.tokenizer.all_special_ids}
        text: str = self.tokenizer.decode([i for i in row if i not in special])
        return text

    def memory_block(self, passages: int, memory_tokens: int) -> str:
        """Placeholders for the memory of several passages, each followed by a separator."""
        names = self.markers.memory
        one = "".join(names[i % len(names)] for i in range(memory_tokens)) + self.markers.separator
        return one * passages

    def list_chat(self, memory_tokens: int) -> tuple[str, str]:
        """(system, user): SCP question-answer lists from one memory."""
        return LIST_SYSTEM, f"Background:\n{self.memory_block(1, memory_tokens)}"

    def paraphrase_chat(self, memory_tokens: int, instruction: int) -> tuple[str, str]:
        """(system, user): SCP paraphrase, by one of the 13 instructions."""
        user = PARAPHRASE_INSTRUCTIONS[instruction].format(docs=self.memory_block(1, memory_tokens))
        return PARAPHRASE_SYSTEM, user

    def answer_chat(
        self, question: str, passages: int, memory_tokens: int, texts: Sequence[str] = ()
    ) -> tuple[str, str]:
        """(system, user): a question over the memory of several passages, after the `texts` of
        others, better ranked, that are given as they are."""
        docs = "".join(f"{self.plain(text)}\n\n" for text in texts)
        docs += self.memory_block(passages, memory_tokens)
        return ANSWER_SYSTEM, f"Background:\n{docs}\n\nQuestion:{self.plain(question)}"

    def text_chat(self, question: str, texts: Sequence[str]) -> tuple[str, str]:
        """(system, user): the same question over passages given as text; none: closed book."""
        return text_chat(self.plain(question), [self.plain(text) for text in texts])

    def prompt(self, chat: tuple[str, str]) -> list[int]:
        """Ids of a prompt, up to where the answer begins."""
        return self.ids(self.render(chat, None))

    def example(
        self, chat: tuple[str, str], answer: str, limit: int
    ) -> tuple[list[int], list[int]]:
        """(ids, labels) of prompt and answer; the answer and what ends its turn are labelled.

        Prompt and answer are tokenised together where the prompt's ids stay a prefix, else apart:
        so a label never stands on a prompt token and no answer token goes without one. Cut on the
        right at `limit` tokens.
        """
        prompt = self.render(chat, None)
        whole = self.render(chat, HOLE)
        tail = whole[len(prompt) :] if whole.startswith(prompt) else whole[whole.rindex(HOLE) :]
        target = tail.replace(HOLE, self.plain(answer))
        prompt_ids, ids = self.ids(prompt), self.ids(prompt + target)
        if ids[: len(prompt_ids)] != prompt_ids:
            ids = prompt_ids + self.ids(target)
        labels = [IGNORE] * len(prompt_ids) + ids[len(prompt_ids) :]
        return ids[:limit], labels[:limit]

    @cached_property
    def opening(self) -> list[int]:
        """The ids that every prompt with a question begins with: its system turn."""
        chats = (self.answer_chat("a", 1, 1), self.text_chat("b", ["c"]), self.text_chat("d", ()))
        rows = [self.prompt(chat) for chat in chats]
        columns = zip(*rows, strict=False)
        return [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, columns)]

    def render(self, chat: tuple[str, str], answer: str | None) -> str:
        """The chat as one string; a template without a system role gets it inside the user turn."""
        system, user = chat
        turns = [{"role": "user", "content": user}]
        ending = [{"role": "assistant", "content": answer}] if answer is not None else []
        if chat_template(self.tokenizer) is None:
            return f"{self.bos}{system}\n\n{user}\n" + (f"{answer}{self.eos}" if answer else "")
        try:
            return self._template([{"role": "system", "content": system}, *turns, *ending])
        except TemplateError:
            merged = [{"role": "user", "content": f"{system}\n{user}"}]
        try:
            return self._template([*merged, *ending])
        except TemplateError as error:
            name = self.tokenizer.name_or_path or "the tokenizer"
            raise ArtefactError(
                f"the chat template of {name} cannot render a question: {error}",
                "use a backbone whose chat template takes user and assistant turns",
            ) from error

    def _template(self, messages: list[dict[str, str]]) -> str:
        return render_chat(
            self.tokenizer,
            messages,
            add_generation_prompt=messages[-1]["role"] == "user",
            enable_thinking=False,
        )

    def check_template(self, what: str) -> None:
        """See that a chat template keeps what it is given: question, texts and placeholders, and
        the answer, whole and as they are.

        Raises:
            ArtefactError: where it drops, cuts, escapes or repeats them.
        """
        chat = self.answer_chat(LONG_PROBE, 2, 4, [PROBE])
        whole = self.render(chat, HOLE)
        for name, text, rendered in (
            ("the user's text", chat[1], self.render(chat, None)),
            ("the user's text", chat[1], whole),
            ("the answer", HOLE, whole),
        ):
            if rendered.count(text) != 1:
                times = "not at all, or not as it is" if text not in rendered else "several times"
                message = f"{what}: its chat template writes {name} {times}"
                raise ArtefactError(message, HINT)


def text_chat(question: str, texts: Sequence[str]) -> tuple[str, str]:
    """(system, user): a question over passages given as text; none: closed book."""
    docs = "\n\n".join(texts)
    background = f"Background:\n{docs}\n\n" if texts else ""
    return ANSWER_SYSTEM, f"{background}Question:{question}"


def list_target(questions: Sequence[str], answers: Sequence[str]) -> str:
    """The SCP question-answer target."""
    lines = (f"Question: {q}\nAnswer: {a}" for q, a in zip(questions, answers, strict=True))
    return "\n".join(lines)
