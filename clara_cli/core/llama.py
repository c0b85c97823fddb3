"""The Llama architecture for reading: embeddings in, hidden states and greedy tokens out.

What transformers' LlamaForCausalLM computes, by the same names of modules, without importing
transformers (which takes longer than answering a question) and with a cache laid out once. Plain
rotary positions (Su et al., arXiv 2104.09864), grouped keys (arXiv 2305.13245), no biases; no
gradients. `core.reading_backbone` says which backbones it may stand for.

B batch, T positions, D hidden, H query heads, K key heads, E head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Processor = Callable[[Tensor, Tensor], Tensor]  # ids_BT, logits_BV -> logits_BV


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes and settings of `config.json` that a Llama computes by."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool

    def get_text_config(self) -> LlamaConfig:
        """Itself: there is text alone."""
        return self


@dataclass
class Cache:
    """Keys and values of every layer (B, K, room, E); the first `filled` positions are written."""

    keys: list[Tensor]
    values: list[Tensor]
    filled: int = 0

    @classmethod
    def of(cls, config: LlamaConfig, like: Tensor, room: int) -> Cache:
        """An empty cache for rows like `like` (B, T, D)."""
        shape = (len(like), config.num_key_value_heads, room, config.head_dim)
        layers = range(config.num_hidden_layers)
        return cls([like.new_empty(shape) for _ in layers], [like.new_empty(shape) for _ in layers])

    def followed(self, rows: int, room: int) -> Cache:
        """A copy for `rows` rows that all begin with this one's, with room for `room` more."""

        def copied(layer_1KTE: Tensor) -> Tensor:
            _, groups, _, width = layer_1KTE.shape
            copy_BKTE = layer_1KTE.new_empty(rows, groups, self.filled + room, width)
            copy_BKTE[:, :, : self.filled] = layer_1KTE[:, :, : self.filled]
            return copy_BKTE

        return Cache(list(map(copied, self.keys)), list(map(copied, self.values)), self.filled)

    def add(self, layer: int, keys_BKTE: Tensor, values_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Write new positions of one layer; all keys and values up to them."""
        end = self.filled + keys_BKTE.shape[2]
        self.keys[layer][:, :, self.filled : end] = keys_BKTE
        self.values[layer][:, :, self.filled : end] = values_BKTE
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class Linear(nn.Module):
    """x W'. Unlike torch's own it draws no weights at first, which on a device without memory
    imports torch's compiler."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """y (..., outputs) of x (..., inputs)."""
        return F.linear(x, self.weight)


class RoleLinear(Linear):
    """A linear layer with the LoRA of several roles, one of them in force: x W' + s (x A') B',
    computed as PEFT computes it unmerged."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.scaling = 0.0
        self.role: str | None = None

    def add_role(self, role: str, rank: int, scaling: float) -> None:
        """Make room for a role's LoRA, in float32 as PEFT keeps it."""
        outputs, inputs = self.weight.shape
        place = self.weight.device
        self.lora_A[role] = nn.Parameter(torch.empty(rank, inputs, device=place), False)
        self.lora_B[role] = nn.Parameter(torch.empty(outputs, rank, device=place), False)
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        """y (..., outputs) of x (..., inputs)."""
        y = F.linear(x, self.weight)
        if self.role is None:
            return y
        a_RI, b_OR = self.lora_A[self.role], self.lora_B[self.role]
        added = F.linear(F.linear(x.to(a_RI.dtype), a_RI), b_OR) * self.scaling
        return (y + added).to(y.dtype)


class Norm(nn.Module):
    """Root mean square normalisation (arXiv 1910.07467), its statistics in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """x at unit scale times the weight, in x's type."""
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * scaled.to(x.dtype)


class Attention(nn.Module):
    """Causal attention over keys that several query heads share."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.width = layer, config.head_dim
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        self.grouped = heads != groups
        self.q_proj = RoleLinear(config.hidden_size, heads * config.head_dim)
        self.k_proj = RoleLinear(config.hidden_size, groups * config.head_dim)
        self.v_proj = RoleLinear(config.hidden_size, groups * config.head_dim)
        self.o_proj = RoleLinear(heads * config.head_dim, config.hidden_size)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask_B1TT: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """What each position takes from those before it."""
        queries_BHTE = self._heads(self.q_proj(x_BTD))
        keys_BKTE, values_BKTE = self._heads(self.k_proj(x_BTD)), self._heads(self.v_proj(x_BTD))
        queries_BHTE, keys_BKTE = rotate(queries_BHTE, rotation), rotate(keys_BKTE, rotation)
        if cache is not None:
            keys_BKTE, values_BKTE = cache.add(self.layer, keys_BKTE, values_BKTE)
        out_BHTE = F.scaled_dot_product_attention(
            queries_BHTE,
            keys_BKTE,
            values_BKTE,
            attn_mask=mask_B1TT,
            is_causal=mask_B1TT is None and queries_BHTE.shape[2] > 1,
            enable_gqa=self.grouped,
        )
        return self.o_proj(out_BHTE.transpose(1, 2).flatten(2))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.width)).transpose(1, 2)


class FeedForward(nn.Module):
    """The gated layer: down(silu(gate x) * up x)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = RoleLinear(config.hidden_size, config.intermediate_size)
        self.up_proj = RoleLinear(config.hidden_size, config.intermediate_size)
        self.down_proj = RoleLinear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention and feed-forward, each added to what came in."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, *attention: Any) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.self_attn(self.input_layernorm(x), *attention)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaBody(nn.Module):
    """Everything below the head."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        rows, width = config.vocab_size, config.hidden_size
        self.embed_tokens = nn.Embedding(rows, width, _weight=torch.empty(rows, width))
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(Block(config, layer) for layer in layers)
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
        cache: Cache | None = None,
    ) -> SimpleNamespace:
        """`last_hidden_state` (B, T, D) after the final norm. A mask is (B, T), true where a
        position is real, or (B, 1, T, T), added to scores; positions count from 0 without
        `position_ids`. `cache` holds what came before, which a mask covers too. `use_cache` is
        transformers' and does nothing."""
        x_BTD, before = inputs_embeds, 0 if cache is None else cache.filled
        count = x_BTD.shape[1]
        if position_ids is None:
            position_ids = torch.arange(before, before + count, device=x_BTD.device)[None]
        rotation = rotations(position_ids, self.config, x_BTD.dtype)
        mask = attention_mask
        if mask is None and before and count > 1:
            mask = torch.ones(1, before + count, dtype=torch.bool, device=x_BTD.device)
        if mask is not None and mask.ndim == 2:
            mask = causal_mask(mask, count)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotation, mask, cache)
        if cache is not None:
            cache.filled += count
        return SimpleNamespace(last_hidden_state=self.norm(x_BTD))


