"""The corpus directory: same bytes, resume, locks, refusals, and reading back."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clara_cli.corpus import store
from clara_cli.corpus.append import Additions
from clara_cli.corpus.documents_table import Documents
from clara_cli.corpus.manifest import Identity, read_manifest
from clara_cli.corpus.passage_lines import passage_lines
from clara_cli.corpus.shards import encode_passages
from clara_cli.corpus.store import Corpus, verify
from clara_cli.corpus.writer import open_writer
from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.records import Passage
from clara_cli.storage import files

ROOT = Path(__file__).parent.parent.parent
SIZES = (3, 3, 2)
IDENTITY = Identity(
    checkpoint={"fingerprint": "f" * 8, "model": "nano"},
    memory_tokens=2,
    hidden=4,
    ratio=16,
    dtype="float32",
    text=True,
    options={"split": "sentences", "shard_size": 3},
)


def passages_of(shard: int) -> list[Passage]:
    return [
        Passage(f"d{shard}#{n}", f"d{shard}", "T", f"téxt {n}\n", n, n + 7, 5, {"k": [n]})
        for n in range(SIZES[shard])
    ]


def memory_of(shard: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shard)
    return torch.randn(SIZES[shard], 2, 4, generator=generator)


def counts(rows: int = sum(SIZES)) -> dict[str, int]:
    return {"documents": 3, "passages": rows, "empty": 0, "skipped": 0, "truncated": 0,
            "text_tokens": 5 * rows}  # fmt: skip


def make(folder: Path, identity: Identity = IDENTITY) -> Corpus:
    with open_writer(folder, identity) as writer:
        for shard in range(3):
            if not writer.finished(shard, passages_of(shard)):
                writer.write(shard, passages_of(shard), memory_of(shard))
        writer.finish(counts(), "d" * 64)
    return Corpus.open(folder)


def tree(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("dtype", "relative", "absolute"),
    [
        ("float32", 0, 0),
        ("bf16", 2**-8, 0),
        ("fp16", 2**-11, 1e-6),
        ("fp8", 2**-4, 1e-3),
        ("int8", 0, 0.01),
        ("nf4", 0, 0.2),
    ],
)
def test_reads_back_what_was_written(
    tmp_path: Path, dtype: str, relative: float, absolute: float
) -> None:
    corpus = make(tmp_path / "c.clara", replace(IDENTITY, dtype=dtype))
    everything = torch.cat([memory_of(n) for n in range(3)])
    assert len(corpus) == 8
    rows = [7, 0, 3, 3, 5]
    memory_NMD = corpus.memory(rows)
    assert memory_NMD.dtype == torch.float32 and memory_NMD.shape == (5, 2, 4)
    torch.testing.assert_close(memory_NMD, everything[rows], rtol=relative, atol=absolute)
    chunks = list(corpus.memory_chunks(2))
    assert [first for first, _ in chunks] == [0, 2, 3, 5, 6]
    assert torch.equal(torch.cat([chunk for _, chunk in chunks]), corpus.memory(range(8)))
    assert corpus.memory([]).shape == (0, 2, 4)
    expected = [p for n in range(3) for p in passages_of(n)]
    assert list(corpus.passages()) == expected
    assert corpus.passages_at([6, 1, 6]) == [expected[6], expected[1], expected[6]]
    assert corpus.passage(4) == expected[4]
    for row in (-1, 8):
        with pytest.raises(IndexError, match="a corpus of 8 passages"):
            corpus.passage(row)
        with pytest.raises(IndexError):
            corpus.memory([row])
    assert corpus.verify() == []
    assert corpus.manifest.counts == counts()


def test_random_access_reads_a_shard_once(tmp_path: Path, monkeypatch) -> None:
    corpus = make(tmp_path / "c.clara")
    opened: list[Path] = []
    monkeypatch.setattr(
        store, "passage_lines", lambda path: opened.append(path) or passage_lines(path)
    )
    for row in (0, 1, 2, 4, 0, 7, 2):
        corpus.passage(row)
    assert len(opened) == 3
    monkeypatch.setattr(store, "_READ_BYTES", 0)  # shards that take much are not kept
    opened.clear()
    corpus = Corpus.open(corpus.folder)
    for row in (0, 4, 0):
        corpus.passage(row)
    assert len(opened) == 3


def test_the_same_bytes_twice_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path / "a.clara")
    make(tmp_path / "b.clara")
    assert tree(tmp_path / "a.clara") == tree(tmp_path / "b.clara")
    assert set(tree(tmp_path / "a.clara")) == {
        "manifest.json",
        *(f"shards/0000{n}.safetensors" for n in range(3)),
        *(f"passages/0000{n}.jsonl.gz" for n in range(3)),
    }
    packed = (tmp_path / "a.clara/passages/00000.jsonl.gz").read_bytes()
    assert packed[3] == 0 and packed[4:8] == bytes(4)  # no file name, mtime 0
    first = gzip.decompress(packed).decode().splitlines()[0]
    assert list(json.loads(first)) == [
        "passage_id", "document_id", "title", "text", "start", "end", "tokens", "metadata"
    ]  # fmt: skip


def test_without_text(tmp_path: Path) -> None:
    corpus = make(tmp_path / "c.clara", replace(IDENTITY, text=False))
    assert corpus.passage(0) == replace(passages_of(0)[0], text=None)
    packed = (tmp_path / "c.clara/passages/00000.jsonl.gz").read_bytes()
    assert b"t\xc3\xa9xt" not in gzip.decompress(packed)


class Stopped(Exception):
    """An interruption."""


@pytest.mark.parametrize("stop_before", range(4))
def test_interrupted_anywhere_gives_the_same_bytes(tmp_path: Path, stop_before: int) -> None:
    make(tmp_path / "whole.clara")
    folder = tmp_path / "c.clara"
    with pytest.raises(Stopped), open_writer(folder, IDENTITY) as writer:
        for shard in range(stop_before):
            writer.write(shard, passages_of(shard), memory_of(shard))
        raise Stopped
    with pytest.raises(ArtefactError, match=f"is not finished: {stop_before} shards so far"):
        Corpus.open(folder)
    with open_writer(folder, IDENTITY) as writer:
        known = [writer.finished(shard, passages_of(shard)) for shard in range(3)]
    assert known == [shard < stop_before for shard in range(3)]
    make(folder)
    assert tree(folder) == tree(tmp_path / "whole.clara")


def test_resume_recomputes_what_changed(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    with pytest.raises(Stopped), open_writer(folder, IDENTITY) as writer:
        for shard in range(3):
            writer.write(shard, passages_of(shard), memory_of(shard))
        raise Stopped
    damaged = folder / "shards/00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    (folder / ".tmp-1-manifest.json").write_bytes(b"left by a killed process")
    with open_writer(folder, IDENTITY) as writer:
        assert writer.finished(0, passages_of(0))
        assert not writer.finished(1, passages_of(1))
        assert not writer.finished(0, [*passages_of(0)[:2], replace(passages_of(0)[2], text="!")])
        writer.write(1, passages_of(1), memory_of(1))
        writer.finish(counts(6), "d" * 64)  # shard 2 is no longer part of the input
    assert len(Corpus.open(folder)) == 6
    assert sorted(path.name for path in (folder / "shards").iterdir()) == [
        "00000.safetensors",
        "00001.safetensors",
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "passages", "shards"]


def test_a_finished_corpus_is_left_alone_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    make(folder)
    before = tree(folder)
    make(folder)
    assert tree(folder) == before
    with open_writer(folder, IDENTITY) as writer:
        other = [replace(passages_of(0)[0], text="other"), *passages_of(0)[1:]]
        with pytest.raises(ArtefactError, match="finished corpus, and its documents differ at"):
            writer.finished(0, other)
        writer.finished(0, passages_of(0))
        with pytest.raises(ArtefactError, match="finished corpus, and it is of other documents"):
            writer.finish(counts(3), "d" * 64)
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ratio": 8}, "ratio = 16, this command has 8"),
        ({"dtype": "bf16"}, "dtype = 'float32', this command has 'bf16'"),
        ({"checkpoint": {"fingerprint": "g", "model": "nano"}}, "checkpoint.fingerprint = 'ffff"),
        ({"options": {"split": "none", "shard_size": 3}}, "options.split = 'sentences', this"),
        ({"options": {"split": "sentences"}}, "options.shard_size = 3, this command has absent"),
        ({"text": False}, "text = True, this command has False"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_identity_is_refused(tmp_path: Path, change, words: str, finished: bool) -> None:
    folder = tmp_path / "c.clara"
    if finished:
        make(folder)
    else:
        with open_writer(folder, IDENTITY) as writer:
            writer.write(0, passages_of(0), memory_of(0))
    before = tree(folder)
    with pytest.raises(ArtefactError) as caught, open_writer(folder, replace(IDENTITY, **change)):
        pass
    assert words in caught.value.message and "another --out" in caught.value.hint
    assert tree(folder) == before


def test_where_nothing_is_finished_the_options_may_change(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    with open_writer(folder, IDENTITY):
        pass
    other = replace(IDENTITY, options={**IDENTITY.options, "batch_tokens": 5})
    with open_writer(folder, other) as writer:
        writer.write(0, passages_of(0), memory_of(0))
        writer.finish(counts(3), "d" * 64)
    assert Corpus.open(folder).manifest.identity == other


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(ArtefactError, match=r"other things \(photo.jpg\)"):
        with open_writer(tmp_path, IDENTITY):
            pass
    with pytest.raises(ArtefactError, match="is a file, not a corpus"):
        with open_writer(tmp_path / "photo.jpg", IDENTITY):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_second_writer_is_told_who_writes_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    script = (
        "import sys, time; from pathlib import Path; from clara_cli.storage.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    folder.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(folder), "compress x"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ArtefactError, match=rf"by process {holder.pid} \(-c .*compress x\)"):
            with open_writer(folder, IDENTITY):
                pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (folder / ".lock").exists()
    make(folder)
    assert not (folder / ".lock").exists()


def test_the_disk_is_full(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "c.clara"
    with open_writer(folder, IDENTITY) as writer:

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(ClaraError, match=r"no space left: [\d,]+ bytes needed, [\d,]+ fr"):
                writer.write(0, passages_of(0), memory_of(0))
        assert [path.name for path in (folder / "shards").iterdir()] == []
    make(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with (
        pytest.raises(ClaraError, match="cannot be written"),
        open_writer(tmp_path / "c", IDENTITY),
    ):
        pass


def test_a_folder_under_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaraError, match="cannot be written: Not a directory"):
        with open_writer(tmp_path / "file" / "c.clara", IDENTITY):
            pass


@pytest.mark.parametrize(("dtype", "value"), [("bf16", float("nan")), ("fp16", 1e6)])
def test_memory_must_be_finite_as_stored(tmp_path: Path, dtype: str, value: float) -> None:
    memory_NMD = memory_of(0)
    memory_NMD[1, 0, 0] = value
    with open_writer(tmp_path / "c.clara", replace(IDENTITY, dtype=dtype)) as writer:
        with pytest.raises(ClaraError, match=rf"passage 'd0#1' is not finite as {dtype}"):
            writer.write(0, passages_of(0), memory_NMD)


# --- repairs and additions ---


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file was written, and which file it is."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.stat() for path in paths}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}


@pytest.mark.parametrize("name", ["shards/00001.safetensors", "passages/00001.jsonl.gz"])
@pytest.mark.parametrize("missing", [True, False])
def test_a_damaged_shard_of_a_finished_corpus_is_written_again(
    tmp_path: Path, name: str, missing: bool
) -> None:
    folder = tmp_path / "c.clara"
    make(folder)
    whole, before = tree(folder), stamps(folder)
    path = folder / name
    data = path.read_bytes()
    path.unlink() if missing else path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    make(folder)
    assert tree(folder) == whole and verify(folder) == []
    touched = {file for file, stamp in stamps(folder).items() if stamp != before[file]}
    assert touched == {"shards/00001.safetensors", "passages/00001.jsonl.gz"}


def test_a_repair_with_other_documents_is_refused_and_leaves_the_damage(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    make(folder)
    (folder / "passages/00001.jsonl.gz").unlink()
    with open_writer(folder, IDENTITY) as writer:
        other = [replace(p, text="other") for p in passages_of(1)]
        for number, passages in enumerate((passages_of(0), other, passages_of(2))):
            if not writer.finished(number, passages):
                writer.write(number, passages, memory_of(number))
        with pytest.raises(ArtefactError, match="and it is of other documents"):
            writer.finish(counts(), "e" * 64)
    assert [d.file for d in verify(folder)] == ["passages/00001.jsonl.gz"]


def added(folder: Path, stop: bool = False) -> None:
    """Add shard 0's passages again under other ids, as a part of their own."""
    more = [replace(p, passage_id=f"x{p.passage_id}", document_id="x") for p in passages_of(0)]
    earlier = Additions(folder)
    assert earlier.refuse("x") == ""
    writing = open_writer(folder, IDENTITY, part=earlier.part, extends=earlier.manifest.sha256)
    with writing as writer:
        if not writer.finished(0, more):
            writer.write(0, more, memory_of(2)[:1].expand(3, -1, -1))
        if stop:
            raise Stopped
        writer.finish(counts(3), "f" * 64, "x")


