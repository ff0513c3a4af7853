"""Pretraining a masked language model, from a list of texts to a folder that ``transformers`` opens.

First the article's two functions made right: ``train_epoch`` and ``evaluate`` carry (sum, count) and score masked
positions only. Then ``pretrain``, which is what a small machine needs:

* packed rows in place of padding, masks drawn anew at every step, logits at masked positions only;
* warm-up, then a decay to zero that ends with the budget, be it a number of steps or of minutes;
* a held-out set masked once and for all, the best weights kept, early stopping, TensorBoard;
* checkpoints from which a run goes on. Everything random depends on (seed, step) alone, so a run of a given number
  of steps that was interrupted and resumed ends with the same bits as one that was not.

What it does not do: several processes (lesson 06), other objectives, hyper-parameter search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers.activations import ACT2FN

from sslcourse import masking
from sslcourse import tokenizer as wordpiece
from sslcourse.checkpoint import State, Store, fingerprint
from sslcourse.encoder import EncoderConfig, EncoderForMaskedLM
from sslcourse.masking import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Int
    from transformers import PreTrainedTokenizerFast

EVALUATION_RATE = 0.15  # held-out text is always masked at 15 %, 80/10/10, whatever the rate in training
EVALUATION_SEED = 15


class Diverged(RuntimeError):
    """The loss became infinite or nan and stayed so; there are no weights worth keeping."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a run goes, apart from its texts and its budget."""

    vocab_size: int = 4096
    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 2
    activation: str = "silu"

    sequence_length: int = 128  # tokens a row
    batch_size: int = 32  # rows a step
    learning_rate: float = 6e-3  # at the end of the warm-up
    schedule: str = "linear"  # or "cosine", "constant": what follows the warm-up
    warmup: float = 0.1  # share of the budget
    weight_decay: float = 0.01
    beta2: float = 0.98
    max_grad_norm: float = 1.0
    mask_rate: float = 0.3  # more signal a step than 0.15, which evaluation keeps (Portes et al. 2023, MosaicBERT)
    mask_prob: float = 0.8
    random_prob: float = 0.1
    precision: str = "auto"  # "fp32", "bf16" (autocast), or whichever is faster here
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "sequence_length", "batch_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.schedule not in ("linear", "cosine", "constant"):
            raise ValueError(f"schedule={self.schedule!r} is unknown; choose linear, cosine or constant")
        if self.activation not in ACT2FN:
            raise ValueError(f"activation={self.activation!r} is unknown; choose silu, gelu, relu, ...")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision={self.precision!r} is unknown; choose auto, fp32 or bf16")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} is a share of the budget; it must lie in [0, 1)")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive and finite")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay} must be 0 or more")
        if not 0 < self.mask_rate <= 1:
            raise ValueError(f"mask_rate={self.mask_rate} must lie in (0, 1]: without a mask there is nothing to learn")

    def config(self) -> EncoderConfig:
        """The encoder's configuration."""
        return EncoderConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            hidden_activation=self.activation,
            max_position_embeddings=max(512, self.sequence_length),
        )


@dataclass(frozen=True)
class Evaluation:
    """Sums over masked positions; the means are derived, so evaluations of parts can be added."""

    loss_sum: float
    correct: int
    count: int

    @property
    def loss(self) -> float:
        """Mean loss in nats per masked position."""
        return self.loss_sum / self.count

    @property
    def accuracy(self) -> float:
        """Share of masked positions whose token is the model's first guess."""
        return self.correct / self.count


@dataclass
class Run:
    """What ``pretrain`` returns: the best weights, the tokenizer, and how it went."""

    model: EncoderForMaskedLM
    tokenizer: PreTrainedTokenizerFast
    recipe: Recipe
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: str = ""  # why it ended: "steps", "minutes" or "patience"

    @property
    def loss(self) -> float:
        """Best held-out loss in nats, 15 % masks."""
        return min(row["loss"] for row in self.history)


