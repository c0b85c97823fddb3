"""From passages found to answers: prompts, generation, support, explanation.

Tensor letters: K passages given, M memory tokens, D hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from clara_cli.answering import support
from clara_cli.answering.explain import matches, words_of
from clara_cli.answering.passage_search import AskOptions
from clara_cli.answering.reading import (
    Generated,
    Prompt,
    generate,
    make_prompt,
    refuse_overflow,
    texts_within,
)
from clara_cli.answering.sentences import with_best_sentences
from clara_cli.answering.support import Signals
from clara_cli.core.checkpoint import Loaded
from clara_cli.core.checkpoint_info import ReadMode
from clara_cli.documents.chunk import model_text
from clara_cli.errors import ArtefactError
from clara_cli.records import Answer, Explanation, Hit


@dataclass(frozen=True)
class FoundPassages:
    """A question with its passages, best first, their memory_KMD, and its own memory where it was
    computed; `seconds` of finding them. `searched` is what was searched with: the question, after
    what it leans on; `word_weights` is how rare its words are, where words were searched."""

    question: str
    hits: tuple[Hit, ...]
    memory_KMD: Tensor
    query_MD: Tensor | None
    seconds: dict[str, float]
    searched: str
    word_weights: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is supported, how that was judged, and by which signals."""

    support: float | None
    supported: bool | None
    method: str | None
    signals: Signals


UNJUDGED = Verdict(None, None, None, {})


class _FirstToken:
    """Passes pieces of an answer on, and notes when the first one came."""

    def __init__(self, on_text: Callable[[str], None] | None) -> None:
        self._on_text = on_text
        self.at: float | None = None

    def __call__(self, text: str) -> None:
        self.at = self.at or time.monotonic()
        if self._on_text is not None:
            self._on_text(text)