def test_an_addition_follows_and_leaves_the_rest_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    reader = make(folder)
    before, whole = stamps(folder), tree(folder)
    with pytest.raises(Stopped):
        added(folder, stop=True)
    assert Corpus.open(folder).manifest.sha256 == reader.manifest.sha256  # the last complete state
    assert list(reader.passages()) == list(Corpus.open(folder).passages())
    make(folder)  # the corpus itself is still finished
    added(folder)
    corpus = Corpus.open(folder)
    assert len(corpus) == 11 and corpus.manifest.counts["passages"] == 11
    assert [p.document_id for p in corpus.passages()][8:] == ["x"] * 3
    assert [part.first_shard for part in corpus.manifest.parts] == [0, 3]
    changed = {name for name, stamp in stamps(folder).items() if stamp != before.get(name)}
    assert changed == {*{"manifest.json", "shards/00003.safetensors", "passages/00003.jsonl.gz"}}
    once = tree(folder)
    added(folder)
    make(folder)
    assert tree(folder) == once and whole.keys() < once.keys()
    (folder / "shards/00003.safetensors").unlink()
    added(folder)
    assert tree(folder) == once


def test_an_addition_to_no_corpus_or_of_known_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no finished corpus to add to"):
        Additions(tmp_path / "none.clara")
    folder = tmp_path / "c.clara"
    make(folder)
    assert Additions(folder).refuse("d1") == f"the id 'd1' is in {folder} already"
    added(folder)
    repeated = Additions(folder)
    assert [repeated.refuse(i) == "" for i in ("d1", "x", "y", "d2")] == [False, True, True, False]
    (folder / "passages/00001.jsonl.gz").unlink()
    with pytest.raises(ArtefactError, match=r"passages/00001"):
        Additions(folder).refuse("new")
    with pytest.raises(ArtefactError, match="changed by another command meanwhile"):
        with open_writer(folder, IDENTITY, extends="0" * 64):
            pass