# --- the article's two functions, made right -------------------------------------------------------------------------


def train_epoch(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float | None = 1.0,
    generator: torch.Generator | None = None,
) -> float:
    """One pass over a dataset of ``{"input_ids", "attention_mask", "labels"}``; the mean loss over masked positions.

    ``model`` is any masked language model that returns ``.loss`` for ``labels``. Batches hold unequal numbers of
    masked tokens, so each batch's mean is weighted by its count. A batch without a masked token is passed over: it
    has no gradient.

    Raises:
        ValueError: if no batch of the whole pass holds a masked token.
    """
    model.train()
    loss_sum, count = 0.0, 0
    for batch in DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=generator):
        batch = _to(batch, _device(model))
        masked = int((batch["labels"] != IGNORE).sum())
        if masked == 0:
            continue
        optimizer.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        loss_sum += loss.item() * masked
        count += masked
    if count == 0:
        raise ValueError("dataset gave no masked position in the whole epoch; raise its mask_rate")
    return loss_sum / count


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, batch_size: int = 64) -> Evaluation:
    """Loss and accuracy over the masked positions of a dataset; padding and visible tokens do not count.

    Raises:
        ValueError: if no position of the dataset is masked.
    """
    was_training = model.training
    model.eval()
    loss_sum, correct, count = 0.0, 0, 0
    own = torch.Generator()  # a loader without one draws a number from the global generator, which is the caller's
    for batch in DataLoader(dataset, batch_size=batch_size, generator=own):
        batch = _to(batch, _device(model))
        logits = _masked_logits(model, batch)
        targets = batch["labels"][batch["labels"] != IGNORE]
        loss_sum += nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        correct += int((logits.argmax(-1) == targets).sum())
        count += len(targets)
    model.train(was_training)
    if count == 0:
        raise ValueError("dataset holds no masked position, so there is no loss to report; raise its mask_rate")
    return Evaluation(loss_sum, correct, count)


def _masked_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """At masked positions only where the model can do that (this course's), cut out of all logits elsewhere."""
    if hasattr(model, "masked_logits"):
        return model.masked_logits(**batch)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model(**inputs).logits[batch["labels"] != IGNORE].float()


# --- data: one long tape of tokens -----------------------------------------------------------------------------------


