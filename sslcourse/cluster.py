"""Pretraining by many processes: the run of ``pretraining.pretrain``, cut over ranks, that survives a lost rank.

    torchrun --nproc-per-node=2 --max-restarts=3 -m sslcourse pretrain --text ... --out DIR

Every step's global batch is the same whatever the number of ranks, since it depends on (seed, step) alone, and each
rank computes its rows of it; so N ranks train what one would, up to the order of sums. When a rank dies, torchrun
starts all ranks again and they go on from the last checkpoint by themselves, to the same weights as without the death.

A checkpoint is written by all ranks, each its own part, through ``torch.distributed.checkpoint`` in safetensors, and
can be read by any other number of ranks. What is not a tensor is JSON. Nothing is pickled.

The text is tokenised once, by the first rank, into a memory-mapped file that all ranks read (``TapeOnDisk``).
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from sslcourse import distributed
from sslcourse import tokenizer as wordpiece
from sslcourse.checkpoint import _PLAIN, State, Store, fingerprint
from sslcourse.distributed import Objective, Ranks
from sslcourse.encoder import EncoderForMaskedLM
from sslcourse.masking import IGNORE
from sslcourse.pretraining import (
    Diverged,
    Evaluation,
    MaskedRows,
    Recipe,
    Run,
    Tape,
    _generator,
    autocast,
    held_out_rows,
    learning_rate,
    make_optimizer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's two tensors a weight; its step count is the run's
DONE = "run.json"  # in the finished folder: which run this was, so that ranks that start again know it is over


def pretrain(
    texts: Sequence[str],
    held_out: Sequence[str],
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
        Diverged: if the held-out loss was never finite.
    """
    recipe = recipe or Recipe()
    _check(recipe, ranks, steps, minutes, evaluations, patience, accumulate)
    store = ShardedStore(out, ranks)
    store.check(resume)
    texts, held_out = list(texts), list(held_out)
    if not texts or not held_out:
        raise ValueError(f"texts ({len(texts)}) and held_out ({len(held_out)}) must each hold at least one document")
    tokenizer = tokenizer or wordpiece.train(texts, recipe.vocab_size)
    recipe = replace(recipe, vocab_size=len(tokenizer))
    budget = {"steps": steps, "minutes": minutes, "evaluations": evaluations, "patience": patience}
    identity = {"recipe": asdict(recipe), "budget": budget, "texts": fingerprint(texts, held_out)}
    if store.over(identity):
        return store.finished(tokenizer, recipe) if ranks.first else None
    validation = held_out_rows(wordpiece.encode(tokenizer, held_out), tokenizer, recipe.sequence_length)
    if not bool((validation.labels != IGNORE).any()):
        raise ValueError("held_out holds no token that can be masked (is all of it unknown to the tokenizer?)")

    objective = fresh_objective(recipe, ranks.device)
    wrapped = distributed.wrap(objective, strategy, ranks)
    optimizer = make_optimizer(objective, recipe)
    state = store.load(identity, objective, optimizer) if store.resumes else State(budget=budget)
    tape = store.tape(texts, tokenizer, recipe)
    run = Run(objective.model, tokenizer, recipe, state.history)

    batches = _shares(tape, recipe, state.step, ranks, accumulate)
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
        if state.evaluation_due():
            result = evaluate(wrapped, validation, ranks)
            state.after_evaluation(result.loss, result.accuracy, optimizer.param_groups[0]["lr"], objective)
            store.save(identity, state, objective, optimizer)
            if on_evaluation and ranks.first:
                on_evaluation(state.history[-1])
        if on_step:
            on_step(state.step)
    run.stopped = state.finished()
    del tape, batches  # no file of the folder may be open when it gets its name, or Windows refuses
    if not state.best:
        store.give_up()
        raise Diverged(f"the held-out loss was never a finite number: training diverged at learning_rate="
                       f"{recipe.learning_rate:g}; lower it. Nothing was written")  # fmt: skip
    best = {name.removeprefix("model."): distributed.whole(weight).cpu() for name, weight in state.best.items()}
    if ranks.first:
        run.model = EncoderForMaskedLM(recipe.config())
        run.model.load_state_dict(best, strict=False)  # the shared decoder weight has one name only
        run.model.eval()
        whole = {"identity": identity, "stopped": run.stopped}
        records = {"recipe.json": asdict(recipe), "history.json": run.history, DONE: whole}
        store.finish(run.model, tokenizer, records)
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


def _check(
    recipe: Recipe,
    ranks: Ranks,
    steps: int | None,
    minutes: float | None,
    evaluations: int,
    patience: int | None,
    accumulate: int,
) -> None:
    if (steps is None) == (minutes is None):
        raise ValueError(f"give either steps or minutes, not both or neither (steps={steps}, minutes={minutes})")
    if not (minutes if steps is None else steps) > 0:
        raise ValueError(f"steps={steps}, minutes={minutes}: the budget must be positive")
    if evaluations < 1 or accumulate < 1:
        raise ValueError(f"evaluations={evaluations} and accumulate={accumulate} must be at least 1")
    if patience is not None and patience < 1:
        raise ValueError(f"patience={patience} must be at least 1 evaluation, or None")
    if recipe.batch_size < ranks.world * accumulate:
        raise ValueError(f"batch_size={recipe.batch_size} gives {ranks.world} ranks with accumulate={accumulate} less "
                         "than one row each; raise batch_size, or start fewer processes")  # fmt: skip


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


# --- data ------------------------------------------------------------------------------------------------------------


def token_kind(vocab_size: int) -> type:
    """The smallest whole number that holds every id: two bytes a token up to 65,536 of them."""
    return np.uint16 if vocab_size <= 2**16 else np.int32


def write_tape(path: Path, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, at_once: int = 1000) -> int:
    """Tokenise once, a thousand documents at a time, into a file of nothing but ids; how many tokens it holds.

    Documents stand end to end, each between [CLS] and [SEP], as ``masking.pack`` lays them. The file gets its name
    when it is whole.
    """
    kind, total = token_kind(len(tokenizer)), 0
    fresh = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    with fresh.open("wb") as file:
        for begin in range(0, len(texts), at_once):
            for document in wordpiece.encode(tokenizer, texts[begin : begin + at_once]):
                ids = np.array([tokenizer.cls_token_id, *document, tokenizer.sep_token_id], dtype=kind)
                ids.tofile(file)
                total += len(ids)
    fresh.replace(path)
    return total


class TapeOnDisk(Tape):
    """``pretraining.Tape`` over a memory-mapped file: the same batches, of which only those in use are in memory.

    All ranks of a machine share one copy, the system's. The numbers' kind is the file's ending (``.uint16``).

    Raises:
        ValueError: if the file holds less than one row.
    """

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerFast, length: int) -> None:
        kind = np.dtype(path.suffix.removeprefix("."))
        total = path.stat().st_size // kind.itemsize
        if total < length:
            raise ValueError(
                f"the texts hold {total} tokens, less than one row of sequence_length={length}; "
                "give more text, or a shorter sequence_length"
            )
        self.tokens = np.memmap(path, dtype=kind, mode="r")
        self.length = length
        self.last_special = tokenizer.mask_token_id

    def rows(self, seed: int, epoch: int) -> _Rows:
        """As ``Tape.rows``, drawn by the same numbers, but a row is read when its turn comes."""
        generator = _generator(seed, epoch, stream=1)
        spare = len(self.tokens) % self.length
        start = int(torch.randint(spare + 1, (), generator=generator)) if epoch else 0
        rows = self.tokens[start : start + len(self.tokens) - spare].reshape(-1, self.length)
        return _Rows(rows, torch.randperm(len(rows), generator=generator).numpy())


