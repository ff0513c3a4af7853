"""``make bench``: this package against the library, side by side in one run, interleaved, with median and spread.

    masking      mask_tokens against DataCollatorForLanguageModeling.torch_mask_tokens, 32 x 128
    batch        a batch of masked rows against the collator fed as Trainer feeds it, a list of 32 dictionaries
    head         a training step with logits, and the end of the last layer, at masked positions alone against one with
                 both everywhere
    attention    attention forward and backward in bf16, written out on a CPU, against the fused kernel, at two lengths
    step         a training step at hidden sizes 128 and 256 against the stock ModernBERT's of that size

It also says which share of a training step building its batch takes, and of both steps their MFU: useful operations a
second over what a large bf16 matrix product reaches in this process. Prints a table and writes
``build/bench/building_blocks.json`` with machine, versions, load and date; with ``--store``,
``data/measured/building_blocks.json``. Whole recipes are compared by ``benchmarks/pretraining``, which ``make bench``
runs after this.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling, ModernBertForMaskedLM

from benchmarks import BUILD, store
from benchmarks.pretraining import peers
from sslcourse.data import corpus
from sslcourse.data import tokenizer as wordpiece
from sslcourse.data.ignored import IGNORE
from sslcourse.measure import hardware
from sslcourse.models.encoder import EncoderForMaskedLM, attend
from sslcourse.objectives import masking
from sslcourse.train.optimizers import make_optimizer
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import autocast, train_step
from sslcourse.train.token_rows import Tape

ROUNDS = 15
ROWS, LENGTH = 32, 128


def contest(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds of each, and the ratio theirs / ours: median and quartiles over interleaved rounds."""

    def milliseconds(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        return 1000 * (time.perf_counter() - began) / repeats

    milliseconds(ours), milliseconds(theirs)  # the first call pays for what later ones find ready
    pairs = [(milliseconds(ours), milliseconds(theirs)) for _ in range(ROUNDS)]
    low, median, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    return {
        "ours_ms": statistics.median(a for a, _ in pairs),
        "theirs_ms": statistics.median(b for _, b in pairs),
        "ratio": median,
        "ratio_low": low,
        "ratio_high": high,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--store", action="store_true", help="write data/measured/building_blocks.json")
    given = parser.parse_args(arguments)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    if load > 0.5:
        print(f"warning: the machine is busy (load {load:.1f}); ratios will scatter", file=sys.stderr)
    texts = [row["text"] for row in corpus.load_splits()["train"]]
    tokenizer = wordpiece.train(texts)
    recipe = replace(Recipe(), vocab_size=len(tokenizer), batch_size=ROWS, sequence_length=LENGTH)
    tape = Tape(wordpiece.encode(tokenizer, texts), tokenizer, LENGTH)
    rows = tape.rows(0, 0)[:ROWS]
    special = rows <= tokenizer.mask_token_id
    collator = DataCollatorForLanguageModeling(tokenizer)
    features = [{"input_ids": row.tolist(), "special_tokens_mask": (row <= 4).long().tolist()} for row in rows]
    options = {"special_tokens_mask": special, "vocab_size": len(tokenizer), "mask_token_id": tokenizer.mask_token_id}

    batches = tape.batches(recipe)
    results = {
        "masking": contest(
            lambda: masking.mask_tokens(rows, **options),
            lambda: collator.torch_mask_tokens(rows.clone(), special_tokens_mask=special),
            repeats=100,
        ),
        "batch": contest(lambda: next(batches), lambda: collator(features), repeats=20),
        "head": _head(recipe, *next(batches)),
        "attention 128": _attention(ROWS, LENGTH),
        "attention 512": _attention(ROWS // 4, 4 * LENGTH),
    }
    steps = {}
    for hidden in (128, 256):
        sized = replace(recipe, hidden_size=hidden, intermediate_size=2 * hidden, heads=hidden // 64)
        steps[f"step {hidden}"] = _step(sized, tokenizer, *next(batches))
    results |= steps
    share = batch_share(results)
    print(f"{'':13s} {'ours ms':>9s} {'theirs ms':>10s}   ratio (quartiles)")
    for name, row in results.items():
        print(
            f"{name:13s} {row['ours_ms']:9.3f} {row['theirs_ms']:10.3f}   {row['ratio']:.2f} "
            f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        )
    print(f"Building a batch takes {share:.2%} of a step.")
    for name, row in steps.items():
        print(f"{name}: {row['ours_mfu']:.1%} of the peak are put to use, by ModernBERT {row['theirs_mfu']:.1%}.")
    record = {"threads": torch.get_num_threads(), "load": load, "rounds": ROUNDS, "batch_share_of_step": share,
              "results": results}  # fmt: skip
    command = "python -m benchmarks" + " --store" * given.store
    store("building_blocks", command, record, None if given.store else BUILD)
    return 0


def batch_share(results: dict[str, dict[str, float]]) -> float:
    """Which part of a training step building its batch takes."""
    batch, step = (results[name]["ours_ms"] for name in ("batch", "head"))
    return batch / (batch + step)


def _head(recipe: Recipe, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    torch.manual_seed(0)
    sparse = EncoderForMaskedLM(recipe.config())
    dense = EncoderForMaskedLM(recipe.config())

    def loss_everywhere(inputs: torch.Tensor, labels: torch.Tensor, narrow: bool) -> tuple[torch.Tensor, int]:
        count = int((labels != IGNORE).sum())
        return dense(inputs, labels=labels).loss * count, count

    dense.masked_loss = loss_everywhere
    optimizers = {model: make_optimizer(model, recipe) for model in (sparse, dense)}
    return contest(
        lambda: train_step(sparse, optimizers[sparse], inputs, labels, recipe),
        lambda: train_step(dense, optimizers[dense], inputs, labels, recipe),
        repeats=2,
    )


def _step(recipe: Recipe, tokenizer: Any, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """A step of ``pretrain`` against one of the stock model of that size, AdamW both, and the MFU of either."""
    torch.manual_seed(0)
    knobs = peers.Knobs(hidden=recipe.hidden_size, inner=recipe.intermediate_size, layers=recipe.layers,
                        heads=recipe.heads, activation=recipe.activation, mask_rate=recipe.mask_rate)  # fmt: skip
    ours = EncoderForMaskedLM(recipe.config())
    theirs = ModernBertForMaskedLM(peers.modernbert_config(SimpleNamespace(tokenizer=tokenizer), knobs))
    optimizers = {model: make_optimizer(model, recipe) for model in (ours, theirs)}

    def stock_step() -> None:
        with autocast(recipe, inputs.device):
            loss = theirs(input_ids=inputs, labels=labels).loss
        optimizers[theirs].zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), recipe.max_grad_norm)
        optimizers[theirs].step()

    before = hardware.peak_flops(torch.bfloat16)
    row = contest(lambda: train_step(ours, optimizers[ours], inputs, labels, recipe), stock_step, repeats=2)
    peak = max(before, hardware.peak_flops(torch.bfloat16))
    for who, name in (("ours", "course"), ("theirs", "started")):
        useful = peers.useful_flops(name, knobs, recipe.vocab_size) * inputs.numel()
        row[f"{who}_mfu"] = useful / (row[f"{who}_ms"] / 1000) / peak
    return row


def _attention(rows: int, length: int) -> dict[str, float]:
    torch.manual_seed(0)
    parts = [torch.randn(rows, length, 2, 64, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(3)]
    gradient = torch.randn(rows, 2, length, 64, dtype=torch.bfloat16)
    return contest(
        lambda: attend(*parts).backward(gradient),
        lambda: torch.nn.functional.scaled_dot_product_attention(*parts).backward(gradient),
        repeats=4,
    )


if __name__ == "__main__":
    sys.exit(main())
