"""Weights of 16 bits that do not lose small updates: stochastic rounding, Kahan's sum, and AdamW with either.

What this module does not do: master weights in fp32; ``train.mixed_precision`` has those by autocast.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


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
