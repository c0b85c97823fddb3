"""Three LoRA roles on one frozen backbone, and memory tokens as parameters of their own.

`ClaraModel` encodes token rows into memory, splices memory into prompts, and generates. It knows
token ids, not text. Rows are padded on the right: with causal attention no real position ever sees
a pad, so no mask is built and every row costs its own length.

B batch, L passage tokens, M memory tokens, T decoder tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clara_cli.core.adapters import Adapters, LoraSettings, TrainedAdapters, peft_adapters
from clara_cli.core.backbone import (
    Backbone,
    head_logits,
    hidden_before,
    inner_model,
    layers_of,
    shares_prefixes,
    sliding_window,
)
from clara_cli.core.finite import LargestLogits
from clara_cli.core.length_grouping import (
    GPU_PASS_COST,
    PASS_COST,
    group_by_length,
    pad_rows,
    until_end,
)
from clara_cli.core.llama import Cache, Llama
from clara_cli.core.losses import IGNORE, hidden_nll
from clara_cli.core.prompts import Prompter
from clara_cli.core.shared_prefix import PackedRow, attention_mask, pack
from clara_cli.core.writing import end_tokens, write
from clara_cli.errors import UsageError
from clara_cli.memory_layout import (
    PUBLISHED,
    MemoryLayout,
    pool_text,
    reading_positions,
    slot_offsets,
)

ROLES = ("compressor", "query_reasoner", "generator")
SHORTEST_OPENING = 8  # tokens that all prompts begin with; fewer are not worth a pass of their own


@dataclass(frozen=True)
class Encoded:
    """What encoding gives: memory, and the hidden states of the text before it with their mask (at
    the memory's positions too, where it is false)."""

    memory_BMD: Tensor
    hidden_BLD: Tensor
    mask_BL: Tensor


class ClaraModel(nn.Module):
    """The roles, the memory tokens and the prompter of one checkpoint.

    Which role is *active* is set by `with model.role(name)`; which parameters *train* by
    `train_only`. The two are independent. `adapters` are PEFT's where they are not given.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompter: Prompter,
        lora: LoraSettings,
        roles: Sequence[str],
        memory_MD: Tensor,
        markers_2D: Tensor,
        adapters: Adapters | None = None,
        layout: MemoryLayout = PUBLISHED,
    ) -> None:
        super().__init__()
        self.prompter, self.lora, self.roles = prompter, lora, tuple(roles)
        self.layout = layout
        self.backbone = backbone
        self._own_ends = end_tokens(backbone.model)
        self.adapters = adapters or peft_adapters(backbone.model, lora, roles)
        self.peft = self.adapters.module  # by this name run folders keep what trains
        prompter.table_rows = self.table_VD.shape[0]
        self.memory_MD = nn.Parameter(memory_MD.to(self.device))
        self.markers_2D = nn.Parameter(markers_2D.to(self.device))
        self.sharded = False
        self._shares_prefixes: bool | None = None
        self._openings: dict[str | None, Cache] = {}
        self._switch(roles[0])
        self._trained: frozenset[str] = frozenset()
        self._trains_memory = False
        self.train_only(())
        self.eval()

    @property
    def causal_lm(self) -> Any:
        """The backbone with its head, adapters inside its layers."""
        return self.adapters.causal_lm

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        place = self.table_VD.device
        return self.memory_MD.device if place.type == "meta" else place  # it is offloaded

    @property
    def table_VD(self) -> nn.Parameter:
        """The backbone's input embeddings, a row a token."""
        return self.causal_lm.get_input_embeddings().weight

    @property
    def hidden(self) -> int:
        """D."""
        return self.table_VD.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the computation."""
        return self.table_VD.dtype

    @property
    def query_role(self) -> str:
        """The role that reads questions."""
        return "query_reasoner" if "query_reasoner" in self.roles else "compressor"

    @property
    def memory_tokens(self) -> int:
        """M: memory tokens of the longest memory."""
        return self.memory_MD.shape[0]

    def role_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """A role's LoRA parameters by name."""
        return self.adapters.parameters(role)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that trains, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def train_only(self, roles: Sequence[str], memory: bool = False) -> None:
        """Choose what trains: these roles' LoRA, and the memory tokens if `memory`."""
        unknown = set(roles) - set(self.roles)
        if unknown:
            raise ValueError(f"roles {sorted(unknown)} are not in this model: {self.roles}")
        self._trained, self._trains_memory = frozenset(roles), memory
        self._restore_trained()
        self.train(self.training)

    def trains(self, role: str) -> bool:
        """Whether a role's LoRA is among what trains."""
        return role in self._trained

    def train(self, mode: bool = True) -> ClaraModel:
        """Training mode; the LoRA dropout of roles that do not train stays off."""
        super().train(mode)
        self.adapters.keep_still([role for role in self.roles if role not in self._trained])
        return self

    def checkpoint_layers(self) -> None:
        """Keep no activations inside the backbone's layers while training: backward computes them
        again, each layer in the role it ran in.

        Raises:
            UsageError: where the backbone cannot.
        """
        if not self.causal_lm.supports_gradient_checkpointing:
            message = f"checkpointing = true, but {self.backbone.name} does not support it"
            raise UsageError(message, "omit checkpointing")

        def pinned() -> tuple[Any, Any]:
            return nullcontext(), self.role(self._active)

        settings = {"use_reentrant": False, "context_fn": pinned}
        self.causal_lm.gradient_checkpointing_enable(settings)

    def _restore_trained(self) -> None:
        self.requires_grad_(False)
        for role in self._trained:
            for parameter in self.role_parameters(role).values():
                parameter.requires_grad_(True)
        self.memory_MD.requires_grad_(self._trains_memory)

    def add_role(self, role: str, copy_of: str | None) -> None:
        """Add a role, its weights copied from another (the query reasoner starts as the compressor,
        paper section 3.2) or fresh."""
        self.adapters.add(role)
        self.roles = (*self.roles, role)
        if copy_of is not None:
            source = self.role_parameters(copy_of)
            with torch.no_grad():
                for name, parameter in self.role_parameters(role).items():
                    parameter.copy_(source[name.replace(f".{role}.", f".{copy_of}.")])
        self._switch(self._active)
        self._restore_trained()

    def begin_memory_anew(self, layout: MemoryLayout, memory_MD: Tensor, max_passage: int) -> None:
        """Make memory in another way, nothing of it learned yet: the compressor is fresh, and the
        query reasoner, which knew the memory before, is no role any more. Not of a model that was
        opened to be read."""
        assert isinstance(self.adapters, TrainedAdapters), "opened to be read, it does not train"
        self.layout, self.prompter.max_passage = layout, max_passage
        self.check_layout()
        self.memory_MD = nn.Parameter(memory_MD.to(self.device))
        self.adapters.renew("compressor")
        self.roles = tuple(role for role in self.roles if role != "query_reasoner")
        self._restore_trained()

    def check_layout(self) -> None:
        """See that the backbone has the layer that memory is read from, and more behind it.

        Raises:
            UsageError: where it has not.
        """
        layer = self.layout.layer
        layers = len(layers_of(inner_model(self.causal_lm))) if layer is not None else 0
        if layer is not None and layer >= layers:
            message = f"memory_layer is {layer}, {self.backbone.name} has {layers} layers"
            raise UsageError(message, f"it goes from 1 to {layers - 1}; 0 stands for all of them")

    @contextmanager
    def role(self, name: str | None) -> Iterator[None]:
        """Make one role active (None: the bare backbone); the one before returns on exit."""
        if name is not None and name not in self.roles:
            raise ValueError(f"no role {name!r} in this model: {', '.join(self.roles)}")
        before = self._active
        if name != before:
            self._switch(name)
        try:
            yield
        finally:
            if name != before:
                self._switch(before)

    def _switch(self, name: str | None) -> None:
        self.adapters.switch(name)
        self._active: str | None = name

    def merge(self, role: str) -> None:
        """Keep one role for reading only, folded into the backbone's weights where they are whole;
        no other role works after."""
        self._switch(role)
        self.adapters.merge(role)
        self.roles = (role,)
        self._openings.clear()

    def forward(
        self,
        role: str | None,
        embeds_BTD: Tensor,
        mask: Tensor | None = None,
        positions_BT: Tensor | None = None,
        layer: int | None = None,
        opening: Cache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the final norm, or after `layer` layers. `mask` is (B, T),
        or (B, 1, T, T) to be added to attention scores. `opening` is what stands before the rows
        (`opening`), which then have no mask."""
        given: dict[str, Any] = {"inputs_embeds": embeds_BTD, "attention_mask": mask}
        if opening is not None:
            given["cache"] = opening.followed(*embeds_BTD.shape[:2])
        if positions_BT is not None:
            given["position_ids"] = positions_BT
            # else transformers takes a gap between positions for a new text
            if mask is None and opening is None:
                given["attention_mask"] = torch.ones_like(positions_BT)
        with self.role(role):
            inner = inner_model(self.causal_lm)
            if layer is not None:
                return hidden_before(inner, layer, use_cache=False, **given)
            out = inner(use_cache=False, **given)
            return out.last_hidden_state.to(embeds_BTD.device)  # the last layer's, if spread

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of rows that share a forward pass. Sharded processes have to run the same
        number of passes, so there all rows share one."""
        if self.sharded:
            return [list(range(len(lengths)))]
        return group_by_length(lengths, PASS_COST.get(self.device.type, GPU_PASS_COST))

    def embed(self, ids_BT: Tensor, memory_ND: Tensor | None) -> Tensor:
        """Input embeddings (B, T, D); memory positions take the rows of `memory_ND` in reading
        order, marker positions their own rows."""
        table = self.causal_lm.get_input_embeddings()
        embeds_BTD = table(ids_BT.clamp(max=table.weight.shape[0] - 1))
        markers_2D = self.markers_2D.to(embeds_BTD.dtype)
        for row, marker in enumerate((self.prompter.encode_id, self.prompter.separator_id)):
            embeds_BTD = torch.where((ids_BT == marker)[..., None], markers_2D[row], embeds_BTD)
        if memory_ND is None:
            return embeds_BTD
        memory_ids = torch.tensor(self.prompter.memory_ids, device=ids_BT.device)
        index = torch.isin(ids_BT, memory_ids).nonzero(as_tuple=True)
        if len(index[0]) != memory_ND.shape[0]:
            raise ValueError(f"{len(index[0])} memory positions, {memory_ND.shape[0]} vectors")
        return embeds_BTD.index_put(index, memory_ND.to(embeds_BTD.dtype))

    def positions(self, rows: Sequence[Sequence[int]]) -> list[list[int]] | None:
        """The position of every id of prompts; None where each stands in its place."""
        if self.layout.positions == "after":
            return None
        memory_ids, span = frozenset(self.prompter.memory_ids), self.prompter.max_passage
        coarsening = self.layout.coarsening
        return [reading_positions(row, memory_ids, span, coarsening) for row in rows]

    def extent(self, row: Sequence[int]) -> int:
        """Positions that a prompt takes of the backbone's window, gaps between them too."""
        positions = self.positions([row])
        return len(row) if not positions or not row else positions[0][-1] + 1

    def placed(self, rows: Sequence[Sequence[int]]) -> Tensor | None:
        """`positions` of prompts padded on the right (B, T)."""
        positions = self.positions(rows)
        return None if positions is None else pad_rows(positions, 0, self.device)

    def encode(
        self, rows: Sequence[Sequence[int]], role: str, memory_tokens: int | None = None
    ) -> Encoded:
        """Read token rows and return their memory, of `memory_tokens` vectors. A shorter memory is
        always the longest one coarsened by the layout's rule (`memory_layout.coarsen`)."""
        memory_tokens = memory_tokens or self.memory_tokens
        if self.layout.source == "slots":
            return self._encode_slots(rows, role, memory_tokens)
        hidden_BLD = self(
            role, self.embed(pad_rows(rows, 0, self.device), None), layer=self.layout.layer
        )
        lengths = [len(row) for row in rows]
        memory_BMD, mask_BL = pool_text(hidden_BLD, lengths, self.memory_tokens, memory_tokens)
        return Encoded(memory_BMD, hidden_BLD, mask_BL)

    def _encode_slots(
        self, rows: Sequence[Sequence[int]], role: str, memory_tokens: int
    ) -> Encoded:
        """Hidden states at memory tokens that follow the text. A memory token sees the text and the
        memory tokens before it, never later ones, so the first m rows of a longer memory are the
        memory of m."""
        placeholders = [
            self.prompter.memory_ids[i % len(self.prompter.memory_ids)]
            for i in range(memory_tokens)
        ]
        ids_BT = pad_rows([[*row, *placeholders] for row in rows], 0, self.device)
        memory_ND = self.memory_MD[:memory_tokens].repeat(len(rows), 1)
        embeds_BTD = self.embed(ids_BT, memory_ND)
        positions_BT = self._slot_positions(rows, memory_tokens)
        hidden_BTD = self(role, embeds_BTD, None, positions_BT, self.layout.layer)
        starts_B = torch.tensor([len(row) for row in rows], device=self.device)
        index_BM = starts_B[:, None] + torch.arange(memory_tokens, device=self.device)
        memory_BMD = hidden_BTD.gather(1, index_BM[..., None].expand(-1, -1, hidden_BTD.shape[-1]))
        mask_BT = torch.arange(hidden_BTD.shape[1], device=self.device) < starts_B[:, None]
        return Encoded(memory_BMD, hidden_BTD, mask_BT)

    def _slot_positions(self, rows: Sequence[Sequence[int]], memory_tokens: int) -> Tensor | None:
        """Positions (B, T) of rows with slots spread over their text; None: slots follow it."""
        if self.layout.positions == "after":
            return None
        spread = [
            [*range(len(row)), *slot_offsets(memory_tokens, len(row), self.layout.coarsening)]
            for row in rows
        ]
        return pad_rows(spread, 0, self.device)

    def encode_frozen(
        self, rows: Sequence[Sequence[int]], role: str, memory_tokens: int
    ) -> Encoded:
        """The same as reading gives it: no gradient, and no dropout even while training."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return self.encode(rows, role, memory_tokens)
        finally:
            self.train(training)

    def nll(
        self,
        rows: Sequence[list[int]],
        labels: Sequence[list[int]],
        memory_ND: Tensor | None,
        contexts: Sequence[Hashable] = (),
    ) -> Tensor:
        """The generator's mean loss per labelled token; the head is run for those alone. Rows of
        equal `contexts` read the same passages: what they begin with alike is computed once."""
        hidden_PD, targets_P, _ = self.labelled_states(rows, labels, memory_ND, contexts)
        return hidden_nll(hidden_PD, targets_P, self.head)

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Logits (P, V) of hidden states (P, D)."""
        return partial(head_logits, self.causal_lm)

    def labelled_states(
        self,
        rows: Sequence[list[int]],
        labels: Sequence[list[int]],
        memory_ND: Tensor | None,
        contexts: Sequence[Hashable] = (),
    ) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """The generator's hidden states (P, D) that predict a labelled token, those tokens (P), and
        the row and place of each."""
        memories = self._memory_by_row(rows, memory_ND)
        if not contexts or not self.can_share_prefixes(max(map(len, rows))):
            contexts = range(len(rows))
        packed = pack(rows, labels, contexts, self.positions(rows))
        hidden, targets = [], []
        places: list[tuple[int, int]] = []
        for group in self.groups([len(row.ids) for row in packed]):
            chosen = [packed[i] for i in group]
            ids_BT = pad_rows([row.ids for row in chosen], 0, self.device)
            spliced = [self._memory_of(row, rows, memories) for row in chosen]
            embeds_BTD = self.embed(ids_BT, None if memory_ND is None else torch.cat(spliced))
            hidden_BTD = self._hidden_of_packed(chosen, embeds_BTD)
            targets_BT = pad_rows([row.targets for row in chosen], IGNORE, self.device)
            hidden.append(hidden_BTD[targets_BT != IGNORE])
            targets.append(targets_BT[targets_BT != IGNORE])
            places += [place for row in chosen for place in row.labelled()]
        return torch.cat(hidden), torch.cat(targets), places

    def _hidden_of_packed(self, packed: Sequence[PackedRow], embeds_BTD: Tensor) -> Tensor:
        """The generator's hidden states; plain rows need no mask, nor positions where each id
        stands in its place."""
        plain = all(len(row.sources) == 1 for row in packed)
        if plain and self.layout.positions == "after":
            return self("generator", embeds_BTD)
        positions_BT = pad_rows([row.positions for row in packed], 0, self.device)
        mask = None if plain else attention_mask(packed, embeds_BTD.dtype, self.device)
        return self("generator", embeds_BTD, mask, positions_BT)

    def _memory_by_row(
        self, rows: Sequence[list[int]], memory_ND: Tensor | None
    ) -> Sequence[Tensor]:
        """The vectors of each row's memory positions, in reading order."""
        if memory_ND is None:
            return []
        memory_ids = set(self.prompter.memory_ids)
        return memory_ND.split([sum(i in memory_ids for i in row) for row in rows])

    def _memory_of(
        self, packed: PackedRow, rows: Sequence[list[int]], memories: Sequence[Tensor]
    ) -> Tensor:
        """The vectors of a packed row's memory positions, in reading order."""
        known, parts = set(self.prompter.memory_ids), [self.memory_MD[:0]]
        for number, start, end in packed.sources if memories else ():
            before = sum(i in known for i in rows[number][:start])
            inside = sum(i in known for i in rows[number][start:end])
            parts.append(memories[number][before : before + inside].to(self.memory_MD.dtype))
        return torch.cat(parts)

    def can_share_prefixes(self, longest: int) -> bool:
        """Whether rows of up to `longest` tokens may be packed on a common beginning: tried once,
        since a backbone may ignore positions or masks (ALiBi, recurrent layers)."""
        window = sliding_window(self.causal_lm)
        if self.sharded or (window is not None and longest > window):
            return False
        if self._shares_prefixes is None:
            training = self.training
            self.eval()  # no dropout: nothing is drawn, so that a resumed run repeats the other
            self._shares_prefixes = shares_prefixes(self.causal_lm)
            self.train(training)
        return self._shares_prefixes

    @torch.inference_mode()
    def opening(self, role: str | None, rows: Sequence[Sequence[int]]) -> Cache | None:
        """What a role keeps of the tokens that all prompts begin with, read once; None where one of
        the rows begins otherwise, or the backbone is not one to read with alone."""
        ids = self.prompter.opening
        if not isinstance(self.causal_lm, Llama) or len(ids) < SHORTEST_OPENING:
            return None
        if any(len(row) <= len(ids) or row[: len(ids)] != ids for row in rows):
            return None
        if role not in self._openings:
            with self.role(role):
                embeds_1TD = self.embed(torch.tensor([ids], device=self.device), None)
                self._openings[role] = self.causal_lm.read(embeds_1TD)
        return self._openings[role]

    @torch.inference_mode()
    def generate(
        self,
        rows: Sequence[list[int]],
        memory_ND: Tensor | None,
        max_new_tokens: int,
        role: str | None = "generator",
        streamer: Any = None,
        min_new_tokens: int = 0,
        listener: Any = None,
        stop: Any = None,
    ) -> list[list[int]]:
        """Greedy continuation of each prompt, its end token left out; none ends before
        `min_new_tokens`. A `streamer` (one prompt) receives every id as it comes, a `listener` the
        logits of every step; `stop` says which rows end there. Where the backbone does not answer
        padded prompts as it does alone, each is answered alone. Raises ArtefactError where logits
        are not finite."""
        if len(rows) > 1 and not self.backbone.pads:
            memories: Sequence[Tensor | None] = self._memory_by_row(rows, memory_ND)
            settings = (max_new_tokens, role, None, min_new_tokens, listener, stop)
            parts = zip(rows, memories or [None] * len(rows), strict=True)
            return [ids for row, part in parts for ids in self.generate([row], part, *settings)]
        opening = self.opening(role, rows)
        read = 0 if opening is None else opening.filled
        width = max(map(len, rows)) - read

        def padded(lists: Sequence[Sequence[int]]) -> Tensor:
            """(B, T) of what follows the opening, padded on the left."""
            rest = [row[read:] for row in lists]
            return torch.tensor(
                [[0] * (width - len(row)) + list(row) for row in rest], device=self.device
            )

        mask_BT = padded([[1] * len(row) for row in rows])
        embeds_BTD = self.embed(padded(rows), memory_ND)
        positions = self.positions(rows)
        ends = self.end_ids()
        largest = LargestLogits()
        with self.role(role):
            out_BT = write(
                self.causal_lm,
                embeds_BTD,
                mask_BT,
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
                end_ids=ends,
                streamer=streamer,
                processors=[largest] if listener is None else [largest, listener],
                stop=stop,
                positions_BT=None if positions is None else padded(positions),
                opening=opening,
            )
        largest.refuse_nonfinite(self.backbone.name)
        return [until_end(ids, ends) for ids in out_BT.tolist()]

    def end_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's EOS and the backbone's own."""
        first = self.prompter.tokenizer.eos_token_id
        return list(dict.fromkeys(i for i in [first, *self._own_ends] if i is not None))


def fresh_memory(
    memory_tokens: int, embedding: Tensor, generator: torch.Generator, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Memory tokens (M, D) and the two marker rows (2, D) for a new checkpoint.

    Drawn with the mean and spread of the backbone's own embeddings, times the `scale` at which it
    reads them (spliced vectors do not pass its embedding module), so they start apart from each
    other (resizing a table gives every new row the same mean, 4 % of a word's spread away).
    """
    table = embedding.detach().float().cpu() * scale
    rows = torch.randn(memory_tokens + 2, table.shape[1], generator=generator)
    rows = rows * table.std(dim=0) + table.mean(dim=0)
    return rows[:memory_tokens].clone(), rows[memory_tokens:].clone()