class Llama(nn.Module):
    """A Llama with its head, as the method asks it: by embeddings."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = False

    def __init__(self, config: LlamaConfig, end_ids: Sequence[int] = ()) -> None:
        super().__init__()
        self.config = config
        self.generation_config = SimpleNamespace(eos_token_id=list(end_ids))
        self.model = LlamaBody(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.tie()

    def tie(self) -> None:
        """Let the head be the table of words, where the config says so."""
        if self.config.tie_word_embeddings:
            table: Any = self.model.embed_tokens.weight
            self.lm_head.weight = table

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of words."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> Linear:
        """The head."""
        return self.lm_head

    @torch.inference_mode()
    def read(self, embeds_1TD: Tensor) -> Cache:
        """The keys and values of one row, for others that begin with it."""
        cache = Cache.of(self.config, embeds_1TD, embeds_1TD.shape[1])
        self.model(embeds_1TD, cache=cache)
        return cache

    @torch.inference_mode()
    def write(
        self,
        embeds_BTD: Tensor,
        mask_BT: Tensor,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        end_ids: Sequence[int] = (),
        streamer: Any = None,
        processors: Sequence[Processor] = (),
        stop: Callable[[Tensor, Any], Tensor] | None = None,
        positions_BT: Tensor | None = None,
        opening: Cache | None = None,
    ) -> Tensor:
        """Greedy ids (B, new) after prompts that are padded on the left, as transformers writes
        them: a row that has ended is filled with its first end token. `opening` is how all begin:
        the rest is what is given, with its positions."""
        room = embeds_BTD.shape[1] + max_new_tokens
        if opening is None:
            cache = Cache.of(self.config, embeds_BTD, room)
        else:
            cache = opening.followed(len(embeds_BTD), room)
        if positions_BT is None:
            positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0) + cache.filled
        mask_BT = F.pad(mask_BT, (cache.filled, 0), value=1)
        ids_BT = mask_BT.new_empty(len(mask_BT), 0)
        running_B = torch.ones(len(mask_BT), dtype=torch.bool, device=mask_BT.device)
        padded = not bool(mask_BT.all())
        if streamer is not None:
            streamer.put(ids_BT)
        while ids_BT.shape[1] < max_new_tokens and bool(running_B.any()):
            mask = mask_BT if padded else None
            out = self.model(embeds_BTD, mask, positions_BT, cache=cache)
            logits_BV = self.lm_head(out.last_hidden_state[:, -1]).float()
            if ids_BT.shape[1] < min_new_tokens:
                logits_BV[:, list(end_ids)] = -torch.inf
            for process in processors:
                logits_BV = process(ids_BT, logits_BV)
            next_B = logits_BV.argmax(-1)
            if end_ids:
                next_B = torch.where(running_B, next_B, end_ids[0])
            ids_BT = torch.cat([ids_BT, next_B[:, None]], dim=1)
            if streamer is not None:
                streamer.put(next_B)
            running_B &= ~torch.isin(next_B, next_B.new_tensor(list(end_ids)))
            if stop is not None:
                running_B &= ~stop(ids_BT, None)
            embeds_BTD = self.model.embed_tokens(next_B)[:, None]
            positions_BT = positions_BT[:, -1:] + 1
            mask_BT = F.pad(mask_BT, (0, 1), value=1)
        if streamer is not None:
            streamer.end()
        return ids_BT


def rotations(
    positions_BT: Tensor, config: LlamaConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B, 1, T, E) of every position, computed in float32."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions_BT.device)
    frequencies = 1.0 / (config.rope_theta ** (steps / config.head_dim))
    angles_BTE = (positions_BT[..., None].float() * frequencies).repeat(1, 1, 2)
    return angles_BTE.cos().to(dtype)[:, None], angles_BTE.sin().to(dtype)[:, None]


def rotate(x_BHTE: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Heads turned by their positions, the two halves of a head as pairs."""
    first, second = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * rotation[0] + torch.cat((-second, first), dim=-1) * rotation[1]


def causal_mask(real_BT: Tensor, count: int) -> Tensor:
    """Which of all positions the last `count` see (B, 1, count, T): real ones up to their own. A
    padded position sees itself, so that its row is not empty."""
    length = real_BT.shape[1]
    places = torch.arange(length, device=real_BT.device)
    own = places[-count:, None]
    seen_BTT = (places <= own) & real_BT.bool()[:, None]
    return (seen_BTT | (places == own))[:, None]
