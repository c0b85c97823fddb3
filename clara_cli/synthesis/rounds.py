"""A passage into pairs: simple questions, complex questions, a paraphrase; what is uncovered asked
for again, round after round, until nothing is left or the rounds are used up.

Knows the loop; how a pair is judged stands in `passage_worker`, the wording in `prompts`.
"""

from __future__ import annotations

from typing import Any

from clara_cli.chat.client import LLM
from clara_cli.records import Passage
from clara_cli.synthesis import prompts
from clara_cli.synthesis.passage_worker import Outcome, PassageWorker, Settings, finished
from clara_cli.synthesis.quality_checks import Verdict, check_paraphrase, coverage
from clara_cli.synthesis.replies import Malformed, read_pairs, read_text

BARREN_ROUNDS = 2  # in a row without one pair believed: the model has no more to give
QUESTIONS = ("simple", "complex")
PARAPHRASE = "paraphrase"


async def synthesize(
    passage: Passage, text: str, llm: LLM, settings: Settings, key: str
) -> Outcome:
    """Everything of one passage. `text` is what the model reads and the pairs are about (the
    title, where there is one, and the passage's own text)."""
    worker = PassageWorker(llm, settings, passage, Outcome(key, passage.passage_id))
    paraphrases: list[str] = []
    if not (passage.text or "").strip():
        worker.drop(Verdict("empty", "no text"))
        return finished(worker, [])
    for kind in QUESTIONS:
        if kind in settings.kinds:
            await ask_rounds(worker, kind, text)
    if PARAPHRASE in settings.kinds:
        paraphrases = await ask_paraphrase(worker, text)
    asks_questions = any(kind in settings.kinds for kind in QUESTIONS)
    verdict = _below(worker, paraphrases, asked=asks_questions)
    if verdict is not None:
        for paraphrase in paraphrases:
            worker.reject(PARAPHRASE, 1, verdict, {"paraphrase": paraphrase})
        worker.drop(verdict)
        return finished(worker, [])
    _write(worker, text, paraphrases)
    kept = [(item.kind, item.round) for item in worker.kept]
    return finished(worker, [*kept, *((PARAPHRASE, 1) for _ in paraphrases)])


async def ask_rounds(worker: PassageWorker, kind: str, text: str) -> None:
    """One kind of questions until the model finds nothing uncovered, for up to `rounds`."""
    settings, barren = worker.settings, 0
    for number in range(1, settings.rounds + 1):
        if number == 1:
            prompt = prompts.questions(kind, text, settings.temperature)
        else:
            prompt = prompts.more(kind, text, worker.pairs(), settings.temperature)
        worker.outcome.rounds = max(worker.outcome.rounds, number)
        pairs: Any = await worker.ask(prompt, read_pairs)
        if pairs == []:
            return
        candidates = [] if isinstance(pairs, Malformed) else pairs
        believed = await worker.settle(kind, number, text, candidates)
        barren = 0 if believed else barren + 1
        if barren == BARREN_ROUNDS:
            return


async def ask_paraphrase(worker: PassageWorker, text: str) -> list[str]:
    """A paraphrase that passes, written at most twice; none where none does."""
    settings = worker.settings
    prompt = prompts.paraphrase(text, settings.temperature)
    for attempt in (1, 2):
        said: Any = await worker.ask(prompt, lambda reply, cut: read_text(reply, PARAPHRASE, cut))
        if isinstance(said, Malformed):
            worker.reject(PARAPHRASE, 1, Verdict("malformed", said.why), {"paraphrase": ""})
            return []
        verdict = check_paraphrase(said, text, settings.limits)
        if verdict is None:
            verdict = await worker.verify(prompts.same(text, said), "same")
        if worker.count(verdict) is None:
            worker.outcome.counts["repaired"] += attempt == 2
            return [said]
        assert verdict is not None, "count gives back what it was given"
        if attempt == 2:
            worker.reject(PARAPHRASE, 1, verdict, {"paraphrase": said})
            return []
        reason = f"{verdict.gate}: {verdict.detail}"
        prompt = prompts.rephrase(text, said, reason, settings.temperature)
    return []


def _below(worker: PassageWorker, paraphrases: list[str], *, asked: bool) -> Verdict | None:
    """Why a passage is to be dropped: nothing came of it, or its questions leave out too much."""
    if not asked:
        return None if paraphrases else worker.nothing("no paraphrase passed")
    share = coverage(worker.passage.text or "", worker.pairs())
    worker.outcome.coverage = round(share, 4)
    if not worker.kept:
        return worker.nothing("no question passed")
    if share < worker.settings.min_coverage:
        bar = worker.settings.min_coverage
        return Verdict("coverage", f"{share:.2f} of its sentences, at least {bar:.2f}")
    return None


def _write(worker: PassageWorker, text: str, paraphrases: list[str]) -> None:
    """The lines `pretrain` reads: one a kind of questions, one a paraphrase."""
    about = {"docs": [text], "passage_id": worker.passage.passage_id}
    for kind in QUESTIONS:
        pairs = [kept.pair for kept in worker.kept if kept.kind == kind]
        if pairs:
            texts = {
                "question": [pair.question for pair in pairs],
                "answers": [pair.answer for pair in pairs],
            }
            worker.outcome.lines.append({"data_type": "qa", **texts, **about, "kind": kind})
    for said_again in paraphrases:
        line = {"data_type": "paraphrase", "question": [], "answers": [said_again]}
        worker.outcome.lines.append({**line, **about, "kind": PARAPHRASE})
