"""Weights and settings that were changed are noticed: in full by compress, train, bench and
`index --check`, by sizes and a sample by ask. What an earlier version wrote still opens."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import tiny_world
from safetensors.torch import load_file, save_file

from clara_cli.bundled import BUNDLED
from clara_cli.commands import ask, bench, compress, index, train
from clara_cli.config import BenchConfig
from clara_cli.core.checkpoint import LoadOptions, load, read_info, reads
from clara_cli.errors import ArtefactError

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def world(works, tmp_path):
    """A copy of the shared checkpoint with its backbone in it, and a corpus made by it."""
    copy = tmp_path / "model"
    shutil.copytree(works.e2e / "checkpoint", copy)
    shutil.copytree(works.backbone, copy / "backbone")
    corpus = tmp_path / "c.clara"
    compress.run(tiny_world.compress(works.documents, copy, corpus), Heard())
    return copy, corpus


class Heard:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def progress(self, progress) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)

    warn = note


def flip(file: Path, name: str, sampled: bool) -> None:
    """Change the last bit of one value of a tensor of a file: at its start, or where no sample of
    a tensor this small would look if it were larger."""
    tensors = load_file(file)
    flat = tensors[name].view(-1).view(torch.uint8)
    flat[0 if sampled else len(flat) // 2 + 4] ^= 1
    save_file(tensors, file)


def enlarge(monkeypatch) -> None:
    """Tiny tensors are sampled whole; as large ones are, they are not."""
    monkeypatch.setattr("clara_cli.core.digests.WINDOW", 4)
    monkeypatch.setattr("clara_cli.core.digests.WINDOWS", 2)


def commands(works, model: Path, corpus: Path, tmp_path: Path) -> dict:
    """Every command that checks in full, as a function."""
    learn = tiny_world.train(works.questions, model, tmp_path / "run", "e2e", steps=1)
    measured = BenchConfig(
        **tiny_world.MACHINE,
        dataset=str(works.questions),
        model=str(model),
        system="clara",
        limit=2,
    )
    checked = tiny_world.index(corpus, check=True, model=str(model))
    again = tiny_world.compress(works.documents, model, tmp_path / "again.clara")
    return {
        "compress": lambda: compress.run(again, Heard()),
        "train": lambda: train.run(learn, Heard()),
        "bench": lambda: bench.run(measured, Heard()),
        "index --check": lambda: index.run(checked, Heard()),
    }


def question(model: Path, corpus: Path) -> None:
    list(ask.run(tiny_world.ask("Who is mayor of Pinewick?", corpus, model=str(model)), Heard()))


PARTS = {
    "backbone": ("backbone/model.safetensors", "model.layers.1.mlp.up_proj.weight"),
    "generator": (
        "generator/adapter_model.safetensors",
        "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight",
    ),
    "query reasoner": (
        "query_reasoner/adapter_model.safetensors",
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_one_bit_anywhere_is_noticed_where_weights_are_checked_in_full(
    world, works, tmp_path, part
):
    model, corpus = world
    file, name = PARTS[part]
    flip(model / file, name, sampled=False)
    for command, run in commands(works, model, corpus, tmp_path).items():
        with pytest.raises(ArtefactError) as caught:
            run()
        assert caught.value.code == 3 and caught.value.hint, command
        named = "backbone" if part == "backbone" else file
        assert named in caught.value.message, command


@pytest.mark.parametrize("part", PARTS)
def test_ask_notices_what_its_sample_reads(world, works, tmp_path, part, monkeypatch):
    enlarge(monkeypatch)
    model, corpus = tmp_path / "sampled", tmp_path / "sampled.clara"
    shutil.copytree(world[0], model)
    described = tiny_world.train(works.questions, model, tmp_path / "anew", "e2e", steps=0)
    train.run(described, Heard())  # writes the sample of windows this small
    model = tmp_path / "anew" / "checkpoint"
    compress.run(tiny_world.compress(works.documents, model, corpus), Heard())
    question(model, corpus)
    file, name = PARTS[part]
    flip(model / file, name, sampled=True)
    with pytest.raises(ArtefactError):
        question(model, corpus)


def test_weights_that_are_whole_pass_every_check(world, works, tmp_path):
    model, corpus = world
    for run in commands(works, model, corpus, tmp_path).values():
        run()
    question(model, corpus)


@pytest.mark.parametrize(
    "changes", [{"rms_norm_eps": 1e-3}, {"rope_parameters": {"rope_theta": 99.0}}]
)
def test_a_backbone_of_other_settings_is_refused(world, works, tmp_path, changes):
    model, corpus = world
    file = model / "backbone" / "config.json"
    before = json.loads(file.read_text())
    named = {key: {**before[key], **v} if isinstance(v, dict) else v for key, v in changes.items()}
    file.write_text(json.dumps({**before, **named}))
    (key,) = changes
    for run in commands(works, model, corpus, tmp_path).values():
        with pytest.raises(ArtefactError, match=f"{key} is .* the checkpoint was trained with"):
            run()
    with pytest.raises(ArtefactError, match=f"{key} is"):
        question(model, corpus)


def test_another_scale_of_the_roles_is_another_memory_space(world):
    model, corpus = world
    told = json.loads((model / "clara.json").read_text())
    told["lora"]["alpha"] *= 2
    (model / "clara.json").write_text(json.dumps(told))
    for file in model.glob("*/adapter_config.json"):
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, "lora_alpha": told["lora"]["alpha"]}))
    with pytest.raises(ArtefactError, match="fingerprint"):
        question(model, corpus)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_checkpoint_opens_in_every_number_format(world, dtype):
    loaded = load(LoadOptions(str(world[0]), device="cpu", dtype=dtype, verify=True))
    assert loaded.model.dtype == getattr(torch, dtype)


# --- version 1 ---


def as_version_1(model: Path) -> None:
    """Make `clara.json` what the version before wrote."""
    told = json.loads((model / "clara.json").read_text())
    backbone = told.pop("backbone")
    told.pop("weights")
    told["backbone"] = {
        "name": backbone["name"], "revision": backbone["revision"],
        "digest": backbone["first_values"],
    }  # fmt: skip
    told |= {"version": 1, "fingerprint": told.pop("older_fingerprint")}
    (model / "clara.json").write_text(json.dumps(told))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_nano_as_first_shipped_opens_with_a_note(tmp_path, dtype):
    old = Path(shutil.copytree(BUNDLED["nano"], tmp_path / "nano"))
    shutil.copy(FIXTURES / "nano-version-1.json", old / "clara.json")
    loaded = load(LoadOptions(str(old), device="cpu", dtype=dtype, verify=True))
    assert loaded.info.fingerprint == "b742d2502749e56a889602a88ef5c790"
    new = load(LoadOptions("nano", device="cpu", dtype="float32"))
    assert reads(new, loaded.info.fingerprint) and reads(loaded, new.info.fingerprint)
    assert not reads(new, "v2-" + "0" * 32) and not reads(loaded, "v2-" + "0" * 32)


def test_a_corpus_and_a_checkpoint_of_version_1_open_with_a_note(works, world, tmp_path):
    model, _ = world
    as_version_1(model)
    corpus, report = tmp_path / "old.clara", Heard()
    compress.run(tiny_world.compress(works.documents, model, corpus), report)
    assert any("an older version of clara" in note for note in report.notes)
    for named, note in ((model, "writes it anew"), (works.e2e, "compared as that version did")):
        report = Heard()
        (answer,) = ask.run(tiny_world.ask("Who is mayor?", corpus, model=str(named)), report)
        assert answer.sources and any(note in line for line in report.notes)
        assert any("an older version of clara" in line for line in report.notes)


def test_a_corpus_of_version_1_is_finished_and_added_to(works, world, tmp_path):
    model, corpus = world[0], tmp_path / "old.clara"
    old = Path(shutil.copytree(model, tmp_path / "old"))
    as_version_1(old)
    compress.run(tiny_world.compress(works.documents, old, corpus), Heard())
    shutil.rmtree(old)
    shutil.copytree(model, old)  # the same checkpoint, written anew
    before = tiny_world.files(corpus)
    compress.run(tiny_world.compress(works.documents, old, corpus), Heard())
    assert tiny_world.files(corpus) == before
    more = tiny_world.write_jsonl(tmp_path / "more.jsonl", [{"id": "new", "text": "A new one."}])
    settings = dataclasses.replace(
        tiny_world.compress(more, old, corpus), out=None, into=corpus, append=True
    )
    assert compress.run(dataclasses.replace(settings, model=None), Heard()).passages > 0


def test_a_checkpoint_of_version_1_with_another_backbone_is_refused(world):
    model, _ = world
    as_version_1(model)
    tensors = load_file(model / "backbone" / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, model / "backbone" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtefactError, match="is not the one this checkpoint was trained on"):
        load(LoadOptions(str(model), device="cpu", dtype="float32"))


def test_version_1_is_written_anew_as_version_2(works, world, tmp_path):
    model, _ = world
    fingerprint = read_info(model).fingerprint
    as_version_1(model)
    train.run(tiny_world.train(works.questions, model, tmp_path / "anew", "e2e", steps=0), Heard())
    info = read_info(tmp_path / "anew" / "checkpoint")
    assert (info.version, info.fingerprint) == (2, fingerprint)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.pop("weights"),
        lambda told: told["weights"].pop("generator"),
        lambda told: told["weights"]["memory"].update(sample=3),
        lambda told: told["backbone"].update(settings=[1]),
        lambda told: told["backbone"].pop("sample"),
        lambda told: told.update(version=4),
    ],
)
def test_a_clara_json_without_its_digests_is_refused(world, change):
    model, _ = world
    told = json.loads((model / "clara.json").read_text())
    change(told)
    (model / "clara.json").write_text(json.dumps(told))
    with pytest.raises(ArtefactError, match=r"clara\.json"):
        read_info(model)


def test_index_check_says_where_weights_are_not_here(world, tmp_path):
    model, corpus = world
    report = Heard()
    index.run(tiny_world.index(corpus, check=True), report)
    assert not report.notes
    shutil.rmtree(model)
    index.run(tiny_world.index(corpus, check=True), report)
    assert any(note.startswith("weights are not checked: ") for note in report.notes)


# --- what a corpus names ---


@pytest.mark.parametrize("named", [7, ["nano"], {"name": "nano"}, True, ""])
def test_a_model_that_is_no_name_is_refused(world, works, named, tmp_path):
    model, corpus = world
    file = corpus / "manifest.json"
    told = json.loads(file.read_text())
    told["checkpoint"]["model"] = named
    file.write_text(json.dumps(told))
    measured = BenchConfig(
        **tiny_world.MACHINE, dataset=str(works.questions), corpus=corpus, setting="corpus", limit=2
    )
    more = dataclasses.replace(
        tiny_world.compress(works.documents, model, corpus), out=None, into=corpus, append=True
    )
    for run in (
        lambda: list(ask.run(tiny_world.ask("Who?", corpus), Heard())),
        lambda: index.run(tiny_world.index(corpus), Heard()),
        lambda: bench.run(measured, Heard()),
        lambda: compress.run(dataclasses.replace(more, model=None), Heard()),
    ):
        with pytest.raises(
            ArtefactError, match=r"manifest\.json: key 'checkpoint\.model': "
        ) as error:
            run()
        assert "--model" in error.value.hint
    question(model, corpus)  # named by the user, it opens


def test_a_model_inside_the_corpus_has_to_be_named_by_the_user(world, tmp_path):
    model, corpus = world
    inside = corpus / "shards" / "model"
    shutil.copytree(model, inside)
    file = corpus / "manifest.json"
    told = json.loads(file.read_text())
    link = corpus / "link"
    link.symlink_to(model)
    by_steps = corpus / ".." / corpus.name / "shards" / "model"
    for named in (str(inside), str(by_steps), str(link)):
        told["checkpoint"]["model"] = named
        file.write_text(json.dumps(told))
        with pytest.raises(ArtefactError, match="lies in the corpus itself") as error:
            list(ask.run(tiny_world.ask("Who?", corpus), Heard()))
        assert f"--model {named}" in error.value.hint
        question(Path(named), corpus)