class Answerer:
    """A checkpoint that answers from passages found. `other` gives the memory of another passage
    than those found, to compare with; `has_text` says whether passages come with their text."""

    def __init__(
        self, loaded: Loaded, has_text: bool, other: Callable[[FoundPassages], Tensor]
    ) -> None:
        self.model, self.prompter = loaded.model, loaded.model.prompter
        self.has_text, self._other = has_text, other
        self.text_role = loaded.info.reading.text_role
        fingerprints = (loaded.info.fingerprint, loaded.info.older_fingerprint)
        self.calibrations = support.read_calibrations(loaded.path, *fingerprints)

    def answer(
        self,
        found: Sequence[FoundPassages],
        how: AskOptions,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Answer questions from passages already found.

        Raises:
            UsageError: when a prompt and its answer do not fit the backbone's window.
            ArtefactError: when text is to be read and none was kept.
        """
        began, heard = time.monotonic(), _FirstToken(on_text)
        listener = heard if on_text is not None or how.explain else None
        prompts = [self.prompt(one, how) for one in found]
        answers = generate(self.model, prompts, how.max_new_tokens, listener)
        generated = time.monotonic()
        verdicts = self._judge(found, answers, how)
        judged = time.monotonic()
        spent = {"generate": generated - began, "support": judged - generated}
        spent = {phase: seconds / len(found) for phase, seconds in spent.items()}
        if heard.at is not None:
            spent["first_token"] = sum(found[0].seconds.values()) + heard.at - began
        return [
            self._answer(one, prompt, answer.text, verdict, spent, how)
            for one, prompt, answer, verdict in zip(found, prompts, answers, verdicts, strict=True)
        ]

    def prompt(self, found: FoundPassages, how: AskOptions) -> Prompt:
        """What the generator is given for a question; raises as `answer` does."""
        if how.read != "memory" and not self.has_text:
            raise ArtefactError(
                f"--read {how.read}: the corpus kept no text",
                "use --read memory, or compress again without --no-text",
            )
        passages = [hit.passage for hit in found.hits]
        as_text = {"memory": 0, "text": len(passages)}.get(how.read)
        if as_text is None:
            as_text = texts_within([p.tokens for p in passages], how.text_tokens)
        texts = [model_text(p.title, p.text or "") for p in passages[:as_text]]
        prompt = make_prompt(
            self.model, found.question, found.memory_KMD, texts, how.read, self.text_role
        )
        refuse_overflow(self.model, prompt, how.max_new_tokens)
        return prompt

    def _judge(
        self, found: Sequence[FoundPassages], answers: Sequence[Generated], how: AskOptions
    ) -> list[Verdict]:
        """Support of each answer by the checkpoint's calibration of how it was read; without one
        it is unjudged."""
        calibration = self.calibrations.get(how.read)
        if calibration is None:
            return [UNJUDGED for _ in found]
        verdicts = []
        for signals in self.signals(found, answers, how.read):
            p, supported = calibration.judge(signals) if signals else (0.0, False)
            verdicts.append(Verdict(p, supported, "calibrated", signals))
        return verdicts

    def signals(
        self,
        found: Sequence[FoundPassages],
        answers: Sequence[Generated],
        read: ReadMode = "memory",
    ) -> list[Signals]:
        """What tells whether answers come from their passages; nothing for an answer without text,
        or from no passage."""
        pairs = enumerate(zip(found, answers, strict=True))
        worded = [i for i, (one, given) in pairs if given.ids and given.text and one.hits]
        answered = [support.ModelAnswer(answers[i], self._without(found[i], read)) for i in worded]
        signals_of: list[Signals] = [{} for _ in found]
        for i, signals in zip(
            worded, support.likelihood_signals(self.model, answered), strict=True
        ):
            signals_of[i] = signals
            if self.has_text:
                passages = [hit.passage for hit in found[i].hits]
                signals_of[i] |= support.text_signals(found[i].searched, answers[i].text, passages)
        return signals_of

    def _without(self, found: FoundPassages, read: ReadMode) -> tuple[Prompt, ...]:
        other_1MD = found.memory_KMD[:0] if read == "text" else self._other(found)
        role = self.text_role
        return support.prompts_without(self.model, found.question, read, role, other_1MD)

    def _answer(
        self,
        found: FoundPassages,
        prompt: Prompt,
        text: str,
        verdict: Verdict,
        spent: dict[str, float],
        how: AskOptions,
    ) -> Answer:
        seconds = {phase: round(s, 4) for phase, s in {**found.seconds, **spent}.items()}
        kinds = ["text"] * prompt.as_text + ["memory"] * (len(found.hits) - prompt.as_text)
        hits = [replace(h, read=kind) for h, kind in zip(found.hits, kinds, strict=True)]
        as_memory = hits[prompt.as_text :]
        trusted = "" if verdict.supported is False else text
        sources = with_best_sentences(hits, found.searched, trusted, found.word_weights)
        explanation = None
        if how.explain:
            explanation = self._explain(found, prompt, seconds, verdict.signals)
        return Answer(
            question=found.question,
            answer=text,
            support=verdict.support,
            supported=verdict.supported,
            sources=sources,
            memory_tokens=found.memory_KMD.shape[1] * len(as_memory),
            prompt_tokens=len(prompt.ids),
            text_tokens_replaced=sum(hit.passage.tokens for hit in as_memory),
            seconds={phase: seconds[phase] for phase in ("query", "search", "generate")},
            support_method=verdict.method,
            read=how.read,
            explain=explanation,
            abstained=how.abstain and verdict.supported is False,
        )

    def _explain(
        self, found: FoundPassages, prompt: Prompt, seconds: dict[str, float], signals: Signals
    ) -> Explanation:
        assert found.query_MD is not None, "asked with explain, a question has its memory"
        passages, as_text = [hit.passage for hit in found.hits], None
        if self.has_text:
            texts = [model_text(p.title, p.text or "") for p in passages]
            as_text = len(self.prompter.prompt(self.prompter.text_chat(found.question, texts)))
        return Explanation(
            query_words=words_of(self.model, found.query_MD),
            passages=matches(self.model, found.query_MD, found.memory_KMD, found.hits),
            tokens_read=len(prompt.ids),
            tokens_as_text=as_text,
            seconds=seconds,
            signals={name: round(value, 4) for name, value in signals.items()},
        )
