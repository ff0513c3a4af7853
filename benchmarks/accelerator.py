"""Pretraining on one GPU: tokens a second, MFU and time to a loss, this course's step against BERT and ModernBERT.

    python -m benchmarks.accelerator pack                   # the factbook's tokens into build/bench/tokens.safetensors,
                                                            # on a machine that has the corpus installed
    python -m benchmarks.accelerator run --size 30m         # on a GPU, from that file: five minutes on an H100
    python -m benchmarks.accelerator run --size 110m
    python -m benchmarks.accelerator parts --size 110m      # what each part of this course's step brings: 90 seconds
    python -m benchmarks.accelerator run --size tiny --device cpu --seconds 2 --trial-seconds 1    # does it run at all?

The GPU's machine needs torch, transformers, numpy, safetensors and psutil, this repository, and the file of tokens,
which may be packed elsewhere and copied. The figures are written anew after each contestant, so a run that is cut off
leaves what it had. To keep what a rented machine has measured, copy back ``data/measured/accelerator_<size>.json`` and
``data/measured/SHA256SUMS``, which has its hash.

    bert         BertForMaskedLM, no dropout, logits everywhere
    modernbert   ModernBertForMaskedLM, full attention, ``sparse_prediction``
    course rows  this course's step (``sslcourse.train.gpu_step``), every token reads its whole row, as the two above
    course       the same, documents in a row kept apart by FlexAttention

All have as many weights, bf16 by autocast, rows of 512 tokens packed without padding, the same number of masks, drawn
on the device by one function, layers, head and loss compiled, attention by whichever library is faster on the device, a
fused optimiser, four learning rates and two sizes of batch to choose from. The peers therefore have a better input
pipeline here than with ``Trainer``. What differs is this course's model code; that its layers hand on bf16 to each
other; that its passes are recorded as a CUDA graph (ModernBERT's cannot be, its sparse head has other shapes at each
step; BERT's are not); the optimiser, Muon; and where weights start, ``start="neighbours"``, whose seconds count. The
clock stands still while a loss is looked at, and starts behind the compiler. Before anything is timed, recorded
gradients are held against plain ones. The corpus is small for a GPU, about a million tokens: all read it many times, so
a loss is the lowest that was seen. Writes ``data/measured/accelerator_<size>.json`` with device, versions, date and
command. Let nothing else run.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from benchmarks import busy_cores, store, texts
from benchmarks.pretraining import report
from sslcourse.data import tokenizer as wordpiece
from sslcourse.data.ignored import IGNORE
from sslcourse.measure import hardware, timing
from sslcourse.models import initial_weights
from sslcourse.models.encoder import EncoderForMaskedLM
from sslcourse.studies.ladder import Rung, flops_per_token, time_to
from sslcourse.train import gpu_step
from sslcourse.train.gpu_step import DeviceTape
from sslcourse.train.optimizers import make_optimizer
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import learning_rate

TOKENS = Path("build/bench/tokens.safetensors")
MASK_RATE, HELD_OUT_RATE = 0.3, 0.15
HELD_OUT_BATCHES = 4
ROUNDS, ROUND_STEPS = 7, 10
RATES = {"adamw": (1.25e-4, 2.5e-4, 5e-4, 1e-3), "muon": (1e-3, 2e-3, 4e-3, 8e-3)}  # Muon bears eight times the rate
RECORDING_ERROR = 1e-3  # bf16 has 8 bits: half a bit of each product is 2e-3, of sums over thousands much less
SMALLEST_PART = 1e-3  # of all gradients together: one that is smaller is held to what this part may be off
PARTS = (1, 4)  # of a full batch, that are tried with each rate: small ones learn more from a token, and cost more


@dataclass(frozen=True)
class Size:
    """Of an encoder; a gated MLP has ``inner`` columns, a plain one half as many again, and as many weights."""

    hidden: int
    inner: int
    layers: int
    heads: int
    length: int = 512
    rows: int = 64


SIZES = {
    "30m": Size(768, 2048, 4, 12),  # wide: in a first trial of `30m-deep` ModernBERT had 22 % MFU
    "30m-deep": Size(384, 1024, 16, 6),
    "110m": Size(768, 2048, 15, 12),
    "tiny": Size(32, 64, 2, 2, length=32, rows=4),
}


@dataclass(frozen=True)
class Text:
    """Tokens on the device, and which ids are special."""

    train: DeviceTape
    held_out: DeviceTape
    vocab_size: int
    mask_token_id: int


# --- the file of tokens ----------------------------------------------------------------------------------------------


def pack(folder: str | None, path: Path) -> None:
    """Tokenise a corpus into one file."""
    train, held_out = texts(folder)
    tokenizer = wordpiece.train(train)
    tensors = {}
    for name, documents in (("train", train), ("held_out", held_out)):
        tape = DeviceTape.of(wordpiece.encode(tokenizer, documents), tokenizer, length=3)  # `read` cuts rows
        tensors |= {name: tape.tokens, f"{name}_documents": tape.documents}
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"vocab_size": str(len(tokenizer)), "mask_token_id": str(tokenizer.mask_token_id)}
    save_file(tensors, path, metadata=about)
    print(f"written: {path}, {len(tensors['train']):,} tokens to train on, {len(tensors['held_out']):,} held out")


def read(path: Path, length: int, device: torch.device) -> Text:
    """The file that ``pack`` wrote.

    Raises:
        ValueError: if it is not there, or is no such file.
    """
    if not path.is_file():
        raise ValueError(f"--tokens {path} does not exist; `python -m benchmarks.accelerator pack` writes it")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            tapes = []
            for name in ("train", "held_out"):
                tokens, documents = (file.get_tensor(one).to(device) for one in (name, f"{name}_documents"))
                tapes.append(DeviceTape(tokens, documents, length))
        return Text(*tapes, int(about["vocab_size"]), int(about["mask_token_id"]))
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise ValueError(f"--tokens {path} is not a file of `benchmarks.accelerator pack` ({error})") from error


# --- the contestants -------------------------------------------------------------------------------------------------


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of (inputs, documents, where, targets)


@dataclass
class Contestant:
    """A model, how its loss is computed, what a token of it costs, and how its weights begin."""

    model: nn.Module
    loss: Loss
    optimizer: str
    flops_per_token: float
    pool: Any = None  # memory of CUDA graphs, if the passes are to be recorded
    begin: Callable[[], None] | None = None  # on the clock

    def __post_init__(self) -> None:
        self.first = copy.deepcopy(self.model.state_dict())
        self.recorded: dict[int, Callable[..., Tensor]] = {}

    def start_again(self, rate: float) -> torch.optim.Optimizer:
        """The first weights, and a fresh optimiser."""
        self.model.load_state_dict(self.first)
        return make_optimizer(self.model, Recipe(optimizer=self.optimizer, learning_rate=rate))

    def in_bf16(self, *batch: Tensor) -> Tensor:
        """The loss."""
        with torch.autocast(batch[0].device.type, dtype=torch.bfloat16):
            return self.loss(*batch)

    def passes(self, *batch: Tensor) -> Tensor:
        """The loss; leaves gradients, clipped to length 1."""
        loss = self.in_bf16(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        return loss.detach()

    def step(self, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, ...]) -> None:
        """One update of the weights."""
        if self.pool is None:
            self.model.zero_grad(set_to_none=True)
            self.passes(*batch)
        else:
            self.replay(batch)
        optimizer.step()

    def replay(self, batch: tuple[Tensor, ...]) -> Tensor:
        """What ``passes`` does, from its recording with so many rows."""
        rows = len(batch[0])
        if rows not in self.recorded:
            self.recorded[rows] = gpu_step.captured(self.passes, list(self.model.parameters()), batch, self.pool)
        return self.recorded[rows](*batch)

    def recording_error(self, batch: tuple[Tensor, ...]) -> float:
        """How far the recorded loss or a gradient is at most from that of ``passes``, as a part of this.

        Raises:
            RuntimeError: if that is more than sums in another order explain.
        """
        self.model.zero_grad(set_to_none=True)
        plain = [self.passes(*batch), *(weight.grad for weight in self.model.parameters())]
        recorded = [self.replay(batch), *(weight.grad for weight in self.model.parameters())]
        floor = SMALLEST_PART * torch.stack([one.norm() for one in plain[1:]]).norm()  # of what is hardly there
        error = float(torch.stack([(a - b).norm() / b.norm().clamp_min(floor)
                                   for a, b in zip(recorded, plain, strict=True)]).max())  # fmt: skip
        if not error < RECORDING_ERROR:
            raise RuntimeError(f"recorded passes differ from plain ones by {error:.1e}; they are not to be timed")
        return error


def contestants(size: Size, text: Text, device: torch.device, compiled: bool) -> dict[str, Contestant]:
    """All of them, on the device."""
    torch.manual_seed(0)
    stock: dict[str, nn.Module] = {
        "bert": BertForMaskedLM(bert_config(size, text)),
        "modernbert": ModernBertForMaskedLM(modernbert_config(size, text)),
    }
    found = {}
    for name, model in stock.items():
        layers, head = ((model.bert.encoder.layer, model.cls) if name == "bert" else (model.model.layers, model.head))
        if compiled:
            for part in (*layers, head):
                part.compile(dynamic=False)
            model.loss_function = torch.compile(model.loss_function, dynamic=False)
        useful = useful_flops(size, text, "bert" if name == "bert" else "prenorm", size.length)
        found[name] = Contestant(model.to(device), by_labels(model), "adamw", useful)
    ours = EncoderForMaskedLM(recipe(size, text).config()).to(device)
    pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    counted = partial(start_where_counting_ends, ours, text)
    for name, apart in (("course rows", False), ("course", True)):
        keys = keys_read(text.train) if apart else size.length
        useful = useful_flops(size, text, "prenorm", keys, narrow=True)
        loss = by_places(ours, apart, compiled)
        found[name] = Contestant(ours, loss, "muon", useful, pool, counted)
    return found


def without_parts(size: Size, text: Text, device: torch.device, compiled: bool) -> dict[str, Contestant]:
    """``course rows``, whole and with one part taken out or put in; also ``course``."""
    found = contestants(size, text, device, compiled)
    whole = found["course rows"]
    return {
        "whole step": whole,
        "layers hand on fp32": replace(whole, loss=by_places(whole.model, apart=False, compiled=compiled, stream=None)),
        "kernel by kernel": replace(whole, pool=None),
        "not compiled": replace(whole, loss=by_places(whole.model, apart=False, compiled=False)),
        "AdamW for Muon": replace(whole, optimizer="adamw"),
        "documents apart": found["course"],
    }


def start_where_counting_ends(model: EncoderForMaskedLM, text: Text) -> None:
    """``Recipe(start="neighbours")``, counted on the host and factorised on the device."""
    table = model.get_input_embeddings().weight
    counts = initial_weights.neighbour_counts(text.train.tokens.cpu(), text.vocab_size).to(table.device)
    with torch.device(table.device), torch.no_grad():
        table.copy_(initial_weights.token_vectors(counts, table.shape[1]))
    initial_weights.look_at_neighbours(model)


def by_labels(model: nn.Module) -> Loss:
    """The loss that a model of ``transformers`` computes from labels."""

    def loss(inputs: Tensor, _: Tensor, where: Tensor, targets: Tensor) -> Tensor:
        labels = torch.full_like(inputs, IGNORE).flatten().index_copy(0, where, targets).view_as(inputs)
        return model(input_ids=inputs, labels=labels).loss

    return loss


def by_places(
    model: EncoderForMaskedLM, apart: bool, compiled: bool, stream: torch.dtype | None = torch.bfloat16
) -> Loss:
    """This course's, from places and targets."""
    run, score = gpu_step.run_layer, gpu_step.scores_loss
    if compiled:
        run, score = torch.compile(run, dynamic=False), torch.compile(score, dynamic=False)

    def loss(inputs: Tensor, documents: Tensor, where: Tensor, targets: Tensor) -> Tensor:
        mask = gpu_step.document_mask(documents) if apart else None
        return gpu_step.masked_loss(model, inputs, where, targets, mask, run, score, stream)

    return loss


