"""Readers that others prompted or tuned, each with the template its authors give it, and a language
model that orders passages by writing their numbers.

Everything is greedy. What looks like a special token in a question or passage is spelt so that it
is read as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clara_cli.evaluation.paragraphs import Piece
from clara_cli.evaluation.rivals.retrievers import candidates
from clara_cli.evaluation.rivals.weights import Weights
from clara_cli.evaluation.systems import Failure, PooledQuestion, Reading

WINDOW, STEP = 20, 10  # passages ordered at a time, and how far the window moves (RankZephyr)
WORDS = (300, 200, 150, 100, 70, 50, 30, 20, 10)  # of a passage, as many as fit
_REFLECTION = re.compile(
    r"\[(No Retrieval|Retrieval|Continue to Use Evidence|Relevant|Irrelevant|Fully supported"
    r"|Partially supported|No support / Contradictory|Utility:[1-5])\]|</?paragraph>"
)


@dataclass(frozen=True)
class Template:
    """How a reader is asked, and what of its text is the answer. `chat`: the prompt is a user's
    turn of the tokenizer's chat template, else the whole text, a beginning-of-text token before
    it."""

    prompt: Callable[[str, Sequence[str]], str]
    answer: Callable[[str], str] = str.strip
    chat: bool = False


def _self_rag(question: str, texts: Sequence[str]) -> str:
    paragraph = f"[Retrieval]<paragraph>{_documents(texts)}</paragraph>" if texts else ""
    return f"### Instruction:\n{question}\n\n### Response:\n{paragraph}"


def _chatqa(question: str, texts: Sequence[str]) -> str:
    system = (
        "System: This is a chat between a user and an artificial intelligence assistant. The "
        "assistant gives helpful, detailed, and polite answers to the user's questions based on "
        "the context. The assistant should also indicate when the answer cannot be found in the "
        "context."
    )
    turn = f"User: Answer the following question with a short span. {question}\n\nAssistant:"
    return "\n\n".join([system, *([_documents(texts)] if texts else []), turn])


def _retrobust(question: str, texts: Sequence[str]) -> str:
    task = (
        "Given the following question, answer it by providing follow up questions and intermediate "
        "answers. If intermediate questions are not necessary, answer the question directly. You "
        "are provided with evidence that can help you arrive at the answer before the question."
    )
    evidence = [f"Context{n}: {_one_line(text)}" for n, text in enumerate(texts, 1)]
    ending = "Are follow up questions needed here: No.\nSo the final answer is:"
    return "\n".join([task, "#", *evidence, f"Question: {question}", ending])


def _gritlm(question: str, texts: Sequence[str]) -> str:
    task = "Answer the prior query while optionally using the context prior to it"
    parts = [*([_documents(texts)] if texts else []), question, task]
    return "<|user|>\n" + "\n\n".join(parts) + "\n<|assistant|>\n"


def _rag_ddr(question: str, texts: Sequence[str]) -> str:
    background = f"Background:\n{_documents(texts)}\n\n" if texts else ""
    return f"{background}Q: {question}\nA:"


def _documents(texts: Sequence[str]) -> str:
    return "\n\n".join(texts)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _without_reflection(text: str) -> str:
    return _REFLECTION.sub(" ", text).strip()


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


TEMPLATES: dict[str, Template] = {
    "self-rag": Template(_self_rag, _without_reflection),  # arXiv 2310.11511, short form
    "chatqa": Template(_chatqa),  # arXiv 2401.10225, the short answers' instruction
    "retrobust": Template(_retrobust, _first_line),  # arXiv 2310.01558, without sub-questions
    "gritlm": Template(_gritlm),  # arXiv 2402.09906, passages before the question
    "rag-ddr": Template(_rag_ddr, chat=True),  # arXiv 2410.13509
}


class TunedReader:
    """`TextReader` of a causal language model with a template of its own."""

    def __init__(self, weights: Weights, template: Template, max_new_tokens: int) -> None:
        self._weights, self._template = weights, template
        self._max_new_tokens = max_new_tokens
        self._window = weights.longest - max_new_tokens

    def read(self, batch: Sequence[tuple[str, Sequence[str]]]) -> list[Reading | Failure]:
        """Answer all together; a question that does not fit alone is a failure."""
        fitted = [self._fit(question, texts) for question, texts in batch]
        prompts = [prompt for prompt in fitted if prompt is not None]
        answers = iter(generate(self._weights, [ids for ids, _ in prompts], self._max_new_tokens))
        return [
            Failure(f"the question alone exceeds the window of {self._weights.longest} tokens")
            if prompt is None
            else Reading(self._template.answer(next(answers)), prompt[1])
            for prompt in fitted
        ]

    def _fit(self, question: str, texts: Sequence[str]) -> tuple[list[int], int] | None:
        """(prompt ids, texts kept): as many as the window takes."""
        tokenizer = self._weights.tokenizer
        question, texts = plain(tokenizer, question), [plain(tokenizer, text) for text in texts]
        for kept in range(len(texts), -1, -1):
            prompt = self._template.prompt(question, texts[:kept])
            turns = [{"role": "user", "content": prompt}] if self._template.chat else prompt
            ids = prompt_ids(tokenizer, turns)
            if len(ids) <= self._window:
                return ids, kept
        return None


def plain(tokenizer: Any, text: str) -> str:
    """Text in which special and added tokens are spelt so that they are read as plain text."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values())
    for token in sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True):
        if len(token) > 1 and not token.isspace():
            text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text


