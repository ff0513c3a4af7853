"""Numbers with few bits: what they can hold, how to train with them, and what a training step costs.

    formats      Format, FORMATS, round_to: every value of a format from its bits, rounding equal to the hardware's
    small steps  stochastic_round, kahan_add, Bf16AdamW: weights of 16 bits that do not lose small updates
    fp16         LossScaler: torch.amp.GradScaler, written out
    training     Session, race: one encoder in any of PRECISIONS; several of them in turn on the same batches
    memory       memory, saved_bytes, peak_bytes, checkpointed: bytes by formula, and what tensors really take
    work         flops, counted_flops, peak_flops, bandwidth: what MFU and a roofline are made of

What it does not do: fp8 arithmetic (``round_to`` emulates its rounding), several processes, kernels of its own. The
formula of ``memory`` is derived op by op for this course's encoder and torch's CPU kernels; on a GPU a few small
terms differ (the norms run in fp32 there).
"""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslcourse.encoder import WRITTEN_OUT, EncoderConfig, EncoderForMaskedLM, filled_up
from sslcourse.masking import IGNORE
from sslcourse.pretraining import Diverged, Recipe, has_bf16, make_optimizer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# --- formats ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: one sign bit, then exponent, then mantissa (IEEE 754-2019, section 3.4).

    Args:
        overflow: what becomes of a number that rounds beyond ``max``: "inf", "saturate" (to ``max``) or "nan". A
            format without "inf" gives the highest exponent to ordinary numbers, all but the pattern of ones, which is
            nan (Micikevicius et al. 2022, arXiv 2209.05433, section 3).
        dtype: torch's type of the same bits, if there is one.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    overflow: str = "inf"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.exponent_bits <= 8:
            raise ValueError(f"exponent_bits={self.exponent_bits} must lie in 2 to 8, so that fp32 holds every value")
        if not 1 <= self.mantissa_bits <= 23:
            raise ValueError(f"mantissa_bits={self.mantissa_bits} must lie in 1 to 23, so that fp32 holds every value")
        if self.overflow not in ("inf", "saturate", "nan"):
            raise ValueError(f"overflow={self.overflow!r} is unknown; choose inf, saturate or nan")

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent's bits."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def min_exponent(self) -> int:
        """Of the smallest normal number; the subnormal ones below it share its spacing."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """One more where no exponent is set aside for infinity."""
        return self.bias if self.overflow == "inf" else self.bias + 1

    @property
    def eps(self) -> float:
        """Distance from 1 to the next larger number."""
        return 2.0**-self.mantissa_bits

    @property
    def max(self) -> float:
        largest_mantissa = 2 - (1 if self.overflow == "inf" else 2) * self.eps  # without inf, the last pattern is nan
        return largest_mantissa * 2.0**self.max_exponent

    @property
    def min_normal(self) -> float:
        return 2.0**self.min_exponent

    @property
    def min_subnormal(self) -> float:
        """The smallest number over 0; what is below half of it rounds to 0."""
        return self.min_normal * self.eps

    def decode(self, pattern: int) -> float:
        """The value of ``bits`` bits, given as an integer, the sign bit being the highest."""
        if not 0 <= pattern < 2**self.bits:
            raise ValueError(f"pattern={pattern} does not fit into the {self.bits} bits of {self.name}")
        mantissa = pattern % 2**self.mantissa_bits
        exponent = pattern // 2**self.mantissa_bits % 2**self.exponent_bits
        sign = -1.0 if pattern >> (self.bits - 1) else 1.0
        if exponent == 0:
            return sign * mantissa * self.min_subnormal
        if self.overflow == "inf" and exponent == 2**self.exponent_bits - 1:
            return sign * float("inf") if mantissa == 0 else float("nan")
        if pattern % 2 ** (self.bits - 1) == 2 ** (self.bits - 1) - 1:
            return float("nan")
        return sign * (1 + mantissa * self.eps) * 2.0 ** (exponent - self.bias)

    def spacing(self, x: Float[Tensor, "*shape"] | float) -> Float[Tensor, "*shape"]:
        """Distance between neighbours where ``x`` stands (float64): the unit in the last place; nan where x is not
        finite. At a power of two it is the distance to the larger neighbour."""
        x = torch.as_tensor(x, dtype=torch.float64)
        exponent = _exponent(x).clamp(self.min_exponent, self.max_exponent)
        return torch.where(x.isfinite(), _power_of_two(exponent - self.mantissa_bits), torch.nan)


FORMATS = {
    "fp32": Format("fp32", 8, 23, dtype=torch.float32),
    "tf32": Format("tf32", 8, 10),  # stored in 32 bits; matrix units read 19 of them
    "bf16": Format("bf16", 8, 7, dtype=torch.bfloat16),
    "fp16": Format("fp16", 5, 10, dtype=torch.float16),
    "fp8_e4m3": Format("fp8_e4m3", 4, 3, overflow="saturate", dtype=torch.float8_e4m3fn),
    "fp8_e5m2": Format("fp8_e5m2", 5, 2, dtype=torch.float8_e5m2),
}


def round_to(x: Float[Tensor, "*shape"], format: Format | str) -> Float[Tensor, "*shape"]:
    """The nearest number of ``format``, ties to the even mantissa; float32, or float64 if ``x`` is that.

    A number that would round beyond the largest one follows ``format.overflow``. Below the smallest normal number the
    spacing stays what it is there (gradual underflow); nan and the sign of zero stay.

    Raises:
        ValueError: for the name of an unknown format, or ``x`` that is no floating-point tensor.
    """
    format = find(format)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"x={type(x).__name__} must be a floating-point tensor; wrap it in torch.tensor(..., "
                         "dtype=torch.float32)")  # fmt: skip
    exact = x.double()  # holds every fp32 number and every quotient below without rounding
    quantum = _power_of_two(_exponent(exact).clamp(min=format.min_exponent, max=1000) - format.mantissa_bits)
    rounded = torch.round(exact / quantum) * quantum  # torch.round takes ties to even
    beyond = {"inf": torch.inf, "saturate": format.max, "nan": torch.nan}[format.overflow]
    rounded = torch.where(rounded.abs() > format.max, torch.copysign(torch.full_like(exact, beyond), exact), rounded)
    return torch.where(exact.isnan(), exact, rounded).to(x.dtype if x.dtype == torch.float64 else torch.float32)


def find(format: Format | str) -> Format:
    """A format by its name; a ``Format`` is returned as it is."""
    if isinstance(format, Format):
        return format
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown; choose {', '.join(FORMATS)}, or give a Format")
    return FORMATS[format]


def _exponent(x: Tensor) -> Int[Tensor, "*shape"]:
    """floor(log2 |x|), read from the exponent bits of float64: exact where a logarithm would round."""
    return (x.double().view(torch.int64) >> 52 & 0x7FF) - 1023


def _power_of_two(exponent: Tensor) -> Float[Tensor, "*shape"]:
    """2^exponent in float64, put together from its bits."""
    return (exponent + 1023 << 52).view(torch.float64)


# --- small updates in 16 bits ----------------------------------------------------------------------------------------


def stochastic_round(
    x: Float[Tensor, "*shape"], generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """fp32 to bf16, up or down with the probability that makes the mean right.

    bf16 is the upper half of fp32's bits. Adding a random number to the lower half carries into the upper one as often
    as the lower half is large (Gupta et al. 2015, arXiv 1502.02551, section 3).
    """
    if x.dtype != torch.float32:
        raise ValueError(f"x has dtype={x.dtype}; stochastic rounding starts from torch.float32, use x.float()")
    noise = torch.randint(0, 2**16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    raised = (x.contiguous().view(torch.int32) + noise & -(2**16)).view(torch.float32)
    return torch.where(x.isfinite(), raised, x).bfloat16()


def kahan_add(
    total: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"], compensation: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """(total + value, new compensation), all in the type of ``total``; the compensation starts as zeros.

    It remembers what the last rounding lost, and the next sum adds that first (Kahan 1965,
    doi.org/10.1145/363707.363723).
    """
    value = value.to(total.dtype) - compensation
    new = total + value
    return new, (new - total) - value


class Bf16AdamW(torch.optim.Optimizer):
    """AdamW for weights of 16 bits; only how the new weight is rounded differs between the three kinds.

    The moments are fp32 in all of them, so that a comparison changes one thing. Same update as ``torch.optim.AdamW``
    (Loshchilov and Hutter 2019, arXiv 1711.05101).

    Args:
        rounding: "nearest" (loses updates below half a unit in the last place), "kahan" (two more bytes a weight) or
            "stochastic" (no more bytes, some noise; Zamirai et al. 2020, arXiv 2010.06192, section 3).
        seed: of the stochastic rounding.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        rounding: str = "nearest",
        seed: int = 0,
    ) -> None:
        if rounding not in ("nearest", "kahan", "stochastic"):
            raise ValueError(f"rounding={rounding!r} is unknown; choose nearest, kahan or stochastic")
        if not 0 <= lr < float("inf"):
            raise ValueError(f"lr={lr} must be finite, and not negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas} must lie in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.rounding, self.seed = rounding, seed
        self._generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.dtype != torch.bfloat16:
                    raise ValueError(f"a weight has dtype={weight.dtype}; Bf16AdamW is for torch.bfloat16: "
                                     "model.bfloat16() first, or torch.optim.AdamW")  # fmt: skip

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._apply(weight, self._update(weight, group), self.state[weight])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the moments stay fp32, where torch casts a state to its weight's type.

        Stochastic rounding goes on with fresh random numbers.
        """
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for number, saved in state_dict["state"].items():
            state = self.state[weights[number]]
            for name in ("mean", "square"):
                state[name] = saved[name].to(weights[number].device, torch.float32).clone()

    def _update(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """What is to be added to the weight, in fp32."""
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(weight, dtype=torch.float32)
            state["square"] = torch.zeros_like(weight, dtype=torch.float32)
            if self.rounding == "kahan":
                state["compensation"] = torch.zeros_like(weight)
        beta1, beta2 = group["betas"]
        gradient = weight.grad.float()
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = (state["square"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        step = state["mean"] / size / (1 - beta1 ** state["step"])
        return step.add_(weight, alpha=group["weight_decay"]).mul_(-group["lr"])

    def _apply(self, weight: Tensor, update: Tensor, state: dict[str, Any]) -> None:
        if self.rounding == "kahan":
            total, state["compensation"] = kahan_add(weight, update, state["compensation"])
            weight.copy_(total)
        elif self.rounding == "stochastic":
            weight.copy_(stochastic_round(weight.float() + update, self._generator(weight.device)))
        else:
            weight.copy_(weight.float() + update)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]


# --- fp16: loss scaling ----------------------------------------------------------------------------------------------

SMALLEST_SCALE = 2.0**-24


class OrderError(ValueError, RuntimeError):
    """A scaler's methods were called in the wrong order (torch raises RuntimeError there)."""


class LossScaler:
    """``torch.amp.GradScaler`` in a page: multiply the loss, divide the gradients, skip a step that overflowed.

        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)          # only needed where somebody looks at the gradients, as clipping does
        clip_grad_norm_(...)
        scaler.step(optimizer)              # or not, if a gradient is inf or nan
        scaler.update()                     # down after an overflow, up after ``growth_interval`` good steps

    Same numbers, same order as torch's (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2). Left out: closures,
    sparse gradients, several devices.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        if not 0 < _fp32(init_scale) < float("inf"):
            raise ValueError(f"init_scale={init_scale} must be positive and finite in fp32")
        if not growth_factor > 1:
            raise ValueError(f"growth_factor={growth_factor} must be over 1, or the scale can never grow")
        if not 0 < backoff_factor < 1:
            raise ValueError(f"backoff_factor={backoff_factor} must lie between 0 and 1")
        if growth_interval < 1:
            raise ValueError(f"growth_interval={growth_interval} must be at least 1 step")
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval
        self._scale = _fp32(init_scale)
        self.good_steps = 0  # since the scale last changed
        self.skipped = 0
        self._overflowed: dict[int, bool] = {}  # optimizer -> was a gradient not finite? Known once it is unscaled
        self._stepped: set[int] = set()

    def get_scale(self) -> float:
        return self._scale

    def scale(self, loss: Tensor) -> Tensor:
        """The loss, multiplied; call ``backward`` on it."""
        return loss * torch.tensor(self._scale, device=loss.device)

    @torch.no_grad()
    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients of ``optimizer`` by the scale, once a step, and remember whether all were finite.

        Raises:
            OrderError: the second time in a step, after ``step``, or before ``backward``.
            ValueError: for gradients stored in fp16, which would underflow right here.
        """
        if id(optimizer) in self._overflowed:
            raise OrderError("unscale_() was already called on this optimizer since the last update(); "
                             "call it once a step, then update()")  # fmt: skip
        gradients = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
        gradients = [gradient for gradient in gradients if gradient is not None]
        if not gradients:
            raise OrderError("the optimizer's weights have no gradients: call scaler.scale(loss).backward() first")
        inverse = _fp32(1 / self._scale)
        for gradient in gradients:
            if gradient.dtype == torch.float16:
                raise ValueError("a gradient has dtype=torch.float16; keep the weights in fp32 and use autocast")
            gradient.mul_(inverse)
        self._overflowed[id(optimizer)] = not all(bool(gradient.isfinite().all()) for gradient in gradients)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """``optimizer.step()`` unless a gradient is inf or nan; whether the step was made."""
        if id(optimizer) in self._stepped:
            raise OrderError("step() was already called on this optimizer since the last update(); call update()")
        if id(optimizer) not in self._overflowed:
            self.unscale_(optimizer)
        self._stepped.add(id(optimizer))
        if not self._overflowed[id(optimizer)]:
            optimizer.step()
        return not self._overflowed[id(optimizer)]

    def update(self) -> None:
        """The scale of the next step.

        Raises:
            OrderError: if no gradients were looked at since the last time.
            Diverged: if it falls below 2^-24: overflow cannot be the reason then, the loss itself is nan or inf.
        """
        if not self._overflowed:
            raise OrderError("update() before step(): no gradients were looked at since the last update()")
        if any(self._overflowed.values()):
            self.skipped += 1
            self._scale, self.good_steps = _fp32(self._scale * self.backoff_factor), 0
        else:
            self.good_steps += 1
            if self.good_steps == self.growth_interval:
                grown = _fp32(self._scale * self.growth_factor)
                self._scale = grown if grown < float("inf") else self._scale
                self.good_steps = 0
        self._overflowed.clear()
        self._stepped.clear()
        if self._scale < SMALLEST_SCALE:
            raise Diverged(f"the loss scale fell to {self._scale:g} after {self.skipped} skipped steps: gradients are "
                           "nan or inf at any scale; look for it in the data, or lower the learning rate")  # fmt: skip


def _fp32(number: float) -> float:
    """A Python float rounded to fp32, since torch keeps the scale in it."""
    return float(torch.tensor(number, dtype=torch.float32))


# --- training --------------------------------------------------------------------------------------------------------

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


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile); of one value, that value three times."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _clock(device: torch.device | str = "cpu") -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- memory ----------------------------------------------------------------------------------------------------------


def parameter_count(config: EncoderConfig) -> int:
    """Weights of ``EncoderForMaskedLM(config)``, the shared table counted once."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    norms = 2 * layers + 2  # embeddings, final, head; two a layer but for the first, which has one
    return config.vocab_size * (hidden + 1) + layers * (4 * hidden**2 + 3 * hidden * inner) + hidden**2 + norms * hidden


def memory(
    config: EncoderConfig,
    batch: int,
    seq: int,
    masked: int | None,
    precision: str = "fp32",
    *,
    checkpointed: bool = False,
    device: str = "cpu",
) -> dict[str, int]:
    """Bytes of one training step with AdamW, by formula: weights, gradients, optimizer, activations, total.

    "activations" is everything that the forward pass keeps for the backward pass, each storage once, without the
    weights themselves, but with autocast's copies of them: what ``saved_bytes`` measures. Working space that comes and
    goes within one operation is not in it; ``peak_bytes`` shows that.

    Args:
        masked: positions that are scored; None for a head that runs over all positions (``model(...).loss``).
        precision: one of PRECISIONS.
        checkpointed: whether each layer keeps only its input (``checkpointed``).
        device: where it runs; on a CPU in bf16 attention is written out (``encoder.attend``) and keeps its weights.
    """
    if precision not in PRECISIONS:
        check_precision(precision)
    if masked is not None and not 0 < masked <= batch * seq:
        raise ValueError(f"masked={masked} must lie in 1 to batch * seq = {batch * seq}, or be None for a dense head")
    if batch < 1 or seq < 1:
        raise ValueError(f"batch={batch} and seq={seq} must be at least 1")
    weights = parameter_count(config)
    stored = 2 if precision.startswith("pure_") else 4
    more = 2 if precision == "pure_bf16_kahan" else 0
    parts = {
        "weights": stored * weights,
        "gradients": stored * weights,
        "optimizer": (8 + more) * weights,  # two moments in fp32, and what Kahan's sum remembers
    }
    how = {"checkpointed": checkpointed, "device": device}
    parts["activations"] = sum(activation_terms(config, batch, seq, masked, precision, **how).values())
    return parts | {"total": sum(parts.values())}


def activation_terms(
    config: EncoderConfig,
    batch: int,
    seq: int,
    masked: int | None,
    precision: str = "fp32",
    *,
    checkpointed: bool = False,
    device: str = "cpu",
) -> dict[str, int]:
    """"activations" of ``memory`` term by term, in bytes: what each operation keeps to compute its gradient.

    A linear map keeps its input; a norm its input and two numbers a row; a product both factors. Attention by the fused
    kernel keeps q, k, v, its output and one number a query and head (FlashAttention, Dao et al. 2022, arXiv 2205.14135,
    section 3.1: not the seq x seq matrix), and v keeps the storage of all of Wqkv's output alive. Written out, as in
    bf16 on a CPU, it keeps copies of q, k and v and the seq x seq weights of each head.
    """
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    tokens, scored = batch * seq, batch * seq if masked is None else filled_up(masked)
    stream = 2 if precision.startswith("pure_") else 4  # the residual stream, and what norms read
    work = 4 if precision in ("fp32", "tf32") else 2  # what matrix products read and write
    statistic = stream  # mean and 1/deviation of a row come in the weights' type
    norm = stream * hidden + 2 * statistic

    written_out = work == 2 and device == "cpu" and seq <= WRITTEN_OUT
    if written_out:
        # x; q, k and v (copies; with one head or one row views, of q and k together and of qkv); out; weights
        copies_or_views = 3 * hidden if batch > 1 and heads > 1 else hidden + 2 * hidden + 3 * hidden
        attention = work * (hidden + copies_or_views + hidden + heads * seq)
    else:
        attention = work * (hidden + 3 * hidden + 2 * hidden + hidden) + 4 * heads  # x, qkv, rotated q, k, out, sums
    mlp = norm + work * (hidden + 2 * inner + inner + inner)  # norm, x, Wi's output, activated, product
    each = tokens * (attention + mlp)
    matrices = 4 * hidden**2 + 3 * hidden * inner
    copies = work if work < stream else 0  # autocast casts every matrix once a pass and keeps the copy

    terms = {
        "embeddings": tokens * (8 + norm),  # the ids, then a norm
        "rotary tables": (4 if work == 4 else 2 * layers) * 2 * seq * (hidden // heads),  # in 16 bits each layer's own
        "layers": layers * each + (layers - 1) * tokens * norm,  # layer 0 has no norm before attention
        "final norm": tokens * norm,
        "head": scored * (work * 4 * hidden + 2 * statistic),  # x, dense's output, gelu's output, norm's output
        "scores": scored * (4 * vocab + 8) + 4,  # log-probabilities in fp32, the targets, their number
        "gather": 0 if masked is None else 8 * scored,
        "weight copies": copies * (layers * matrices + hidden**2 + vocab * hidden),
    }
    if checkpointed:
        terms["layers"] = layers * tokens * stream * hidden
        terms["rotary tables"] = 0  # handed through as an argument, so no operation of the graph keeps them
        terms["weight copies"] = copies * (hidden**2 + vocab * hidden)
    return terms


def saved_bytes(forward: Callable[[], Any], model: nn.Module) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once, the model's weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}  # holding on to them, or a freed address could be counted as another tensor

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    total = sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in weights)
    del result  # only now: the graph had to live as long as the addresses were compared
    return total


def state_bytes(session: Session) -> dict[str, int]:
    """Bytes of a session's weights, gradients and optimizer state as they are, after at least one step."""
    weights = list(session.model.parameters())
    states = [value for state in session.optimizer.state.values() for value in state.values()]
    return {
        "weights": sum(weight.nbytes for weight in weights),
        "gradients": sum(weight.grad.nbytes for weight in weights if weight.grad is not None),
        "optimizer": sum(value.nbytes for value in states if isinstance(value, Tensor) and value.ndim),
    }