def bert_config(size: Size, text: Text) -> BertConfig:
    return BertConfig(
        vocab_size=text.vocab_size, hidden_size=size.hidden, intermediate_size=size.inner * 3 // 2,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=size.length,
    )  # fmt: skip


def modernbert_config(size: Size, text: Text) -> ModernBertConfig:
    special = {f"{name}_token_id": at for name, at in (("pad", 0), ("cls", 2), ("bos", 2), ("sep", 3), ("eos", 3))}
    return ModernBertConfig(
        vocab_size=text.vocab_size, hidden_size=size.hidden, intermediate_size=size.inner,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, max_position_embeddings=size.length,
        layer_types=["full_attention"] * size.layers, sparse_prediction=True, **special,
    )  # fmt: skip


def recipe(size: Size, text: Text) -> Recipe:
    return Recipe(vocab_size=text.vocab_size, hidden_size=size.hidden, intermediate_size=size.inner,
                  layers=size.layers, heads=size.heads, sequence_length=size.length)  # fmt: skip


def useful_flops(size: Size, text: Text, body: str, keys: float, narrow: bool = False) -> float:
    """Operations a token of which something comes: attention counts the keys that are read, a narrow layer slots."""
    inner = size.inner * 3 // 2 if body == "bert" else size.inner
    whole = flops_per_token(Rung(
        body=body, vocab_size=text.vocab_size, hidden_size=size.hidden, intermediate_size=inner, layers=size.layers,
        mask_rate=MASK_RATE, sequence_length=size.length,
    ))  # fmt: skip
    idle = 6 * (1 - MASK_RATE) * (size.hidden**2 + 3 * size.hidden * size.inner) if narrow else 0
    return whole - idle - 12 * size.layers * size.hidden * (size.length - keys)


