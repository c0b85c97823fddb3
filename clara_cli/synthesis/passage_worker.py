"""One passage at work: prompts asked and counted, pairs judged by the checks and by the
model, failing ones written again once, the outcome as lines.

Knows one passage at a time; nothing of rounds, of other passages or of files.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from clara_cli.chat.client import LLM, Prompt, Unfit
from clara_cli.records import Passage
from clara_cli.synthesis import prompts
from clara_cli.synthesis.quality_checks import (
    Candidate,
    Limits,
    Verdict,
    check_duplicate,
    check_pair,
)
from clara_cli.synthesis.replies import Malformed, read_pairs, read_verdict

Read = TypeVar("Read")
SECOND_TEMPERATURE = 0.7  # of a prompt asked again: the same words would come back at 0


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the outcome of a passage besides the model."""

    kinds: tuple[str, ...] = ("simple", "complex", "paraphrase")
    rounds: int = 10
    min_coverage: float = 0.5
    temperature: float = 0.7
    reply_tokens: int = 2048
    limits: Limits = Limits()
    top_k: int = 5
    pool_size: int = 20
    seed: int = 0


@dataclass(slots=True)
class Outcome:
    """What came of one passage: lines to keep, lines turned away, and the figures of both."""

    key: str
    passage_id: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    coverage: float | None = None


@dataclass(frozen=True, slots=True)
class AcceptedPair:
    """A pair believed, and where it came from."""

    kind: str
    round: int
    pair: Candidate


