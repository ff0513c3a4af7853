"""A ring of sends and receives: reduce-scatter, all-gather, and the all-reduce that the two make.

Written out to be read, and equal to the library's (lesson distributed_training compares). Training uses
``torch.distributed``'s own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    pass


def ring_reduce_scatter(tensor: Tensor) -> tuple[Tensor, int]:
    """Sum over ranks, of which each keeps one part: rank r ends with part r + 1 (mod world) summed.

    The tensor is cut into ``world`` parts, of which some may be one number longer or even empty. In each of world - 1
    rounds every rank sends one part to its right and adds the one that comes from its left to its own.

    Returns:
        (the summed part, a view of ``tensor``; bytes that this rank sent). The other parts hold partial sums.

    Raises:
        ValueError: for a tensor that is not contiguous, since its parts would be copies.
    """
    rank, world, parts = _parts(tensor)
    sent = 0
    for turn in range(world - 1):
        going, coming = parts[(rank - turn) % world], parts[(rank - turn - 1) % world]
        arrived = torch.empty_like(coming)
        sent += _pass_on(going, arrived)
        coming += arrived
    return parts[(rank + 1) % world], sent


def ring_all_gather(tensor: Tensor) -> int:
    """Every rank's part r + 1 (mod world) goes round until all ranks hold all parts; bytes that this rank sent.

    Raises:
        ValueError: as ``ring_reduce_scatter``.
    """
    rank, world, parts = _parts(tensor)
    return sum(_pass_on(parts[(rank + 1 - turn) % world], parts[(rank - turn) % world]) for turn in range(world - 1))


def ring_all_reduce(tensor: Tensor) -> int:
    """Sum over ranks, in place on all of them; bytes that this rank sent: 2 (N - 1) / N of the tensor's.

    Source: Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms, section 4.

    Raises:
        ValueError: as ``ring_reduce_scatter``.
    """
    _, sent = ring_reduce_scatter(tensor)
    return sent + ring_all_gather(tensor)


def _parts(tensor: Tensor) -> tuple[int, int, list[Tensor]]:
    if not tensor.is_contiguous():
        raise ValueError(f"tensor of strides {tensor.stride()} is not contiguous; pass tensor.contiguous()")
    rank, world = dist.get_rank(), dist.get_world_size()
    return rank, world, list(tensor.detach().view(-1).tensor_split(world))


def _pass_on(going: Tensor, coming: Tensor) -> int:
    """Send to the right while receiving from the left; the bytes sent. Both at once, or all would wait for all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    works = []
    if going.numel():
        works.append(dist.isend(going, (rank + 1) % world))
    if coming.numel():
        works.append(dist.irecv(coming, (rank - 1) % world))
    for work in works:
        work.wait()
    return going.nbytes
