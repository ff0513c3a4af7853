"""What each of many processes computes, so that together they compute what one would: data parallelism, sharding.

* an all-reduce of gradients makes N processes one, if each divides by the count of *all* their masked tokens;
* sharding keeps, of weights, gradients and the optimiser's state, one N-th a process (ZeRO; here FSDP2).

It is written for gloo on two laptop cores and runs unchanged on GPUs, where ``start`` chooses NCCL. What it does not
do: starting the processes (``train.start_processes``), a whole pretraining run (``train.loop_across_ranks``), tensor or
pipeline parallelism (``studies``).
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import scored_slots

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from sslcourse.models.encoder import EncoderForMaskedLM

STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is, and where its tensors live."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks for all: it prints, and writes what is not sharded."""
        return self.rank == 0


@contextmanager
def start(timeout: float = 300.0, device: str | torch.device | None = None) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started; without it, be one process on its own, with the same code.

    Args:
        timeout: seconds that a collective waits for the others before it fails, so that a hanging rank ends the job.
        device: by default one GPU a process where there are as many, else the CPU.

    Raises:
        ValueError: for fewer GPUs than processes, a group that exists already, or a timeout that is not positive.
    """
    if not timeout > 0:
        raise ValueError(f"timeout={timeout} must be positive: the seconds that a collective waits for the others")
    if dist.is_initialized():
        raise ValueError("a process group exists already; leave the one before entering another")
    local = int(os.environ.get("LOCAL_RANK", 0))
    on_node = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device is None:
        device = torch.device("cuda", local) if torch.cuda.device_count() >= on_node else torch.device("cpu")
    device = torch.device(device)
    if device.type == "cuda":
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise ValueError(f"device={device}: this machine has {torch.cuda.device_count()} GPUs for {on_node} "
                             "processes; start fewer (--nproc-per-node), or pass device='cpu'")  # fmt: skip
        torch.cuda.set_device(device)
    store, rank, world = _meet(timedelta(seconds=timeout))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        gc.collect()  # a DDP module is part of a cycle; left to the interpreter's end, its threads may abort it
        dist.destroy_process_group()
        gc.collect()


def _meet(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """(where the ranks exchange addresses, rank, world).

    torchrun keeps one store over restarts, in which the addresses of ranks that are gone still stand (pytorch issue
    135712); so each start has names of its own. Several machines count restarts apart: give torchrun there
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, and every start has a new store.
    """
    if "RANK" not in os.environ:
        return dist.HashStore(), 0, 1
    store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    return store, rank, world


def share(rows: Any, rank: int, world: int) -> Any:
    """This rank's rows of a batch: rank, rank + world, ... No row twice, none lost, whatever their number."""
    _check_rank(rank, world)
    return rows[rank::world]


def total(*numbers: float) -> list[float]:
    """Sums over all ranks, by one all-reduce. Exact for counts: they are added in double precision."""
    on = "cuda" if dist.get_backend(dist.group.WORLD) == "nccl" else "cpu"
    sums = torch.tensor(numbers, dtype=torch.float64, device=on)
    dist.all_reduce(sums)
    return sums.tolist()


def average_gradients(model: nn.Module) -> int:
    """What DDP does, by hand: one all-reduce of all gradients, divided by the number of ranks; bytes reduced.

    A parameter without a gradient counts as zero, since the other ranks may have one.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, part in zip(parameters, flat.split([grad.numel() for grad in grads]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype, copy=True)  # `cat` made all kinds the widest
    return flat.nbytes


def scale_gradients(model: nn.Module, factor: float) -> None:
    """Every gradient times ``factor``, in place; of a sharded one each rank its part."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad *= factor


class Objective(nn.Module):
    """The masked loss as a forward pass, which is what DDP and FSDP hook into.

    Returns (sum of losses, number right) over the masked positions; nothing masked is 0 with a gradient of zeros, so
    that a rank without a masked token takes part in the collective like every other.
    """

    def __init__(self, model: EncoderForMaskedLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Int[Tensor, "batch seq"], labels: Int[Tensor, "batch seq"]
    ) -> tuple[Float[Tensor, ""], Tensor]:
        if not len(input_ids):  # a rank without a row computes one in which nothing is masked: zeros
            input_ids, labels = input_ids.new_zeros(1, 1), labels.new_full((1, 1), IGNORE)
        where, targets = scored_slots(labels)
        hidden = self.model.model(input_ids).last_hidden_state.flatten(0, 1)[where]
        logits = self.model.decoder(self.model.head(hidden))
        # as `masked_logits`, but fp64 stays what it is: equality to 1e-10 is asked of it
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss_sum = nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        right = torch.zeros(()) if self.training else (logits.argmax(-1) == targets).sum()
        return loss_sum, right


