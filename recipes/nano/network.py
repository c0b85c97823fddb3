"""nano's network: a small Llama and its memory tokens, and what it computes on padded rows.

All parameters are trained together, without adapters; the three LoRA roles come afterwards, by
`clara pretrain` and `clara train`. Same memory as the product's own encoder (a test compares them).

B rows, L passage tokens, M memory tokens, T row tokens, D hidden, V vocabulary
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

MEMORY, SEPARATOR, ENCODE = -1, -2, -3  # codes of positions that are no token of the vocabulary
SLOTS = 64  # memory tokens of a passage; fewer of them are its memory at a higher ratio
SCALE = 0.15  # of embeddings, memory tokens and final norm at the start
COPY_MATCH, COPY_GAIN = 0.6, 0.1  # strength of the copying initialisation


class Memory(nn.Module):
    """The memory tokens and the rows of separator and encode marker, parameters of their own."""

    def __init__(self, slots: int, hidden: int, scale: float = SCALE) -> None:
        super().__init__()
        self.slots_MD = nn.Parameter(torch.randn(slots, hidden) * scale)
        self.markers_2D = nn.Parameter(torch.randn(2, hidden) * scale)


def build_model(vocab: int, hidden: int, layers: int, inner: int) -> LlamaForCausalLM:
    """A small Llama whose final norm and embeddings start at one scale, so that a hidden state
    that predicts a word can be read back as that word's embedding."""
    heads = hidden // (64 if hidden >= 512 else 32)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        rope_theta=10_000.0,
    )
    model = LlamaForCausalLM(config)
    nn.init.normal_(model.model.embed_tokens.weight, std=SCALE)
    nn.init.constant_(model.model.norm.weight, SCALE)
    for layer in model.model.layers:
        begin_as_copying(layer.self_attn, hidden)
    return model


@torch.no_grad()
def begin_as_copying(attention: nn.Module, hidden: int) -> None:
    """Mimetic initialisation (Trockman and Kolter, 2023): a position first attends to positions
    like itself (query = key projection) and copies what it attends to (output = value transposed),
    so that reading and copying need not be found by chance."""
    for pair, gain in (("qk", COPY_MATCH), ("vo", COPY_GAIN**0.5)):
        basis = torch.linalg.qr(torch.randn(hidden, hidden)).Q
        first, second = (getattr(attention, f"{name}_proj").weight for name in pair)
        first.mul_(0.5).add_(basis, alpha=gain)
        second.mul_(0.5).add_(basis if pair == "qk" else basis.T, alpha=gain)


def attend_float32(
    module: nn.Module,
    query_BHTE: Tensor,
    key_BHTE: Tensor,
    value_BHTE: Tensor,
    attention_mask: None,
    scaling: float,
    **rest: object,
) -> tuple[Tensor, None]:
    """Causal attention in float32, whatever the rest is computed in: torch's backward in bfloat16
    on a CPU takes 1.8 times as long. Returns (B, T, H, E) in the type of the values."""
    with torch.autocast(query_BHTE.device.type, enabled=False):
        parts = (x.float() for x in (query_BHTE, key_BHTE, value_BHTE))
        read_BHTE = F.scaled_dot_product_attention(*parts, is_causal=True, scale=scaling)
    return read_BHTE.to(value_BHTE.dtype).transpose(1, 2).contiguous(), None


AttentionInterface.register("float32", attend_float32)


class Network(nn.Module):
    """Model and memory together; every position sees only what is before it, and rows are padded
    on the right, so that no attention mask is needed."""

    def __init__(self, model: LlamaForCausalLM, memory: Memory) -> None:
        super().__init__()
        self.model, self.memory = model, memory
        self.inner = model.model  # what `train.py --compile` replaces

    @property
    def device(self) -> torch.device:
        return self.memory.slots_MD.device

    def embed(self, ids_BT: Tensor, memory_ND: Tensor | None = None) -> Tensor:
        """Input embeddings (B, T, D); memory positions take the rows of `memory_ND` in order."""
        embeds_BTD = self.model.model.embed_tokens(ids_BT.clamp(min=0))
        for code, row in ((SEPARATOR, 0), (ENCODE, 1)):
            marker_D = self.memory.markers_2D[row].to(embeds_BTD.dtype)
            embeds_BTD = torch.where((ids_BT == code)[..., None], marker_D, embeds_BTD)
        if memory_ND is None:
            return embeds_BTD
        spliced_BTD = embeds_BTD.masked_scatter(
            (ids_BT == MEMORY)[..., None], memory_ND.to(embeds_BTD.dtype)
        )
        return spliced_BTD

    def hidden(self, embeds_BTD: Tensor) -> Tensor:
        """Hidden states after the final norm (B, T, D)."""
        return self.inner(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state

    def compress(self, ids_BL: Tensor, lengths_B: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """memory (B, M, D), the hidden states at `slots` positions right after each row's text, and
        all hidden states (B, L, D).
        `ids_BL` leaves room for them: it is padded to the longest row plus `slots`, and holds
        MEMORY at those positions."""
        rows_ND = self.memory.slots_MD[:slots].repeat(len(ids_BL), 1)
        hidden_BTD = self.hidden(self.embed(ids_BL, rows_ND))
        index_BM = lengths_B[:, None] + torch.arange(slots, device=ids_BL.device)
        memory_BMD = hidden_BTD.gather(1, index_BM[..., None].expand(-1, -1, hidden_BTD.shape[-1]))
        return memory_BMD, hidden_BTD

    def nll(
        self, hidden_BTD: Tensor, where_N: Tensor, targets_N: Tensor, weights_N: Tensor | None
    ) -> Tensor:
        """Weighted mean negative log-likelihood of targets; `where_N` are the flat positions that
        predict them, so logits are computed nowhere else."""
        logits_NV = self.model.lm_head(hidden_BTD.flatten(0, 1)[where_N])
        nll_N = F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
        return nll_N.mean() if weights_N is None else (nll_N * weights_N).sum() / weights_N.sum()

    def slot_loss(self, memory_BMD: Tensor, rows_W: Tensor, words_W: Tensor) -> Tensor:
        """-log of the mean over slots of a word's probability, mean over words; word w belongs to
        passage `rows_W[w]`. Without it memory goes unused for thousands of steps."""
        logits_BMV = self.model.lm_head(memory_BMD)
        norm_BM = logits_BMV.float().logsumexp(-1)
        logits_WM = logits_BMV.transpose(1, 2)[rows_W, words_W].float()
        mixed_W = (logits_WM - norm_BM[rows_W]).logsumexp(-1)
        return torch.log(torch.tensor(float(memory_BMD.shape[1]))) - mixed_W.mean()

    def search_loss(self, query_BMD: Tensor, memory_BMD: Tensor, owners_B: Tensor) -> Tensor:
        """InfoNCE of each question against the batch's passages, flattened cosine."""
        query_BE = F.normalize(query_BMD.float().flatten(1), dim=-1)
        memory_BE = F.normalize(memory_BMD.float().flatten(1), dim=-1)
        return F.cross_entropy(query_BE @ memory_BE.T / 0.05, owners_B)
