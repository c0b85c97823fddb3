"""Checkpoints by Hub id, against a small server on loopback that speaks the Hub's API."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "README.md": b"not needed",
    "modeling_clara.py": b"raise SystemExit('never run')",
    "compression-16/config.json": b"{}",
    "compression-16/adapters.pth": b"a" * 25_000_000,
    "compression-16/decoder_first_last_layers.pth": b"d" * 1000,
    "compression-16/modeling_clara.py": b"raise SystemExit('never run')",
    "compression-128/config.json": b"{}",
    "compression-128/adapters.pth": b"b" * 1000,
    "compression-128/decoder_first_last_layers.pth": b"e" * 1000,
}


@dataclass
class FakeHub:
    """What is asked of it, and how it answers."""

    home: Path
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    status: int = 200
    break_after: int | None = None
    error_code: str = ""
    backbones: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    port: int = 0

    def run(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python with `hub` imported, this server as its Hub and a cache of its own."""
        script = (
            "from clara_cli.core import hub\nfrom clara_cli.errors import ClaraError\n"
            f"try:\n    print({code})\n"
            "except ClaraError as error:\n"
            "    print(int(error.code), error.message, '|', error.hint)\n"
        )
        return self.python("-c", script, **environment)

    def clara(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the program, on the CPU in float32, with this server as its Hub."""
        exact = ["--device", "cpu", "--dtype", "float32", "--json"]
        return self.python("-m", "clara_cli", *words, *exact, **environment)

    def python(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python with this server as its Hub and a cache of its own."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_ENDPOINT": f"http://127.0.0.1:{self.port}", "HF_HOME": str(self.home)}
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "5", **environment}
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, env=env, timeout=300
        )


@pytest.fixture
def fake_hub(tmp_path) -> Iterator[FakeHub]:
    hub = FakeHub(tmp_path / "home")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            files = hub.files
            for name in {*hub.backbones, *hub.refused}:  # repositories beside the checkpoint's
                if path.startswith((f"/{name}/", f"/api/models/{name}")):
                    files = hub.backbones.get(name, {})
                    if name in hub.refused:
                        return self.reply(hub.refused[name], b"{}")
            if hub.status != 200:
                return self.reply(hub.status, b"{}")
            if "/tree/" in path:
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                    for name, data in files.items()
                ]
                return self.reply(200, json.dumps(entries).encode())
            if path.startswith("/api/models/"):
                siblings = [{"rfilename": name} for name in files]
                info = {"id": "apple/test", "sha": COMMIT, "siblings": siblings}
                return self.reply(200, json.dumps(info).encode())
            for revision in (COMMIT, "main"):
                if f"/resolve/{revision}/" in path:
                    name = path.split(f"/resolve/{revision}/")[1]
                    if name in files:
                        return self.file(name, files[name])
                    return self.reply(404, b"{}", "EntryNotFound")
            return self.reply(404, b"{}")

        do_HEAD = do_GET

        def file(self, name: str, data: bytes) -> None:
            if self.command == "GET":
                hub.asked.append(name)
            wanted = self.headers.get("Range")
            start = int(wanted.split("=")[1].split("-")[0]) if wanted else 0
            if wanted:
                hub.ranges.append(wanted)
            self.send_response(206 if wanted else 200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if self.command == "GET":
                body = data[start:]
                if hub.break_after is not None and len(body) > hub.break_after:
                    self.wfile.write(body[: hub.break_after])
                    self.wfile.flush()
                    self.connection.close()
                    return
                self.wfile.write(body)

        def reply(self, status: int, body: bytes, error: str = "") -> None:
            self.send_response(status)
            if error or hub.error_code:
                self.send_header("X-Error-Code", error or hub.error_code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()


def test_the_ratio_picks_the_folder_and_only_its_files_travel(fake_hub):
    run = fake_hub.run("hub.fetch('apple/test', 16)")
    folder = Path(run.stdout.strip())
    assert folder.name == "compression-16", run.stdout + run.stderr
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapters.pth",
        "config.json",
        "decoder_first_last_layers.pth",
    ]
    assert set(fake_hub.asked) == {f"compression-16/{p.name}" for p in folder.iterdir()}


def test_a_folder_may_be_named_itself(fake_hub):
    run = fake_hub.run("hub.fetch('apple/test/compression-128', None)")
    assert run.stdout.strip().endswith("compression-128"), run.stdout + run.stderr


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("hub.fetch('apple/test', 32)", "2 --ratio 32: not in apple/test | it serves 16, 128"),
        ("hub.fetch('apple/test', None)", "2 apple/test has checkpoints for several ratios"),
        ("hub.fetch('apple/test/nothing', None)", "3 apple/test/nothing: no checkpoint there"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(fake_hub, call, expected):
    assert fake_hub.run(call).stdout.startswith(expected)


@pytest.mark.parametrize("ratio", [None, 16])
def test_a_bare_backbone_is_no_checkpoint(fake_hub, ratio):
    fake_hub.files = {"config.json": b"{}", "model.safetensors": b"w"}
    run = fake_hub.run(f"hub.fetch('apple/test', {ratio})")
    assert run.stdout == (
        "3 apple/test: no checkpoint there (neither clara.json nor adapters.pth) | "
        "a backbone goes with --backbone, a checkpoint with --model or --init\n"
    ), run.stderr


@pytest.mark.parametrize(
    ("status", "expected"),
    [(403, "refuses access (403)"), (401, "refuses access (401)"), (404, "no such repository")],
)
def test_a_refusal_is_one_sentence(fake_hub, status, expected):
    fake_hub.status = status
    said = fake_hub.run("hub.fetch('apple/test', 16)").stdout
    assert said.startswith("3 apple/test: ") and expected in said


def test_offline_uses_what_is_here_and_else_says_so(fake_hub):
    offline = {"HF_HUB_OFFLINE": "1"}
    said = fake_hub.run("hub.fetch('apple/test', 16)", **offline).stdout
    assert said.startswith("3 apple/test: not downloaded yet")
    fetched = fake_hub.run("hub.fetch('apple/test', 16)").stdout
    asked = len(fake_hub.asked)
    again = fake_hub.run("hub.fetch('apple/test', 16)", **offline)
    assert again.stdout == fetched and len(fake_hub.asked) == asked, again.stdout + again.stderr


def test_an_interrupted_download_goes_on_where_it_stopped(fake_hub):
    fake_hub.break_after = 12_000_000
    first = fake_hub.run("hub.fetch('apple/test', 16)")
    assert "the download stopped" in first.stdout or first.stdout.strip().endswith("-16")
    fake_hub.break_after = None
    second = fake_hub.run("hub.fetch('apple/test', 16)")
    folder = Path(second.stdout.strip())
    assert (folder / "adapters.pth").read_bytes() == FILES["compression-16/adapters.pth"]
    assert fake_hub.ranges, first.stdout + first.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [("apple/CLaRa-7B-E2E", True), ("a/b/compression-16", True), ("nano", False), ("./a/b", False),
     ("/a/b", False), ("a b/c", False)],
)  # fmt: skip
def test_what_a_hub_id_looks_like(name, expected):
    from clara_cli.core.hub import is_hub_id

    assert is_hub_id(name) == expected


def test_a_fixture_checkpoint_loads_by_hub_id(fake_hub, shared):
    """The whole way: fetched by ratio, opened as released, encoding as the local folder does."""
    source = shared / "reference" / "fixtures" / "mistral_256_32" / "ckpt_stage2"
    fake_hub.files = {f"compression-32/{p.name}": p.read_bytes() for p in source.iterdir()}
    backbone = shared / "reference" / "backbones" / "mistral-tiny"
    module = "__import__('clara_cli.core.checkpoint', fromlist=['load'])"
    options = f"n, backbone={str(backbone)!r}, device='cpu', ratio=32"
    code = (
        f"[{module}.load({module}.LoadOptions({options})).info.fingerprint "
        f"for n in ('apple/test', {str(source)!r})]"
    )
    run = fake_hub.run(code)
    fingerprints = eval(run.stdout.strip().splitlines()[-1])  # noqa: S307
    assert fingerprints[0] == fingerprints[1]


def test_a_hub_checkpoint_becomes_native_with_its_origin_and_licence(fake_hub, shared, tmp_path):
    """Two ratios in one repository: compressed and converted by id and ratio alone, its memory and
    answers the same to the bit, where it came from and its terms in checkpoint and corpora."""
    backbone = str(shared / "reference" / "backbones" / "mistral-tiny")
    source = shared / "reference" / "fixtures" / "mistral_256_32" / "ckpt_stage2"
    files = {f"compression-32/{p.name}": p.read_bytes() for p in source.iterdir()}
    fake_hub.files = {**files, "compression-128/adapters.pth": b"another"}
    data, native = tmp_path / "d.jsonl", tmp_path / "run"
    data.write_text('{"id": "a", "text": "Ann lives in Rome."}\n{"id": "b", "text": "Bo rows."}\n')
    hub_words = ["--backbone", backbone]
    made = [
        fake_hub.clara("compress", str(data), "--model", "apple/test", "--ratio", "32", *hub_words,
                       "--out", str(tmp_path / "hub.clara")),
        fake_hub.clara("train", "--init", "apple/test", "--set", "ratios=[32]", *hub_words,
                       "--steps", "0", "--out", str(native)),
        fake_hub.clara("compress", str(data), "--model", str(native),
                       "--out", str(tmp_path / "native.clara")),
    ]  # fmt: skip
    for run in made:
        assert run.returncode == 0, run.stderr
        assert "from apple/test/compression-32, licence apple-amlr: research use only" in run.stderr
    described = json.loads((native / "checkpoint" / "clara.json").read_text())
    assert described["licence"] == "apple-amlr: research use only"
    assert described["provenance"][0] == {
        "origin": "apple/test/compression-32",
        "revision": COMMIT,
        "format": "released",
    }
    answers = []
    for name, words in (("hub", hub_words), ("native", [])):
        corpus = tmp_path / f"{name}.clara"
        checkpoint = json.loads((corpus / "manifest.json").read_text())["checkpoint"]
        assert checkpoint["origin"] == "apple/test/compression-32"
        assert checkpoint["licence"] == "apple-amlr: research use only"
        asked = fake_hub.clara("ask", "Where does Ann live?", "--corpus", str(corpus), *words)
        assert asked.returncode == 0, asked.stderr
        answers.append({k: v for k, v in json.loads(asked.stdout).items() if k != "seconds"})
    assert answers[0] == answers[1]
    shards = [tmp_path / f"{n}.clara" / "shards" / "00000.safetensors" for n in ("hub", "native")]
    assert shards[0].read_bytes() == shards[1].read_bytes()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/c/hub/models--apple--CLaRa-7B-E2E/snapshots/{COMMIT}/compression-16",
         ("apple/CLaRa-7B-E2E/compression-16", COMMIT)),
        (f"/c/hub/models--me--my--model/snapshots/{COMMIT}", ("me/my--model", COMMIT)),
        ("/home/me/CLaRa-7B-E2E/compression-16", None),
        (f"/c/datasets--apple--x/snapshots/{COMMIT}", None),
    ],
)  # fmt: skip
def test_a_folder_in_the_cache_tells_its_origin(path, expected):
    from clara_cli.core.hub import origin

    assert origin(Path(path)) == expected


def test_terms_follow_from_whose_checkpoint_it_is(tmp_path):
    from clara_cli.core.released import licence, provenance

    def cached(owner: str) -> Path:
        return tmp_path / f"models--{owner}--x" / "snapshots" / COMMIT / "compression-16"

    assert licence(cached("apple")) == "apple-amlr: research use only"
    assert licence(cached("me")) == "not known: see huggingface.co/me/x/compression-16"
    assert licence(tmp_path / "x").startswith("not known: apple-amlr: research use only, where")
    named = provenance(tmp_path / "CLaRa-7B-E2E" / "compression-16")
    assert named == {
        "origin": "CLaRa-7B-E2E/compression-16",
        "revision": None,
        "format": "released",
    }


def test_a_dry_run_fetches_configs_alone(fake_hub, shared, tmp_path):
    source = shared / "reference" / "fixtures" / "mistral_256_32" / "ckpt_stage2"
    fake_hub.files = {f"compression-32/{p.name}": p.read_bytes() for p in source.iterdir()}
    backbone = str(shared / "reference" / "backbones" / "mistral-tiny")
    words = ["--init", "apple/test/compression-32", "--backbone", backbone, "--stage", "e2e"]
    out = tmp_path / "run"
    run = fake_hub.clara("train", "q.jsonl", *words, "--dry-run", "--out", str(out))
    assert run.returncode == 0, run.stderr
    need = json.loads(run.stdout)
    assert need["roles"] == ["compressor", "query_reasoner", "generator"]
    assert need["bytes"] == sum(
        need[part] for part in ("weights", "adapters", "memory_tokens", "cache", "training")
    )
    documents = tmp_path / "d.jsonl"
    documents.write_text('{"text": "Ann lives in Rome."}\n')
    words = ["--model", "apple/test", "--ratio", "32", "--backbone", backbone]
    run = fake_hub.clara("ask", "--dry-run", str(documents), *words)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["cache"] > 0
    assert fake_hub.asked == ["compression-32/config.json"]
    assert not out.exists()


LOAD_BACKBONE = (
    "__import__('clara_cli.core.backbone', fromlist=['x']).load_backbone('mistralai/Tiny', "
    "*(lambda t: (t.device('cpu'), t.float32))(__import__('torch'))).revision"
)


@pytest.mark.parametrize(
    ("status", "code", "expected", "hint"),
    [
        (403, "GatedRepo", "the Hub refuses access (403)", "accept its conditions"),
        (401, "GatedRepo", "the Hub refuses access (401)", "hf auth login"),
        (404, "RepoNotFound", "no such repository", "check owner and name"),
        (500, "", "the Hub cannot be reached", "connect once"),
    ],
)
def test_a_backbone_that_is_refused_is_one_sentence(fake_hub, status, code, expected, hint):
    fake_hub.refused, fake_hub.error_code = {"mistralai/Tiny": status}, code
    said = fake_hub.run(LOAD_BACKBONE).stdout
    assert said.startswith("3 backbone mistralai/Tiny: ")
    assert expected in said and hint in said


def a_backbone(shared) -> dict[str, bytes]:
    source = shared / "reference" / "backbones" / "mistral-tiny"
    other = {"consolidated.safetensors": b"twice", "original/model.safetensors": b"thrice"}
    return {**{p.name: p.read_bytes() for p in source.iterdir() if p.is_file()}, **other}


def test_a_backbone_by_hub_id_is_fetched_once_with_its_commit(fake_hub, shared):
    fake_hub.backbones = {"mistralai/Tiny": a_backbone(shared)}
    run = fake_hub.run(LOAD_BACKBONE)
    assert run.stdout.strip().endswith(COMMIT)
    assert "100%" in run.stderr  # the download's progress
    assert "model.safetensors" in fake_hub.asked
    assert not {"consolidated.safetensors", "original/model.safetensors"} & set(fake_hub.asked)
    asked = len(fake_hub.asked)
    again = fake_hub.run(LOAD_BACKBONE, HF_HUB_OFFLINE="1")
    assert again.stdout.strip().endswith(COMMIT) and len(fake_hub.asked) == asked, again.stderr


def test_a_backbones_interrupted_download_goes_on(fake_hub, shared):
    large = {"large.json": b"{}" + b" " * 25_000_000}  # kept from the first ten million bytes on
    fake_hub.backbones = {"mistralai/Tiny": {**a_backbone(shared), **large}}
    fake_hub.break_after = 12_000_000
    first = fake_hub.run(LOAD_BACKBONE).stdout
    assert first.startswith("3 backbone mistralai/Tiny: the download stopped") or COMMIT in first
    fake_hub.break_after = None
    assert fake_hub.run(LOAD_BACKBONE).stdout.strip().endswith(COMMIT)
    assert fake_hub.ranges


def test_without_a_network_a_backbone_is_one_sentence(fake_hub):
    said = fake_hub.run(LOAD_BACKBONE, HF_HUB_OFFLINE="1").stdout
    assert said.startswith("3 backbone mistralai/Tiny: not downloaded yet, and the Hub cannot be")
    assert "unset HF_HUB_OFFLINE" in said