def wrap(objective: nn.Module, strategy: str, ranks: Ranks) -> nn.Module:
    """The objective with its gradients averaged over ranks: by DDP, or by FSDP2, which also shards all it holds.

    FSDP2 shards each layer by itself, so that a layer's weights are whole only while it computes, and the rest
    (embeddings, head, the decoder that shares their weights) together.

    Raises:
        ValueError: for an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is unknown; choose ddp (all weights on every rank) or fsdp (sharded)")
    if strategy == "ddp":
        return DistributedDataParallel(objective, device_ids=[ranks.device] if ranks.device.type == "cuda" else None)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for layer in objective.model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(objective, mesh=mesh)


def backward(wrapped: nn.Module, parts: Sequence[tuple[Tensor, Tensor]], autocast: Any = nullcontext) -> Tensor:
    """Gradients of the mean loss over the masked tokens of *all* ranks and parts; returns that mean.

    DDP and FSDP average gradients over ranks. The mean of the ranks' means would weigh a token of a rank with few of
    them more than others; so each rank's *sum* is divided by the global count and multiplied by the world size. The
    division comes before the backward pass, the multiplication after: so a pass rounds where that of one process
    does. With three ranks and the factor in front, gradients were 1.5e-6 of the largest apart in place of 4e-7. Only
    the last part's backward pass exchanges gradients.

    Args:
        wrapped: by ``wrap``, with no gradients in it yet (``zero_grad``).
        parts: this rank's micro-batches, (inputs, labels) each; every rank has as many. A rank's may hold no masked
            token, or no row, as long as some rank's do.
        autocast: makes the context of the forward pass, anew for each part.

    Raises:
        ValueError: if no rank has a masked token.
    """
    count = sum(int((labels != IGNORE).sum()) for _, labels in parts)
    world = dist.get_world_size()
    (everywhere,) = total(count)
    if everywhere == 0:
        raise ValueError("no rank has a masked token in this step; raise mask_rate, or give larger batches")
    loss_sum = 0.0
    for number, (inputs, labels) in enumerate(parts, start=1):
        with exchanging(wrapped, number == len(parts)):
            with autocast():
                loss, _ = wrapped(inputs, labels)
            (loss / everywhere).backward()
        loss_sum = loss_sum + loss.detach()
    scale_gradients(wrapped, world)
    summed = loss_sum.double()
    dist.all_reduce(summed)
    return summed / everywhere


@contextmanager
def exchanging(wrapped: nn.Module, now: bool) -> Iterator[None]:
    """Whether a backward pass inside exchanges gradients with the other ranks, or only adds to those of this one."""
    if isinstance(wrapped, DistributedDataParallel):
        with nullcontext() if now else wrapped.no_sync():
            yield
    else:
        if hasattr(wrapped, "set_requires_gradient_sync"):  # FSDP2
            wrapped.set_requires_gradient_sync(now)
        yield


def reshard(wrapped: nn.Module) -> None:
    """Drop the whole weights that a forward pass without a backward pass left behind; only FSDP2 leaves any."""
    if hasattr(wrapped, "reshard"):
        wrapped.reshard()


class ShardedBatches:
    """Batches of row numbers, the same global batches whatever the number of ranks; each rank gets its share.

    No row twice in an epoch, none lost: the last batch may be smaller, and a rank's share of it empty. So every rank
    makes the same number of steps, which collectives need (torch's DistributedSampler repeats or drops rows instead).
    For ``DataLoader(batch_sampler=...)`` while shares are not empty, or by itself.

    Args:
        rows: how many there are.
        batch_size: rows of a *global* batch.
        step: batches that were used already, counted from the very first epoch: where a resumed run goes on.

    Raises:
        ValueError: for a size that is not positive, or a rank outside the world.
    """

    def __init__(self, rows: int, batch_size: int, rank: int, world: int, *, seed: int = 0, step: int = 0) -> None:
        for name, value in (("rows", rows), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if step < 0:
            raise ValueError(f"step={step} counts the batches that were used; it must be 0 or more")
        _check_rank(rank, world)
        self.rows, self.batch_size, self.rank, self.world = rows, batch_size, rank, world
        self.seed, self.step = seed, step

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.rows / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """The rest of the epoch that ``step`` is in; ``step`` moves on with each batch."""
        epoch = self.step // len(self)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(self.rows, generator=generator).tolist()
        while self.step // len(self) == epoch:
            begin = self.step % len(self) * self.batch_size
            self.step += 1
            yield share(order[begin : begin + self.batch_size], self.rank, self.world)


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank} is not among the world={world} processes, which count from 0")


def state_bytes(
    weights: int,
    world: int,
    stage: int,
    *,
    weight_bytes: float = 4,
    gradient_bytes: float = 4,
    optimizer_bytes: float = 8,
) -> float:
    """Bytes a rank for weights, gradients and AdamW's two moments; activations come on top.

    Stage 0 keeps all on every rank (DDP); 1 shards the optimiser's state, 2 also gradients, 3 also weights (FSDP).
    Source: Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054, section 5 and figure 1.

    Raises:
        ValueError: for an unknown stage, or a count that is not positive.
    """
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"stage={stage} is unknown; choose 0 (nothing sharded) to 3 (weights, too)")
    if weights < 1 or world < 1:
        raise ValueError(f"weights={weights} and world={world} must be at least 1")
    sizes = (optimizer_bytes, gradient_bytes, weight_bytes)
    return sum(weights * size / (world if stage > level else 1) for level, size in enumerate(sizes))


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """What this rank really holds, in bytes: its own shards of weights, gradients and the optimiser's state."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    kinds = {
        "weights": list(model.parameters()),
        "gradients": [p.grad for p in model.parameters() if p.grad is not None],
        "optimizer": [value for value in states if isinstance(value, Tensor) and value.ndim],
    }
    return {kind: sum(local(tensor).nbytes for tensor in tensors) for kind, tensors in kinds.items()}


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that lies on this rank; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together again, on every rank; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