def keys_read(tape: DeviceTape) -> float:
    """How many tokens a token reads on average if it reads those of its own document in its row."""
    _, documents = tape.rows()
    return float((documents[:, :, None] == documents[:, None, :]).sum(-1, dtype=torch.float32).mean())


# --- measuring -------------------------------------------------------------------------------------------------------


class Bench:
    """Batches, masks and clock; the same for all contestants."""

    def __init__(self, size: Size, text: Text, device: torch.device) -> None:
        self.size, self.text, self.device = size, text, device
        seed = torch.Generator(device).manual_seed(15)
        ids, documents = text.held_out.rows()
        count = min(len(ids) // size.rows, HELD_OUT_BATCHES) * size.rows
        if not count:
            raise ValueError(f"held out are {len(ids)} rows, less than a batch of {size.rows}; give more text")
        parts = [slice(at, at + size.rows) for at in range(0, count, size.rows)]
        self.held_out = [(documents[part], self.masked(ids[part].long(), HELD_OUT_RATE, seed)) for part in parts]

    def masked(self, ids: Tensor, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return gpu_step.draw_masks(ids, count=round(rate * self.size.length), vocab_size=self.text.vocab_size,
                                      mask_token_id=self.text.mask_token_id, generator=generator)  # fmt: skip

    def batches(self, seed: int, rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(inputs, documents, where, targets) without end."""
        generator = torch.Generator(self.device).manual_seed(seed)
        for ids, documents in self.text.train.batches(rows, generator):
            inputs, where, targets = self.masked(ids, MASK_RATE, generator)
            yield inputs, documents, where, targets

    def look(self, one: Contestant) -> float:
        """The held-out loss; inf where it is no number.

        With gradients, and in training mode, so that what was compiled for a step is used again: nobody has dropout.
        """
        sums, counts = [], []
        for documents, (inputs, where, targets) in self.held_out:
            count = (targets != IGNORE).sum()
            sums.append(one.in_bf16(inputs, documents, where, targets).detach() * count)
            counts.append(count)
        loss = float(torch.stack(sums).sum() / torch.stack(counts).sum())
        return loss if math.isfinite(loss) else math.inf

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def forget_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory(self) -> float | None:
        """The most that was allocated since, in MiB, with the weights of all contestants; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else None

    def train(self, one: Contestant, rate: float, rows: int, seconds: float, looks: int, seed: int) -> list[tuple]:
        """[seconds, held-out loss, tokens] at each look; warm-up, then a decay that ends with the time."""
        optimizer = one.start_again(rate)
        shape = Recipe(learning_rate=rate, warmup=0.1)
        batches = self.batches(seed, rows)
        points: list[tuple] = []
        spent, steps = self.seconds_to_begin(one, seed), 0
        while not points or spent < seconds:  # one look at least, should the start have taken all the time
            self.wait()
            began = time.perf_counter()
            for _ in range(ROUND_STEPS):  # the clock is asked so rarely because asking it waits for the device
                done = spent + time.perf_counter() - began
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(shape, min(done / seconds, 1.0))
                one.step(optimizer, next(batches))
            self.wait()
            spent, steps = spent + time.perf_counter() - began, steps + ROUND_STEPS
            if spent >= seconds * (len(points) + 1) / looks or spent >= seconds:
                points.append((spent, self.look(one), steps * rows * self.size.length))
        return points

    def seconds_to_begin(self, one: Contestant, seed: int) -> float:
        """Let its weights begin as it wants; the seconds that took."""
        if one.begin is None:
            return 0.0
        torch.manual_seed(seed)
        self.wait()
        began = time.perf_counter()
        one.begin()
        self.wait()
        return time.perf_counter() - began

    def warm(self, one: Contestant, rows: int) -> None:
        """What is compiled, recorded or chosen at a first time is so before the clock starts."""
        self.seconds_to_begin(one, seed=0)
        optimizer, batches = one.start_again(1e-4), self.batches(0, rows)
        for _ in range(2):
            one.step(optimizer, next(batches))
        if one.pool is not None:
            print(f"recorded passes differ by {one.recording_error(next(batches)):.0e} with {rows} rows", flush=True)

    def speeds(self, all_of_them: dict[str, Contestant]) -> dict[str, list[float]]:
        """Tokens a second with full batches in each of several rounds, in turns."""
        for one in all_of_them.values():
            self.warm(one, self.size.rows)
        optimizers = {name: one.start_again(1e-4) for name, one in all_of_them.items()}
        found: dict[str, list[float]] = {name: [] for name in all_of_them}
        batches = self.batches(1, self.size.rows)
        for _ in range(ROUNDS):
            for name, one in all_of_them.items():
                some = [next(batches) for _ in range(ROUND_STEPS)]
                self.wait()
                began = time.perf_counter()
                for batch in some:
                    one.step(optimizers[name], batch)
                self.wait()
                tokens = ROUND_STEPS * self.size.rows * self.size.length
                found[name].append(tokens / (time.perf_counter() - began))
        return found


def lowest(curve: Sequence[tuple]) -> float:
    return min(point[1] for point in curve)


def measured(
    size: Size, text: Text, device: torch.device, given: argparse.Namespace, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Speeds in turns, then for each contestant the best of its settings, then a run with it for each seed.

    ``keep`` is given what there is after each contestant.
    """
    bench = Bench(size, text, device)
    everyone = contestants(size, text, device, compiled=given.compile)
    peak, rows = at_full_batches(bench, everyone)
    tokens = len(text.train.tokens)
    for name, one in everyone.items():
        for other in everyone.values():
            other.model.zero_grad(set_to_none=True)
        bench.forget_memory()
        trials = []
        for batch in [size.rows // part for part in PARTS]:
            bench.warm(one, batch)
            bench.look(one)  # compiles what has another number of places
            for rate in RATES[one.optimizer]:
                end = lowest(bench.train(one, rate, batch, given.trial_seconds, 2, seed=100))
                trials.append({"rate": rate, "batch": batch, "loss": end})
        chosen = choice(trials)
        rate, batch = chosen["rate"], chosen["batch"]
        curves = [bench.train(one, rate, batch, given.seconds, given.looks, seed) for seed in range(given.seeds)]
        rows[name] |= {"trials": trials, **chosen, "curves": curves, "optimizer": one.optimizer,
                       "started_in_seconds": bench.seconds_to_begin(one, seed=0),
                       "epochs": curves[0][-1][2] / tokens, "memory_mb": bench.memory()}  # fmt: skip
        print(f"{name:12s} {[(trial['batch'], trial['rate'], round(trial['loss'], 3)) for trial in trials]}; "
              f"{batch} rows, {rate}: {[round(lowest(curve), 3) for curve in curves]} nats in {given.seconds:.0f} s",
              flush=True)  # fmt: skip
        keep({"peak_flops": peak, "contestants": rows})
    return {"peak_flops": peak, "contestants": rows, "ratios": ratios(rows)}


def choice(trials: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Rate and batch of the lowest loss, and whether a rate beyond those that were tried might do better."""
    best = min(trials, key=lambda trial: trial["loss"])
    rates = [trial["rate"] for trial in trials]
    return {"rate": best["rate"], "batch": best["batch"], "rate_at_edge": best["rate"] in (min(rates), max(rates))}


def used(speeds: Sequence[float], flops_per_token: float, peak: float) -> list[float]:
    """MFU: the share of the peak that is put to use, least, median, largest."""
    return report.spread([speed * flops_per_token / peak for speed in speeds])


def at_full_batches(bench: Bench, everyone: dict[str, Contestant]) -> tuple[float, dict[str, dict[str, Any]]]:
    """The device's peak in operations a second, and what use of it each contestant makes."""
    on_gpu = bench.device.type == "cuda"
    peak = hardware.peak_flops(torch.bfloat16, bench.device, size=8192 if on_gpu else 512)
    rows: dict[str, dict[str, Any]] = {}
    for name, speeds in bench.speeds(everyone).items():
        one = everyone[name]
        rows[name] = {
            "weights": sum(weight.numel() for weight in one.model.parameters()),
            "tokens_per_second": report.spread(speeds),
            "mfu": used(speeds, one.flops_per_token, peak),
            "flops_per_token": one.flops_per_token,
        }
        print(f"{name:20s} {rows[name]['tokens_per_second'][1]:12,.0f} tokens/s {rows[name]['mfu'][1]:6.1%} MFU",
              flush=True)  # fmt: skip
    return peak, rows


KERNELS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def attention_seconds(size: Size, device: torch.device) -> dict[str, float]:
    """Of forward and backward pass of one layer's attention, for each library that torch may ask on a GPU."""
    shape = (3, size.rows, size.heads, size.length, size.hidden // size.heads)
    given = torch.randn(shape, dtype=torch.bfloat16, device=device, requires_grad=True)

    def work() -> None:
        F.scaled_dot_product_attention(*given.unbind(0)).sum().backward()

    found = {}
    for name, kernel in KERNELS.items():
        with sdpa_kernel(kernel):
            try:
                found[name] = timing.seconds(work, ROUNDS, device)
            except RuntimeError as error:  # not on this device
                print(f"attention by {name}: {str(error).splitlines()[0]}", flush=True)
    return found


def fastest_attention(size: Size, device: torch.device) -> tuple[dict[str, float], AbstractContextManager[None]]:
    """Those seconds, and a context in which all contestants have the faster library; nothing to choose on a CPU."""
    if device.type != "cuda":
        return {}, nullcontext()
    seconds = attention_seconds(size, device)
    print(", ".join(f"attention by {name}: {1000 * each:.2f} ms" for name, each in seconds.items()), flush=True)
    order = [KERNELS[name] for name in sorted(seconds, key=seconds.__getitem__)]
    return seconds, sdpa_kernel([*order, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True)


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Against the better of the two peers, seed by seed: speed, and time to the loss that it ends with."""
    peers = ("bert", "modernbert")
    best = min(peers, key=lambda name: statistics.median(map(lowest, rows[name]["curves"])))
    goals = [lowest(curve) for curve in rows[best]["curves"]]
    theirs = [time_to(curve, goal) for curve, goal in zip(rows[best]["curves"], goals, strict=True)]
    found: dict[str, Any] = {"best_peer": best, "loss": report.spread(goals)}
    for name in ("course rows", "course"):
        ours = [time_to(curve, goal) for curve, goal in zip(rows[name]["curves"], goals, strict=True)]
        found[name] = {
            "times_as_fast_to_its_loss": report.spread([a / b for a, b in zip(theirs, ours, strict=True)]),  # 0: never
            "tokens_per_second": {peer: rows[name]["tokens_per_second"][1] / rows[peer]["tokens_per_second"][1]
                                  for peer in peers},
        }  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    packing, running, parting = (commands.add_parser(name) for name in ("pack", "run", "parts"))
    packing.add_argument("--text", help="a folder of text files in place of the factbook")
    for one in (packing, running, parting):
        one.add_argument("--tokens", type=Path, default=TOKENS, help="the file that pack writes and the others read")
    for one in (running, parting):
        one.add_argument("--size", choices=list(SIZES), default="30m")
        one.add_argument("--device", default="cuda")
        one.add_argument("--no-compile", dest="compile", action="store_false")
    running.add_argument("--seconds", type=float, default=10.0, help="of training, for each seed")
    running.add_argument("--trial-seconds", type=float, default=2.0, help="of training, for each rate and batch")
    running.add_argument("--seeds", type=int, default=2)
    running.add_argument("--looks", type=int, default=20, help="held-out losses a run")
    given = parser.parse_args(arguments)
    command = "python -m benchmarks.accelerator " + " ".join(sys.argv[1:] if arguments is None else arguments)
    try:
        if given.what == "pack":
            pack(given.text, given.tokens)
            return 0
        run(given, command)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(given: argparse.Namespace, command: str) -> None:
    """Everything of one size, or the parts of its step, stored.

    Raises:
        ValueError: for a device, a file or a number that cannot be used.
    """
    for name in ("seconds", "trial_seconds", "seeds", "looks") * (given.what == "run"):
        if not 0 < getattr(given, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(given, name)} must be positive")
    try:
        device = torch.device(given.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {given.device} cannot be used here ({reason}); --device cpu with --size tiny tries "
                         "the code") from error  # fmt: skip
    size = SIZES[given.size]
    busy = busy_cores()
    began = time.perf_counter()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

    def keep(found: dict[str, Any]) -> None:
        about = {"device": name, "size": vars(size), "compiled": given.compile, "busy_cores": busy,
                 "attention_seconds": attention, "wall_seconds": time.perf_counter() - began}  # fmt: skip
        about |= {"seeds": given.seeds} if given.what == "run" else {}
        store(f"accelerator_{given.size}" + "_parts" * (given.what == "parts"), command, about | found)

    text = read(given.tokens, size.length, device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        # A contestant compiles several variants of one function: kinds of layer, masks, numbers of places. Torch gives
        # up at eight of all contestants together, and goes on without the compiler. Nobody shall be slow in silence.
        attention, fastest = fastest_attention(size, device)
        with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True), fastest:
            if given.what == "run":
                keep(measured(size, text, device, given, keep))
            else:
                everyone = without_parts(size, text, device, compiled=given.compile)
                peak, rows = at_full_batches(Bench(size, text, device), everyone)
                keep({"peak_flops": peak, "contestants": rows})
    finally:
        torch.set_float32_matmul_precision(before)


if __name__ == "__main__":
    sys.exit(main())
