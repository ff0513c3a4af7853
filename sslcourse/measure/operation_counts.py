"""How many floating-point operations a piece of work makes, counted while it runs.

Counted, not computed: the formula for a training step is ``train.step_costs.flops``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


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
