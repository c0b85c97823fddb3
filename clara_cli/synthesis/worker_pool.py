"""Many passages through the work of one, a bounded number at a time, each made durable as soon as
it is finished.

Knows jobs, outcomes and where they are committed; nothing of what the work is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from clara_cli.chat.client import Unanswered
from clara_cli.records import Passage
from clara_cli.synthesis.passage_worker import Outcome


@dataclass(frozen=True, slots=True)
class Job:
    """One passage to work on: its key in the journal, its row, the text models read."""

    key: str
    row: int
    passage: Passage
    text: str


Work = Callable[[Job], Awaitable[Outcome]]
Commit = Callable[[Sequence[Outcome]], None]


async def run_workers(
    jobs: Iterable[Job], work: Work, commit: Commit, width: int, tell: Callable[[Outcome], None]
) -> None:
    """Work on `width` jobs at a time, in the order given, and commit each outcome. A job whose
    prompts stayed unanswered is tried again after all others, then given up with a reason.

    What is finished when this ends, however it ends, is committed.
    """
    pool = _WorkerPool(work, commit, tell)
    try:
        await pool.run(iter(jobs), width)
        postponed, pool.postponed, pool.last = pool.postponed, [], True
        await pool.run(iter(postponed), width)
    finally:
        pool.flush()


class _WorkerPool:
    """Workers on one side, one committer on the other."""

    def __init__(self, work: Work, commit: Commit, tell: Callable[[Outcome], None]) -> None:
        self._work, self._commit, self._tell = work, commit, tell
        self._finished: list[tuple[Outcome, asyncio.Future[None]]] = []
        self._something = asyncio.Event()
        self.postponed: list[Job] = []
        self._closing = False
        self.last = False  # whether a job that fails now has had its second chance

    async def run(self, jobs: Iterator[Job], width: int) -> None:
        """Every job; ends early, all stopped, where one raises."""
        workers = [asyncio.create_task(self._worker(jobs)) for _ in range(width)]
        committer = asyncio.create_task(self._committer())
        waiting = {committer, *workers}
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if waiting == {committer}:
                    self._closing = True
                    self._something.set()
        finally:
            for task in (*workers, committer):
                task.cancel()
            await asyncio.gather(*workers, committer, return_exceptions=True)

    async def _worker(self, jobs: Iterator[Job]) -> None:
        for job in jobs:
            try:
                outcome = await self._work(job)
            except Unanswered as event:
                if not self.last:
                    self.postponed.append(job)
                    continue
                outcome = given_up(job, str(event))
            committed = asyncio.get_running_loop().create_future()
            self._finished.append((outcome, committed))
            self._something.set()
            await committed  # so that a kill loses at most one passage a worker

    async def _committer(self) -> None:
        self._closing = False
        while not (self._closing and not self._finished):
            await self._something.wait()
            self._something.clear()
            batch, self._finished = self._finished, []
            await asyncio.to_thread(self._commit, [outcome for outcome, _ in batch])
            for outcome, committed in batch:
                if not committed.done():
                    committed.set_result(None)
                self._tell(outcome)

    def flush(self) -> None:
        """Commit what is finished, here and now."""
        batch, self._finished = [outcome for outcome, _ in self._finished], []
        self._commit(batch)
        for outcome in batch:
            self._tell(outcome)


def given_up(job: Job, reason: str) -> Outcome:
    """The outcome of a passage the server failed twice, while it served others."""
    name = job.passage.passage_id
    line = {"passage_id": name, "kind": "passage", "round": 0, "reason": "failed", "detail": reason}
    counts = Counter({"passages": 1, "dropped.failed": 1})
    return Outcome(job.key, name, rejected=[line], counts=counts)
