"""A pretraining run on disk: the folder in which it is kept so that it can go on, and from which it becomes a model.

``Store`` keeps weights and the optimiser's state as safetensors, the rest as JSON: nothing is pickled, so a checkpoint
from a stranger can do no more than be refused. What a run's state is says ``train.state``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sslcourse.data.whole_files import digest, onto_disk, sealed, unsealed
from sslcourse.train.state import Snapshot, State

KIND = "one process"  # what wrote a checkpoint; `sharded_checkpoint` writes another
LITTER = (".DS_Store", "Thumbs.db", ".ipynb_checkpoints")  # what a look into a folder may leave there
DONE = "run.json"  # in a finished folder: which run this was


class InUse(ValueError):
    """Another process is at work in the folder."""


class Store:
    """A run's folder: ``<out>.partial`` while it trains, ``<out>`` once it is whole.

    At any moment there is one whole checkpoint, or the whole result: each is written beside the one before under
    another name, brought onto the disk, and renamed.
    """

    OURS = re.compile(
        r"checkpoint(\.new|\.old|\.gone)?|whole|lock|tokens-[0-9a-f]{16}(-[0-9a-f]{16})?\.u?int\d+(\.new)?"
    )
    WORTH_KEEPING = re.compile(r"lock|tokens-[0-9a-f]{16}-[0-9a-f]{16}\.u?int\d+")  # whole tokens, by their name

    def __init__(self, out: str | Path) -> None:
        self.out = Path(os.path.realpath(out))  # "." has no name to lengthen, and a link cannot be replaced
        self.partial = self.out.with_name(self.out.name + ".partial")
        self.checkpoint = self.partial / "checkpoint"
        self._lock: IO[bytes] | None = None

    @contextmanager
    def held(self, resume: bool) -> Iterator[None]:
        """``check``, then keep other processes out; what ends before the first checkpoint leaves nothing behind.

        Raises:
            InUse: if another process works in the folder.
        """
        if (self.partial / "lock").exists():
            self._take()  # before anything of a run at work is looked at, let alone tidied up
            self._release()
        self.check(resume)
        made = [folder for folder in self.partial.parents if not folder.exists()]
        self.partial.mkdir(parents=True, exist_ok=True)
        self._take()
        try:
            yield
        except BaseException:
            if not self.any_checkpoint():
                self._release()
                self.discard()
                with suppress(OSError):  # the first error is the one to see
                    for folder in made:
                        folder.rmdir()
            raise
        finally:
            self._release()

    def _take(self) -> None:
        self._lock = _locked(self.partial / "lock")
        if self._lock is None:
            raise InUse(f"another process is writing {str(self.out)!r}; wait for it, or choose another out")

    def _release(self) -> None:
        """Let others in. The file goes with its folder, or at once if there is nothing else in it."""
        if self._lock:
            self._lock.close()
            self._lock = None
            with suppress(OSError):
                (self.partial / "lock").unlink()
                self.partial.rmdir()

    def check(self, resume: bool) -> None:
        """Refuse, before anything is written, a folder that could not be kept apart from what is there."""
        if self.out.exists() and (not self.out.is_dir() or _entries(self.out)):
            if resume and (self.out / DONE).is_file():
                return  # this very run may be complete: `over` looks
            raise ValueError(f"out={str(self.out)!r} exists and is not an empty folder; choose another name")
        if os.path.ismount(self.out):
            raise ValueError(f"out={str(self.out)!r} is a mount point, which cannot be replaced; choose a folder in it")
        if not self.partial.exists():
            return
        if not self.partial.is_dir():
            raise ValueError(f"{str(self.partial)!r} is a file where the run's folder would be; move it away, or "
                             "choose another out")  # fmt: skip
        strange = [path.name for path in _entries(self.partial) if not self.OURS.fullmatch(path.name)]
        if strange:
            raise ValueError(f"{str(self.partial)!r} holds {strange[0]!r}, which no run has written; move it away, or "
                             "choose another out")  # fmt: skip
        old = self.partial / "checkpoint.old"
        if old.is_dir() and not self.checkpoint.exists():  # cut off between the two renames of `save`
            old.rename(self.checkpoint)
        if not self.checkpoint.exists():
            self.discard(keep=self.WORTH_KEEPING)  # cut off before the first one
        elif not resume:
            raise ValueError(f"{str(self.partial)!r} is left from an interrupted run; resume it, or delete it first")

    def holds_checkpoint(self) -> bool:
        """Whether there is something to resume."""
        return self.checkpoint.is_dir()

    def any_checkpoint(self) -> bool:
        """The same, or one that was cut off between two names."""
        return self.checkpoint.exists() or (self.partial / "checkpoint.old").exists()

    def over(self, identity: dict[str, Any]) -> bool:
        """Whether this very run is complete already.

        Raises:
            ValueError: if ``out`` holds another run.
        """
        if not (self.out / DONE).is_file():
            return False
        done = json.loads((self.out / DONE).read_text(encoding="utf-8"))
        if done.get("identity") != json.loads(json.dumps(identity)):
            raise ValueError(f"out={str(self.out)!r} exists and is not an empty folder; choose another name")
        return True

    def save(
        self, identity: dict[str, Any], state: State, model: nn.Module, optimizer: torch.optim.Optimizer,
        good: Snapshot | None = None,
    ) -> None:  # fmt: skip
        """Replace the checkpoint by the present state; an interruption leaves the old one or the new one.

        Args:
            good: the last good state, where that is not the present one: nobody has judged that yet.

        Raises:
            OSError: if the disk is full or forbids it; the checkpoint before is left as it was.
        """
        tensors = {"model": _weights(model), "best": state.best, "optimizer": _optimizer_tensors(optimizer)}
        if good:
            tensors["good"] = good.tensors()
        with self._written("checkpoint.new") as fresh:
            for name, of in tensors.items():
                save_file(of, fresh / f"{name}.safetensors")
            files = {path.name: digest(path) for path in sorted(fresh.iterdir())}
            record = {"kind": KIND, "identity": identity, "state": state.plain(), "files": files,
                      "good": good.plain if good else None}  # fmt: skip
            (fresh / "state.json").write_text(sealed(record), encoding="utf-8")
        self._swap(fresh)

    def _swap(self, fresh: Path) -> None:
        old = self.partial / "checkpoint.old"
        if self.checkpoint.exists():
            self.checkpoint.rename(old)
        fresh.rename(self.checkpoint)
        shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def _written(self, name: str) -> Iterator[Path]:
        """An empty folder, on the disk in the end, in case the power goes; or gone again, and what went wrong."""
        for leftover in (self.partial / name, self.partial / "checkpoint.old"):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh = self.partial / name
        try:
            fresh.mkdir(parents=True)
            yield fresh
            onto_disk(fresh)
        except Exception as error:  # a full disk, most often; tokenizers raises a bare Exception then
            shutil.rmtree(fresh, ignore_errors=True)
            kept = "the last checkpoint is whole" if self.holds_checkpoint() else "there was no checkpoint before"
            raise OSError(f"{str(fresh)!r} could not be written ({error}); {kept}") from error

    def load(
        self, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[State, Snapshot]:
        """Restore model and optimiser in place; the state, and the last good one.

        Raises:
            ValueError: if the checkpoint is of another run, is damaged, or is not one of this course's.
        """
        where = f"the checkpoint in {str(self.partial)!r}"
        record = read_record(self.checkpoint / "state.json", identity, KIND, where)
        try:
            for name, expected in record["files"].items():
                if digest(self.checkpoint / name) != expected:
                    raise ValueError(f"{name} is not what was written")
            stored = {name: load_file(self.checkpoint / f"{name}.safetensors") for name in _FILES}
            # copies, or the files would be in use as long as the run goes on, and Windows would not let them go
            state = State(**record["state"], best={name: one.clone() for name, one in stored["best"].items()})
            weights = dict(model.named_parameters())
            shapes = {name: weight.shape for name, weight in weights.items()}
            if {name: weight.shape for name, weight in stored["model"].items()} != shapes:
                raise ValueError("model.safetensors holds the weights of another model")
            for name, weight in weights.items():
                weight.data.copy_(stored["model"][name])
            _restore_optimizer(optimizer, stored["optimizer"], next(iter(weights.values())).device)
            good = Snapshot(model, optimizer, state)
            if record["good"]:
                good.fill(load_file(self.checkpoint / "good.safetensors"), record["good"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{where} is damaged ({error}); move it away and start anew") from error
        return state, good

    def check_identity(self, identity: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run with a ``ValueError``."""
        read_record(self.checkpoint / "state.json", identity, KIND, f"the checkpoint in {str(self.partial)!r}")

    def discard(self, keep: re.Pattern[str] | None = None) -> None:
        """Delete what runs have left in the folder, and the folder if nothing else is in it."""
        if not self.partial.is_dir():
            return
        for name in ("checkpoint.old", "checkpoint"):  # at once, or one that is cut off here would look damaged
            gone = self.partial / "checkpoint.gone"
            shutil.rmtree(gone, ignore_errors=True)
            with suppress(FileNotFoundError):
                (self.partial / name).rename(gone)
        for path in self.partial.iterdir():
            ours = path.name in LITTER or self.OURS.fullmatch(path.name)
            if path.name == "lock" and self._lock:
                continue  # Windows deletes no file that is open; `_release` does it
            if ours and not (keep and keep.fullmatch(path.name)):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds something else
            self.partial.rmdir()

    def finish(self, model: Any, tokenizer: Any, records: Mapping[str, Any]) -> None:
        """Write model, tokenizer and ``records`` (as JSON), give the folder its name, and drop the checkpoint.

        Raises:
            OSError: if the disk is full or forbids it; the last checkpoint is left, and resuming comes back here.
        """
        with self._written("whole") as whole:
            model.save_pretrained(whole)
            tokenizer.save_pretrained(whole)
            for name, record in records.items():
                (whole / name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if self.out.exists():
            for litter in self.out.iterdir():
                shutil.rmtree(litter) if litter.is_dir() else litter.unlink()
            self.out.rmdir()  # empty but for litter, as `check` saw; Windows cannot rename onto it
        whole.rename(self.out)
        self._release()
        self.discard()


_FILES = ("model", "best", "optimizer")


def _locked(path: Path) -> IO[bytes] | None:
    """The file, locked until it is closed or this process ends, however that comes; None if another one holds it."""
    file = path.open("ab")
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def read_record(path: Path, identity: dict[str, Any], kind: str, where: str) -> dict[str, Any]:
    """What a checkpoint's ``state.json`` says, if it is whole and of this very run.

    Raises:
        ValueError: if not; the message tells which.
    """
    try:
        record = unsealed(path.read_text(encoding="utf-8"))
        kind_found, of_run = record["kind"], record["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is damaged, or not one of this course ({error}); move it away") from error
    for key, value in json.loads(json.dumps(identity)).items():
        if of_run.get(key) != value:
            raise ValueError(f"{where} has another {key} than this run; resume with the same arguments, or move it "
                             "away and start anew")  # fmt: skip
    if kind_found != kind:
        raise ValueError(f"{where} was written by {kind_found}; resume it so, not by {kind}")
    return record


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, apart from litter."""
    return sorted(path for path in folder.iterdir() if path.name not in LITTER)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once; the decoder's weight is the embedding's."""
    return {name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value.cpu().contiguous() for index, of in state.items() for name, value in of.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], device: torch.device) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value.to(device, copy=True)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
