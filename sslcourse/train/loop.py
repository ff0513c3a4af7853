"""Pretraining a masked language model, from a list of texts to a folder that ``transformers`` opens.

``pretrain`` is what a small machine needs:

* packed rows in place of padding, masks drawn anew at every step, logits at masked positions only;
* weights that start at their width's own scale, and on request where counting ends (``models.initial_weights``);
* warm-up, then a decay to zero that ends with the budget, be it a number of steps or of minutes;
* a held-out set masked once and for all, the best weights kept, early stopping, TensorBoard;
* checkpoints from which a run goes on. Everything random depends on (seed, step) alone, so a run of a given number
  of steps that was interrupted and resumed ends with the same bits as one that was not;
* a watch on the loss: if it is no number or jumps, the last good state is restored, and that is reported.

What it does not do: several processes (``train.loop_across_ranks``), other objectives, hyper-parameter search.
"""

from __future__ import annotations

import json
import math
import signal
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sslcourse.data import tokenizer as wordpiece
from sslcourse.data.ignored import IGNORE
from sslcourse.data.token_files import kept_tape
from sslcourse.data.whole_files import fingerprint
from sslcourse.models.encoder import EncoderForMaskedLM
from sslcourse.models.initial_weights import start_at_neighbours
from sslcourse.train.checkpoint import DONE, Store
from sslcourse.train.optimizers import make_optimizer
from sslcourse.train.recipe import Recipe
from sslcourse.train.state import Snapshot, State
from sslcourse.train.step import Evaluation, evaluate, learning_rate, train_step
from sslcourse.train.token_rows import MaskedRows, Tape, TapeOnDisk, held_out_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Diverged(RuntimeError):
    """The loss became infinite or nan, or jumped, as often as it was given another chance."""


class Interrupted(KeyboardInterrupt):
    """Somebody asked a run to stop, and it did so after saving; the message says where."""


@dataclass
class Run:
    """What ``pretrain`` returns: the best weights, the tokenizer, and how it went."""

    model: EncoderForMaskedLM
    tokenizer: PreTrainedTokenizerFast
    recipe: Recipe
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: str = ""  # why it ended: "steps", "minutes" or "patience"
    restores: list[dict[str, Any]] = field(default_factory=list)  # when the loss went wrong, and where it went back to

    @property
    def loss(self) -> float:
        """Best held-out loss in nats, 15 % masks."""
        return min(row["loss"] for row in self.history)


def pretrain(
    texts: Iterable[str],
    held_out: Iterable[str],
    recipe: Recipe | None = None,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    evaluations: int = 10,
    patience: int | None = None,
    on_evaluation: Callable[[dict[str, float]], None] | None = None,
    on_restore: Callable[[dict[str, Any]], None] | None = None,
    tensorboard: str | Path | None = None,
    progress: bool | None = None,
    device: str | torch.device | None = None,
) -> Run:
    """Train a masked language model from scratch on ``texts`` and keep the weights that do best on ``held_out``.

    Args:
        texts: a list; or, for more text than memory holds, something that can be iterated over more than once and
            reads anew each time. With ``out``, tokens are in a file that is mapped, and no text stays in memory.
        steps, minutes: the budget, exactly one of them. Steps are repeatable to the bit on one machine; minutes count
            training alone (not evaluation, nor the tokenizer) and are not.
        tokenizer: by default one is trained on ``texts``.
        out: a folder that does not exist yet or is empty. Until the run is complete everything is in
            ``<out>.partial``; then that becomes ``out``, so ``out`` is either absent or whole. Ctrl-C and SIGTERM
            save there before they stop the run; at any other end it holds the last evaluation's state.
        resume: go on from ``<out>.partial``, which must come from the same texts, recipe and budget. Where nothing is
            left, the run begins; where ``out`` holds this very run, complete, that is returned.
        evaluations: how many times the held-out loss is measured, evenly over the budget.
        patience: stop after this many evaluations in a row without a better loss; ``None`` never does.
        on_evaluation: called with each new row of the history, as soon as it is there.
        on_restore: called when the loss became nan or jumped and the last good state, of the last evaluation or the
            start, was restored, with what is then added to ``Run.restores``; by default a warning is given. The batches
            since that state are skipped.
        tensorboard: a folder for TensorBoard's log.
        progress: whether to show a bar on stderr; by default if that is a terminal.

    Raises:
        ValueError: for a budget, recipe, text or folder that cannot work; nothing has been written then.
        Diverged: if the loss goes wrong three times from the same state. If that is the start, nothing is left on disk.
        Interrupted: after Ctrl-C or SIGTERM, if there is ``out``.
        OSError: if the disk is full; the last checkpoint is whole, and resuming goes on from it.
    """
    recipe = recipe or Recipe()
    check_budget(steps, minutes, evaluations, patience)
    store = Store(out) if out is not None else None
    if store and tensorboard is not None:
        log_folder = Path(tensorboard).resolve()
        if any(log_folder.is_relative_to(folder) for folder in (store.out, store.partial)):
            raise ValueError(f"tensorboard={str(tensorboard)!r} lies in out, which must stay empty; put it elsewhere")
    if resume and not store:
        raise ValueError("resume=True needs out, the folder that the interrupted run was given")
    budget = {"steps": steps, "minutes": minutes, "evaluations": evaluations, "patience": patience}
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with store.held(resume) if store else nullcontext():
        data = Data.of(texts, held_out, recipe, tokenizer, budget)
        if store and store.over(data.identity):
            return reopened(store, data)
        return _train(data, store, device, on_evaluation, on_restore, tensorboard, progress)