def test_a_journal_with_half_a_line_and_one_that_is_malformed(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    with pytest.raises(Stopped), open_writer(folder, IDENTITY) as writer:
        for shard in range(2):
            writer.write(shard, passages_of(shard), memory_of(shard))
        raise Stopped
    lines = folder / "journal/00000.jsonl"
    first, second = lines.read_bytes().splitlines(keepends=True)
    lines.write_bytes(first + second[:40])
    with open_writer(folder, IDENTITY) as writer:
        assert writer.finished(0, passages_of(0)) and not writer.finished(1, passages_of(1))
    lines.parent.mkdir()
    lines.write_bytes(b"{}\n" + first)
    with pytest.raises(ArtefactError, match=r"00000\.jsonl:1: key 'number': missing"):
        Corpus.open(folder)


def test_damage_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    make(folder)
    shard = folder / "shards/00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-4])
    with pytest.raises(ArtefactError, match=r"shards/00001\.safetensors: \d+ bytes") as caught:
        Corpus.open(folder)
    assert "--check" in caught.value.hint
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (folder / "passages/00002.jsonl.gz").unlink()
    assert [(d.file, d.what) for d in verify(folder)] == [
        ("shards/00001.safetensors", "its SHA-256 is not the recorded one"),
        ("passages/00002.jsonl.gz", "missing"),
    ]
    with pytest.raises(ArtefactError, match=r"00002\.jsonl\.gz: missing"):
        Corpus.open(folder)


def test_a_shard_with_another_header_or_broken_passages(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    corpus = make(folder)
    packed = folder / "passages/00000.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-9] + bytes(9))
    with pytest.raises(ArtefactError, match=r"00000\.jsonl\.gz: line \d"):
        corpus.passage(0)
    shard = folder / "shards/00000.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(ArtefactError, match="its header is .*I32.* the manifest says"):
        Corpus.open(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("memory", lambda stored: stored.view(torch.int8)),
        ("memory", lambda stored: stored[..., :1]),
        ("memory", lambda stored: stored.repeat(1, 1, 2)),  # a value a byte
        ("scales", lambda stored: stored.float()),
        ("scales", lambda stored: stored.repeat(1, 1, 2)),
        ("scales", None),
    ],
)
def test_four_bits_in_tensors_of_another_form_are_refused(tmp_path: Path, name, change) -> None:
    folder = tmp_path / "c.clara"
    make(folder, replace(IDENTITY, dtype="nf4"))
    path = folder / "shards/00000.safetensors"
    tensors = load_file(path)
    tensors.update({name: change(tensors.pop(name)).contiguous()} if change else {})
    if change is None:
        del tensors[name]
    save_file(tensors, path)
    fit_manifest(folder, path)
    with pytest.raises(ArtefactError, match="its header is .* the manifest says"):
        Corpus.open(folder)


def fit_manifest(folder: Path, shard: Path) -> None:
    """Record the first shard's memory file as it is now."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    data = shard.read_bytes()
    manifest["shards"][0] |= {
        "sha256_memory": hashlib.sha256(data).hexdigest(),
        "bytes_memory": len(data),
    }
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("dtype", ["int8", "nf4", "fp8"])
def test_a_manifest_of_another_scheme_is_refused(tmp_path: Path, dtype: str) -> None:
    folder = tmp_path / "c.clara"
    make(folder, replace(IDENTITY, dtype=dtype))
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["quantisation"]["group"] = 16
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match=f"key .quantisation.: not that of {dtype}"):
        Corpus.open(folder)


def _set(path: str, value: object):
    def change(manifest: dict) -> None:
        *parents, last = path.split("/")
        target: object = manifest
        for key in parents:
            target = target[int(key) if isinstance(target, list) else key]  # type: ignore[index]
        if value is None:
            del target[last]  # type: ignore[attr-defined]
        else:
            target[last] = value  # type: ignore[index]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("format", "x"), "key 'format'"),
        (_set("version", 4), "key 'version': 4, this program reads 1, 2 and 3"),
        (_set("ratio", None), "key 'ratio': missing"),
        (_set("ratio", 16.5), "key 'ratio': 16.5, not of type int"),
        (_set("hidden", 0), "key 'hidden': 0, the least is 1"),
        (_set("memory_tokens", True), "key 'memory_tokens': True, not of type int"),
        (_set("dtype", "int3"), "key 'dtype': 'int3', known: float32"),
        (_set("quantisation", {"group": 64}), "key 'quantisation': not that of float32"),
        (_set("parts", []), "key 'parts': they begin at shards [] of 3"),
        (_set("parts/0/first_shard", 3), "key 'parts': they begin at shards [3] of 3"),
        (_set("parts/0/counts/empty", None), "key 'parts[0].counts.empty': missing"),
        (_set("checkpoint/fingerprint", None), "key 'checkpoint.fingerprint': missing"),
        (_set("counts/passages", 9), "key 'counts.passages': 9, and its shards have 8 rows"),
        (_set("shards", {}), "key 'shards': {}, not of type list"),
        (_set("shards/1/rows", -1), "key 'shards[1].rows': -1"),
        (_set("shards/0/memory", "../../etc/passwd"), "key 'shards[0].memory': '../../etc/passwd'"),
        (_set("shards/0/memory", "shards/00001.safetensors"), "key 'shards[0].passages'"),
        (_set("edits/deleted", {"file": "../x.rows"}), "key 'edits.deleted.file': '../x.rows'"),
        (_set("edits/times", -1), "key 'edits.times': -1"),
        (_set("shards/2/passages", "/etc/passwd"), "key 'shards[2].passages': '/etc/passwd'"),
        (_set("shards/2/sha256_memory", "abc"), "key 'shards[2].sha256_memory': not a SHA-256"),
    ],
)
def test_a_malformed_manifest_names_the_key(tmp_path: Path, change, words: str) -> None:
    folder = tmp_path / "c.clara"
    make(folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError) as caught:
        Corpus.open(folder)
    assert str(path) in caught.value.message and words in caught.value.message


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\xff", "[" * 100_000])
def test_a_manifest_that_is_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_newer_corpus_names_the_program_that_reads_it(tmp_path: Path) -> None:
    make(tmp_path / "c.clara")
    path = tmp_path / "c.clara/manifest.json"
    newer = {**json.loads(path.read_text()), "version": 4, "needs": "1.4"}
    path.write_text(json.dumps(newer))
    with pytest.raises(ArtefactError, match="4, this program reads 1, 2 and 3") as caught:
        Corpus.open(tmp_path / "c.clara")
    assert caught.value.hint == "pip install --upgrade 'clara-cli>=1.4'"
    path.write_text(json.dumps({**newer, "needs": "1.4; rm -r ."}))
    with pytest.raises(ArtefactError) as caught:
        Corpus.open(tmp_path / "c.clara")
    assert "pip" not in caught.value.hint


def test_a_corpus_of_version_1_is_read(tmp_path: Path) -> None:
    corpus = make(tmp_path / "c.clara")
    path = tmp_path / "c.clara/manifest.json"
    older = {**json.loads(path.read_text()), "version": 1}
    for key in ("edits", "needs"):
        del older[key]
    for part in older["parts"]:
        del part["documents"], part["origins"]
    path.write_text(json.dumps(older))
    again = Corpus.open(tmp_path / "c.clara")
    assert list(again.passages()) == list(corpus.passages())
    assert again.manifest.counts == corpus.manifest.counts
    assert again.manifest.states == corpus.manifest.states
    documents = Documents(again)
    assert {one.id: list(one.rows) for one in documents} == {
        "d0": [0, 1, 2], "d1": [3, 4, 5], "d2": [6, 7]
    }  # fmt: skip


def test_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such corpus"):
        Corpus.open(tmp_path / "gone.clara")
    with pytest.raises(ArtefactError, match="not a corpus"):
        Corpus.open(tmp_path)
    assert read_manifest(tmp_path / "gone.clara") is None


def test_many_shards_stay_within_the_open_ones(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store, "_OPEN_SHARDS", 64)
    folder = tmp_path / "c.clara"
    one = [Passage("p", "d", "", "t", 0, 1, 1)]
    with open_writer(folder, IDENTITY) as writer:
        for number in range(70):
            writer.write(number, one, torch.full((1, 2, 4), float(number)))
        writer.finish(counts(70), "d" * 64)
    corpus = Corpus.open(folder)
    rows, before = [69, 0, 68, 1, 33, 0], len(os.listdir("/dev/fd"))
    assert corpus.memory(range(70))[:, 0, 0].tolist() == list(range(70))
    assert corpus.memory(rows)[:, 1, 3].tolist() == rows
    assert len(corpus._open) == 64
    assert len(os.listdir("/dev/fd")) == before  # they are mapped, not kept open


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch) -> None:
    files.write_atomic(tmp_path, "f", b"old")

    def broken(source: object, target: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(ClaraError, match="f: cannot be written: I/O error"):
        files.write_atomic(tmp_path, "f", b"new")
    assert tree(tmp_path) == {"f": b"old"}


def test_passages_encode_alike_whatever_the_clock(monkeypatch) -> None:
    first = encode_passages(passages_of(0), True)
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert encode_passages(passages_of(0), True) == first


def repacked(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes in place of a file of a corpus, and their sum and size in its manifest."""
    (folder / name).write_bytes(data)
    path = folder / "manifest.json"
    described = json.loads(path.read_text())
    for shard in described["shards"]:
        for key in ("memory", "passages"):
            if shard[key] == name:
                shard |= {f"sha256_{key}": files.sha256_bytes(data), f"bytes_{key}": len(data)}
    path.write_text(json.dumps(described))


PASSAGE = {"passage_id": "a", "document_id": "a", "title": "", "text": "x", "start": 0, "end": 1,
           "tokens": 1, "metadata": {}}  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        "9" * 5_000,
        "[]",
        json.dumps({**PASSAGE, "metadata": 3}),
        json.dumps({**PASSAGE, "text": ["x"]}),
        json.dumps({**PASSAGE, "title": None}),
        json.dumps({**PASSAGE, "tokens": 1.5}),
        json.dumps({**PASSAGE, "start": True}),
        json.dumps({**PASSAGE, "more": 1}),
        json.dumps(PASSAGE).replace("{}", '{"a": ' + "[" * 200 + "]" * 200 + "}"),
    ],
)
def test_a_stored_passage_of_another_kind_is_named(tmp_path: Path, line: str) -> None:
    folder = tmp_path / "c.clara"
    make(folder)
    repacked(folder, "passages/00001.jsonl.gz", gzip.compress(3 * f"{line}\n".encode()))
    corpus = Corpus.open(folder)
    with pytest.raises(ArtefactError, match=r"00001\.jsonl\.gz: line 1: ") as caught:
        corpus.passage(3)
    assert len(caught.value.message) < 300
    with pytest.raises(ArtefactError, match="its documents differ at shard 1"):
        make(folder)


