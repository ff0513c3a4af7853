"""Pretraining by many processes: the run of ``loop.pretrain``, cut over ranks, that survives a lost rank.

    torchrun --nproc-per-node=2 --max-restarts=3 -m sslcourse pretrain --text ... --out DIR

Every step's global batch is the same whatever the number of ranks, since it depends on (seed, step) alone, and each
rank computes its rows of it; so N ranks train what one would, up to the order of sums. When a rank dies, torchrun
starts all ranks again and they go on from the last checkpoint by themselves, to the same weights as without the death.

A checkpoint is written by all ranks, each its own part, through ``torch.distributed.checkpoint`` in safetensors, and
can be read by any other number of ranks. What is not a tensor is JSON. Nothing is pickled.

The text is tokenised once, by the first rank, into a memory-mapped file that all ranks read
(``token_rows.TapeOnDisk``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import EncoderForMaskedLM
from sslcourse.train import across_ranks
from sslcourse.train.across_ranks import Objective, Ranks
from sslcourse.train.checkpoint import DONE
from sslcourse.train.loop import Data, Diverged, Run, check_budget, loss_now, reopened, report, why_diverged
from sslcourse.train.optimizers import make_optimizer
from sslcourse.train.recipe import Recipe
from sslcourse.train.sharded_checkpoint import ShardedStore
from sslcourse.train.state import Snapshot
from sslcourse.train.step import Evaluation, autocast, learning_rate
from sslcourse.train.token_rows import MaskedRows, Tape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def pretrain(
    texts: Iterable[str],
    held_out: Iterable[str],
    recipe: Recipe | None = None,
    *,
    ranks: Ranks,
    out: str | Path,
    steps: int | None = None,
    minutes: float | None = None,
    strategy: str = "ddp",
    accumulate: int = 1,
    resume: bool = False,
    evaluations: int = 10,
    patience: int | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    on_evaluation: Callable[[dict[str, float]], None] | None = None,
    on_restore: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Run | None:
    """As ``loop.pretrain``, by every rank of a group at once; the run on the first rank, None on the others.

    Args:
        ranks: from ``across_ranks.start``.
        steps, minutes: the budget, exactly one. Minutes are those of the first rank's clock.
        strategy: "ddp" or "fsdp", see ``across_ranks.wrap``.
        accumulate: micro-batches a step, whose gradients are added up before the ranks exchange them.
        resume: go on from ``<out>.partial``; after a restart by torchrun that happens by itself.
        on_step: called on every rank after each step with its number.

    Raises:
        ValueError: on every rank alike, for what ``loop.pretrain`` refuses, a batch that gives some rank
            nothing, and a checkpoint that is damaged, half written or lacks a shard.
        Diverged: on every rank, as there.
    """
    recipe = recipe or Recipe()
    check_budget(steps, minutes, evaluations, patience)
    if recipe.batch_size < ranks.world * accumulate or accumulate < 1:
        raise ValueError(f"batch_size={recipe.batch_size} gives {ranks.world} ranks with accumulate={accumulate} less "
                         "than one row each; raise batch_size, or start fewer processes")  # fmt: skip
    if recipe.optimizer != "adamw":
        raise ValueError(f"optimizer={recipe.optimizer!r} needs whole matrices, and ranks may hold parts; choose adamw")
    if recipe.start != "width":
        raise ValueError(f"start={recipe.start!r} is for one process: what ranks count apart may differ in the last "
                         "bits; choose width")  # fmt: skip
    store = ShardedStore(out, ranks)
    store.check(resume)
    budget = {"steps": steps, "minutes": minutes, "evaluations": evaluations, "patience": patience}
    data = Data.of(texts, held_out, recipe, tokenizer, budget)
    if store.over(data.identity):
        return reopened(store, data) if ranks.first else None
    recipe = data.recipe

    objective = fresh_objective(recipe, ranks.device)
    wrapped = across_ranks.wrap(objective, strategy, ranks)
    optimizer = make_optimizer(objective, recipe)
    if store.resumes:
        state, good = store.load(data.identity, objective, optimizer)
    else:
        state = data.first_state()
        good = Snapshot(objective, optimizer, state)
    tape = store.tape(data)
    run = Run(objective.model, data.tokenizer, recipe, state.history, restores=state.restores)

    evaluated = partial(evaluate, wrapped, ranks=ranks)
    batches = _shares(tape, recipe, state.step + state.skipped, ranks, accumulate)
    settle(wrapped, next(_shares(tape, recipe, 0, ranks, 1)), recipe)
    while not state.finished():
        began = time.perf_counter()
        parts = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, state.progress(after=1))
        optimizer.zero_grad(set_to_none=True)
        loss = across_ranks.backward(wrapped, parts, lambda: autocast(recipe, ranks.device))
        nn.utils.clip_grad_norm_(objective.parameters(), recipe.max_grad_norm)
        optimizer.step()
        (seconds,) = across_ranks.total((time.perf_counter() - began) if ranks.first else 0.0)  # one clock decides
        state.after_step(loss, recipe.batch_size * recipe.sequence_length, seconds)
        trouble = state.trouble()  # the same on all ranks: the loss is that of the global batch
        if state.evaluation_due() and not trouble:
            result = evaluated(data.validation)
            trouble = state.jumped(loss_now(evaluated, data.last_batches(tape, state)), result.loss)
            if not trouble:
                state.after_evaluation(result.loss, result.accuracy, optimizer.param_groups[0]["lr"], objective)
                good = Snapshot(objective, optimizer, state)
                store.save(data.identity, state, objective, optimizer)
                if on_evaluation and ranks.first:
                    on_evaluation(state.history[-1])
        if trouble:
            event = good.restore(objective, optimizer, state, trouble)
            if ranks.first:
                report(event, on_restore)
            if good.used_up(state):
                break
            batches = _shares(tape, recipe, state.step + state.skipped, ranks, accumulate)
        if on_step:
            on_step(state.step)
    run.stopped = state.finished()
    del tape, batches  # no file of the folder may be open when it goes, or Windows refuses
    if not run.stopped or not state.best:
        if not state.best:
            store.give_up()
        raise Diverged(why_diverged(state, recipe, store))
    best = {name.removeprefix("model."): across_ranks.whole(weight).cpu() for name, weight in state.best.items()}
    if ranks.first:
        run.model = EncoderForMaskedLM(recipe.config())
        run.model.load_state_dict(best, strict=False)  # the shared decoder weight has one name only
        run.model.eval()
        records = data.records(run)
        records[DONE]["job"] = store.job
        store.finish(run.model, data.tokenizer, records)
    dist.barrier()
    return run if ranks.first else None


def fresh_objective(recipe: Recipe, device: torch.device) -> Objective:
    """The model of ``recipe`` from its seed's random weights, the same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return Objective(EncoderForMaskedLM(recipe.config()).to(device))


