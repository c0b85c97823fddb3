"""Ways to damage a file: bytes, JSON values, tensors, places. A mutation knows the kind of file and
nothing of what it is for; the same random numbers make the same damage."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import random
import re
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ODD_BYTES = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"}", b'"', b"null", b"NaN", b"1e999", b"../",
    b"\\ud800", b"\n", b"\r\n\r\n", b"\xe2\x80\xae", b"\x1b[2J", b",", b"#", b"\x1f\x8b",
]  # fmt: skip
ODD_STRINGS = [
    "", " ", "../../outside", "/nowhere/at/all", "a\x00b", "\ud800", "\u202eabc", "\x1b[31m", "-x",
    "--help", "x" * 70_000, "nan", "None", "{{ x }}", "(a+)+$", "'; rm", "é\u0301\U0001f600",
]  # fmt: skip
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 3, 1.5, "", "x", "3", [], {}, [None], [[]], {"a": {"b": []}}, ["x"],
]  # fmt: skip
NUMBERS = [
    "0", "-1", "1", "2", "7", "65536", "2147483648", "9223372036854775808", "1" + "0" * 30,
    "1" + "0" * 400, "1" * 5000, "1e999", "-1e999", "NaN", "Infinity", "0.5", "1e-320", "-0.0",
]  # fmt: skip
DEPTHS = [50, 1_000, 20_000, 200_000]
TEXT_KINDS = (".json", ".jsonl", ".gz", ".xz", ".toml", ".csv", ".tsv", ".txt", ".md", ".jinja")


# --- bytes ---


def cut(data: bytes, rng: random.Random) -> bytes:
    """The end is missing, a little or a lot; sometimes all of it."""
    return data[: rng.choice([0, 1, 7, 8, 9, len(data) - 1, rng.randrange(len(data) + 1)])]


def flip(data: bytes, rng: random.Random) -> bytes:
    """A few bits are wrong."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def splice(data: bytes, rng: random.Random) -> bytes:
    """A run of bytes is gone, doubled, or zero."""
    at = rng.randrange(len(data) + 1)
    end = at + rng.randint(1, 200)
    middle = rng.choice([b"", data[at:end] * 2, bytes(len(data[at:end]))])
    return data[:at] + middle + data[end:]


def odd_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes that mean something stand where they mean nothing."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(ODD_BYTES) + data[at:]
    return data


# --- JSON: one value of a document, or of one of its lines ---


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside."""
    if not isinstance(value, dict | list):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        yield from places(item, (*path, key))


def holder(value: Any, path: tuple[Any, ...]) -> Any:
    """What holds the value at a path."""
    for key in path[:-1]:
        value = value[key]
    return value


MARK = "\N{SNOWMAN}mark"


def edit(text: str, rng: random.Random, change: Callable[[Any, Any, random.Random], str]) -> str:
    """One value of a JSON text changed. `change` gets its holder and key, edits it or puts MARK
    there, and returns the JSON that MARK becomes."""
    value = json.loads(text)
    known = list(places(value))
    if not known:
        return change({"x": value}, "x", rng)
    path = rng.choice(known)
    raw = change(holder(value, path), path[-1], rng)
    return json.dumps(value).replace(json.dumps(MARK), raw)


def types(inside: Any, key: Any, rng: random.Random) -> str:
    """A value of another type."""
    inside[key] = rng.choice(ODD_VALUES)
    return ""


def numbers(inside: Any, key: Any, rng: random.Random) -> str:
    """A number that cannot be: negative, huge, infinite, none."""
    inside[key] = MARK
    return rng.choice(NUMBERS)


def strings(inside: Any, key: Any, rng: random.Random) -> str:
    """A string that is no name, no path and no text."""
    inside[key] = rng.choice(ODD_STRINGS)
    return ""


def missing(inside: Any, key: Any, rng: random.Random) -> str:
    """A key, or an item, is missing; or one more is there."""
    if rng.random() < 0.7:
        del inside[key]
    elif isinstance(inside, dict):
        inside[rng.choice(["", "x", "extra", str(key) + "s", "auto_map", "__class__"])] = 1
    else:
        inside.append(rng.choice(ODD_VALUES))
    return ""


def nesting(inside: Any, key: Any, rng: random.Random) -> str:
    """Brackets in brackets."""
    inside[key] = MARK
    depth, kind = rng.choice(DEPTHS), rng.randrange(3)
    if kind == 0:
        return "[" * depth + "]" * depth
    if kind == 1:
        return '{"a":' * depth + "1" + "}" * depth
    return "[" * depth


def in_json(data: bytes, rng: random.Random, change: Any) -> bytes:
    """One value of a JSON document or of one JSON line changed; of other text, one word."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return odd_bytes(data, rng)
    lines = text.splitlines(keepends=True)
    try:
        if len(lines) > 1 and isinstance(json.loads(lines[0]), dict):
            raise ValueError("a line each")
        return edit(text, rng, change).encode(errors="surrogatepass")
    except ValueError:
        number = rng.randrange(len(lines)) if lines else 0
    try:
        lines[number] = edit(lines[number], rng, change) + "\n"
    except (ValueError, IndexError):
        return in_words(text, rng, change).encode(errors="surrogatepass")
    return "".join(lines).encode(errors="surrogatepass")