@pytest.mark.parametrize(
    "header", ["[" * 60_000, '{"memory":' * 6_000, "{}", "[1]", '{"memory": 1}']
)
def test_a_shards_header_of_another_kind_is_named(tmp_path: Path, header: str) -> None:
    folder = tmp_path / "c.clara"
    make(folder)
    data = len(header).to_bytes(8, "little") + header.encode() + bytes(64)
    repacked(folder, "shards/00001.safetensors", data)
    with pytest.raises(ArtefactError, match=r"00001\.safetensors: its header is "):
        Corpus.open(folder)


def test_passages_that_decompress_to_too_much_are_refused(tmp_path, monkeypatch):
    """The limit is lowered; with it, a line that never ends is refused before it is held."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n"))
    assert list(passage_lines(path)) == [b"one", b"two"]
    for limit in ("MAX_LINE", "MAX_MEMORY"):
        monkeypatch.setattr(f"clara_cli.corpus.passage_lines.{limit}", 2**11)
    wide = "x" * 600 + "\U0001f389"
    for data in (b"x" * 3000, b"line\n" * 600, wide.encode(), b"[" * 40, b"x" * 9000):
        path.write_bytes(gzip.compress(data))
        with pytest.raises(ValueError, match="MiB of passages in one shard"):
            list(passage_lines(path))
