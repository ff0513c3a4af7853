"""From a slow recipe to a fast one, one change at a time.

    rungs = recipes()                          # name -> Rung; each differs from the one before by one change
    text = Text.of(train, held_out)
    track = climb(rungs["no padding"], text, seconds=30)
    speedup(before, after)                     # how many times as fast the later one gets where the earlier one ended

``loop.pretrain`` does by default what the rung below the top does, and on request what the top does. Here every
choice on the way is a field, also the bad ones, so that each can be measured alone. The clock runs while a step is made
and its batch is built; not before the first step, and not while the held-out loss is taken.

What this module does not do: checkpoints, resuming, several processes. Use ``pretrain`` for work.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from sslcourse.data import tokenizer as wordpiece
from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import EncoderForMaskedLM
from sslcourse.objectives import masking
from sslcourse.train.loop import started
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import autocast, evaluate, learning_rate
from sslcourse.train.token_rows import MaskedRows, Tape, held_out_rows

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Rung(Recipe):
    """A recipe with the choices that ``pretrain`` has made already. The defaults are its own.

    ``start`` may also be "library": every matrix normal with a standard deviation of 0.02.
    """

    STARTS = (*Recipe.STARTS, "library")

    body: str = "prenorm"  # or "bert": norms after each sum, biases, learned positions, no gates
    dropout: float = 0.0  # "bert" only
    rows: str = "packed"  # or "padded": a document a row, cut off or filled up
    masks: str = "new"  # at every step; or "fixed": drawn once, before training
    scored: str = "masked"  # or "all": every real token
    head: str = "sparse"  # or "dense": logits at every position, scored or not
    mask_rate_end: float | None = None  # where the rate of masks ends, in a line from ``mask_rate``
    short_rows: float = 0.0  # share of the budget with rows of half the length, and twice as many of them
    average: float = 0.0  # share of the budget, at its end, over which weights are averaged

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose {' or '.join(known)}")
        for name in ("dropout", "short_rows", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is a share; it must lie in [0, 1)")
        if self.mask_rate_end is not None and not 0 < self.mask_rate_end <= 1:
            raise ValueError(f"mask_rate_end={self.mask_rate_end} must lie in (0, 1]")
        if self.masks == "fixed" and (self.rows == "packed" or self.mask_rate_end is not None):
            raise ValueError("masks='fixed' needs rows='padded' and one rate: packed rows are cut anew every epoch")
        if self.body == "bert" and self.start not in ("width", "library"):
            raise ValueError(f"start={self.start!r} needs body='prenorm': its heads know positions by rotation")
        if self.scored == "all" and self.head == "sparse":
            raise ValueError("scored='all' needs head='dense': a sparse head has no scores at the other positions")


CHOICES = {
    "body": ("prenorm", "bert"), "rows": ("packed", "padded"),
    "masks": ("new", "fixed"), "scored": ("masked", "all"), "head": ("sparse", "dense"),
}  # fmt: skip

ARTICLE = Rung(
    body="bert", start="library", dropout=0.1, hidden_size=256, intermediate_size=1024, layers=4, heads=4,
    activation="gelu", rows="padded", masks="fixed", scored="all", head="dense", mask_rate=0.15, batch_size=16,
    learning_rate=2e-5, schedule="constant", warmup=0.0, beta2=0.999, precision="fp32",
)  # fmt: skip


TOO_LITTLE = "the texts are too little for one batch; lower batch_size or sequence_length"


class Change(NamedTuple):
    """One rung up: a name, what is changed, and which kind of gain that is."""

    name: str
    fields: dict[str, Any]
    kind: str  # "learning" more per token, "fewer" FLOPs per token, "faster" FLOPs


LADDER = (
    Change("score masked tokens only", {"scored": "masked"}, "learning"),
    Change("a rate for training from scratch", {"learning_rate": 1e-3}, "learning"),
    Change("warm-up", {"warmup": 0.1}, "learning"),
    Change("masks drawn anew", {"masks": "new"}, "learning"),
    Change("no dropout", {"dropout": 0.0}, "learning"),
    Change("norms before, gates, rotary positions", {"body": "prenorm"}, "learning"),
    Change("start by width, outputs at zero", {"start": "width"}, "learning"),
    Change("decay on the clock", {"schedule": "linear"}, "learning"),
    Change("no padding", {"rows": "packed"}, "fewer"),
    Change("logits where they are scored", {"head": "sparse"}, "fewer"),
    Change("bf16", {"precision": "auto"}, "faster"),
    Change("a size for the budget", {"hidden_size": 128, "intermediate_size": 256, "layers": 3, "heads": 2}, "fewer"),
    Change("a rate for that size", {"learning_rate": 6e-3}, "learning"),
    Change("a shorter memory of squares", {"beta2": 0.98}, "learning"),
    Change("SiLU in the gates", {"activation": "silu"}, "learning"),
    Change("more masks", {"mask_rate": 0.3}, "learning"),
    Change("larger batches", {"batch_size": 32}, "faster"),
    Change("a start where counting ends", {"start": "neighbours"}, "learning"),
)


def recipes(changes: Sequence[Change] = LADDER, bottom: Rung = ARTICLE) -> dict[str, Rung]:
    """Name -> recipe, from the bottom up; each is the one before with one change."""
    found, rung = {"the article, repaired": bottom}, bottom
    for change in changes:
        rung = replace(rung, **change.fields)
        found[change.name] = rung
    return found


# --- what all rungs read ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Documents as token ids, and the held-out rows with the positions that every rung is scored on."""

    train: list[list[int]]
    held_out: MaskedRows
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def of(cls, texts: Sequence[str], held_out: Sequence[str], vocab_size: int = 4096, length: int = 128) -> Text:
        tokenizer = wordpiece.train(texts, vocab_size)
        rows = held_out_rows(wordpiece.encode(tokenizer, held_out), tokenizer, length)
        return cls(wordpiece.encode(tokenizer, texts), rows, tokenizer)

    def padded(self, length: int) -> Int[Tensor, "documents length"]:
        """A document a row, between [CLS] and [SEP], cut off or filled up."""
        table = torch.full((len(self.train), length), self.tokenizer.pad_token_id)
        for row, document in zip(table, self.train, strict=True):
            whole = [self.tokenizer.cls_token_id, *document[: length - 2], self.tokenizer.sep_token_id]
            row[: len(whole)] = torch.tensor(whole)
        return table


