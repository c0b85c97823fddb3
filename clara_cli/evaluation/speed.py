"""How fast a shape is on this machine: compressing, querying, answering from memory and from text
by the same backbone, and a training step. Each is done once unmeasured, then in alternating rounds;
figures are medians.

Prompts are drawn ids: 5 passages of 256 tokens, a question of 32. Tensor letters: N passages,
M memory tokens, D hidden.
"""

from __future__ import annotations

import gc
import random
import resource
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from clara_cli.bench_records import SpeedResult, SpeedTrain, Throughput, Writing
from clara_cli.core.batch import Batch
from clara_cli.core.losses import IGNORE
from clara_cli.core.model import ClaraModel
from clara_cli.core.stage_losses import read_memory_loss
from clara_cli.errors import is_out_of_memory
from clara_cli.evaluation.flops import forward_flops, head_flops, peak
from clara_cli.records import Progress, Report

PASSAGES, PASSAGE, QUESTION, INSTRUCTION, ANSWER = 5, 256, 32, 48, 32  # all but the first in tokens
Timed = Callable[[], dict[str, float]]
"""One thing measured: seconds by name."""


class Speed:
    """The timed_tasks that are timed, on one model at one memory size."""

    def __init__(self, model: ClaraModel, memory_tokens: int, seed: int) -> None:
        self.model, self.memory_tokens = model, memory_tokens
        self.batch = 32 if model.device.type == "cuda" else 4
        prompter = model.prompter
        special = {prompter.encode_id, prompter.separator_id, *prompter.memory_ids}
        special |= {*model.end_ids(), *prompter.tokenizer.all_special_ids}
        vocabulary = model.causal_lm.config.vocab_size
        self._ids = [i for i in range(min(vocabulary, len(model.table_VD))) if i not in special]
        self._drawn = random.Random(seed)

    def _draw(self, count: int) -> list[int]:
        return self._drawn.choices(self._ids, k=count)

    def _passage(self) -> list[int]:
        prompter = self.model.prompter
        ends = [i for i in (prompter.tokenizer.bos_token_id, prompter.tokenizer.eos_token_id) if i]
        return [prompter.encode_id, *ends[:1], *self._draw(PASSAGE), *ends[-1:]]

    def _memory_prompt(self) -> list[int]:
        prompter, named = self.model.prompter, self.model.prompter.memory_ids
        block = [*(named[i % len(named)] for i in range(self.memory_tokens)), prompter.separator_id]
        return [*self._draw(INSTRUCTION), *block * PASSAGES, *self._draw(QUESTION)]

    def timed_tasks(self) -> dict[str, Timed]:
        """What is measured, by name."""
        passages = [self._passage() for _ in range(self.batch)]
        question, memory_prompt = self._draw(QUESTION), self._memory_prompt()
        text_prompt = self._draw(INSTRUCTION + PASSAGES * PASSAGE + QUESTION)
        memory_ND = self._encode(passages[:1]).repeat(PASSAGES, 1, 1).flatten(0, 1)
        return {
            "compress": lambda: self._timed(lambda: self._encode(passages)),
            "query": lambda: self._timed(lambda: self._encode([question], self.model.query_role)),
            "memory": lambda: self._written(memory_prompt, memory_ND, "generator"),
            "text": lambda: self._written(text_prompt, None, None),
            "train": self._training(passages),
        }

    def lengths(self) -> dict[str, list[int]]:
        """Positions of the rows each thing reads."""
        passage = len(self._passage()) + self.memory_tokens
        step = INSTRUCTION + self.memory_tokens + 1 + ANSWER
        return {
            "compress": [passage] * self.batch,
            "train": [*[passage] * self.batch, *[step] * self.batch],
            "memory": [INSTRUCTION + PASSAGES * (self.memory_tokens + 1) + QUESTION],
            "text": [INSTRUCTION + PASSAGES * PASSAGE + QUESTION],
        }

    def _encode(self, rows: list[list[int]], role: str = "compressor") -> Tensor:
        with torch.inference_mode():
            return self.model.encode(rows, role, self.memory_tokens).memory_BMD

    def _timed(self, work: Callable[[], Any]) -> dict[str, float]:
        synchronise(self.model.device)
        began = time.perf_counter()
        work()
        synchronise(self.model.device)
        return {"all": time.perf_counter() - began}

    def _written(
        self, prompt: list[int], memory_ND: Tensor | None, role: str | None
    ) -> dict[str, float]:
        """Seconds to the first token, and of every one after it."""
        heard = _Clock(self.model.device)
        synchronise(self.model.device)
        began = time.perf_counter()
        self.model.generate([prompt], memory_ND, ANSWER, role, heard, min_new_tokens=ANSWER)
        first, last = heard.times[0], heard.times[-1]
        return {"first": first - began, "each": (last - first) / (len(heard.times) - 1)}

    def _training(self, passages: list[list[int]]) -> Timed:
        """A step of pretraining on whole passages, each with 32 tokens to answer."""
        named, batch = self.model.prompter.memory_ids, Batch(self.memory_tokens)
        block = [named[i % len(named)] for i in range(self.memory_tokens)]
        for row in passages:
            batch.add_passages([row])
            prompt = [*self._draw(INSTRUCTION), *block, self.model.prompter.separator_id]
            answer = self._draw(ANSWER)
            batch.rows.append(prompt + answer)
            batch.labels.append([IGNORE] * len(prompt) + answer)

        def step() -> dict[str, float]:
            self.model.train_only(("compressor", "generator"), memory=True)
            self.model.train()
            trained = list(self.model.trained_parameters().values())
            optimizer = torch.optim.AdamW(trained, lr=0.0)
            try:
                return self._timed(lambda: _step(self.model, batch, optimizer))
            finally:
                optimizer.zero_grad(set_to_none=True)
                self.model.train_only(())
                self.model.eval()

        return step


