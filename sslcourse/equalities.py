"""What N ranks compute, beside what one computes on the whole batch; the first rank prints the differences as JSON.

    torchrun --nproc-per-node=3 -m sslcourse.equalities --seed 1
    torchrun --nproc-per-node=2 -m sslcourse.equalities data_parallel memory

Every rank builds the whole batch itself, and from it the gradients that one process would have, so that nothing needs
to be sent to compare. Lesson 06 shows these numbers, and the tests hold them to their bounds.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record

from sslcourse import distributed
from sslcourse.cluster import fresh_objective
from sslcourse.encoder import Layer, rotary_tables
from sslcourse.masking import IGNORE
from sslcourse.parallel import ParallelLayer, part_of
from sslcourse.pretraining import Recipe

if TYPE_CHECKING:
    from sslcourse.distributed import Objective, Ranks

SMALL = Recipe(vocab_size=100, hidden_size=32, intermediate_size=64, layers=2, heads=2, precision="fp32")


def unequal_batch(rows: int, world: int, seed: int) -> tuple[Tensor, Tensor]:
    """(inputs, labels) with very unequal numbers of masked tokens; of several ranks the last has none at all."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (rows, 16), generator=generator)
    labels = torch.full_like(ids, IGNORE)
    for row in range(rows):
        if row % world != world - 1 or world == 1:
            labels[row, : 1 + 5 * (row % world)] = ids[row, : 1 + 5 * (row % world)]
    return ids, labels


def one_process(objective: Objective, ids: Tensor, labels: Tensor) -> float:
    """Gradients of the mean over all masked tokens, without any other rank; the mean."""
    loss, _ = objective(ids, labels)
    (loss / (labels != IGNORE).sum()).backward()
    return float(loss.detach()) / int((labels != IGNORE).sum())