def _train(
    data: Data,
    store: Store | None,
    device: torch.device,
    on_evaluation: Callable[[dict[str, float]], None] | None,
    on_restore: Callable[[dict[str, Any]], None] | None,
    tensorboard: str | Path | None,
    progress: bool | None,
) -> Run:
    """``pretrain``, once everything has been looked at."""
    recipe = data.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = EncoderForMaskedLM(recipe.config()).to(device)
    optimizer = make_optimizer(model, recipe)
    goes_on = store is not None and store.holds_checkpoint()
    if goes_on:
        state, good = store.load(data.identity, model, optimizer)
    tape = data.tape(store)
    if not goes_on:
        state = data.first_state()
        state.seconds = started(model, tape.tokens, recipe)
        if state.finished():
            raise ValueError(f"minutes={data.identity['budget']['minutes']}: start={recipe.start!r} alone took "
                             f"{state.seconds:.1f} seconds; give more, or start='width'")  # fmt: skip
        good = Snapshot(model, optimizer, state)
    log = _tensorboard(tensorboard)
    if store and not goes_on:
        store.save(data.identity, state, model, optimizer)
    run = Run(model, data.tokenizer, recipe, state.history, restores=state.restores)
    bar = _progress_bar(progress, state)

    model.train()
    evaluated = partial(evaluate, model)
    batches = tape.batches(recipe, state.step + state.skipped)
    with _asked_to_stop(store) as stop:
        while not state.finished():
            began = time.perf_counter()
            inputs, labels = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, state.progress(after=1))
            loss = train_step(model, optimizer, inputs.to(device), labels.to(device), recipe)
            state.after_step(loss, inputs.numel(), time.perf_counter() - began)
            bar.update(state)
            trouble = state.trouble()
            if state.evaluation_due() and not trouble:
                result = evaluated(data.validation)
                trouble = state.jumped(loss_now(evaluated, data.last_batches(tape, state)), result.loss)
                if not trouble:
                    state.after_evaluation(result.loss, result.accuracy, optimizer.param_groups[0]["lr"], model)
                    good = Snapshot(model, optimizer, state)
                    log(state.history[-1])
                    bar.update(state)
                    if store:
                        store.save(data.identity, state, model, optimizer)
                    if on_evaluation:
                        on_evaluation(state.history[-1])
            if trouble:
                report(good.restore(model, optimizer, state, trouble), on_restore)
                if good.used_up(state):
                    break
                batches = tape.batches(recipe, state.step + state.skipped)
            if stop.is_set() and not state.finished():
                store.save(data.identity, state, model, optimizer, good)
                raise Interrupted(f"stopped at step {state.step}, which is saved in {str(store.partial)!r}; "
                                  "the same call with resume=True goes on")  # fmt: skip
    bar.close()
    del tape, batches  # no file of the folder may be open when it goes, or Windows refuses
    run.stopped = state.finished()
    if not run.stopped or not state.best:
        if store and not state.best:
            store.discard()
        raise Diverged(why_diverged(state, recipe, store))
    model.load_state_dict(state.best, strict=False)  # the shared decoder weight has one name only
    model.eval()
    if store:
        store.finish(model, data.tokenizer, data.records(run))
    return run