class Batch(NamedTuple):
    """Inputs, labels, and which positions hold a real token (``None``: all)."""

    inputs: Int[Tensor, "batch seq"]
    labels: Int[Tensor, "batch seq"]
    real: Bool[Tensor, "batch seq"] | None


def batches(rung: Rung, text: Text) -> Iterator[Any]:
    """A generator of batches; ``send`` it the share of the budget that is used."""
    if rung.rows == "packed":
        return _packed(rung, text)
    return _padded(rung, text)


def _packed(rung: Rung, text: Text) -> Iterator[Batch]:
    tapes = {short: Tape(text.train, text.tokenizer, rung.sequence_length // (2 if short else 1))
             for short in ((False, True) if rung.short_rows else (False,))}  # fmt: skip
    progress, step, places = 0.0, 0, dict.fromkeys(tapes, 0)
    rows: dict[bool, Tensor] = {}
    while True:
        short = progress < rung.short_rows
        size = rung.batch_size * (2 if short else 1)
        per_epoch = len(tapes[short]) // size
        if not per_epoch:
            raise ValueError(TOO_LITTLE)
        epoch, place = divmod(places[short], per_epoch)
        if place == 0 or short not in rows:
            rows[short] = tapes[short].rows(rung.seed, epoch)
        chosen = rows[short][place * size : (place + 1) * size]
        rate = mask_rate(rung, progress)
        progress = yield Batch(*tapes[short].mask(chosen, rate, rung, rung.seed, step), None)
        step, places[short] = step + 1, places[short] + 1


def _padded(rung: Rung, text: Text) -> Iterator[Batch]:
    special = text.tokenizer
    whole_epoch = len(text.train) // rung.batch_size * rung.batch_size
    if not whole_epoch:
        raise ValueError(TOO_LITTLE)
    table = text.padded(rung.sequence_length)
    generator = torch.Generator().manual_seed(rung.seed)
    real, progress = table != special.pad_token_id, 0.0
    options = {"vocab_size": rung.vocab_size, "mask_token_id": special.mask_token_id, "mask_prob": rung.mask_prob,
               "random_prob": rung.random_prob, "generator": generator}  # fmt: skip

    def masked(rows: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        inputs, labels = masking.mask_tokens(rows, special_tokens_mask=rows <= special.mask_token_id, mask_rate=rate,
                                             **options)  # fmt: skip
        if rung.scored == "all":
            labels = rows.masked_fill(rows == special.pad_token_id, IGNORE)
        return inputs, labels

    once = masked(table, rung.mask_rate) if rung.masks == "fixed" else None
    while True:
        order = torch.randperm(len(table), generator=generator)
        for chosen in order[:whole_epoch].split(rung.batch_size):
            pair = [one[chosen] for one in once] if once else masked(table[chosen], mask_rate(rung, progress))
            progress = yield Batch(*pair, real[chosen])


def mask_rate(rung: Rung, progress: float) -> float:
    """The share of tokens that are masked at this share of the budget."""
    if rung.mask_rate_end is None:
        return rung.mask_rate
    return rung.mask_rate + (rung.mask_rate_end - rung.mask_rate) * min(progress, 1.0)


# --- model, loss, optimiser ------------------------------------------------------------------------------------------


def build(rung: Rung) -> nn.Module:
    """The model of a rung, its weights drawn from the rung's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rung.seed)
        if rung.body == "bert":
            return BertForMaskedLM(BertConfig(
                vocab_size=rung.vocab_size, hidden_size=rung.hidden_size, num_hidden_layers=rung.layers,
                num_attention_heads=rung.heads, intermediate_size=rung.intermediate_size, hidden_act=rung.activation,
                hidden_dropout_prob=rung.dropout, attention_probs_dropout_prob=rung.dropout, pad_token_id=0,
                max_position_embeddings=max(512, rung.sequence_length),
            ))  # fmt: skip
        model = EncoderForMaskedLM(rung.config())
        if rung.start == "library":
            for module in model.modules():
                if hasattr(module, "start"):
                    nn.init.normal_(module.weight, std=model.config.initializer_range)
        return model


def loss_sum(model: nn.Module, batch: Batch, head: str = "sparse") -> tuple[Float[Tensor, ""], int]:
    """(sum of losses, how many positions are scored) of either body, by either head."""
    encoder = model.bert if hasattr(model, "bert") else model.model
    hidden = encoder(input_ids=batch.inputs, attention_mask=batch.real).last_hidden_state.flatten(0, 1)
    labels = batch.labels.flatten()
    if head == "sparse":
        where = (labels != IGNORE).nonzero().squeeze(1)
        hidden, labels = hidden[where], labels[where]
    logits = model.cls(hidden) if hasattr(model, "bert") else model.decoder(model.head(hidden))
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    return loss, int((labels != IGNORE).sum())


def optimizers(model: nn.Module, rung: Rung) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or for what Muon leaves: tables, heads, norms and biases."""
    body = model.bert.encoder if hasattr(model, "bert") else model.model.layers
    inner = {id(weight) for weight in body.parameters() if weight.ndim == 2} if rung.optimizer == "muon" else set()
    rest = [weight for weight in model.parameters() if id(weight) not in inner]
    groups = [{"params": [weight for weight in rest if weight.ndim >= 2], "weight_decay": rung.weight_decay},
              {"params": [weight for weight in rest if weight.ndim < 2], "weight_decay": 0.0}]  # fmt: skip
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rung.learning_rate, betas=(0.9, rung.beta2), fused=True)
    ]
    if inner:
        matrices = [weight for weight in body.parameters() if id(weight) in inner]
        found.append(torch.optim.Muon(matrices, lr=rung.learning_rate, weight_decay=rung.weight_decay,
                                      adjust_lr_fn="match_rms_adamw"))  # fmt: skip
    return found


