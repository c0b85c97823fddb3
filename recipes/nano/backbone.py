"""Trains nano's backbone from scratch: one set of weights that reads, compresses and answers.

All parameters are trained together, without adapters, on five losses at once:
  list      every fact of a passage as "Question: ... Answer: ..." lines, read from memory tokens
  repeat    the passage itself, read from memory tokens (the paraphrase task of SCP)
  answer    one question over 1 to 5 memories of which one holds the answer
  text      the same with the passages as text (language modelling on the passage included)
  slots     every word of the passage should be likely under some memory slot (early training only:
            without it memory goes unused for thousands of steps)
  search    InfoNCE between the question's memory and its passage's, flattened cosine
The three LoRA roles are trained afterwards by `clara pretrain` and `clara train`.

    python recipes/nano/backbone.py --minutes 75 --out runs/nano-backbone [--real FILE.jsonl.xz]

The learning rate follows the share of the budget used; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tokenizer as nano_tokenizer
import torch
import world
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# B batch, L passage tokens, M memory tokens, T decoder tokens, D hidden, V vocabulary
IGNORE = -100
MEMORY = -1  # marks a memory position in a row of token ids
SEPARATOR = -2  # the separator after each passage's memory
ENCODE = -3  # opens a text to compress
COPY_MATCH, COPY_GAIN = 0.6, 0.1  # strength of the copying initialisation
TEXT_FIRST = 0.12  # share of the budget in which only text is read and slots filled
SLOTS_UNTIL = 0.5  # share of the budget with the slots loss
FEW, MANY = (0, 0, 0, 0, 1, 2, 4), (0, 1, 2, 4, 4, 4)  # other passages beside the right one
MANY_FROM = 0.7  # share of the budget from which most prompts hold several passages
SLOTS = (8, 8, 16, 16, 16, 16, 16, 16, 16, 32, 32, 64)  # M of a step is drawn from these
SCALE = 0.15  # of embeddings, memory tokens and final norm at the start


@dataclass(frozen=True)
class Example:
    """A passage with its question-answer pairs."""

    title: str
    text: str
    pairs: list[tuple[str, str]]


@dataclass
class Progress:
    """What a resumed run needs beside tensors."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    log: list[dict] = field(default_factory=list)