def _step(model: ClaraModel, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    read_memory_loss(model, batch, 0.1).loss.backward()
    optimizer.step()


class _Clock:
    """A streamer that notes when each token came."""

    def __init__(self, device: torch.device) -> None:
        self.times: list[float] = []
        self._device = device

    def put(self, ids: Tensor) -> None:
        """A token, or the prompt: with embeddings as input, no ids at all."""
        if ids.numel():
            synchronise(self._device)
            self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to do."""


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measure(speed: Speed, rounds: int, report: Report) -> dict[str, dict[str, float] | None]:
    """Medians by thing; None for one that memory did not suffice for, with a warning."""
    timed_tasks = speed.timed_tasks()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in timed_tasks}
    failed: set[str] = set()
    report.progress(Progress("speed", 0, rounds + 1, "rounds"))
    for number in range(rounds + 1):
        for name, thing in timed_tasks.items():
            if name in failed:
                continue
            try:
                seconds = thing()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failed.add(name)
                report.warn(f"{name}: out of memory, no figure")
                _give_back(speed.model.device)
                continue
            if number:  # the first round warms up
                found[name].append(seconds)
        report.progress(Progress("speed", number + 1, rounds + 1, "rounds"))
    return {
        name: None if name in failed else {k: median(s[k] for s in told) for k in told[0]}
        for name, told in found.items()
    }


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def run_speed(
    model: ClaraModel,
    named: tuple[str, str],
    ratio: int,
    memory_tokens: int,
    seed: int,
    report: Report,
) -> SpeedResult:
    """Measure a model; `named` is what it is called and where its weights come from."""
    speed = Speed(model, memory_tokens, seed)
    rounds = 5 if model.device.type == "cuda" else 3
    seconds = measure(speed, rounds, report)
    name, lengths = device_name(model.device), speed.lengths()
    limit = peak(name, model.dtype)
    flops = {thing: forward_flops(model.causal_lm, lengths[thing]) for thing in lengths}
    # frozen weights need no gradient of their own: backward costs what forward does
    flops["train"] = 2 * (flops["train"] + head_flops(model.causal_lm, speed.batch * ANSWER))
    once = {thing: told["all"] for thing, told in seconds.items() if told and "all" in told}
    return SpeedResult(
        shape=named[0],
        weights=named[1],
        device=name,
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=sum(
            p.numel() for n, p in model.causal_lm.named_parameters() if "lora_" not in n
        ),
        ratio=ratio,
        memory_tokens=memory_tokens,
        rounds=rounds,
        threads=torch.get_num_threads(),
        compress=_throughput(speed.batch, once.get("compress")),
        query_ms=_milli(once.get("query")),
        memory=_writing(lengths["memory"][0], seconds["memory"]),
        text=_writing(lengths["text"][0], seconds["text"]),
        train=_train(speed.batch, sum(lengths["train"]), once.get("train")),
        peak_memory_bytes=peak_memory(model.device),
        peak_flops=limit,
        mfu={
            thing: round(flops[thing] / once[thing] / limit, 4)
            if limit is not None and thing in once
            else None
            for thing in ("compress", "train")
        },
    )


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


def _throughput(batch: int, seconds: float | None) -> Throughput | None:
    if seconds is None:
        return None
    return Throughput(batch, round(batch / seconds, 3), round(batch * PASSAGE / seconds, 1))


def _writing(positions: int, seconds: dict[str, float] | None) -> Writing | None:
    if seconds is None:
        return None
    return Writing(positions, round(1000 * seconds["first"], 3), round(1 / seconds["each"], 2))


def _train(batch: int, positions: int, seconds: float | None) -> SpeedTrain | None:
    if seconds is None:
        return None
    return SpeedTrain(batch, round(1000 * seconds, 3), round(positions / seconds, 1))