# --- a climb ---------------------------------------------------------------------------------------------------------


@dataclass
class Track:
    """What a rung gave."""

    points: list[tuple[float, float]] = field(default_factory=list)  # (seconds of training, held-out loss)
    steps: int = 0
    tokens: int = 0  # real ones
    flops: float = 0.0  # useful: of real tokens, logits where they are scored

    @property
    def loss(self) -> float:
        """The last one."""
        return self.points[-1][1]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.points[-1][0]


def climb(rung: Rung, text: Text, seconds: float, looks: int = 12) -> Track:
    """Train for so many seconds and look at the held-out loss so many times, the last time at the end.

    The looks are dense at the start: each comes 1.41 times as late as the one before, so that twelve see a rung that
    is 45 times as fast as another.

    Raises:
        ValueError: for a budget that is not positive, or text for less than one batch.
    """
    if not 0 < seconds < math.inf or looks < 1:
        raise ValueError(f"seconds={seconds} and looks={looks} must be positive")
    rung = replace(rung, vocab_size=len(text.tokenizer))
    model = build(rung).train()
    opts, track, device = optimizers(model, rung), Track(), torch.device("cpu")
    source, averaged, spent = batches(rung, text), _Average(rung), 0.0
    if rung.start not in ("width", "library"):
        spent = started(model, Tape(text.train, text.tokenizer, rung.sequence_length).tokens, rung)
    batch = next(source)
    due = [seconds * 2 ** (-look / 2) for look in reversed(range(looks))]
    while not track.points or spent < seconds:  # one step and one look, also if the start has taken all the time
        began, done = time.perf_counter(), min(spent / seconds, 1.0)
        if track.steps:
            batch = source.send(done)
        for group in (group for one in opts for group in one.param_groups):
            group["lr"] = learning_rate(rung, done)
        with autocast(rung, device):
            total, count = loss_sum(model, batch, rung.head)
        model.zero_grad(set_to_none=True)
        (total / max(count, 1)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), rung.max_grad_norm)
        for one in opts:
            one.step()
        averaged.add(model, done)
        track.steps += 1
        real = batch.inputs.numel() if batch.real is None else int(batch.real.sum())
        track.tokens += real
        track.flops += real * flops_per_token(rung)
        spent += time.perf_counter() - began
        if spent >= due[len(track.points)] or spent >= seconds:
            with averaged.used(model):
                track.points.append((spent, evaluate(model, text.held_out).loss))
    return track