def gap(model: nn.Module, reference: nn.Module) -> float:
    """Largest difference of two models' gradients, as a share of the largest gradient."""
    both = zip(model.parameters(), reference.parameters(), strict=True)
    pairs = [(distributed.whole(a.grad), b.grad) for a, b in both]
    largest = max(float(b.abs().max()) for _, b in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / largest


def data_parallel(ranks: Ranks, seed: int) -> dict[str, float]:
    """Gradients by hand, by DDP and by FSDP2, with and without accumulation; and those of the mean of means."""
    found = {}
    recipe = replace(SMALL, seed=seed)
    ids, labels = unequal_batch(2 * ranks.world + 1, ranks.world, seed)  # shares of unequal length, too
    mine = [distributed.share(tensor, ranks.rank, ranks.world) for tensor in (ids, labels)]
    reference = fresh_objective(recipe, ranks.device)
    whole_loss = one_process(reference, ids, labels)

    by_hand = fresh_objective(recipe, ranks.device)
    loss, _ = by_hand(*mine)
    (everywhere,) = distributed.total(int((mine[1] != IGNORE).sum()))
    (loss * ranks.world / everywhere).backward()
    distributed.average_gradients(by_hand)
    found["by hand"] = gap(by_hand, reference)

    means = fresh_objective(recipe, ranks.device)  # the classic bug, which must be seen to differ
    loss, _ = means(*mine)
    (loss / max(1, int((mine[1] != IGNORE).sum()))).backward()
    distributed.average_gradients(means)
    found["mean of means"] = gap(means, reference)

    for strategy in distributed.STRATEGIES:
        objective = fresh_objective(recipe, ranks.device)
        wrapped = distributed.wrap(objective, strategy, ranks)
        loss = distributed.backward(wrapped, [mine])
        found[f"{strategy} loss"] = abs(float(loss) - whole_loss)
        found[strategy] = gap(objective, reference)
        wrapped.zero_grad(set_to_none=True)
        loss = distributed.backward(wrapped, list(zip(*(tensor.tensor_split(2) for tensor in mine), strict=True)))
        found[f"{strategy} accumulated"] = gap(objective, reference)
    return found


def ten_steps(ranks: Ranks, seed: int) -> dict[str, float]:
    """Weights after ten steps: SGD in fp32, AdamW in fp64 and, to show why, in fp32."""
    found = {}
    cases = {
        "sgd fp32": (torch.float32, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        "adamw fp64": (torch.float64, lambda p: torch.optim.AdamW(p, lr=1e-3)),
        "adamw fp32": (torch.float32, lambda p: torch.optim.AdamW(p, lr=1e-3)),
    }
    for name, (dtype, make) in cases.items():
        start = fresh_objective(replace(SMALL, seed=seed), ranks.device).to(dtype)
        objective, reference = copy.deepcopy(start), copy.deepcopy(start)
        wrapped = distributed.wrap(objective, "ddp", ranks)
        optimizers = make(objective.parameters()), make(reference.parameters())
        for step in range(10):
            ids, labels = unequal_batch(2 * ranks.world + 1, ranks.world, seed=1000 * seed + step)
            mine = [distributed.share(tensor, ranks.rank, ranks.world) for tensor in (ids, labels)]
            for optimizer in optimizers:
                optimizer.zero_grad()
            distributed.backward(wrapped, [mine])
            one_process(reference, ids, labels)
            for optimizer in optimizers:
                optimizer.step()
        pairs = zip(objective.parameters(), reference.parameters(), strict=True)
        found[name] = max(float((a - b).abs().max()) for a, b in pairs)
    return found


def collectives(ranks: Ranks, seed: int) -> list[dict[str, Any]]:
    """Rings beside torch.distributed's own; whole numbers, so that sums are exact in any order."""
    found = {"all-reduce": True, "reduce-scatter": True, "bytes": []}
    for size in (0, 1, 2, 7, 12, 1200):
        for dtype in (torch.float32, torch.float64, torch.int64):
            mine = ((torch.arange(size) + seed) * (ranks.rank + 1)).to(dtype)
            theirs, part = mine.clone(), mine.clone()
            dist.all_reduce(theirs)
            kept, _ = distributed.ring_reduce_scatter(part)
            wanted = theirs.tensor_split(ranks.world)[(ranks.rank + 1) % ranks.world]
            found["reduce-scatter"] &= torch.equal(kept, wanted)
            sent = distributed.ring_all_reduce(mine)
            found["all-reduce"] &= torch.equal(mine, theirs)
            if size == 1200:
                found["bytes"].append(sent / (2 * (ranks.world - 1) / ranks.world * mine.nbytes))
    square = torch.zeros(4, 4).t()[1:]
    try:
        distributed.ring_all_reduce(square)
    except ValueError as error:
        found["not contiguous"] = str(error)
    return _of_every_rank(found)


def tensor_parallel(ranks: Ranks, seed: int) -> list[dict[str, float]]:
    """One layer over all ranks beside the whole layer: outputs, and the gradients of input and of every weight."""
    heads = 2 * ranks.world
    sizes = {"hidden_size": 16 * heads, "intermediate_size": 24 * ranks.world, "heads": heads}
    config = replace(SMALL, **sizes).config()
    torch.manual_seed(seed)
    layer = Layer(config, index=1)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.1)  # a layer starts with zeros, in which nothing could be seen
    part = ParallelLayer(layer, ranks.rank, ranks.world)
    x = torch.randn(2, 9, config.hidden_size)
    rotary = rotary_tables(torch.arange(9)[None], 16, 10_000.0)
    mask = (torch.arange(9) < torch.tensor([[9], [6]]))[:, None, None]
    inputs = [x.clone().requires_grad_(True) for _ in range(2)]
    outputs = [module(one, rotary, mask) for module, one in zip((layer, part), inputs, strict=True)]
    weights = torch.randn_like(x)
    for output in outputs:
        (output * weights).sum().backward()
    found = {"output": float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())}
    found["input"] = float((inputs[0].grad - inputs[1].grad).abs().max() / inputs[0].grad.abs().max())
    for name, weight in layer.named_parameters():
        wanted = part_of(name, weight.grad, heads, ranks.rank, ranks.world)
        found[name] = float((part.layer.get_parameter(name).grad - wanted).abs().max() / weight.grad.abs().max())
    return _of_every_rank(found)


def memory(ranks: Ranks, seed: int) -> list[dict[str, float]]:
    """Bytes that a rank holds after one step, as a share of the formula's, sharded and not."""
    found = {}
    for strategy in distributed.STRATEGIES:
        objective = fresh_objective(SMALL, ranks.device)
        weights = sum(weight.numel() for weight in objective.parameters())
        wrapped = distributed.wrap(objective, strategy, ranks)
        optimizer = torch.optim.AdamW(objective.parameters())
        mine = [
            distributed.share(tensor, ranks.rank, ranks.world)
            for tensor in unequal_batch(2 * ranks.world, ranks.world, seed)
        ]
        distributed.backward(wrapped, [mine])
        optimizer.step()
        held = sum(distributed.held_bytes(objective, optimizer).values())
        stage = {"ddp": 0, "fsdp": 3}[strategy]
        found[strategy] = held / distributed.state_bytes(weights, ranks.world, stage)
    return _of_every_rank(found)


def _of_every_rank(found: dict) -> list[dict]:
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    return everyone


PARTS: dict[str, Callable[[Ranks, int], Any]] = {
    part.__name__: part for part in (collectives, data_parallel, ten_steps, tensor_parallel, memory)
}


@record
def main() -> None:
    parser = argparse.ArgumentParser(prog="torchrun ... -m sslcourse.equalities", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    given = parser.parse_args()
    for part in given.parts:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}; choose {', '.join(PARTS)}")
    with distributed.start(timeout=60, device="cpu") as ranks:
        found = {part: PARTS[part](ranks, given.seed) for part in given.parts or PARTS}
        if ranks.first:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