class _Ledger(TorchDispatchMode):
    """Books every storage that an operation makes, and strikes it out when it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.level, self.peak = 0, 0
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        old = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in old:  # views and in-place make nothing
                self.book(leaf.untyped_storage())
        return result

    def book(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address not in self.known:
            self.level += size
            self.peak = max(self.peak, self.level)
            self.known[address] = weakref.ref(storage, lambda _: self.strike(address, size))

    def strike(self, address: int, size: int) -> None:
        self.level -= size
        del self.known[address]


def peak_bytes(work: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """The most that tensors took at one moment of ``work()`` beyond what was there before it, in bytes.

    The allocator's own counter on a GPU. On a CPU every operation's results are booked while they live; scratch space
    inside a kernel is not seen, nor that ``work`` frees what was there before: set gradients to None before you
    measure a step, or old and new ones count.
    """
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _Ledger() as ledger:
        work()
    return ledger.peak


def resident_bytes() -> int | None:
    """What the operating system says that this process holds in memory; None where it is not known how to ask."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return None
    import resource

    return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@contextmanager
def checkpointed(model: EncoderForMaskedLM) -> Iterator[EncoderForMaskedLM]:
    """Within the context each layer keeps its input only, and is computed again in the backward pass.

    The backward pass must be inside too. About a third more arithmetic in the layers (Chen et al. 2016,
    arXiv 1604.06174).
    """
    from torch.utils.checkpoint import checkpoint

    layers = list(model.model.layers)
    for layer in layers:
        layer.forward = partial(checkpoint, type(layer).forward.__get__(layer), use_reentrant=False)
    try:
        yield model
    finally:
        for layer in layers:
            del layer.forward  # the method of its class is found again


