"""Random models of the classes that rivals use, a few kilobytes each, reading words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = (
    "the mayor of is who elmgate frostmouth pinewick quarrel redwater stonebridge nora velden ivo "
    "sand una holt max orme lia frost ben lark represent this sentence for searching relevant "
    "passages question document summary query passage"
).split()
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}


def word_tokenizer(folder: Path) -> int:
    """A lower-casing WordPiece tokenizer of BERT's kind; the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?:-+'"
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = [*specials, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {name: number for number, name in enumerate(names)}
    made = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
    ).save_pretrained(folder)
    return len(vocabulary)


def bert(folder: Path, kind: str = "BertModel", **changes: Any) -> Path:
    """A BERT of one of transformers' classes, its weights drawn from seed 0."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=word_tokenizer(folder), initializer_range=0.5, **SIZES, **changes
    )
    torch.manual_seed(0)
    getattr(transformers, kind)(config).save_pretrained(folder)
    return folder


def t5(folder: Path) -> Path:
    """A T5, its weights drawn from seed 0."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=word_tokenizer(folder),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        eos_token_id=3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder
