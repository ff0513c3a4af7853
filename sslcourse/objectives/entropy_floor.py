"""How low can a masked-language-modelling loss go? On a source that we know exactly, the answer is a number.

Text comes from a Markov chain, so the true distribution of a hidden token given everything the model sees can be
computed by forward-backward (Baum et al. 1970; Rabiner 1989, section III). No model of any size can be better on
average; one that seems to be has seen the answer.

The distribution that bounds the loss is P(x_i | inputs, *position i is scored*): the loss is an average over scored
positions, and that a position is scored is itself news about its token. So the emission at i is the one of a
selected token (``mask_prob`` mask, ``random_prob`` uniform, else kept), while every other position may or may not
have been selected and takes the mixture. Leaving out "i is scored" gives a different distribution that is *not* a
bound; ``masked_posterior(..., scored=False)`` computes it, for the lesson that shows an honest model dipping below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sslcourse.data.ignored import IGNORE
from sslcourse.objectives.masking import _check_rate

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class MarkovSource:
    """A Markov chain over V tokens, ids 0 to V-1; id V stands for ``[MASK]``.

    Args:
        transition: ``[V, V]``, row v the distribution of the token after v.
        initial: ``[V]``, the distribution of the first token; by default the chain's stationary one.

    Raises:
        ValueError: if a row is not a distribution.
    """

    def __init__(self, transition: Float[Tensor, "V V"], initial: Float[Tensor, " V"] | None = None) -> None:
        self.transition = torch.as_tensor(transition, dtype=torch.float64)
        if self.transition.ndim != 2 or self.transition.shape[0] != self.transition.shape[1]:
            raise ValueError(
                f"transition of shape {tuple(self.transition.shape)} is not a square matrix; row v holds "
                "the distribution of the token after v"
            )
        _check_distributions("transition", self.transition)
        self.initial = stationary(self.transition) if initial is None else torch.as_tensor(initial, dtype=torch.float64)
        if self.initial.shape != self.transition.shape[:1]:
            raise ValueError(
                f"initial of shape {tuple(self.initial.shape)} does not fit transition of shape "
                f"{tuple(self.transition.shape)}; give one probability a token"
            )
        _check_distributions("initial", self.initial)

    @property
    def vocab_size(self) -> int:
        """Number of ordinary tokens, V; ``[MASK]`` is id V and the model's vocabulary V + 1."""
        return len(self.initial)

    def sample(self, n: int, length: int, generator: torch.Generator | None = None) -> Int[Tensor, "n length"]:
        """``n`` independent sequences of ``length`` tokens."""
        if n < 1 or length < 1:
            raise ValueError(f"n={n} and length={length} must be at least 1")
        ids = torch.empty(n, length, dtype=torch.long)
        ids[:, 0] = torch.multinomial(self.initial.expand(n, -1), 1, generator=generator).squeeze(1)
        for t in range(1, length):
            ids[:, t] = torch.multinomial(self.transition[ids[:, t - 1]], 1, generator=generator).squeeze(1)
        return ids

    def masked_posterior(
        self,
        inputs: Int[Tensor, "n length"],
        *,
        mask_rate: float = 0.15,
        mask_prob: float = 0.8,
        random_prob: float = 0.1,
        scored: bool = True,
    ) -> Float[Tensor, "n length V"]:
        """P(x_i | inputs, i is scored) at every position, in float64.

        ``inputs`` is what the model sees: ids 0 to V-1, or V for ``[MASK]``. Costs n · length · V² operations.
        ``scored=False`` leaves out the news that i was scored; that is *not* a bound. A position that cannot be scored
        (a visible token at ``mask_prob=1``) holds the token that is seen.

        Raises:
            ValueError: for ids outside [0, V], rates outside [0, 1], or inputs that this source and masking cannot
                have produced.
        """
        selected, mixture = self._emissions(inputs, mask_rate, mask_prob, random_prob)
        before, after = self._messages(mixture)
        joint = before * mixture * after
        if not bool((joint.sum(-1) > 0).all()):
            raise ValueError(
                "inputs cannot come from this source under this masking (probability 0); "
                "check ids, transition and rates"
            )
        if scored:
            given_scored = before * selected * after
            joint = torch.where(given_scored.sum(-1, keepdim=True) > 0, given_scored, joint)
        return joint / joint.sum(-1, keepdim=True)

    def floor(
        self,
        inputs: Int[Tensor, "n length"],
        labels: Int[Tensor, "n length"],
        *,
        mask_rate: float = 0.15,
        mask_prob: float = 0.8,
        random_prob: float = 0.1,
    ) -> float:
        """Mean -log P(label | inputs, scored) over this sample's scored positions, in nats.

        The loss that a model knowing the source exactly has on the same sample: what to compare a model with, pair
        by pair, since both see the same luck.

        Raises:
            ValueError: if nothing is scored, labels do not fit or are impossible, and as ``masked_posterior``.
        """
        losses = self.floor_losses(inputs, labels, mask_rate=mask_rate, mask_prob=mask_prob, random_prob=random_prob)
        return float(losses.mean())

    def floor_losses(
        self, inputs: Int[Tensor, "n length"], labels: Int[Tensor, "n length"], **rates: float
    ) -> Float[Tensor, " scored"]:
        """The floor's loss at each scored position, in reading order: one number to pair with each of a model's."""
        if inputs.shape != labels.shape:
            raise ValueError(f"inputs of shape {tuple(inputs.shape)} and labels of shape {tuple(labels.shape)} differ")
        masked = labels != IGNORE
        targets = labels[masked]
        if not targets.numel():
            raise ValueError("labels holds no masked position (all are -100); mask at least one token")
        if not 0 <= int(targets.min()) <= int(targets.max()) < self.vocab_size:
            raise ValueError(f"labels must be {IGNORE} or lie in [0, {self.vocab_size}), the tokens of the source")
        posterior = self.masked_posterior(inputs, **rates)
        losses = -posterior[masked].gather(-1, targets[:, None]).squeeze(-1).log()
        if not bool(torch.isfinite(losses).all()):
            raise ValueError(
                "labels hold a token that has probability 0 given the inputs; pass the rates that the "
                "inputs were masked with, and the source that they came from"
            )
        return losses

    def _emissions(
        self, inputs: Tensor, mask_rate: float, mask_prob: float, random_prob: float
    ) -> tuple[Tensor, Tensor]:
        """P(input_i | x_i = v) for every v: if i was selected, and over selected and unselected. ``[n, length, V]``."""
        for name, rate in (("mask_rate", mask_rate), ("mask_prob", mask_prob), ("random_prob", random_prob)):
            _check_rate(name, rate)
        if mask_prob + random_prob > 1 + 1e-9:
            raise ValueError(f"mask_prob={mask_prob} and random_prob={random_prob} sum to more than 1")
        V = self.vocab_size  # noqa: N806 - the letter of the formulas
        if inputs.ndim != 2 or not inputs.numel() or int(inputs.min()) < 0 or int(inputs.max()) > V:
            raise ValueError(f"inputs must be [n, length] with ids in [0, {V}], {V} being the mask")
        same = torch.nn.functional.one_hot(inputs, V + 1)[..., :V].double()
        is_mask = (inputs == V)[..., None]
        keep_prob = max(0.0, 1 - mask_prob - random_prob)
        selected = torch.where(is_mask, mask_prob, keep_prob * same + random_prob / V)
        return selected, mask_rate * selected + (1 - mask_rate) * same

    def _messages(self, emission: Tensor) -> tuple[Tensor, Tensor]:
        """Forward: P(x_i | inputs before i). Backward: P(inputs after i | x_i), up to a factor. ``[n, length, V]``."""
        before, after = torch.empty_like(emission), torch.ones_like(emission)
        before[:, 0] = self.initial
        for t in range(1, emission.shape[1]):
            before[:, t] = _normalise(before[:, t - 1] * emission[:, t - 1]) @ self.transition
        for t in range(emission.shape[1] - 2, -1, -1):
            after[:, t] = _normalise((after[:, t + 1] * emission[:, t + 1]) @ self.transition.T)
        return before, after