class Tape:
    """All documents end to end, cut into rows anew in every epoch.

    The documents stay in the corpus's order, so that a row reads on as the text does. Each epoch starts the cut at
    another place and shuffles the rows; batch ``step`` depends on ``(seed, step)`` alone.
    """

    def __init__(self, documents: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast, length: int) -> None:
        total = sum(len(document) + 2 for document in documents)
        if total < length:
            raise ValueError(
                f"the texts hold {total} tokens, less than one row of sequence_length={length}; "
                "give more text, or a shorter sequence_length"
            )
        rows, _ = masking.pack(
            documents,
            length,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.tokens: Int[Tensor, " total"] = rows.flatten()[:total]
        self.length = length
        self.last_special = tokenizer.mask_token_id

    def __len__(self) -> int:
        """Whole rows on the tape."""
        return len(self.tokens) // self.length

    def rows(self, seed: int, epoch: int) -> Int[Tensor, "rows length"]:
        """The rows of one epoch, shuffled."""
        generator = _generator(seed, epoch, stream=1)
        spare = len(self.tokens) % self.length
        start = int(torch.randint(spare + 1, (), generator=generator)) if epoch else 0
        rows = self.tokens[start : start + len(self.tokens) - spare].view(-1, self.length)
        return rows[torch.randperm(len(rows), generator=generator)]

    def batches(self, recipe: Recipe, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) of steps ``first_step``, ``first_step + 1``, ... without end."""
        per_epoch = len(self) // recipe.batch_size
        step = first_step
        while True:
            rows = self.rows(recipe.seed, step // per_epoch)
            while True:
                place = step % per_epoch * recipe.batch_size
                yield self.mask(rows[place : place + recipe.batch_size], recipe.mask_rate, recipe, recipe.seed, step)
                step += 1
                if step % per_epoch == 0:
                    break

    def mask(self, rows: Tensor, rate: float, recipe: Recipe, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Corrupt rows; special tokens, which all have the lowest ids, are never scored."""
        return masking.mask_tokens(
            rows,
            special_tokens_mask=rows <= self.last_special,
            vocab_size=recipe.vocab_size,
            mask_token_id=self.last_special,
            mask_rate=rate,
            mask_prob=recipe.mask_prob,
            random_prob=recipe.random_prob,
            generator=_generator(seed, step, stream=2),
        )


class MaskedRows(Dataset):
    """Rows masked once: the held-out set, the same positions at every evaluation and for every model."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return {"input_ids": self.inputs[item], "labels": self.labels[item]}


def held_out_rows(documents: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast, length: int) -> MaskedRows:
    """Held-out documents packed and masked at 15 %, 80/10/10, with a fixed seed; specials count as in training."""
    tape = Tape(documents, tokenizer, length)
    rows = tape.tokens[: len(tape.tokens) // length * length].view(-1, length)
    fixed = Recipe(vocab_size=len(tokenizer))
    return MaskedRows(*tape.mask(rows, EVALUATION_RATE, fixed, EVALUATION_SEED, 0))


# --- the run ---------------------------------------------------------------------------------------------------------


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The rate at ``progress`` (0 to 1 of the budget): up in a line, then down to zero, or level."""
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    left = (1 - min(progress, 1.0)) / (1 - recipe.warmup)
    shape = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[recipe.schedule]
    return recipe.learning_rate * shape


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW, fused, with decay on matrices only: norms and biases have no scale to keep small."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, recipe.beta2), fused=True)


def train_step(
    model: EncoderForMaskedLM, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, recipe: Recipe
) -> Tensor:
    """One update; the batch's mean loss, still a tensor so that nothing waits for it."""
    with autocast(recipe, inputs.device):
        loss_sum, count = model.masked_loss(inputs, labels)
    loss = loss_sum / max(count, 1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
    optimizer.step()
    return loss.detach()


def autocast(recipe: Recipe, device: torch.device) -> Any:
    """bf16 for the matrix products where the recipe asks for it, or, on "auto", where the machine computes in it."""
    if recipe.precision == "bf16" or (recipe.precision == "auto" and has_bf16(device)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def has_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether the device multiplies bf16 matrices in hardware; elsewhere autocast would slow training down."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pretrain(
    texts: Sequence[str],
    held_out: Sequence[str],
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
    tensorboard: str | Path | None = None,
    progress: bool | None = None,
    device: str | torch.device | None = None,
) -> Run:
    """Train a masked language model from scratch on ``texts`` and keep the weights that do best on ``held_out``.

    Args:
        steps, minutes: the budget, exactly one of them. Steps are repeatable to the bit on one machine; minutes count
            training alone (not evaluation, nor the tokenizer) and are not.
        tokenizer: by default one is trained on ``texts``.
        out: a folder that does not exist yet or is empty. Until the run is complete everything is in
            ``<out>.partial``; then that becomes ``out``, so ``out`` is either absent or whole.
        resume: go on from ``<out>.partial``, which must come from the same texts, recipe and budget.
        evaluations: how many times the held-out loss is measured, evenly over the budget.
        patience: stop after this many evaluations in a row without a better loss; ``None`` never does.
        on_evaluation: called with each new row of the history, as soon as it is there.
        tensorboard: a folder for TensorBoard's log.
        progress: whether to show a bar on stderr; by default if that is a terminal.

    Raises:
        ValueError: for a budget, recipe, text or folder that cannot work; nothing has been written then.
        Diverged: if the held-out loss was never finite; nothing is left on disk.
    """
    recipe = recipe or Recipe()
    if (steps is None) == (minutes is None):
        raise ValueError(f"give either steps or minutes, not both or neither (steps={steps}, minutes={minutes})")
    if not (minutes if steps is None else steps) > 0:
        raise ValueError(f"steps={steps}, minutes={minutes}: the budget must be positive")
    if evaluations < 1:
        raise ValueError(f"evaluations={evaluations} must be at least 1, or no weights could be kept")
    if patience is not None and patience < 1:
        raise ValueError(f"patience={patience} must be at least 1 evaluation, or None")
    texts, held_out = list(texts), list(held_out)
    if not texts or not held_out:
        raise ValueError(f"texts ({len(texts)}) and held_out ({len(held_out)}) must each hold at least one document")
    store = Store(out) if out is not None else None
    if store:
        store.check(resume)
        if tensorboard is not None and Path(tensorboard).resolve().is_relative_to(store.out):
            raise ValueError(f"tensorboard={str(tensorboard)!r} lies in out, which must stay empty; put it elsewhere")
    elif resume:
        raise ValueError("resume=True needs out, the folder that the interrupted run was given")

    tokenizer = tokenizer or wordpiece.train(texts, recipe.vocab_size)
    recipe = replace(recipe, vocab_size=len(tokenizer))
    tape = Tape(wordpiece.encode(tokenizer, texts), tokenizer, recipe.sequence_length)
    if len(tape) < recipe.batch_size:
        raise ValueError(
            f"the texts give {len(tape)} rows of sequence_length={recipe.sequence_length} tokens, too little "
            f"for one batch of batch_size={recipe.batch_size}; give more text, or lower one of the two"
        )
    validation = held_out_rows(wordpiece.encode(tokenizer, held_out), tokenizer, recipe.sequence_length)

    if not bool((validation.labels != IGNORE).any()):
        raise ValueError("held_out holds no token that can be masked (is all of it unknown to the tokenizer?)")

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = EncoderForMaskedLM(recipe.config()).to(device)
    optimizer = make_optimizer(model, recipe)
    state = State(budget={"steps": steps, "minutes": minutes, "evaluations": evaluations, "patience": patience})
    identity = {"recipe": asdict(recipe), "budget": state.budget, "texts": fingerprint(texts, held_out)}
    if store and resume:
        state = store.load(identity, model, optimizer)
    run = Run(model, tokenizer, recipe, state.history)
    log = _tensorboard(tensorboard)
    bar = _progress_bar(progress, state)

    model.train()
    batches = tape.batches(recipe, state.step)
    while not state.finished():
        began = time.perf_counter()
        inputs, labels = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, state.progress(after=1))
        loss = train_step(model, optimizer, inputs.to(device), labels.to(device), recipe)
        state.after_step(loss, inputs.numel(), time.perf_counter() - began)
        bar.update(state)
        if state.evaluation_due():
            result = evaluate(model, validation)
            state.after_evaluation(result.loss, result.accuracy, optimizer.param_groups[0]["lr"], model)
            log(state.history[-1])
            if on_evaluation:
                on_evaluation(state.history[-1])
            bar.update(state)
            if store:
                store.save(identity, state, model, optimizer)
    bar.close()
    run.stopped = state.finished()
    if not state.best:
        if store:
            store.discard()
        raise Diverged(f"the held-out loss was never a finite number: training diverged at learning_rate="
                       f"{recipe.learning_rate:g}; lower it. Nothing was written")
    model.load_state_dict(state.best, strict=False)  # the shared decoder weight has one name only
    model.eval()
    if store:
        store.finish(model, tokenizer, {"recipe.json": asdict(recipe), "history.json": run.history})
    return run


def _generator(seed: int, number: int, stream: int) -> torch.Generator:
    """Randomness that depends on where a run is and not on how it came there; ``stream`` keeps uses apart."""
    return torch.Generator().manual_seed(((seed * 1_000_003 + number) * 8 + stream) % 2**63)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _to(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


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
        if state.history and not state.losses:
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