class Memory(torch.nn.Module):
    """The memory tokens and the two marker rows, parameters of their own."""

    def __init__(self, slots: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.slots_MD = torch.nn.Parameter(torch.randn(slots, hidden) * scale)
        self.markers_2D = torch.nn.Parameter(torch.randn(2, hidden) * scale)


def build_model(vocab: int, hidden: int, layers: int) -> LlamaForCausalLM:
    """A small Llama whose final norm and embeddings start at one scale, so that a hidden state
    that predicts a word can be read back as that word's embedding."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 3 // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        rope_theta=10_000.0,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=SCALE)
    torch.nn.init.constant_(model.model.norm.weight, SCALE)
    for layer in model.model.layers:
        begin_as_copying(layer.self_attn, hidden)
    return model


@torch.no_grad()
def begin_as_copying(attention: torch.nn.Module, hidden: int) -> None:
    """Mimetic initialisation (Trockman and Kolter, 2023): a position first attends to positions
    like itself (query = key projection) and copies what it attends to (output = value transposed),
    so that reading and copying need not be found by chance."""
    for pair, gain in (("qk", COPY_MATCH), ("vo", COPY_GAIN**0.5)):
        basis = torch.linalg.qr(torch.randn(hidden, hidden)).Q
        first, second = (getattr(attention, f"{name}_proj").weight for name in pair)
        first.mul_(0.5).add_(basis, alpha=gain)
        second.mul_(0.5).add_(basis if pair == "qk" else basis.T, alpha=gain)


class Trainer:
    """Holds the model and turns examples into losses."""

    def __init__(
        self, model: LlamaForCausalLM, memory: Memory, tok: PreTrainedTokenizerFast, seed: int
    ) -> None:
        self.model, self.memory, self.tok = model, memory, tok
        self.rng = random.Random(seed)
        self.user, self.assistant = tok.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
        self.cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        return self.tok(text, add_special_tokens=False)["input_ids"]

    def constant(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.ids(text)
        return self.cache[text]

    def embed(self, rows: list[list[int]], memories: list[Tensor] | None = None) -> Tensor:
        """Right-padded input embeddings (B, T, D); memory positions are filled in order."""
        width = max(map(len, rows))
        ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        embeds_BTD = self.model.model.embed_tokens(ids_BT.clamp(min=0))
        for code, row in ((SEPARATOR, 0), (ENCODE, 1)):
            mask_BT = ids_BT == code
            embeds_BTD = torch.where(mask_BT[..., None], self.memory.markers_2D[row], embeds_BTD)
        if memories:
            values = torch.cat([m.reshape(-1, m.shape[-1]) for m in memories])
            index = (ids_BT == MEMORY).nonzero(as_tuple=True)
            embeds_BTD = embeds_BTD.index_put(index, values)
        return embeds_BTD

    def hidden(self, embeds_BTD: Tensor) -> Tensor:
        """Causal, right-padded: no real position ever sees a pad, so no mask is needed."""
        return self.model.model(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state

    def compress(self, texts: list[list[int]], slots: int) -> Tensor:
        """memory (B, M, D) of tokenised texts."""
        rows = [[ENCODE, 1, *ids, 2] + [MEMORY] * slots for ids in texts]
        slot_rows = [self.memory.slots_MD[:slots]] * len(rows)
        hidden_BTD = self.hidden(self.embed(rows, slot_rows))
        starts = torch.tensor([len(row) - slots for row in rows])
        index_BM = starts[:, None] + torch.arange(slots)
        return hidden_BTD.gather(1, index_BM[..., None].expand(-1, -1, hidden_BTD.shape[-1]))

    def nll(
        self,
        rows: list[list[int]],
        labels: list[list[int]],
        memories: list[Tensor] | None,
        weights=None,
    ) -> Tensor:
        """Mean negative log-likelihood over labelled tokens; logits only where a label stands."""
        hidden_BTD = self.hidden(self.embed(rows, memories))
        width = hidden_BTD.shape[1]
        labels_BT = torch.tensor([row + [IGNORE] * (width - len(row)) for row in labels])
        wanted = labels_BT[:, 1:] != IGNORE
        logits = self.model.lm_head(hidden_BTD[:, :-1][wanted])
        return F.cross_entropy(logits, labels_BT[:, 1:][wanted])

    def background(self, count: int, slots: int) -> list[int]:
        """The opening of a prompt over `count` memories."""
        one = [MEMORY] * slots + [SEPARATOR]
        return [1, self.user, *self.constant("Background:\n"), *(one * count)]

    def add_pairs(
        self, prompts: list[list[int]], pairs: list[list[tuple[str, str]]]
    ) -> tuple[list, list]:
        """Prompts continued by up to six "Question: ... Answer: ..." lines, answers labelled."""
        rows, labels = [], []
        for prompt, available in zip(prompts, pairs, strict=True):
            row, label = list(prompt), [IGNORE] * len(prompt)
            chosen = self.rng.sample(available, k=min(len(available), 6))
            for i, (question, answer) in enumerate(chosen):
                last = i == len(chosen) - 1
                asked = self.ids(f"Question: {question}\nAnswer:")
                said = self.ids(f" {answer}") + ([2] if last else self.constant("\n"))
                row += asked + said
                label += [IGNORE] * len(asked) + said
            rows.append(row)
            labels.append(label)
        return rows, labels

    def repeat_rows(self, texts: list[list[int]], slots: int) -> tuple[list, list]:
        rows, labels = [], []
        for ids in texts:
            prompt = (
                self.background(1, slots)
                + self.constant(" is a paraphrase of what?")
                + [self.assistant]
            )
            rows.append(prompt + ids + [2])
            labels.append([IGNORE] * len(prompt) + ids + [2])
        return rows, labels

    def question_tail(self, example: Example) -> tuple[str, list[int], list[int]]:
        question, answer = self.rng.choice(example.pairs)
        return (
            question,
            self.ids(f"\n\nQuestion:{question}") + [self.assistant],
            self.ids(f" {answer}") + [2],
        )

    def step(self, examples: list[Example], slots: int, share: float) -> dict[str, Tensor]:
        """The losses of one batch; `share` of the budget is used up."""
        texts = [
            self.ids(f"{e.title}\n{e.text}" if e.title and self.rng.random() < 0.6 else e.text)[
                :254
            ]
            for e in examples
        ]
        count = len(examples)
        memory_BMD = self.compress(texts, slots)
        losses = {}
        if share < SLOTS_UNTIL:
            losses["slots"] = self.slot_loss(memory_BMD, texts)
        losses["text"] = self.text_loss(
            examples, texts, count if share < TEXT_FIRST else count // 4
        )
        if share < TEXT_FIRST:
            return losses
        extra = (0,) if share < 0.3 or slots >= 32 else FEW if share < MANY_FROM else MANY
        groups = [self.group(i, count, extra) for i in range(count)]
        memories = [memory_BMD[j] for group in groups for j in group]
        prompts = [self.background(len(group), slots) + [self.assistant] for group in groups]
        asked = [[pair for i in group for pair in examples[i].pairs] for group in groups]
        losses["list"] = self.nll(*self.add_pairs(prompts, asked), memories)
        repeated = [ids[:96] for ids in texts[: count // 4 if share < 0.5 else count // 8]]
        losses["repeat"] = self.nll(
            *self.repeat_rows(repeated, slots), list(memory_BMD[: len(repeated)])
        )
        losses["answer"] = self.answer_loss(
            examples[: count // 4 if share < 0.5 else count], memory_BMD, share
        )
        if share > 0.25:
            losses["search"] = self.search_loss(examples, memory_BMD)
        return losses

    def group(self, right: int, count: int, extra: tuple[int, ...]) -> list[int]:
        """The right passage among some others of the batch, shuffled."""
        chosen = [right] + self.rng.sample(
            [j for j in range(count) if j != right], k=self.rng.choice(extra)
        )
        self.rng.shuffle(chosen)
        return chosen

    def answer_loss(self, examples: list[Example], memory_BMD: Tensor, share: float) -> Tensor:
        """One question over up to five memories, in the prompt of the instruct stage."""
        rows, labels, memories = [], [], []
        for i, example in enumerate(examples):
            chosen = self.group(i, len(memory_BMD), (0, 1, 2, 4, 4) if share < MANY_FROM else MANY)
            _, asked, said = self.question_tail(example)
            prompt = self.background(len(chosen), memory_BMD.shape[1]) + asked
            rows.append(prompt + said)
            labels.append([IGNORE] * len(prompt) + said)
            memories += [memory_BMD[j] for j in chosen]
        return self.nll(rows, labels, memories)

    def search_loss(self, examples: list[Example], memory_BMD: Tensor) -> Tensor:
        """InfoNCE of each question against the batch's passages."""
        questions = [self.ids(self.rng.choice(e.pairs)[0])[:60] for e in examples]
        query_BMD = self.compress(questions, memory_BMD.shape[1])
        score_BB = (
            F.normalize(query_BMD.flatten(1), dim=-1) @ F.normalize(memory_BMD.flatten(1), dim=-1).T
        )
        return F.cross_entropy(score_BB / 0.05, torch.arange(len(examples)))

    def slot_loss(self, memory_BMD: Tensor, texts: list[list[int]]) -> Tensor:
        """-log of the mean over slots of each word's probability, mean over the passage's words."""
        logp_BMV = self.model.lm_head(memory_BMD).log_softmax(-1)
        mixed_BV = torch.logsumexp(logp_BMV, dim=1) - math.log(memory_BMD.shape[1])
        total = [-mixed_BV[i][torch.tensor(sorted(set(ids)))].mean() for i, ids in enumerate(texts)]
        return torch.stack(total).mean()

    def text_loss(self, examples: list[Example], texts: list[list[int]], count: int) -> Tensor:
        """The list task with the passages as text, for `count` of the examples."""
        groups = [self.group(i, len(texts), (0, 0, 1, 2)) for i in range(count)]
        rows = []
        for indices in groups:
            row = [1, self.user, *self.constant("Background:\n")]
            for j in indices:
                row += texts[j] + self.constant("\n\n")
            rows.append(row + [self.assistant])
        asked = [[pair for i in group for pair in examples[i].pairs] for group in groups]
        return self.nll(*self.add_pairs(rows, asked), None)

    @torch.no_grad()
    def exact_match(
        self, examples: list[Example], slots: int, passages: int, seed: int = 1, text: bool = False
    ) -> float:
        """Greedy answers over `passages` memories (or texts), one of them the right one."""
        rng, right = random.Random(seed), 0
        encoded = [self.ids(f"{e.title}\n{e.text}") for e in examples]
        memory_BMD = self.compress(encoded, slots)
        for i, example in enumerate(examples):
            question, answer = rng.choice(example.pairs)
            chosen = [i] + rng.sample([j for j in range(len(examples)) if j != i], k=passages - 1)
            rng.shuffle(chosen)
            row = self.background(0 if text else len(chosen), slots)
            for j in chosen if text else []:
                row += encoded[j] + self.constant("\n\n")
            row = row + self.ids(f"\n\nQuestion:{question}") + [self.assistant]
            said: list[int] = []
            while len(said) < 10 and (not said or said[-1] != 2):
                memories = None if text else [memory_BMD[j] for j in chosen]
                hidden_BTD = self.hidden(self.embed([row + said], memories))
                said.append(int(self.model.lm_head(hidden_BTD[0, -1]).argmax()))
            right += self.tok.decode(said, skip_special_tokens=True).strip() == answer
        return right / len(examples)

    @torch.no_grad()
    def recall(self, examples: list[Example], slots: int, seed: int = 1) -> float:
        """Share of questions whose passage is nearest by flattened cosine."""
        rng = random.Random(seed)
        memory_BMD = self.compress([self.ids(f"{e.title}\n{e.text}") for e in examples], slots)
        query_BMD = self.compress([self.ids(rng.choice(e.pairs)[0]) for e in examples], slots)
        score_BB = (
            F.normalize(query_BMD.flatten(1), dim=-1) @ F.normalize(memory_BMD.flatten(1), dim=-1).T
        )
        return (score_BB.argmax(-1) == torch.arange(len(examples))).float().mean().item()


def invented(rng: random.Random, held_out: bool = False) -> Example:
    """One invented entity as an example, a phrasing of each question picked at random."""
    entry = world.entry(rng, held_out)
    return Example(
        entry.title, entry.text, [(rng.choice(f.questions), f.value) for f in entry.facts]
    )


def real_examples(path: Path | None) -> list[Example]:
    """Passages with questions from a SQuAD-like JSON-lines file (.xz)."""
    if path is None:
        return []
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [
        Example(r["title"], r["text"], [(q["question"].strip(), q["answers"][0]) for q in r["qas"]])
        for r in records
        if r["qas"] and len(r["text"]) < 700
    ]


def rate(share: float, warmup: float = 0.02, hold: float = 0.55) -> float:
    """Learning-rate factor: linear warm-up, flat, then linear to 2 %."""
    if share < warmup:
        return share / warmup
    return 1.0 if share < hold else max(0.02, 1.0 - (share - hold) / (1.0 - hold))


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by five Newton-Schulz steps, in float32 (torch's own works in
    bfloat16, which a CPU without AMX emulates: three times slower here). Keller Jordan, 2024."""

    def __init__(self, params, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(state["momentum"], group["momentum"]))
                p.mul_(1 - group["lr"] * 0.01).add_(
                    update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5
                )


def orthogonal(grad: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, approximately."""
    x = grad.T if grad.shape[0] > grad.shape[1] else grad
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.T if grad.shape[0] > grad.shape[1] else x


def optimizers(model: LlamaForCausalLM, memory: Memory, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim == 1] + [
        model.model.embed_tokens.weight,
        *memory.parameters(),
    ]
    return [
        Muon(matrices, lr=lr),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def save(path: Path, trainer: Trainer, opts: list, progress: Progress) -> None:
    state = {
        "model": trainer.model.state_dict(),
        "memory": trainer.memory.state_dict(),
        "opts": [o.state_dict() for o in opts],
        "progress": asdict(progress),
        "rng": trainer.rng.getstate(),
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


WEIGHTS = {"list": 1.0, "repeat": 0.5, "answer": 1.0, "text": 0.5, "slots": 0.5, "search": 0.2}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--steps", type=int, help="stop after so many steps, whatever time is left")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--real", type=Path, help="a file of real passages with questions, one batch in twenty"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    real = real_examples(args.real)
    if (args.out / "tokenizer.json").exists():
        tok = PreTrainedTokenizerFast.from_pretrained(args.out)
    else:
        tok = nano_tokenizer.train((e.text for e in real[:6000]), args.vocab, args.seed)
        tok.save_pretrained(args.out)
    model, memory = build_model(len(tok), args.hidden, args.layers), Memory(64, args.hidden, SCALE)
    trainer = Trainer(model, memory, tok, args.seed)
    opts = optimizers(model, memory, args.lr)
    progress = Progress()
    last = args.out / "last.pt"
    if last.exists():
        state = torch.load(last, weights_only=True)
        model.load_state_dict(state["model"])
        memory.load_state_dict(state["memory"])
        for opt, saved in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        progress = Progress(**state["progress"])
        trainer.rng.setstate(state["rng"])
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{size:.2f} M parameters, vocabulary {len(tok)}", flush=True)
    checks = [invented(random.Random(1000 + i), held_out=True) for i in range(100)]
    started, mark, kept = time.monotonic() - progress.seconds, time.monotonic(), time.monotonic()
    means: dict[str, float] = {}
    while progress.seconds < args.minutes * 60 and progress.step != args.steps:
        share = progress.seconds / (args.minutes * 60)
        use_real = bool(real) and trainer.rng.random() < 0.05
        batch = (
            trainer.rng.sample(real, args.batch // 2)
            if use_real
            else [invented(trainer.rng) for _ in range(args.batch)]
        )
        slots = trainer.rng.choice(SLOTS)
        losses = trainer.step(batch, slots, share)
        loss = sum(WEIGHTS[name] * value for name, value in losses.items())
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), *memory.parameters()], 1.0)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = args.lr * rate(share)
            opt.step()
            opt.zero_grad(set_to_none=True)
        progress.step += 1
        progress.seconds = time.monotonic() - started
        if not use_real:
            for name, value in losses.items():
                means[name] = 0.95 * means.get(name, value.item()) + 0.05 * value.item()
        if progress.step % 25 == 0:
            parts = " ".join(f"{k} {v:.3f}" for k, v in means.items())
            minutes, lr = progress.seconds / 60, args.lr * rate(share)
            print(f"step {progress.step} {minutes:.1f} min lr {lr:.2e} {parts}", flush=True)
        if time.monotonic() - mark > 300:
            model.eval()
            scores = {
                "one@16": trainer.exact_match(checks, 16, 1),
                "five@16": trainer.exact_match(checks, 16, 5),
                "one@64": trainer.exact_match(checks, 64, 1),
                "text": trainer.exact_match(checks[:50], 16, 1, text=True),
                "recall@16": trainer.recall(checks, 16),
            }
            model.train()
            progress.log.append(
                {"step": progress.step, "seconds": progress.seconds, **scores, **means}
            )
            print("held out", {k: round(v, 3) for k, v in scores.items()}, flush=True)
            mark = time.monotonic()
        if time.monotonic() - kept > 240:
            save(last, trainer, opts, progress)
            kept = time.monotonic()
    save(last, trainer, opts, progress)
    (args.out / "log.json").write_text(json.dumps(progress.log, indent=1))


if __name__ == "__main__":
    main()