def settle(wrapped: nn.Module, parts: Sequence[tuple[Tensor, Tensor]], recipe: Recipe) -> None:
    """One backward pass that is thrown away.

    DDP puts gradients into other buckets after the first one, and from three ranks on the order of a sum depends on
    the buckets. A run that is resumed has its first pass elsewhere; with this one both sum in the same order from the
    first step on, and end with the same bits.
    """
    across_ranks.backward(wrapped, parts, lambda: autocast(recipe, parts[0][0].device))
    wrapped.zero_grad(set_to_none=True)


def _shares(tape: Tape, recipe: Recipe, step: int, ranks: Ranks, accumulate: int) -> Iterator[list[tuple]]:
    """Of every global batch this rank's rows, in ``accumulate`` parts. Masked before it is cut: the same masks."""
    for batch in tape.batches(recipe, step):
        mine = [across_ranks.share(tensor, ranks.rank, ranks.world).to(ranks.device) for tensor in batch]
        yield list(zip(*(tensor.tensor_split(accumulate) for tensor in mine), strict=True))


@torch.no_grad()
def evaluate(wrapped: nn.Module, dataset: MaskedRows, ranks: Ranks, batch_size: int = 64) -> Evaluation:
    """As ``step.evaluate``, each rank on its share of the rows; the same sums on every rank.

    Shares of unequal length are filled up with rows in which nothing is masked: FSDP needs equally many passes.
    """
    longest = -(-len(dataset) // ranks.world)
    inputs, labels = (across_ranks.share(rows, ranks.rank, ranks.world) for rows in (dataset.inputs, dataset.labels))
    if len(inputs) < longest:
        inputs = torch.cat([inputs, dataset.inputs[:1]])
        labels = torch.cat([labels, torch.full_like(dataset.labels[:1], IGNORE)])
    wrapped.eval()
    loss_sum, right, count = 0.0, 0, 0
    for begin in range(0, longest, batch_size):
        part = slice(begin, begin + batch_size)
        loss, hits = wrapped(inputs[part].to(ranks.device), labels[part].to(ranks.device))
        loss_sum, right, count = loss_sum + loss.item(), right + int(hits), count + int((labels[part] != IGNORE).sum())
    wrapped.train()
    across_ranks.reshard(wrapped)
    loss_sum, right, count = across_ranks.total(loss_sum, right, count)
    return Evaluation(loss_sum, int(right), int(count))
