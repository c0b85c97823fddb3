"""A shard: which passages it has, and the format of its two files, tensors and passages.

Tensor letters: N passages of a shard, M memory tokens, D hidden.
Knows nothing of how memory is computed or in which batches.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from clara_cli.corpus import manifest, quantize
from clara_cli.corpus.manifest import Identity, Shard
from clara_cli.errors import ClaraError
from clara_cli.records import Passage
from clara_cli.storage import files

if TYPE_CHECKING:
    from torch import Tensor

_GZIP_LEVEL = 6


def in_shards(passages: Iterator[Passage], size: int) -> Iterator[list[Passage]]:
    """Runs of consecutive passages, decided by the input alone."""
    shard: list[Passage] = []
    for passage in passages:
        shard.append(passage)
        if len(shard) == size:
            yield shard
            shard = []
    if shard:
        yield shard


def write_shard(
    folder: Path,
    identity: Identity,
    number: int,
    passages: Sequence[Passage],
    memory_NMD: Tensor,
    encoded: bytes,
) -> Shard:
    """Write a shard's two files (`encoded` is that of its passages) and describe them; records
    nothing (`CorpusWriter` does).

    Raises ClaraError where a memory is not finite in the stored dtype, or the disk refuses.
    """
    return write_tensors(folder, number, _stored(identity, number, passages, memory_NMD), encoded)


def write_tensors(
    folder: Path, number: int, tensors: Mapping[str, Tensor], encoded: bytes
) -> Shard:
    """Write a shard's two files, of tensors as they are stored and encoded passages, and describe
    it; records nothing. Raises ClaraError where the disk refuses."""
    from safetensors.torch import save

    memory = save(dict(tensors))
    names = manifest.shard_names(number)
    for name, data in zip(names, (memory, encoded), strict=True):
        files.make_folder(folder, str(PurePath(name).parent))
        files.write_atomic(folder, name, data)
    return Shard(
        memory=names[0],
        passages=names[1],
        rows=len(tensors["memory"]),
        sha256_memory=files.sha256_bytes(memory),
        sha256_passages=files.sha256_bytes(encoded),
        bytes_memory=len(memory),
        bytes_passages=len(encoded),
    )


def _stored(
    identity: Identity, number: int, passages: Sequence[Passage], memory_NMD: Tensor
) -> dict[str, Tensor]:
    """The tensors that are stored: on the CPU, contiguous, in the stored format, and finite."""
    import torch

    wanted = (len(passages), identity.memory_tokens, identity.hidden)
    if tuple(memory_NMD.shape) != wanted or not passages:
        raise ValueError(f"shard {number}: memory of shape {tuple(memory_NMD.shape)}, not {wanted}")
    stored = quantize.pack(memory_NMD, identity.dtype)
    for tensor in stored.values():
        finite_N = torch.isfinite(tensor.float()).flatten(1).all(1)
        if not bool(finite_N.all()):
            first = passages[int((~finite_N).nonzero()[0])].passage_id
            message = f"the memory of passage {first!r} is not finite as {identity.dtype}"
            raise ClaraError(message, "try --dtype float32 and --store-dtype bf16")
    return stored


def encode_passages(passages: Sequence[Passage], keep_text: bool) -> bytes:
    """Passages as the bytes of their file: gzip, one JSON object a line, always the same."""
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", _GZIP_LEVEL, buffer, mtime=0) as stream:
        for passage in passages:
            record: dict[str, Any] = asdict(passage)
            if not keep_text:
                del record["text"]
            if not passage.source:
                del record["source"]
            line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            stream.write(f"{line}\n".encode())
    return buffer.getvalue()
