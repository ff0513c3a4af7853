"""One model over several ranks: a layer cut lengthwise (tensor parallel), or layers one after another (pipeline).

Tensor parallel is written out for this course's layer: each rank holds some of the attention's heads and some columns
of the MLP, and one sum over ranks closes each of the two. Of the pipeline there is the timetable, since its idle time
is the thing to understand. What this module does not do: train a model this way; ``torch.distributed.tensor`` and
``torch.distributed.pipelining`` do.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sslcourse.encoder import attend, rotate

if TYPE_CHECKING:
    from jaxtyping import Float

    from sslcourse.encoder import Layer


class _Enter(torch.autograd.Function):
    """Where a value that all ranks hold enters their different parts: each part's gradient adds up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


class _Leave(torch.autograd.Function):
    """Where the parts' results are added up: every part's gradient is that of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class ParallelLayer(nn.Module):
    """This rank's part of a layer; all ranks together compute what the whole layer does, forward and backward.

    Columns first, rows second: what leaves the first matrix in parts enters the second in the same parts, so that a
    layer needs two sums forward and two backward. Norms are small and stand on every rank.
    Source: Shoeybi et al. 2019, Megatron-LM, arXiv 1909.08053, section 3.

    Raises:
        ValueError: if heads or MLP columns do not divide by ``world``.
    """

    def __init__(self, layer: Layer, rank: int, world: int) -> None:
        super().__init__()
        heads, inner = layer.attn.heads, layer.mlp.Wo.in_features
        if heads % world or inner % world:
            raise ValueError(f"world={world} does not divide the layer's {heads} heads and {inner} MLP columns; "
                             "choose a number that divides both")  # fmt: skip
        self.layer, self.heads = copy.deepcopy(layer), heads // world
        for name, weight in layer.named_parameters():
            module, _, kind = name.rpartition(".")
            mine = nn.Parameter(part_of(name, weight.detach(), heads, rank, world))
            setattr(self.layer.get_submodule(module), kind, mine)

    def forward(self, x: Float[Tensor, "batch seq hidden"], rotary: Any, mask: Tensor | None) -> Tensor:
        layer = self.layer
        x = x + _Leave.apply(self._attend(_Enter.apply(layer.attn_norm(x)), rotary, mask))
        return x + _Leave.apply(layer.mlp(_Enter.apply(layer.mlp_norm(x))))

    def _attend(self, x: Tensor, rotary: Any, mask: Tensor | None) -> Tensor:
        """As the layer's attention, of this rank's heads alone: fewer numbers in the middle than at either end."""
        batch, seq, _ = x.shape
        split = self.layer.attn.Wqkv(x).view(batch, seq, 3, self.heads, -1)
        query, key, value = split.transpose(1, 3).unbind(2)
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        mixed = attend(query, key, value, mask)
        return self.layer.attn.Wo(mixed.transpose(1, 2).flatten(2))


def part_of(name: str, weight: Tensor, heads: int, rank: int, world: int) -> Tensor:
    """This rank's part of a layer's weight (or of its gradient), a copy; norms are whole."""
    if name == "attn.Wqkv.weight":  # query, key and value of whole heads
        split = weight.view(3, heads, -1, weight.shape[1]).chunk(world, dim=1)[rank]
    elif name == "mlp.Wi.weight":  # the activated half and the gate, of the same columns
        split = weight.view(2, -1, weight.shape[1]).chunk(world, dim=1)[rank]
    elif name in ("attn.Wo.weight", "mlp.Wo.weight"):
        return weight.chunk(world, dim=1)[rank].clone()
    else:
        return weight.clone()
    return split.reshape(-1, weight.shape[1]).clone()


def timetable(stages: int, micro_batches: int, schedule: str = "1f1b") -> list[list[str]]:
    """Who does what when: a row a stage, an entry a unit of time, "F3" or "B3" for micro-batch 3, "" for idle.

    Forward and backward count one unit each. "gpipe" runs all forwards before all backwards; "1f1b" begins a backward
    as soon as there is one, and so holds at most as many micro-batches as there are stages left.
    Source: Huang et al. 2019, GPipe, arXiv 1811.06965; Narayanan et al. 2021, arXiv 2104.04473, section 2.2.

    Raises:
        ValueError: for an unknown schedule or a count below 1.
    """
    if schedule not in ("gpipe", "1f1b"):
        raise ValueError(f"schedule={schedule!r} is unknown; choose gpipe or 1f1b")
    if stages < 1 or micro_batches < 1:
        raise ValueError(f"stages={stages} and micro_batches={micro_batches} must be at least 1")
    done: dict[tuple[str, int, int], int] = {}  # (kind, micro-batch, stage) -> the time at which it is over
    rows: list[list[str]] = [[] for _ in range(stages)]
    time = 0
    while len(done) < 2 * stages * micro_batches:
        chosen = [_next(stage, stages, micro_batches, schedule, done, time) for stage in range(stages)]
        for stage, job in enumerate(chosen):
            rows[stage].append(f"{job[0]}{job[1] + 1}" if job else "")
            if job:
                done[*job, stage] = time + 1
        time += 1
    return rows


def _next(stage: int, stages: int, count: int, schedule: str, done: dict, time: int) -> tuple[str, int] | None:
    """What a stage can begin at this moment, by the schedule's order of preference."""
    forwards = sum(("F", number, stage) in done for number in range(count))
    backwards = sum(("B", number, stage) in done for number in range(count))

    def ready(kind: str, number: int, at: int) -> bool:
        return done.get((kind, number, at), time + 1) <= time

    forward = forwards < count and (stage == 0 or ready("F", forwards, stage - 1))
    after = ready("F", backwards, stage) if stage == stages - 1 else ready("B", backwards, stage + 1)
    backward = backwards < forwards and after
    if schedule == "gpipe":
        backward = backward and forwards == count
    else:
        forward = forward and forwards - backwards < stages - stage  # no more on the way than stages are left
    if backward:
        return "B", backwards
    return ("F", forwards) if forward else None


def bubble(stages: int, micro_batches: int) -> float:
    """Share of the time that a pipeline's stages are idle, (p - 1) / (m + p - 1), the same for both schedules."""
    if stages < 1 or micro_batches < 1:
        raise ValueError(f"stages={stages} and micro_batches={micro_batches} must be at least 1")
    return (stages - 1) / (micro_batches + stages - 1)