class _Rows:
    """Rows of a file in another order, none of them read before somebody takes a slice."""

    def __init__(self, rows: np.ndarray, order: np.ndarray) -> None:
        self.table, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, part: slice) -> Tensor:
        return torch.from_numpy(self.table[self.order[part]].astype(np.int64))


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

    def check(self, resume: bool) -> None:
        """As ``Store.check``, done by the first rank; every rank raises what it found.

        Ranks that torchrun started again after a failure go on from the checkpoint if there is one. Of several
        machines only that of the rank that failed may count a restart, so the counts are added up.
        """
        (restarts,) = distributed.total(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))
        with self._by_first() as found:
            if self.ranks.first and not (restarts and (self.out / DONE).is_file()):
                old = self.partial / "checkpoint.old"
                left = self.holds_checkpoint() or old.is_dir()
                found.append(_caught(lambda: super(ShardedStore, self).check(resume or bool(restarts and left))))
        self.resumes = self._firsts(self.holds_checkpoint)

    def over(self, identity: dict[str, Any]) -> bool:
        """Whether this very run is complete already: a rank died after the last step, and all were started again.

        Raises:
            ValueError: on every rank, if ``out`` holds another run.
        """
        if not self._firsts((self.out / DONE).is_file):
            return False
        with self._by_first() as found:
            if self.ranks.first:
                done = json.loads((self.out / DONE).read_text(encoding="utf-8"))
                if done["identity"] != json.loads(json.dumps(identity)):
                    found.append(f"out={str(self.out)!r} exists and is not an empty folder; choose another name")
        return True

    def finished(self, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Run:
        """The run that ``out`` holds."""
        self._tidy(self.out)
        history, done = (json.loads((self.out / name).read_text(encoding="utf-8")) for name in ("history.json", DONE))
        model = EncoderForMaskedLM.from_pretrained(self.out)
        return Run(model.eval(), tokenizer, recipe, history, done["stopped"])

    def finish(self, model: Any, tokenizer: Any, records: Mapping[str, Any]) -> None:
        """As ``Store.finish``, but the checkpoint goes last: a death on the way costs no step."""
        model.save_pretrained(self.partial)
        tokenizer.save_pretrained(self.partial)
        for name, record in records.items():
            (self.partial / name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if self.out.exists():
            self.out.rmdir()  # empty, as `check` saw; Windows cannot rename onto it
        self.partial.rename(self.out)
        self._tidy(self.out)

    def _tidy(self, folder: Path) -> None:
        for name in ("checkpoint", "checkpoint.old", "checkpoint.new"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for tokens in folder.glob("tokens-*"):
            tokens.unlink()

    def tape(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> TapeOnDisk:
        """The texts' tokens in a file of the run's folder, written by the first rank, unless a start before did.

        Raises:
            ValueError: on every rank, for texts that do not fill one batch; of a new run nothing is left then.
        """
        kind = token_kind(len(tokenizer))
        vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
        path = self.partial / f"tokens-{fingerprint(texts, [vocabulary])[:16]}.{np.dtype(kind).name}"
        with self._by_first() as found:
            if self.ranks.first and not path.is_file():
                found.append(_caught(lambda: write_tape(path, texts, tokenizer)))
        try:
            tape = TapeOnDisk(path, tokenizer, recipe.sequence_length)
            if len(tape) < recipe.batch_size:
                raise ValueError(f"the texts give {len(tape)} rows, too little for one batch of "
                                 f"batch_size={recipe.batch_size}; give more text, or lower it")  # fmt: skip
        except ValueError:
            if not self.resumes:
                self.give_up()
            raise
        return tape

    def give_up(self) -> None:
        """Delete what is left, once all ranks have come to this. (``check`` calls ``discard`` on the first alone.)"""
        dist.barrier()
        if self.ranks.first:
            self.discard()

    def save(self, identity: dict[str, Any], state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Replace the checkpoint by the present state; an interruption leaves the old one or the new one."""
        fresh, old = self.partial / "checkpoint.new", self.partial / "checkpoint.old"
        if self.ranks.first:
            for leftover in (fresh, old):
                shutil.rmtree(leftover, ignore_errors=True)
            fresh.mkdir(parents=True)
        dist.barrier()
        with _quiet():
            dcp.save(tensors_of(model, optimizer, state.best),
                     storage_writer=HuggingFaceStorageWriter(str(fresh), save_distributed=True))  # fmt: skip
        dist.barrier()
        if self.ranks.first:
            shards = {path.name: path.stat().st_size for path in sorted(fresh.glob("*.safetensors"))}
            plain = {key: getattr(state, key) for key in _PLAIN}
            record = {"identity": identity, "state": plain, "best": sorted(state.best), "shards": shards}
            (fresh / "state.json").write_text(json.dumps(record), encoding="utf-8")
            for path in fresh.iterdir():  # onto the disk before the old one goes, in case the power does
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            if self.checkpoint.exists():
                self.checkpoint.rename(old)
            fresh.rename(self.checkpoint)
            shutil.rmtree(old, ignore_errors=True)
        dist.barrier()

    def load(self, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
        """Restore model and optimiser in place, each rank its own part, and return the state.

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
        return State(**saved["state"], best=best)

    def _verify(self, identity: dict[str, Any]) -> None:
        path = self.checkpoint / "state.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            of_run, shards = saved["identity"], saved["shards"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the checkpoint in {str(self.partial)!r} is damaged ({error}); delete it") from error
        where = repr(str(self.partial))
        for key, value in json.loads(json.dumps(identity)).items():
            if of_run.get(key) != value:
                raise ValueError(f"the checkpoint in {where} has another {key} than this run; resume with the same "
                                 "arguments, or delete it and start anew")  # fmt: skip
        for name, size in shards.items():
            shard = self.checkpoint / name
            if not shard.is_file():
                raise ValueError(f"the checkpoint in {where} lacks the shard {name}, one of {len(shards)}; bring it "
                                 "back from the machine that wrote it, or delete the checkpoint")  # fmt: skip
            if shard.stat().st_size != size:
                raise ValueError(f"the shard {name} in {where} has {shard.stat().st_size:,} of {size:,} bytes: it was "
                                 "cut off; copy it again, or delete the checkpoint")  # fmt: skip
            try:
                with safe_open(shard, "pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"the shard {name} in {where} is damaged ({error}); copy it again, or delete the "
                                 "checkpoint") from error  # fmt: skip

    def _firsts(self, question: Callable[[], bool]) -> bool:
        """The first rank's answer, on every rank."""
        (answer,) = distributed.total(int(self.ranks.first and question()))
        return bool(answer)

    @contextmanager
    def _by_first(self) -> Iterator[list]:
        """What the first rank puts into the list is raised on every rank, unless it is None: all stop, or none."""
        found: list = []
        yield found
        said = [found[0] if found else None]
        dist.broadcast_object_list(said, src=0)
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