@dataclass(slots=True)
class PassageWorker:
    """One passage at work."""

    llm: LLM
    settings: Settings
    passage: Passage
    outcome: Outcome
    kept: list[AcceptedPair] = field(default_factory=list)
    unfit: Unfit | None = None

    def pairs(self) -> list[Candidate]:
        """The pairs believed so far."""
        return [kept.pair for kept in self.kept]

    async def ask(self, prompt: Prompt, read: Callable[[str, bool], Read | Malformed]) -> Any:
        """What `read` makes of the reply; a malformed one is asked for a second time, then it is
        what comes back. So is a prompt the server refuses."""
        counts = self.outcome.counts
        room = min(prompt.max_tokens, self.settings.reply_tokens)
        answer: Read | Malformed = Malformed("empty")
        for salt in (0, 1):
            warmer = max(prompt.temperature, SECOND_TEMPERATURE) if salt else prompt.temperature
            try:
                reply = await self.llm.ask(
                    dataclasses.replace(prompt, salt=salt, temperature=warmer, max_tokens=room)
                )
            except Unfit as unfit:
                self.unfit = unfit
                counts[f"malformed.{unfit.gate}"] += 1
                return Malformed(unfit.gate)
            counts["requests"] += 1
            counts["prompt_tokens"] += reply.prompt_tokens
            counts["completion_tokens"] += reply.completion_tokens
            answer = read(reply.text, reply.cut)
            if not isinstance(answer, Malformed):
                return answer
            counts[f"malformed.{answer.why}"] += 1
        return answer

    async def verdict(self, text: str, pair: Candidate) -> Verdict | None:
        """What speaks against a pair: a gate, else the model reading the text, else nothing."""
        verdict = check_pair(pair, text, self.settings.limits)
        if verdict is None:
            verdict = await self.verify(prompts.verify(text, pair), "correct")
        return self.count(verdict)

    async def verify(self, prompt: Prompt, key: str) -> Verdict | None:
        """The model's own judgement; one it does not give counts against what was judged."""
        judgement = await self.ask(prompt, lambda text, cut: read_verdict(text, key, cut))
        if isinstance(judgement, Malformed):
            return Verdict("unverified", f"the verification was {judgement.why}")
        true, reason = judgement
        return None if true else Verdict("incorrect", reason[:200] or "says the model")

    def count(self, verdict: Verdict | None) -> Verdict | None:
        """Count a gate that closed."""
        if verdict is not None:
            self.outcome.counts[f"gate.{verdict.gate}"] += 1
        return verdict

    async def settle(self, kind: str, number: int, text: str, pairs: Sequence[Candidate]) -> int:
        """Believe or turn away what a round wrote about a text; the pairs believed."""
        fresh: list[Candidate] = []
        for pair in pairs:
            verdict = self.count(check_duplicate(pair, [*self.pairs(), *fresh]))
            if verdict is None:
                fresh.append(pair)
            else:
                self.reject(kind, number, verdict, _shown(pair))
        judged = await together(self._judge(kind, text, pair) for pair in fresh)
        before = len(self.kept)
        for first, (pair, verdict, reason) in zip(fresh, judged, strict=True):
            if verdict is None and pair is not first:
                verdict = self.count(check_duplicate(pair, self.pairs()))
            if verdict is not None:
                again = {"again": _shown(pair)} if pair is not first else {}
                self.reject(kind, number, verdict, _shown(first) | reason | again)
            else:
                self.outcome.counts["repaired"] += pair is not first
                self.kept.append(AcceptedPair(kind, number, pair))
        return len(self.kept) - before

    async def _judge(
        self, kind: str, text: str, pair: Candidate
    ) -> tuple[Candidate, Verdict | None, dict[str, str]]:
        """A pair, or the one written in its place, the verdict on it, and why the first fell."""
        verdict = await self.verdict(text, pair)
        if verdict is None:
            return pair, None, {}
        reason = f"{verdict.gate}: {verdict.detail}"
        prompt = prompts.repair(kind, text, pair, reason, self.settings.temperature)
        repaired = await self.ask(prompt, read_pairs)
        if isinstance(repaired, Malformed) or not repaired or repaired[0] == pair:
            return pair, verdict, {}
        better: Candidate = repaired[0]
        return better, await self.verdict(text, better), {"first_reason": reason}

    def reject(self, kind: str, number: int, verdict: Verdict, shown: dict[str, Any]) -> None:
        """Turn something away, with the reason."""
        self.outcome.rejected.append(
            {
                "passage_id": self.passage.passage_id,
                "kind": kind,
                "round": number,
                "reason": verdict.gate,
                "detail": verdict.detail,
                **shown,
            }
        )

    def nothing(self, said: str) -> Verdict:
        """Why nothing came of the passage, in the server's words where it refused."""
        if self.unfit is not None:
            return Verdict(self.unfit.gate, self.unfit.detail)
        counts, prefix = self.outcome.counts, "malformed."
        bad = {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix)}
        listed = ", ".join(f"{number} {why}" for why, number in sorted(bad.items()))
        return Verdict("nothing", f"{said}; malformed replies: {listed}" if listed else said)

    def drop(self, verdict: Verdict) -> None:
        """Turn away the passage and all that was believed of it."""
        for kept in self.kept:
            self.reject(kept.kind, kept.round, verdict, _shown(kept.pair))
        self.kept.clear()
        self.outcome.lines.clear()
        self.reject("passage", 0, verdict, {})


def _shown(pair: Candidate) -> dict[str, Any]:
    return {"question": pair.question, "answer": pair.answer}


def finished(worker: PassageWorker, accepted: Sequence[tuple[str, int]]) -> Outcome:
    """The outcome with its counts, once nothing changes any more; `accepted` are the kind and
    the round of every piece kept."""
    outcome = worker.outcome
    outcome.counts["passages"] += 1
    for kind, number in accepted:
        outcome.counts.update((f"accepted.{kind}", f"round.{number}.accepted"))
    for line in outcome.rejected:
        if line["kind"] == "passage":
            outcome.counts[f"dropped.{line['reason']}"] += 1
        else:
            names = (f"rejected.{line['kind']}", f"round.{line['round']}.rejected")
            outcome.counts.update((*names, f"reason.{line['reason']}"))
    return outcome


async def together(work: Any) -> list[Any]:
    """The results of coroutines run side by side; where one fails the others are stopped."""
    made: list[Coroutine[Any, Any, Any]] = list(work)
    tasks = [asyncio.ensure_future(coroutine) for coroutine in made]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
