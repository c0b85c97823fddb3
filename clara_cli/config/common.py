"""What every command takes, and the checkpoint read where none is named."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from clara_cli.config.fields import MACHINE, MODEL, flag_name, option
from clara_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options every command takes."""

    seed: int = option("Seed of everything random.", 0, MACHINE)
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "Where to compute; auto takes the fastest there is.", "auto", MACHINE
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "Number format of the computation; auto: bfloat16 on a GPU that has it, else float32.",
        "auto",
        MACHINE,
    )

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            low, value = f.metadata.get("low"), getattr(self, f.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{flag_name(f)} is {value}", "it takes a finite number")
            if low is not None and value is not None and value < low:
                raise UsageError(f"{flag_name(f)} is {value}, the least is {low:g}")


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(Common):
    """Options of every command that opens a checkpoint: where its backbone comes from, and in
    which number format it is kept."""

    backbone: str | None = option(
        "Where the checkpoint's backbone comes from, instead of what it names.", None, MODEL
    )

    load_in: Literal["4bit", "8bit"] | None = option(
        "Quantise the backbone as it is loaded, by bitsandbytes (extra quant): a quarter or half "
        "of its memory in bfloat16.",
        None,
        MACHINE,
    )


@dataclass(frozen=True, kw_only=True)
class PlacementOptions(CheckpointOptions):
    """Options of commands whose backbone may lie on several devices too."""

    device_map: str | None = option(
        "Spread the backbone over GPUs, main memory and disk by accelerate: auto, sequential, or a "
        "JSON file of module names and devices.",
        None,
        MACHINE,
    )