# --- work ------------------------------------------------------------------------------------------------------------


def flops(
    config: EncoderConfig,
    batch: int,
    seq: int,
    masked: int | None,
    *,
    training: bool = True,
    recompute: bool = False,
) -> int:
    """Floating-point operations of one step's matrix products, by formula; one multiplication and one sum are two.

    A matrix of n weights costs 2n a token forward and twice that backward; attention 4 * seq * hidden a token and
    layer forward. Norms, activations and the optimizer are left out: they cost time, and hardly any arithmetic.

    Args:
        masked: positions that the head sees; None for all. What is executed is ``encoder.filled_up`` of them.
        training: forward and backward; False for the forward pass alone.
        recompute: count also that FlashAttention's backward computes the scores again: executed, not useful, work.
    """
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens, scored = batch * seq, batch * seq if masked is None else masked
    matrices = tokens * layers * (4 * hidden**2 + 3 * hidden * inner)
    head = scored * (hidden**2 + config.vocab_size * hidden)
    passes = 3 if training else 1
    again = 2 * layers * tokens * seq * hidden if training and recompute else 0
    return passes * (2 * (matrices + head) + 4 * layers * tokens * seq * hidden) + again


def counted_flops(work: Callable[[], Any], *, recompute: bool = False) -> int:
    """The same by ``torch.utils.flop_counter``, with a formula for the attention kernels (it counts the CPU's as 0)."""
    from torch.utils.flop_counter import FlopCounterMode

    def forward(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
        batch, heads, length, size = query
        return 4 * batch * heads * length * key[-2] * size

    def backward(_: Sequence[int], query: Sequence[int], key: Sequence[int], *__: Any, **___: Any) -> int:
        return forward(query, key) * (5 if recompute else 4) // 2

    kinds = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    names = [f"_scaled_dot_product_{kind}" for kind in kinds]
    formulas = {getattr(torch.ops.aten, name): forward for name in names}
    formulas |= {getattr(torch.ops.aten, f"{name}_backward"): backward for name in names}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        work()
    return counter.get_total_flops()


def seconds(
    work: Callable[[], Any],
    repeats: int = 5,
    device: torch.device | str = "cpu",
    pick: Callable[[list[float]], float] = statistics.median,
) -> float:
    """The time of ``work()`` after one run to warm up: the median of ``repeats``, or what ``pick`` makes of them.

    Short work is done several times between two looks at the clock, for 10 ms: else a GPU's launches would be timed.
    """
    work()
    began = _clock(device)
    work()
    calls = max(1, math.ceil(0.01 / max(_clock(device) - began, 1e-6)))
    times = []
    for _ in range(repeats):
        began = _clock(device)
        for _ in range(calls):
            work()
        times.append((_clock(device) - began) / calls)
    return pick(times)


def peak_flops(
    dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu", size: int = 2048, repeats: int = 5
) -> float:
    """FLOP/s of a large matrix product, the best of several: the most that this machine does in practice.

    Raises:
        ValueError: if the device cannot multiply matrices of this type.
    """
    try:
        left = torch.randn(size, size, device=device).to(dtype)
        right = torch.randn(size, size, device=device).to(dtype)
        return 2 * size**3 / seconds(lambda: left @ right, repeats, device, pick=min)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"dtype={dtype} cannot be multiplied on device={str(device)!r} ({error}); "
                         "use torch.bfloat16 or torch.float32") from error  # fmt: skip


def bandwidth(megabytes: float, device: torch.device | str = "cpu", repeats: int = 7) -> float:
    """Bytes a second that a copy moves, reads and writes added, at best; a small buffer measures a cache."""
    if not megabytes > 0:
        raise ValueError(f"megabytes={megabytes} must be positive")
    source = torch.zeros(max(1, int(megabytes * 2**20 / 4)), device=device)
    target = torch.empty_like(source)
    times = max(1, int(64 / megabytes))  # small copies many times, or the clock would be measured

    def copy() -> None:
        for _ in range(times):
            target.copy_(source)

    return 2 * source.nbytes * times / seconds(copy, repeats, device, pick=min)
