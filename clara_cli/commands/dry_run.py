"""`--dry-run`: the memory a command needs, beside what the device has; nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clara_cli.answering.passage_search import AskOptions
from clara_cli.config import AskConfig, CompressConfig, LearnConfig
from clara_cli.config.common import PlacementOptions
from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import pick_device, pick_dtype
from clara_cli.core.checkpoint import LoadOptions
from clara_cli.core.memory_estimate import Plan, fresh_plan, need, plan_model, read_plan
from clara_cli.records import MemoryNeed, Report

GB = 1e9


def memory_need(
    config: PlacementOptions,
    plan: Plan,
    report: Report,
    positions: int = 0,
    trained: Sequence[str] = (),
    trains_memory: bool = False,
) -> MemoryNeed:
    """The need of a plan, with what is free on the device said beside it."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    causal_lm = plan_model(plan)
    memory = need(causal_lm, plan, dtype, config.load_in, positions, trained, trains_memory)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        report.note(
            f"{free / GB:.1f} GB of the GPU are free, {memory.bytes / GB:.1f} GB are needed"
        )
    report.note("computed from configs: activations and workspace come on top")
    return memory


def need_of_answering(
    config: AskConfig, model: str, ratio: int | None, report: Report
) -> MemoryNeed:
    """What `ask` needs: the longest question, its passages and the longest answer in the cache."""
    plan = read_plan(LoadOptions.of(config, model, ratio))
    read = (config.top_k or AskOptions.top_k) * (plan.memory_tokens + 1)
    positions = read + plan.passage_tokens + config.max_new_tokens
    return memory_need(config, plan, report, positions)


def need_of_compressing(config: CompressConfig, model: str, report: Report) -> MemoryNeed:
    """What `compress` needs; no cache is kept."""
    return memory_need(config, read_plan(LoadOptions.of(config, model, config.ratio)), report)


def need_of_training(
    config: LearnConfig, init: str | None, roles: Sequence[str], fresh: LoraSettings, report: Report
) -> MemoryNeed:
    """What training these roles needs, those that the checkpoint lacks included."""
    if init is not None:
        plan = read_plan(LoadOptions.of(config, init, config.named_ratio))
        there = tuple(dict.fromkeys([*plan.roles, *roles]))
        plan = Plan(**{**vars(plan), "roles": there})
    else:
        tokens = getattr(config, "passage_tokens", None) or 256
        memory_tokens = tokens // min(config.ratios or (16,))
        plan = fresh_plan(str(config.backbone), tokens, memory_tokens, fresh)
    return memory_need(config, plan, report, 0, roles, config.train_memory)
