"""``torch.amp.GradScaler``, written out: fp16 gradients are kept from vanishing by a factor on the loss.

What this module does not do: several optimisers, or gradients on several devices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslcourse.train.loop import Diverged

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