def stationary(transition: Float[Tensor, "V V"]) -> Float[Tensor, " V"]:
    """A distribution that the chain leaves as it is: the solution of p = p·T, sum p = 1."""
    V = len(transition)  # noqa: N806
    system = torch.cat([transition.T - torch.eye(V, dtype=torch.float64), torch.ones(1, V, dtype=torch.float64)])
    target = torch.zeros(V + 1, dtype=torch.float64)
    target[-1] = 1
    solution = torch.linalg.lstsq(system, target[:, None], driver="gelsd").solution.squeeze(1).clamp(min=0)
    return solution / solution.sum()


def random_transition(
    vocab_size: int, *, concentration: float = 0.1, generator: torch.Generator | None = None
) -> Float[Tensor, "V V"]:
    """Rows drawn from a symmetric Dirichlet; a small ``concentration`` makes the next token nearly certain."""
    alpha = torch.full((vocab_size, vocab_size), concentration, dtype=torch.float64)
    gamma = torch._standard_gamma(alpha, generator=generator) + 1e-12
    return gamma / gamma.sum(-1, keepdim=True)


def _normalise(message: Tensor) -> Tensor:
    """Rescaled to sum 1, or long chains would underflow; an impossible message stays 0 and is reported above."""
    total = message.sum(-1, keepdim=True)
    return message / torch.where(total > 0, total, 1.0)


def _check_distributions(name: str, rows: Tensor) -> None:
    sums = rows.sum(-1)
    proper = torch.isfinite(rows).all() and (rows >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-6)
    if not proper:
        raise ValueError(f"{name} must hold distributions: non-negative numbers, each row summing to 1")
