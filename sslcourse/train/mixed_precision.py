"""Training at one precision or another: which there are, what a device can do, and a session that trains in one.

    session = Session(recipe, "bf16"); session.step(inputs, labels, rate)
    race({"fp32": one, "bf16": other}, batches, rates)     # in turns, so that the machine's moods hit both

The pieces are elsewhere: formats in ``models.number_formats``, 16-bit weights in ``train.bf16_optimizer``, fp16's
scaling in ``train.loss_scaling``. What this module does not do: fp8 training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sslcourse.data.ignored import IGNORE
from sslcourse.measure.timing import _clock
from sslcourse.models.encoder import EncoderForMaskedLM
from sslcourse.models.number_formats import FORMATS
from sslcourse.train.bf16_optimizer import Bf16AdamW
from sslcourse.train.loop import Diverged
from sslcourse.train.loss_scaling import LossScaler
from sslcourse.train.optimizers import make_optimizer
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import has_bf16

if TYPE_CHECKING:
    from jaxtyping import Float, Int

PRECISIONS = {
    "fp32": "fp32 throughout",
    "tf32": "fp32, matrix products in tf32 (GPU)",
    "bf16": "fp32 weights, autocast to bf16",
    "fp16": "fp32 weights, autocast to fp16, loss scaling (GPU)",
    "pure_bf16": "bf16 weights, rounded to nearest",
    "pure_bf16_kahan": "bf16 weights, Kahan summation",
    "pure_bf16_stochastic": "bf16 weights, stochastic rounding",
}


def check_precision(precision: str, device: torch.device | str = "cpu") -> None:
    """Refuse a precision that is unknown, or that the device cannot train in.

    bf16 on a CPU without bf16 instructions is let through: right, only slow (``has_bf16`` tells).

    Raises:
        ValueError: naming the precision, the device and what to use instead.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is unknown; use 'cpu' or 'cuda'") from error
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device={str(device)!r} is not there, or not one that this lesson knows; use 'cpu'"
                         + (" or 'cuda'" if torch.cuda.is_available() else " (torch sees no GPU)"))  # fmt: skip
    if str(precision).startswith("fp8"):
        raise ValueError(f"precision={precision!r}: there is no fp8 training here, only emulated rounding (round_to); "
                         "train in bf16 (this needs scaled fp8 kernels, as in torchao on an H100)")  # fmt: skip
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    if kind != "cuda" and precision in ("fp16", "tf32"):
        raise ValueError(f"precision={precision!r} needs a GPU: device={kind!r} has no fast units for it; "
                         f"use {'bf16' if precision == 'fp16' else 'fp32'}, or device='cuda'")  # fmt: skip
    if kind == "cuda" and "bf16" in precision and not has_bf16(device):
        raise ValueError(f"precision={precision!r}: this GPU does not compute in bf16; use fp16 or fp32")