def prompt_ids(tokenizer: Any, prompt: str | list[dict[str, str]]) -> list[int]:
    """Ids of a whole prompt, or of the turns of a chat, up to where the answer begins."""
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
        ids = ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
        bos = tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def generate(weights: Weights, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
    """Greedy continuations, prompts padded on the left, or one by one for a model whose state reads
    padding."""
    if not prompts:
        return []
    if len(prompts) > 1 and not weights.pads:
        return [text for one in prompts for text in generate(weights, [one], max_new_tokens)]
    model, tokenizer = weights.model, weights.tokenizer
    pad = tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    pad = 0 if pad is None else pad
    longest = max(map(len, prompts))
    rows = [[pad] * (longest - len(ids)) + ids for ids in prompts]
    masks = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    with torch.inference_mode():
        sequences = model.generate(
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(masks, device=model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
        )
    texts = tokenizer.batch_decode(sequences[:, longest:], skip_special_tokens=True)
    return [str(text) for text in texts]


class ListwisePicker:
    """The `top_k` candidates in the order that a language model writes: RankZephyr (arXiv
    2312.02724), twenty at a time from the end of the list, the window moved by ten."""

    chooses = True

    def __init__(self, weights: Weights, top_k: int) -> None:
        self._weights, self._top_k = weights, top_k

    def pick(self, batch: Sequence[PooledQuestion]) -> list[Sequence[Piece]]:
        """The best by the model's order."""
        return [self._ordered(asked)[: self._top_k] for asked in batch]

    def _ordered(self, asked: PooledQuestion) -> list[Piece]:
        pieces = list(candidates(asked))
        end = len(pieces)
        while end > 1:
            start = max(0, end - WINDOW)
            pieces[start:end] = self._order(asked.question, pieces[start:end])
            end = end - STEP if start else 0
        return pieces

    def _order(self, question: str, pieces: list[Piece]) -> list[Piece]:
        ids = self._prompt(question, [piece.text for piece in pieces])
        (text,) = generate(self._weights, [ids], _room(len(pieces)))
        return [pieces[n] for n in read_order(text, len(pieces))]

    def _prompt(self, question: str, texts: Sequence[str]) -> list[int]:
        """The prompt with as many words of each passage as fit."""
        tokenizer = self._weights.tokenizer
        texts = [plain(tokenizer, text) for text in texts]
        window = self._weights.longest - _room(len(texts))
        for words in WORDS:
            ids = prompt_ids(tokenizer, rank_turns(plain(tokenizer, question), texts, words))
            if len(ids) <= window:
                break
        return ids


def _room(passages: int) -> int:
    """New tokens that an order takes."""
    return 8 * passages


def rank_turns(question: str, texts: Sequence[str], words: int) -> list[dict[str, str]]:
    """RankZephyr's prompt; `words` of each passage."""
    system = (
        "You are RankLLM, an intelligent assistant that can rank passages based on their relevancy "
        "to the query"
    )
    passages = "\n".join(f"[{n}] {' '.join(t.split()[:words])}" for n, t in enumerate(texts, 1))
    user = (
        f"I will provide you with {len(texts)} passages, each indicated by a numerical identifier "
        f"[]. Rank the passages based on their relevance to the search query: {question}.\n\n"
        f"{passages}\n\nSearch Query: {question}.\nRank the {len(texts)} passages above based on "
        "their relevance to the search query. All the passages should be included and listed using "
        "identifiers, in descending order of relevance. The output format should be [] > [], e.g., "
        "[2] > [1], Answer concisely and directly and only respond with the ranking results, do "
        "not say any word or explain."
    )
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def read_order(text: str, count: int) -> list[int]:
    """Places (from 0) in the order written, each once; those it leaves out follow as they were."""
    written = (int(number) - 1 for number in re.findall(r"\[(\d{1,6})\]", text))
    order = list(dict.fromkeys(place for place in written if 0 <= place < count))
    return order + [place for place in range(count) if place not in order]
