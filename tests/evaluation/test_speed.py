"""bench --speed on a tiny shape: what is measured, counted, refused and left as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from clara_cli.cli import app
from clara_cli.commands import bench
from clara_cli.config import BenchConfig
from clara_cli.core import random_backbones
from clara_cli.errors import UsageError
from clara_cli.evaluation import flops, speed

TINY = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
KEYS = [
    *["shape", "weights", "device", "dtype", "parameters", "ratio", "memory_tokens", "rounds"],
    *["threads", "compress", "query_ms", "memory", "text", "train", "peak_memory_bytes"],
    *["peak_flops", "mfu"],
]
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48  # q, k and v, o, the three of the MLP


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random_backbones.SHAPES, "qwen3-0.6b", ("llama", TINY))


def model() -> Any:
    return random_backbones.random_model("qwen3-0.6b", torch.device("cpu"), torch.float32, 0)


def test_everything_is_measured(tiny: None, tmp_path: Path) -> None:
    out = tmp_path / "speed"
    words = ["bench", "--speed", "--shape", "qwen3-0.6b", "--random-weights", "--device", "cpu"]
    said = CliRunner().invoke(app.app, [*words, "--ratio", "32", "--out", str(out), "--json"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout.splitlines()[-1])
    assert list(found) == KEYS
    assert (found["ratio"], found["memory_tokens"], found["rounds"]) == (32, 8, 3)
    assert found["parameters"] == 400 * 32 + 2 * (LAYER + 2 * 32) + 32
    positions = [found[key]["prompt_positions"] for key in ("memory", "text")]
    assert positions == [48 + 5 * 9 + 32, 48 + 5 * 256 + 32]
    compress, train = found["compress"], found["train"]
    tokens = 256 * compress["passages_per_second"]
    assert compress["tokens_per_second"] == pytest.approx(tokens, 0.01)
    computed = train["batch"] * (259 + 8 + 48 + 9 + 32)
    assert train["tokens_per_second"] == pytest.approx(1000 * computed / train["step_ms"], 0.01)
    assert min(found["query_ms"], *(found[k]["first_token_ms"] for k in ("memory", "text"))) > 0
    assert found["peak_memory_bytes"] > 1e7
    assert (found["peak_flops"], found["mfu"]) == (None, {"compress": None, "train": None})
    assert json.loads((out / "speed.json").read_text()) | {"out": None} == found | {"out": None}
    shown = CliRunner().invoke(app.app, [*words, "--quiet"])
    assert max(map(len, shown.stdout.splitlines())) <= 100 and "training step" in shown.stdout


def test_the_model_is_left_as_it_was(tiny: None) -> None:
    made = model()
    before = {name: p.clone() for name, p in made.named_parameters()}
    speed.Speed(made, 8, 0).timed_tasks()["train"]()
    assert not made.training and made.trained_parameters() == {}
    assert all(p.grad is None for p in made.parameters())
    assert all(torch.equal(before[name], p) for name, p in made.named_parameters())


def test_an_answer_has_all_its_tokens(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends before 32 tokens, so that both ways write the same number."""
    made = model()
    monkeypatch.setattr(made, "end_ids", lambda: list(range(400)))
    clocks: list[Any] = []
    kept = speed._Clock

    def clock(device: torch.device) -> Any:
        clocks.append(kept(device))
        return clocks[-1]

    monkeypatch.setattr(speed, "_Clock", clock)
    timed_tasks = speed.Speed(made, 8, 0)
    monkeypatch.setattr(made, "end_ids", lambda: [5])
    timed_tasks._written([6, 7], None, None)
    assert [len(c.times) for c in clocks] == [32]


def test_flops_by_hand(tiny: None) -> None:
    causal_lm = model().causal_lm
    rows = [7, 5]
    attention = 2 * 2 * 32 * (7 * 7 + 5 * 5)  # 2 layers of 32 channels
    assert flops.forward_flops(causal_lm, rows) == 2 * 2 * LAYER * 12 + attention
    assert flops.head_flops(causal_lm, 3) == 2 * 400 * 32 * 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla V100-PCIE-16GB", 112e12),
        ("NVIDIA GeForce RTX 3060", None),
        ("cpu", None),
    ],
)
def test_peaks_by_name(name: str, expected: float | None) -> None:
    assert flops.peak(name, torch.bfloat16) == expected
    assert flops.peak(name, torch.float32) is None


def test_utilisation_where_the_peak_is_known(
    tiny: None, report: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "peak", lambda name, dtype: 1e12)
    fixed = {name: {"all": 0.5, "first": 0.5, "each": 0.1} for name in
             ("compress", "query", "memory", "text", "train")}  # fmt: skip
    monkeypatch.setattr(speed, "measure", lambda *args: fixed)
    made = model()
    done = speed.run_speed(made, ("x", "y"), 32, 8, 0, report)
    row, step = 259 + 8, 48 + 9 + 32

    def forward(lengths: list[int]) -> float:
        return 4 * LAYER * sum(lengths) + 128 * sum(t * t for t in lengths)

    assert done.mfu["compress"] == round(forward([row] * 4) / 0.5 / 1e12, 4)
    trained = 2 * (forward([row] * 4 + [step] * 4) + 2 * 400 * 32 * 4 * 32)
    assert done.mfu["train"] == round(trained / 0.5 / 1e12, 4) > 0


def test_what_memory_does_not_suffice_for_has_no_figure(
    tiny: None, report: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(speed, "_step", scarce)
    done = speed.run_speed(model(), ("x", "y"), 32, 8, 0, report)
    assert done.train is None and done.compress is not None
    assert [w for w in report.warnings if "train: out of memory" in w] == report.warnings


@pytest.mark.parametrize(
    ("shape", "billions"),
    [("mistral-7b", 7.242), ("phi-4-mini", 3.836), ("qwen3-0.6b", 0.596), ("nano", 0.0033)],
)
def test_shapes_have_the_published_sizes(shape: str, billions: float) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = random_backbones.SHAPES[shape]
    made = AutoConfig.for_model(kind, **settings, pad_token_id=0)
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(made)
    count = sum(p.numel() for p in causal_lm.parameters())
    assert count / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_built_tokenizer_reads_any_text() -> None:
    tokenizer = random_backbones.byte_tokenizer()
    text = "Ann, é and 東京\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 256 + 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"speed": True, "dataset": "nq"}, "--dataset and --speed"),
        ({"shape": "nano"}, "go with --speed"),
        ({"compare": ("a", "b"), "out": Path("c")}, "--compare with --out"),
        ({"speed": True, "nproc": 2}, "--nproc goes with --dataset"),
        ({"speed": True, "random_weights": True}, "of which shape"),
        ({"speed": True, "shape": "mistral-7b"}, "not bundled"),
        ({"speed": True, "shape": "nano", "model": "x"}, "--shape and --model"),
    ],
)
def test_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        BenchConfig(**given).check()
    assert caught.value.hint


@pytest.mark.parametrize("ratio", ["4,16", "x", "1000", "2"])
def test_one_ratio_is_measured(ratio: str, tiny: None, report: Any) -> None:
    config = BenchConfig(speed=True, shape="qwen3-0.6b", random_weights=True, ratio=ratio)
    with pytest.raises(UsageError, match="--ratio"):
        bench.run(config, report)