@dataclass
class Session:
    """An encoder in training at one precision: ``session.step(inputs, labels)``.

    Weights start from ``seed`` alone, so sessions of one recipe start equal whatever their precision. ``scaler`` is
    there for fp16 only.
    """

    recipe: Recipe
    precision: str = "fp32"
    device: str | torch.device = "cpu"
    seed: int = 0
    model: EncoderForMaskedLM | None = None  # to go on from; a copy is trained
    scaler: LossScaler | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_precision(self.precision, self.device)
        given = self.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.model = EncoderForMaskedLM(given.config if given is not None else self.recipe.config())
        if given is not None:
            self.model.load_state_dict(given.state_dict())
        self.model.to(self.device).train()
        if self.precision.startswith("pure_"):
            self.model.bfloat16()
            self.optimizer: torch.optim.Optimizer = self._bf16_optimizer()
        else:
            self.optimizer = make_optimizer(self.model, self.recipe)
        if self.precision == "fp16":
            self.scaler = LossScaler()

    def _bf16_optimizer(self) -> Bf16AdamW:
        """The groups of ``make_optimizer``, in 16 bits."""
        groups = [{**group} for group in make_optimizer(self.model, self.recipe).param_groups]
        groups = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups]
        rounding = self.precision.removeprefix("pure_bf16").removeprefix("_") or "nearest"
        return Bf16AdamW(groups, self.recipe.learning_rate, betas=(0.9, self.recipe.beta2), rounding=rounding,
                         seed=self.seed)  # fmt: skip

    def forward(self, inputs: Int[Tensor, "batch seq"], labels: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
        """The mean loss over masked positions, in this precision."""
        if inputs.numel() == 0:
            raise ValueError(f"inputs is an empty batch of shape {tuple(inputs.shape)}; leave it out")
        if inputs.shape != labels.shape:
            raise ValueError(f"inputs has shape {tuple(inputs.shape)} and labels {tuple(labels.shape)}; give one label "
                             "a token, -100 where none is scored")  # fmt: skip
        config = self.model.config
        if inputs.shape[-1] > config.max_position_embeddings:
            raise ValueError(f"inputs holds rows of {inputs.shape[-1]} tokens, more than the model's "
                             f"{config.max_position_embeddings} positions; cut them")  # fmt: skip
        for name, ids in (("inputs", inputs), ("labels", labels[labels != IGNORE])):
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < config.vocab_size:
                raise ValueError(f"{name} holds {int(ids.min())} to {int(ids.max())}, outside the model's table of "
                                 f"{config.vocab_size} rows; use the model's own tokenizer")  # fmt: skip
        with autocast(self.precision, self.device):
            loss_sum, count = self.model.masked_loss(inputs, labels)
        if count == 0:
            raise ValueError("labels has no masked position, so there is nothing to learn; raise mask_rate")
        return loss_sum / count

    def backward(self, loss: Tensor) -> float:
        """Gradients, unscaled and clipped; their joint norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        with _tf32() if self.precision == "tf32" else nullcontext():  # unlike autocast, a switch for both passes
            (self.scaler.scale(loss) if self.scaler else loss).backward()
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        return float(nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm))

    def step(self, inputs: Tensor, labels: Tensor, lr: float | None = None) -> float:
        """One update; the batch's loss in nats.

        Raises:
            ValueError: for an empty batch, or one without a masked position.
            Diverged: if a gradient is not finite; the weights are as before. (With a scaler it is a skipped step.)
        """
        lr = self.recipe.learning_rate if lr is None else lr
        if not 0 <= lr < float("inf"):
            raise ValueError(f"lr={lr} must be finite, and not negative")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.forward(inputs.to(self.device), labels.to(self.device))
        norm = self.backward(loss)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return float(loss.detach())
        if not norm < float("inf"):
            first = next(name for name, weight in self.model.named_parameters()
                         if weight.grad is not None and not bool(weight.grad.isfinite().all()))  # fmt: skip
            raise Diverged(f"the gradient of {first} is not finite (loss {float(loss.detach()):g}) in precision="
                           f"{self.precision!r}; no step was made. Lower learning_rate="
                           f"{self.recipe.learning_rate:g}, or look for nan in the weights")  # fmt: skip
        self.optimizer.step()
        return float(loss.detach())


def autocast(precision: str, device: torch.device | str = "cpu") -> Any:
    """The context in which a forward pass of this precision runs; it does nothing where nothing is cast."""
    kind = torch.device(device).type
    if precision == "tf32":
        return _tf32()
    if precision in ("bf16", "fp16"):
        return torch.autocast(kind, dtype=FORMATS[precision].dtype)
    return nullcontext()


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass
class Track:
    """What one session did in a race: a loss (nats) and a time (seconds) for each step."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def race(
    sessions: Mapping[str, Session],
    batches: Sequence[tuple[Tensor, Tensor]],
    rates: Sequence[float],
    turn: int = 4,
) -> dict[str, Track]:
    """Every session makes every step, ``turn`` steps at a time, in turns.

    So that what else the machine does, or how warm it is, hits all of them alike. ``rates`` are the learning rates,
    one a batch.
    """
    if not batches or len(batches) != len(rates):
        raise ValueError(f"batches ({len(batches)}) and rates ({len(rates)}) must be equally many, and not empty")
    tracks = {name: Track() for name in sessions}
    for start in range(0, len(batches), turn):
        for name, session in sessions.items():
            for (inputs, labels), rate in zip(batches[start : start + turn], rates[start : start + turn], strict=True):
                began = _clock(session.device)
                tracks[name].losses.append(session.step(inputs, labels, rate))
                tracks[name].seconds.append(_clock(session.device) - began)
    return tracks


def state_bytes(session: Session) -> dict[str, int]:
    """Bytes of a session's weights, gradients and optimizer state as they are, after at least one step."""
    weights = list(session.model.parameters())
    states = [value for state in session.optimizer.state.values() for value in state.values()]
    return {
        "weights": sum(weight.nbytes for weight in weights),
        "gradients": sum(weight.grad.nbytes for weight in weights if weight.grad is not None),
        "optimizer": sum(value.nbytes for value in states if isinstance(value, Tensor) and value.ndim),
    }
