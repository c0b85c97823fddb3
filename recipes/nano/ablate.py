"""The paper's ablations on nano's backbone, one factor at a time, several seeds.

    python recipes/nano/ablate.py runs/nano-init runs/nano-data --dataset F.jsonl --out runs/ablate

Every run is pretrain -> train --stage e2e -> bench, by the product's own commands, differing from
"published" in one thing. Finished steps are not repeated: the same command goes on where it
stopped, and refuses others' results.
Prints a Markdown table: mean over seeds, and the mean difference from "published" with its 95 %
interval (Student's t over seeds, pairs of the same seed).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clara_cli.core.checkpoint import LoadOptions, load, save

RECIPES = Path(__file__).parent
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
MEASURES = ("f1", "em", "recall@1")
DECIDING = ("init", "data", "dataset", "ratio", "limit", "scp_steps", "e2e_steps")


@dataclass(frozen=True)
class Variant:
    """What differs from the published method."""

    says: str
    scp: tuple[str, ...] = ()
    e2e: tuple[str, ...] = ()
    fresh_reasoner: bool = False
    retrieved: bool = False


VARIANTS = {
    "published": Variant("CE + 0.1 MSE; exact mask; reasoner from the compressor; labelled pools"),
    "no-mse": Variant("MSE off", scp=("--set", "mse_weight=0.0")),
    "released-mask": Variant("the released penalty", e2e=("--set", "mask=released")),
    "random-reasoner": Variant("query reasoner not from SCP: fresh LoRA", fresh_reasoner=True),
    "retrieved-pools": Variant("pools by BM25, no label read", retrieved=True),
    "generator-only": Variant("query reasoner frozen", e2e=("--set", 'train_roles=["generator"]')),
}


def clara(words: Sequence[str | Path]) -> dict:
    """Run a command; its JSON result."""
    command = [sys.executable, "-m", "clara_cli", *map(str, words), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"clara {' '.join(map(str, words))}\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def with_fresh_reasoner(source: Path, out: Path) -> Path:
    """A copy of a checkpoint with a query reasoner of fresh LoRA."""
    if not out.exists():
        loaded = load(LoadOptions(str(source), device="cpu", dtype="float32"))
        loaded.model.add_role("query_reasoner", None)
        info = replace(loaded.info, roles=loaded.model.roles)
        bundled = loaded.path / "backbone"
        save(loaded.model, info, out / "checkpoint", bundled if bundled.is_dir() else None)
    return out


def run_scp(args: argparse.Namespace, variant: Variant, seed: int) -> Path:
    """Pretrain, or take what a variant with the same pretraining left."""
    out = args.out / f"scp-{'-'.join(variant.scp[1:]) or 'published'}-{seed}"
    words = ["pretrain", args.data / "pairs.jsonl", "--init", args.init, "--out", out]
    words += ["--recipe", RECIPES / "scp.toml", "--seed", seed, *variant.scp]
    clara(words + (["--steps", args.scp_steps] if args.scp_steps else []))
    return out


def run_e2e(args: argparse.Namespace, name: str, seed: int) -> Path:
    """Train a variant end to end on its pretraining."""
    variant, out = VARIANTS[name], args.out / f"e2e-{name}-{seed}"
    init = run_scp(args, variant, seed)
    if variant.fresh_reasoner:
        init = with_fresh_reasoner(init, args.out / f"fresh-{seed}")
    words = ["train", args.data / "questions.jsonl", "--stage", "e2e", "--init", init]
    words += ["--recipe", RECIPES / "e2e.toml", "--seed", seed, "--out", out, *variant.e2e]
    if variant.retrieved:
        corpus = args.out / f"pools-{seed}.clara"
        documents = args.data / "documents.jsonl"
        clara(["compress", documents, "--model", init, "--ratio", args.ratio, "--out", corpus])
        words += ["--pool", "retrieved", "--corpus", corpus, "--set", f"ratios=[{args.ratio}]"]
    steps = ["--steps", args.e2e_steps] if args.e2e_steps else []
    clara(words + steps)
    return out


def measure(args: argparse.Namespace, model: Path) -> dict[str, float]:
    """F1, exact match and recall@1 of the system `clara` on each question's own pool."""
    words = ["bench", "--dataset", args.dataset, "--setting", "oracle", "--system", "clara"]
    words += ["--ratio", args.ratio, "--limit", args.limit, "--model", model]
    (row,) = clara(words)["systems"]
    return {"f1": row["f1"], "em": row["em"], "recall@1": row["recall"]["1"]}


def difference(values: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Mean of the paired differences and half its 95 % interval; one pair: no interval (inf)."""
    gaps = [a - b for a, b in zip(values, base, strict=True)]
    mean = sum(gaps) / len(gaps)
    if len(gaps) < 2:
        return mean, math.inf
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1))
    return mean, T_975[len(gaps) - 1] * spread / math.sqrt(len(gaps))


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: a row per variant, percentages, differences from "published"."""
    lines = ["| variant | what differs | seeds | " + " | ".join(MEASURES) + " |"]
    lines.append("|" + "---|" * (3 + len(MEASURES)))
    for name, runs in found.items():
        cells = []
        for measure in MEASURES:
            values = [100 * run[measure] for run in runs]
            mean = sum(values) / len(values)
            if name == "published":
                cells.append(f"{mean:.1f}")
                continue
            base = [100 * run[measure] for run in found["published"][: len(values)]]
            gap, half = difference(values, base)
            cells.append(f"{mean:.1f} ({gap:+.1f} ± {half:.1f})")
        lines.append(f"| {name} | {VARIANTS[name].says} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


class Results:
    """`results.json`: the figures of every variant and seed so far, and what decides them."""

    def __init__(self, path: Path, deciding: dict[str, str]) -> None:
        self.path, self.deciding, self.runs = path, deciding, {}
        if not path.exists():
            return
        found = json.loads(path.read_text())
        for name, value in deciding.items():
            if found["deciding"][name] != value:
                raise SystemExit(
                    f"{path}: made with {name} = {found['deciding'][name]}, this command has "
                    f"{value}; use another --out"
                )
        self.runs = found["runs"]

    def add(self, key: str, figures: dict[str, float]) -> None:
        """Keep one run's figures; the file is replaced at once."""
        self.runs[key] = figures
        text = json.dumps({"deciding": self.deciding, "runs": self.runs}, indent=1)
        work = self.path.with_suffix(".tmp")
        work.write_text(text + "\n")
        work.replace(self.path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("init", type=Path, help="the exported backbone (export.py)")
    add("data", type=Path, help="the roles' training files (role_data.py)")
    add("--dataset", required=True, help="questions with pools that bench reads")
    add("--out", type=Path, required=True)
    add("--variants", default=",".join(VARIANTS), help="comma-separated; published comes first")
    add("--seeds", type=int, default=3)
    add("--ratio", type=int, default=16)
    add("--limit", type=int, default=300, help="questions of the dataset")
    add("--scp-steps", type=int, help="instead of the recipe's")
    add("--e2e-steps", type=int, help="instead of the recipe's")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    deciding = {name: str(getattr(args, name)) for name in DECIDING}
    results = Results(args.out / "results.json", deciding)
    names = list(dict.fromkeys(["published", *args.variants.split(",")]))
    for seed in range(args.seeds):
        for name in names:
            key = f"{name} {seed}"
            if key not in results.runs:
                results.add(key, measure(args, run_e2e(args, name, seed)))
                print(key, results.runs[key], file=sys.stderr, flush=True)
    print(table({n: [results.runs[f"{n} {seed}"] for seed in range(args.seeds)] for n in names}))


if __name__ == "__main__":
    main()
