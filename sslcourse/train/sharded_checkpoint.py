"""A checkpoint that all ranks write, each its own part, and that any other number of ranks can read.

Through ``torch.distributed.checkpoint`` in safetensors; what is not a tensor is JSON. Nothing is pickled. What this
module does not do: decide when to save (``train.loop_across_ranks``).
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from sslcourse.data.token_files import kept_tape
from sslcourse.data.whole_files import digest, onto_disk, sealed
from sslcourse.train import across_ranks
from sslcourse.train.across_ranks import Ranks
from sslcourse.train.checkpoint import DONE, Store, read_record
from sslcourse.train.loop import Data
from sslcourse.train.state import Snapshot, State
from sslcourse.train.token_rows import TapeOnDisk

RANKS = "ranks under torchrun"  # what writes these checkpoints
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's two tensors a weight; its step count is the run's


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
        (restarts,) = across_ranks.total(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))
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
        (answer,) = across_ranks.total(int(self.ranks.first and question()))
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