def started(model: nn.Module, tokens: Tensor, recipe: Recipe) -> float:
    """Begin where the recipe says; the seconds that took beyond drawing weights, which are part of the budget."""
    began = time.perf_counter()
    if recipe.start == "width":
        return 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        start_at_neighbours(model, tokens, recipe.start)
    return time.perf_counter() - began


def loss_now(evaluated: Callable[[MaskedRows], Evaluation], batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The median loss of some batches by the weights as they are; 0 where nothing is masked."""
    losses = [evaluated(MaskedRows(*batch)).loss for batch in batches if bool((batch[1] != IGNORE).any())]
    return statistics.median(losses) if losses else 0.0


def check_budget(steps: int | None, minutes: float | None, evaluations: int, patience: int | None) -> None:
    """Refuse a budget that cannot work."""
    if (steps is None) == (minutes is None):
        raise ValueError(f"give either steps or minutes, not both or neither (steps={steps}, minutes={minutes})")
    if not (minutes if steps is None else steps) > 0:
        raise ValueError(f"steps={steps}, minutes={minutes}: the budget must be positive")
    if evaluations < 1:
        raise ValueError(f"evaluations={evaluations} must be at least 1, or no weights could be kept")
    if patience is not None and patience < 1:
        raise ValueError(f"patience={patience} must be at least 1 evaluation, or None")


@dataclass
class Data:
    """What a run reads, looked at before anything is written, and what tells this run from others."""

    texts: Iterable[str]
    tokenizer: PreTrainedTokenizerFast
    recipe: Recipe
    validation: MaskedRows
    identity: dict[str, Any]

    @classmethod
    def of(
        cls, texts: Iterable[str], held_out: Iterable[str], recipe: Recipe,
        tokenizer: PreTrainedTokenizerFast | None, budget: dict[str, Any],
    ) -> Data:  # fmt: skip
        """Train the tokenizer if there is none, and mask the held-out rows.

        Raises:
            ValueError: if one of the two is empty, or nothing of ``held_out`` can be masked.
        """
        texts = list(texts) if iter(texts) is texts else texts  # a generator can be read only once
        held_out = list(held_out)
        if next(iter(texts), None) is None or not held_out:
            empty = "held_out" if next(iter(texts), None) is not None else "texts"
            raise ValueError(f"{empty} is empty; texts and held_out must each hold at least one document")
        tokenizer = tokenizer or wordpiece.train(texts, recipe.vocab_size)
        recipe = replace(recipe, vocab_size=len(tokenizer))
        vocabulary = [json.dumps(tokenizer.get_vocab(), sort_keys=True)]
        identity = {"recipe": asdict(recipe), "budget": budget, "texts": fingerprint(texts, held_out),
                    "tokenizer": fingerprint(vocabulary, [])}  # fmt: skip
        validation = held_out_rows(wordpiece.encode(tokenizer, held_out), tokenizer, recipe.sequence_length)
        if not bool((validation.labels != IGNORE).any()):
            raise ValueError("held_out holds no token that can be masked (is all of it unknown to the tokenizer?)")
        return cls(texts, tokenizer, recipe, validation, identity)

    def tape(self, store: Store | None) -> Tape:
        """The texts' tokens: in a file of the run's folder if there is one, else in memory.

        Raises:
            ValueError: if they do not fill one batch.
        """
        length = self.recipe.sequence_length
        if store:
            tape: Tape = TapeOnDisk(kept_tape(store.partial, self.texts, self.tokenizer), self.tokenizer, length)
        else:
            tape = Tape(wordpiece.encode(self.tokenizer, self.texts), self.tokenizer, length)
        if len(tape) < self.recipe.batch_size:
            raise ValueError(
                f"the texts give {len(tape)} rows of sequence_length={length} tokens, too little for one batch of "
                f"batch_size={self.recipe.batch_size}; give more text, or lower one of the two"
            )
        return tape

    def first_state(self) -> State:
        """Where a run begins; a loss a nat above that of knowing nothing would be a step in the wrong direction."""
        return State(budget=self.identity["budget"], lowest=math.log(self.recipe.vocab_size) + 1)

    def last_batches(self, tape: Tape, state: State, count: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the last steps, drawn again: so it does not matter whether the run was interrupted there."""
        end = state.step + state.skipped
        return islice(tape.batches(self.recipe, max(0, end - count)), min(count, end))

    def records(self, run: Run) -> dict[str, Any]:
        """What is written beside the weights, by file name."""
        done = {"identity": self.identity, "stopped": run.stopped, "restores": run.restores}
        return {"recipe.json": asdict(self.recipe), "history.json": run.history, DONE: done}


def reopened(store: Store, data: Data) -> Run:
    """The run that ``store.out`` holds, complete."""
    with suppress(ValueError):  # a checkpoint of another run is not ours to delete
        if store.any_checkpoint():
            store.check_identity(data.identity)
        store.discard()  # this run was cut off after its last step, and had not tidied up
    history, done = (json.loads((store.out / name).read_text(encoding="utf-8")) for name in ("history.json", DONE))
    model = EncoderForMaskedLM.from_pretrained(store.out)
    return Run(model.eval(), data.tokenizer, data.recipe, history, done["stopped"], done["restores"])


def report(event: dict[str, Any], on_restore: Callable[[dict[str, Any]], None] | None) -> None:
    """Say that the last good state was restored."""
    if on_restore:
        on_restore(event)
    else:
        warnings.warn(restored(event), RuntimeWarning, stacklevel=3)


def restored(event: dict[str, Any]) -> str:
    """One line for people."""
    return (f"at step {event['step']} {event['why']}; went back to step {event['back_to']} and skipped the batches "
            "since then")  # fmt: skip


def why_diverged(state: State, recipe: Recipe, store: Store | None) -> str:
    """The message of ``Diverged``."""
    last = state.restores[-1]
    often = f", the last of {len(state.restores)} times" if len(state.restores) > 1 else ""
    message = (f"at step {last['step']} {last['why']}{often}: training diverged at "
               f"learning_rate={recipe.learning_rate:g}; lower it.")  # fmt: skip
    if not state.best:
        return f"{message} Nothing was written"
    kept = f", kept in {str(store.partial)!r}" if store else ""
    return f"{message} The best held-out loss was {state.best_loss:.3f} nats{kept}"


@contextmanager
def _asked_to_stop(store: Store | None) -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, if there is a place to save to; the second time they act at once."""
    asked, before = threading.Event(), {}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def ask(*_: object) -> None:
        asked.set()
        put_back()

    if store and threading.current_thread() is threading.main_thread():  # no other may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a job in the background of a script ignores Ctrl-C
                before[number] = signal.signal(number, ask)
    try:
        yield asked
    finally:
        put_back()


class _progress_bar:  # noqa: N801 - used like a function
    """A tqdm bar over the budget on stderr, with the last losses behind it."""

    def __init__(self, shown: bool | None, state: State) -> None:
        from tqdm import tqdm

        steps = state.budget["steps"]
        self.by_steps = steps is not None
        total = steps if self.by_steps else round(60 * state.budget["minutes"])
        self.bar = tqdm(
            total=total,
            initial=self._done(state),
            unit="step" if self.by_steps else "s",
            disable=None if shown is None else not shown,
            mininterval=0.5,
        )

    def _done(self, state: State) -> int:
        return state.step if self.by_steps else int(state.seconds)

    def update(self, state: State) -> None:
        done = min(self._done(state), self.bar.total)
        if done > self.bar.n:
            self.bar.update(done - self.bar.n)
        if state.history and not state.loss_count and not state.pending:
            last = state.history[-1]
            self.bar.set_postfix_str(f"train {last['train_loss']:.3f}, held-out {last['loss']:.3f} nats")

    def close(self) -> None:
        self.bar.close()


def _tensorboard(folder: str | Path | None) -> Any:
    """A function that logs one row of the history."""
    if folder is None:
        return lambda row: None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "tensorboard=... needs the package tensorboard; install it or leave the argument out"
        ) from error
    try:
        writer = SummaryWriter(str(folder))
    except OSError as error:
        raise ValueError(f"tensorboard={str(folder)!r} cannot be written ({error.strerror})") from error

    def log(row: Mapping[str, float]) -> None:
        for name in ("train_loss", "loss", "accuracy", "learning_rate"):
            writer.add_scalar(name, row[name], int(row["step"]))
        writer.flush()

    return log
