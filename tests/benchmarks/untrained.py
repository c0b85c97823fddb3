"""Models of random weights for the benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import load_backbone
from clara_cli.core.model import ClaraModel, fresh_memory
from clara_cli.core.prompts import Prompter

PASSAGE_TOKENS, VOCABULARY = 256, 32_000
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}"
    "{{ eos_token }}{% else %}[{{ m['role'] }}] {{ m['content'] }} [/]{% endif %}{% endfor %}"
)
# Two shapes of 33 M parameters: most of them in the tables, or half of them in the layers.
SHAPES = {
    "wide": {"hidden_size": 384, "num_hidden_layers": 5, "num_attention_heads": 6},
    "deep": {"hidden_size": 256, "num_hidden_layers": 16, "num_attention_heads": 4},
}


def backbone_33m(folder: Path, texts: Iterable[str], shape: str) -> Path:
    """A random Mistral of 33 M parameters and a BPE tokenizer of 32,000 tokens from the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 100, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    heads = SHAPES[shape]["num_attention_heads"]
    config = MistralConfig(
        vocab_size=VOCABULARY, intermediate_size=1024, num_key_value_heads=heads, **SHAPES[shape]
    )
    torch.manual_seed(0)
    MistralForCausalLM(config).save_pretrained(folder)
    return folder


def random_model(
    folder: Path, roles: tuple[str, ...], memory_tokens: int, dropout: float = 0.1
) -> ClaraModel:
    """A backbone's roles with random LoRA weights, float32 on the CPU, seed 0."""
    base = load_backbone(str(folder), torch.device("cpu"), torch.float32)
    seeded = torch.Generator().manual_seed(0)
    memory = fresh_memory(memory_tokens, base.model.get_input_embeddings().weight, seeded)
    prompter = Prompter(base.tokenizer, PASSAGE_TOKENS)
    model = ClaraModel(base, prompter, LoraSettings(dropout=dropout), roles, *memory)
    with torch.no_grad():
        for role in roles:
            for parameter in model.role_parameters(role).values():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded) * 0.02)
    return model
