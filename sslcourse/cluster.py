"""Pretraining by many processes: the run of ``pretraining.pretrain``, cut over ranks, that survives a lost rank.

    torchrun --nproc-per-node=2 --max-restarts=3 -m sslcourse pretrain --text ... --out DIR

Every step's global batch is the same whatever the number of ranks, since it depends on (seed, step) alone, and each
rank computes its rows of it; so N ranks train what one would, up to the order of sums. When a rank dies, torchrun
starts all ranks again and they go on from the last checkpoint by themselves, to the same weights as without the death.

A checkpoint is written by all ranks, each its own part, through ``torch.distributed.checkpoint`` in safetensors, and
can be read by any other number of ranks. What is not a tensor is JSON. Nothing is pickled.

The text is tokenised once, by the first rank, into a memory-mapped file that all ranks read (``tape.TapeOnDisk``).
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from sslcourse import distributed
from sslcourse.checkpoint import DONE, Snapshot, State, Store, digest, onto_disk, read_record, sealed
from sslcourse.distributed import Objective, Ranks
from sslcourse.encoder import EncoderForMaskedLM
from sslcourse.masking import IGNORE
from sslcourse.pretraining import (
    Data,
    Diverged,
    Evaluation,
    Run,
    autocast,
    check_budget,
    learning_rate,
    loss_now,
    make_optimizer,
    reopened,
    report,
    why_diverged,
)
from sslcourse.recipe import Recipe
from sslcourse.tape import MaskedRows, Tape, TapeOnDisk, kept_tape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RANKS = "ranks under torchrun"  # what writes these checkpoints
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's two tensors a weight; its step count is the run's


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
    """As ``pretraining.pretrain``, by every rank of a group at once; the run on the first rank, None on the others.

    Args:
        ranks: from ``distributed.start``.
        steps, minutes: the budget, exactly one. Minutes are those of the first rank's clock.
        strategy: "ddp" or "fsdp", see ``distributed.wrap``.
        accumulate: micro-batches a step, whose gradients are added up before the ranks exchange them.
        resume: go on from ``<out>.partial``; after a restart by torchrun that happens by itself.
        on_step: called on every rank after each step with its number.

    Raises:
        ValueError: on every rank alike, for what ``pretraining.pretrain`` refuses, a batch that gives some rank
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
    wrapped = distributed.wrap(objective, strategy, ranks)
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
        loss = distributed.backward(wrapped, parts, lambda: autocast(recipe, ranks.device))
        nn.utils.clip_grad_norm_(objective.parameters(), recipe.max_grad_norm)
        optimizer.step()
        (seconds,) = distributed.total((time.perf_counter() - began) if ranks.first else 0.0)  # one clock decides
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
    best = {name.removeprefix("model."): distributed.whole(weight).cpu() for name, weight in state.best.items()}
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
    distributed.backward(wrapped, parts, lambda: autocast(recipe, parts[0][0].device))
    wrapped.zero_grad(set_to_none=True)


def _shares(tape: Tape, recipe: Recipe, step: int, ranks: Ranks, accumulate: int) -> Iterator[list[tuple]]:
    """Of every global batch this rank's rows, in ``accumulate`` parts. Masked before it is cut: the same masks."""
    for batch in tape.batches(recipe, step):
        mine = [distributed.share(tensor, ranks.rank, ranks.world).to(ranks.device) for tensor in batch]
        yield list(zip(*(tensor.tensor_split(accumulate) for tensor in mine), strict=True))


