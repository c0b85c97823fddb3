"""What a checkpoint can do follows from its adapters, and what its generator was trained for last
from its stage. Says both in words; knows no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clara_cli.errors import ArtefactError

# stage names: this program's, and those of the released checkpoints
FROM_MEMORY = ("scp", "stage1")
ANSWERING = ("instruct", "e2e", "stage1_2", "stage2", "stage2_reasoning")
PURPOSES = {
    "compressor": "documents cannot be compressed with it",
    "query_reasoner": "questions are not read in a role of their own",
    "generator": "nothing can be generated with it",
}


@dataclass(frozen=True)
class Abilities:
    """The roles of a checkpoint and the stage that trained it last; `name` is for messages."""

    name: str
    roles: Sequence[str]
    stage: str

    def need(self, role: str) -> None:
        """Raise ArtefactError where a role is missing, with what is there."""
        if role in self.roles:
            return
        raise ArtefactError(
            f"{self.name}: no {role.replace('_', ' ')} in this checkpoint: {PURPOSES[role]}",
            f"it has {', '.join(self.roles) or 'none'}; use another --model",
        )

    @property
    def answers(self) -> bool:
        """Whether its generator may answer questions: it was not trained on other things alone."""
        return "generator" in self.roles and self.stage not in FROM_MEMORY

    @property
    def writes_from_memory(self) -> bool:
        """Whether its generator was trained last to paraphrase and to list questions."""
        return "generator" in self.roles and self.stage not in ANSWERING

    @property
    def reasons(self) -> bool:
        """Whether questions have a role of their own."""
        return "query_reasoner" in self.roles

    def sentence(self) -> str:
        """All of it in one sentence."""
        can = ["compresses documents"] if "compressor" in self.roles else []
        if self.answers:
            can.append("answers questions")
        if self.writes_from_memory:
            can.append("paraphrases a passage and lists its questions (ask --task)")
        if self.reasons:
            can.append("finds passages by its query reasoner")
        cannot = "" if self.reasons else "; it has no query reasoner"
        return f"{self.name} ({self.stage}): {', '.join(can) or 'does nothing alone'}{cannot}"