class _Average:
    """The mean of the weights over the last share of the budget (Izmailov et al. 2018, arXiv 1803.05407)."""

    def __init__(self, rung: Rung) -> None:
        self.begin, self.count = 1 - rung.average, 0
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, model: nn.Module, progress: float) -> None:
        if self.begin == 1 or progress < self.begin:
            return
        self.count += 1
        for name, weight in model.named_parameters():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(weight)
            self.sums[name] += weight

    def used(self, model: nn.Module) -> Any:
        return _Swapped(model, {name: one / self.count for name, one in self.sums.items()})


class _Swapped:
    """A model with other weights for a while."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self.model, self.weights = model, weights

    def __enter__(self) -> None:
        self.own = {name: one.detach().clone() for name, one in self.model.named_parameters() if name in self.weights}
        self._load(self.weights)

    def __exit__(self, *_: object) -> None:
        self._load(self.own)

    @torch.no_grad()
    def _load(self, weights: Mapping[str, Tensor]) -> None:
        for name, one in self.model.named_parameters():
            if name in weights:
                one.copy_(weights[name])


def flops_per_token(rung: Rung) -> float:
    """Useful floating-point operations of training on one real token.

    6 · (L (4H² + nHF) + p (H² + VH)) + 12 L H S: n is 3 for a gated MLP and 2 for a plain one, p the share of scored
    positions. Padding, dense heads and unscored logits are work, too, and not useful: they are left out.
    """
    hidden, inner, layers = rung.hidden_size, rung.intermediate_size, rung.layers
    matrices = layers * (4 * hidden**2 + (2 if rung.body == "bert" else 3) * hidden * inner)
    head = rung.mask_rate * (hidden**2 + rung.vocab_size * hidden)
    return 6 * (matrices + head) + 12 * layers * rung.sequence_length * hidden


def time_to(points: Sequence[Sequence[float]], loss: float) -> float:
    """Seconds until the loss was first that low, in a line between two looks; inf if it never was."""
    before: Sequence[float] | None = None
    for point in points:
        if point[1] <= loss:
            if before is None:
                return point[0]
            return before[0] + (point[0] - before[0]) * (before[1] - loss) / (before[1] - point[1])
        before = point
    return math.inf


def speedup(before: Track, after: Track) -> float:
    """How many times as fast ``after`` gets to the loss that ``before`` ended with; below 1 if it is slower.

    Where ``after`` does not get there in its time, the question is turned round: when was ``before`` where ``after``
    ended? A recipe whose rate decays is read before its decay is over. With a budget of exactly that time it would get
    there sooner, so gains above 1 are lower bounds and gains below 1 upper ones; and no gain is seen that is larger
    than the time of the last look over that of the first.

    Raises:
        ValueError: if a run diverged.
    """
    for track in (before, after):
        if not math.isfinite(track.loss):
            raise ValueError(f"a run ended with a loss of {track.loss}: it diverged, and has no time to any loss")
    there = time_to(after.points, before.loss)
    if math.isfinite(there):
        return before.points[-1][0] / there
    return time_to(before.points, after.loss) / after.points[-1][0]