def in_words(text: str, rng: random.Random, change: Any) -> str:
    """One value of a text that is no JSON (TOML, CSV, a template) changed."""
    words = list(re.finditer(r"[^\s,=|]+", text))
    if not words:
        return text + str(rng.choice(NUMBERS))
    inside: dict[str, Any] = {"x": None}
    raw = change(inside, "x", rng)
    value = inside.get("x", "")
    new = raw if value == MARK else value if isinstance(value, str) else json.dumps(value)
    word = rng.choice(words)
    return text[: word.start()] + new + text[word.end() :]


# --- tensors ---


def in_header(data: bytes, rng: random.Random, change: Any) -> bytes:
    """One value of a safetensors header changed, the rest as it was."""
    length = struct.unpack("<Q", data[:8])[0]
    header = in_json(data[8 : 8 + length], rng, change)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def shapes(data: bytes, rng: random.Random) -> bytes:
    """A whole file with tensors of other shapes, types or names, or another header's length."""
    from safetensors.torch import load, save

    kind = rng.randrange(7)
    if kind == 0:
        sizes = [0, 1, len(data), 2**31, 2**63, 2**64 - 1]
        return struct.pack("<Q", rng.choice(sizes)) + data[8:]
    tensors = load(data)
    if not tensors:
        return b""
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    if kind == 1:
        tensors[name] = tensor.flatten()
    elif kind == 2:
        tensors[name] = tensor[: len(tensor) // 2].clone() if tensor.dim() else tensor[None]
    elif kind == 3:
        tensors[name] = tensor.double() if rng.random() < 0.5 else tensor.int()
    elif kind == 4:
        tensors[name] = tensor[:0].clone() if tensor.dim() else tensor
    elif kind == 5:
        tensors[rng.choice(["", "x", "a\x00b", "lora_A.weight"])] = tensors.pop(name)
    else:
        del tensors[name]
    return save({key: one.contiguous() for key, one in tensors.items()})


def values(data: bytes, rng: random.Random) -> bytes:
    """A tensor holds what is no finite number, or what is none of the numbers it may hold."""
    from safetensors.torch import load, save

    tensors = load(data)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    if tensor.is_floating_point():
        odd: list[float] = [float("nan"), float("inf"), float("-inf"), 3e38]
    else:
        odd = [-1, 2**31 - 1 if tensor.element_size() > 2 else 100, 77]
    flat = tensor.flatten()
    if len(flat):
        flat[rng.randrange(len(flat)) :] = rng.choice(odd)
    tensors[name] = flat.reshape(tensor.shape)
    return save(tensors)


def graph(data: bytes, rng: random.Random) -> bytes:
    """A number that hnswlib follows leads out of its graph (layout: search/hnsw_file.py)."""
    changed = bytearray(data)
    width = struct.unpack_from("<Q", data, 24)[0]
    nodes = struct.unpack_from("<Q", data, 16)[0]
    node = 96 + width * rng.randrange(max(1, nodes))
    far = rng.choice([nodes, 2**31, 2**32 - 1])
    kind = rng.randrange(5)
    if kind == 0:
        field = rng.choice([0, 2, 3, 4, 5])  # 1, the room there is, may be any
        struct.pack_into("<Q", changed, 8 * field, rng.choice([2**20, 2**40, 2**63]))
    elif kind == 1:
        struct.pack_into("<I", changed, 52, far)  # where a search begins
    elif kind == 2:
        struct.pack_into("<H", changed, node, rng.choice([1000, 65535]))
    elif kind == 3:
        struct.pack_into("<H", changed, node, 1)
        struct.pack_into("<I", changed, node + 4, far)
    else:
        struct.pack_into("<Q", changed, node + width - 8, rng.choice([nodes, 2**40, 2**63]))
    return bytes(changed)


# --- places ---


def linked(victim: Path, outside: Path, rng: random.Random) -> None:
    """A link stands in its place: to a copy outside, to nothing, to itself."""
    aim = outside / victim.name
    if victim.is_dir():
        shutil.copytree(victim, aim)
        shutil.rmtree(victim)
    else:
        shutil.copyfile(victim, aim)
        victim.unlink()
    kind = rng.randrange(4)
    victim.symlink_to(aim if kind < 2 else victim if kind == 2 else outside / "nothing")


def misplaced(victim: Path, outside: Path, rng: random.Random) -> None:
    """It is gone, has another name, or is no file: a folder, a pipe, a socket."""
    kind = rng.randrange(6)
    victim.rename(outside / victim.name)
    if kind == 0:
        return
    if kind == 1:
        shutil.move(outside / victim.name, victim.with_name("odd \x1b name"))
    elif kind == 2:
        raw = os.fsencode(victim.parent) + b"/\xff" + os.fsencode(victim.suffix)
        shutil.move(outside / victim.name, os.fsdecode(raw))
    elif kind == 3:
        victim.mkdir()
    elif kind == 4:
        os.mkfifo(victim)
    else:
        _listening(victim)


def _listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may be a hundred bytes long
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


# --- all of them ---

BYTES = {"cut": cut, "flip": flip, "splice": splice, "odd bytes": odd_bytes}
JSON = {
    "types": types,
    "numbers": numbers,
    "strings": strings,
    "missing": missing,
    "nesting": nesting,
}
TENSORS = {"shapes": shapes, "values": values}
PLACES = {"links": linked, "names": misplaced}
KINDS = (*BYTES, *JSON, "header", *TENSORS, "graph", *PLACES)


def fits(kind: str, path: Path) -> bool:
    """Whether a kind of damage makes sense for a file (or, for links, a folder)."""
    if path.is_dir():
        return kind == "links"
    if kind in ("header", *TENSORS):
        return path.suffix == ".safetensors"
    if kind == "graph":
        return path.name == "graph.bin"
    return kind not in JSON or path.suffix in TEXT_KINDS


def damage(kind: str, victim: Path, outside: Path, rng: random.Random) -> None:
    """Damage a file in a way of that kind; `outside` is a folder that a link may lead to."""
    if kind in PLACES:
        PLACES[kind](victim, outside, rng)
        return
    data = victim.read_bytes()
    unpack, pack = _packing(victim, kind in JSON or rng.random() < 0.5)
    inner = unpack(data)
    if kind in BYTES:
        inner = BYTES[kind](inner, rng)
    elif kind in JSON:
        inner = in_json(inner, rng, JSON[kind])
    elif kind == "header":
        inner = in_header(inner, rng, rng.choice(list(JSON.values())))
    else:
        inner = {**TENSORS, "graph": graph}[kind](inner, rng)
    victim.write_bytes(pack(inner))


def _packing(path: Path, inside: bool) -> tuple[Callable, Callable]:
    """How a packed file is opened and closed again where what is inside is to be damaged."""
    if inside and path.suffix == ".gz":
        return gzip.decompress, lambda data: gzip.compress(data, mtime=0)
    if inside and path.suffix == ".xz":
        return lzma.decompress, lzma.compress
    return bytes, bytes