@torch.no_grad()
def evaluate(wrapped: nn.Module, dataset: MaskedRows, ranks: Ranks, batch_size: int = 64) -> Evaluation:
    """As ``pretraining.evaluate``, each rank on its share of the rows; the same sums on every rank.

    Shares of unequal length are filled up with rows in which nothing is masked: FSDP needs equally many passes.
    """
    longest = -(-len(dataset) // ranks.world)
    inputs, labels = (distributed.share(rows, ranks.rank, ranks.world) for rows in (dataset.inputs, dataset.labels))
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
    distributed.reshard(wrapped)
    loss_sum, right, count = distributed.total(loss_sum, right, count)
    return Evaluation(loss_sum, int(right), int(count))


# --- checkpoints -----------------------------------------------------------------------------------------------------


class ShardedStore(Store):
    """A run's folder, as ``checkpoint.Store``, with a checkpoint to which every rank writes its own part.

    ``state.json`` is written last, by the first rank, with the name and size of every shard, so that a checkpoint
    that lacks one, or was cut off, is known for what it is.

    What there is to do is decided by the first rank alone, for all: of two ranks that look at a folder, one may look
    before and one after it changes.
    """

    def __init__(self, out: str | Path, ranks: Ranks) -> None:
        super().__init__(out)
        self.ranks = ranks
        self.resumes = False  # set by `check`: there is a checkpoint to go on from
        self.job = os.environ.get("TORCHELASTIC_RUN_ID", "")  # the same for all restarts, another for another start
        self.patient = dist.new_group(timeout=timedelta(days=7), backend="gloo")  # tokenising may take hours

    def check(self, resume: bool) -> None:
        """As ``Store.check``, done by the first rank; every rank raises what it found.

        Ranks that torchrun started again after a failure go on from this job's checkpoint if there is one. Of several
        machines only that of the rank that failed may count a restart, so the counts are added up.
        """
        (restarts,) = distributed.total(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))
        with self._by_first() as found:
            if self.ranks.first:
                again = bool(restarts) and self._by_this_job()
                found.append(_caught(lambda: super(ShardedStore, self).check(resume or again)))
        self.resumes = self._firsts(self.holds_checkpoint)

    def _by_this_job(self) -> bool:
        """Whether what stands there was written by an earlier start of this very job, and not by another one."""
        old = self.partial / "checkpoint.old"
        for path in (self.out / DONE, self.checkpoint / "state.json", old / "state.json"):
            if path.is_file():
                with suppress(ValueError, AttributeError):
                    return json.loads(path.read_text(encoding="utf-8")).get("job") == self.job
        return False

    def over(self, identity: dict[str, Any]) -> bool:
        """As ``Store.over``, looked at by the first rank: one died after the last step, and all were started again."""
        answers: list[bool] = []
        with self._by_first() as found:
            if self.ranks.first:
                found.append(_caught(lambda: answers.append(super(ShardedStore, self).over(identity))))
        return self._firsts(lambda: answers == [True])

    def tape(self, data: Data) -> TapeOnDisk:
        """The texts' tokens in a file of the run's folder, written by the first rank, unless a start before did.

        Raises:
            ValueError: on every rank, for texts that do not fill one batch; of a new run nothing is left then.
        """
        with self._by_first(self.patient) as found:
            if self.ranks.first:
                found.append(_caught(lambda: kept_tape(self.partial, data.texts, data.tokenizer)))
        try:
            return data.tape(self)
        except ValueError:
            if not self.resumes:
                self.give_up()
            raise

    def give_up(self) -> None:
        """Delete what is left, once all ranks have come to this. (``check`` calls ``discard`` on the first alone.)"""
        dist.barrier()
        if self.ranks.first:
            self.discard()

    def save(self, identity: dict[str, Any], state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Replace the checkpoint by the present state; an interruption leaves the old one or the new one."""
        fresh, old, plain = self.partial / "checkpoint.new", self.partial / "checkpoint.old", state.plain()
        if self.ranks.first:
            for leftover in (fresh, old):
                shutil.rmtree(leftover, ignore_errors=True)
            fresh.mkdir(parents=True)
        dist.barrier()
        try:
            with _quiet():
                dcp.save(tensors_of(model, optimizer, state.best),
                         storage_writer=HuggingFaceStorageWriter(str(fresh), save_distributed=True))  # fmt: skip
        except CheckpointException as error:  # no Exception, so nobody would catch it; a full disk, most often
            raise OSError(f"{str(fresh)!r} could not be written ({error}); the last checkpoint is whole") from error
        dist.barrier()
        if self.ranks.first:
            shards = {path.name: [path.stat().st_size, digest(path)] for path in sorted(fresh.glob("*.safetensors"))}
            record = {"kind": RANKS, "job": self.job, "identity": identity, "state": plain, "best": sorted(state.best),
                      "shards": shards}  # fmt: skip
            (fresh / "state.json").write_text(sealed(record), encoding="utf-8")
            onto_disk(fresh)
            self._swap(fresh)
        dist.barrier()

    def load(
        self, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[State, Snapshot]:
        """Restore model and optimiser in place, each rank its own part; the state, which is the last good one.

        Raises:
            ValueError: on every rank, if the checkpoint is of another run, is damaged, or lacks a shard.
        """
        with self._by_first() as found:
            if self.ranks.first:
                found.append(_caught(lambda: self._verify(identity)))
        saved = json.loads((self.checkpoint / "state.json").read_text(encoding="utf-8"))
        names = dict(model.named_parameters())
        best = {name: torch.zeros_like(names[name].detach()) for name in saved["best"]}
        step = float(saved["state"]["step"])
        for weight in names.values():
            moments = {moment: torch.zeros_like(weight.detach()) for moment in MOMENTS}
            optimizer.state[weight] = {"step": torch.tensor(step, device=weight.device), **moments}
        with _quiet():
            dcp.load(tensors_of(model, optimizer, best), storage_reader=HuggingFaceStorageReader(str(self.checkpoint)))
        state = State(**saved["state"], best=best)
        return state, Snapshot(model, optimizer, state)

    def _verify(self, identity: dict[str, Any]) -> None:
        where = repr(str(self.partial))
        shards = read_record(self.checkpoint / "state.json", identity, RANKS, f"the checkpoint in {where}")["shards"]
        for name, (size, written) in shards.items():
            shard = self.checkpoint / name
            if not shard.is_file():
                raise ValueError(f"the checkpoint in {where} lacks the shard {name}, one of {len(shards)}; bring it "
                                 "back from the machine that wrote it, or delete the checkpoint")  # fmt: skip
            if shard.stat().st_size != size:
                raise ValueError(f"the shard {name} in {where} has {shard.stat().st_size:,} of {size:,} bytes: it was "
                                 "cut off; copy it again, or delete the checkpoint")  # fmt: skip
            if digest(shard) != written:
                raise ValueError(f"the shard {name} in {where} is damaged; copy it again, or delete the checkpoint")

    def check_identity(self, identity: dict[str, Any]) -> None:
        """As ``Store.check_identity``, for what ranks write."""
        read_record(self.checkpoint / "state.json", identity, RANKS, f"the checkpoint in {str(self.partial)!r}")

    def _firsts(self, question: Callable[[], bool]) -> bool:
        """The first rank's answer, on every rank."""
        (answer,) = distributed.total(int(self.ranks.first and question()))
        return bool(answer)

    @contextmanager
    def _by_first(self, group: dist.ProcessGroup | None = None) -> Iterator[list]:
        """What the first rank puts into the list is raised on every rank, unless it is None: all stop, or none."""
        found: list = []
        yield found
        said = [found[0] if found else None]
        dist.broadcast_object_list(said, src=0, group=group)
        if said[0] is not None:
            raise ValueError(said[0])


def _caught(action: Callable[[], None]) -> str | None:
    try:
        action()
    except (ValueError, OSError) as error:
        return str(error)
    return None


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of a run under one name: weights, AdamW's moments, the best weights so far. Shards stay shards."""
    found = {}
    for name, weight in model.named_parameters():
        found[f"weights.{name}"] = weight.detach()
        found |= {f"{moment}.{name}": optimizer.state[weight][moment] for moment in MOMENTS}
    return found | {f"best.{name}": weight for name, weight in best.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notes that a reader or writer is young, or that a group of one needs no collectives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
