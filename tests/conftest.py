"""Shared fixtures: tiny random backbones built on the spot, and where the recorded data lies."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CLARA_MODEL": "nano"}
os.environ.update(QUIET)
if "CLARA_CACHE" not in os.environ:  # never the user's own
    CACHE = tempfile.TemporaryDirectory(prefix="clara-tests-")
    os.environ["CLARA_CACHE"] = CACHE.name
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The recorded reference and real data; tests that need it skip where it is absent."""
    path = Path(os.environ.get("CLARA_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip("no recorded data: set CLARA_SHARED to its folder")
    return path


def byte_tokenizer():
    """A tokenizer of 256 bytes and a few specials; no merges, so it reads any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<s>", "</s>"]
    vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_backbone(
    folder: Path, seed: int = 0, hidden: int = 32, layers: int = 2, **changes
) -> Path:
    """A random Llama with a byte tokenizer, saved as a backbone directory."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> Path:
    """A backbone directory for the whole session; never written to."""
    return make_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def backbone_maker():
    """`make_backbone`, for tests that want one of another shape."""
    return make_backbone


class Silent:
    """A report that keeps what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.steps = 0

    def progress(self, progress) -> None:
        self.steps += 1

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def report() -> Silent:
    return Silent()
