"""How much memory: what a forward pass keeps, the most that tensors took at one moment, and what the process holds.

    saved_bytes     what autograd keeps for the backward pass
    peak_bytes      the most that tensors took at one moment of a piece of work
    resident_bytes  what the operating system says that this process holds

Measured, not computed: the formulas beside them are in ``train.step_costs``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
