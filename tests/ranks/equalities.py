"""What N ranks compute, beside what one computes on the whole batch; the first rank prints the differences as JSON.

Run by torchrun, see test_distributed.py. Every rank builds the whole batch itself, and one process's
gradients from it.
"""

import copy
import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from sslcourse import distributed
from sslcourse.cluster import fresh_objective
from sslcourse.encoder import Layer, rotary_tables
from sslcourse.masking import IGNORE
from sslcourse.parallel import ParallelLayer, part_of
from sslcourse.pretraining import Recipe

SIZE = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "precision": "fp32"}


def unequal_batch(rows: int, world: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with very unequal numbers of masked tokens; every row of the last rank has none."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (rows, 16), generator=generator)
    labels = torch.full_like(ids, IGNORE)
    for row in range(rows):
        if row % world != world - 1 or world == 1:
            labels[row, : 1 + 5 * (row % world)] = ids[row, : 1 + 5 * (row % world)]
    return ids, labels


def one_process(objective, ids, labels):
    """Gradients of the mean over all masked tokens."""
    loss, _ = objective(ids, labels)
    (loss / (labels != IGNORE).sum()).backward()
    return float(loss.detach()) / int((labels != IGNORE).sum())


def gap(model, reference, of=lambda tensor: tensor.grad):
    """Largest difference over all parameters, as a share of the largest number."""
    pairs = [(distributed.whole(of(a)), of(b)) for a, b in zip(model.parameters(), reference.parameters(), strict=True)]
    largest = max(float(b.abs().max()) for _, b in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / largest


def data_parallel(ranks):
    found = {}
    recipe = Recipe(**SIZE)
    ids, labels = unequal_batch(7, ranks.world)  # 7 rows: shares of unequal length, too
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


def ten_steps(ranks):
    """Weights after ten steps: SGD in fp32, AdamW in fp64 and, to show why, in fp32."""
    found = {}
    cases = {
        "sgd fp32": (torch.float32, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        "adamw fp64": (torch.float64, lambda p: torch.optim.AdamW(p, lr=1e-3)),
        "adamw fp32": (torch.float32, lambda p: torch.optim.AdamW(p, lr=1e-3)),
    }
    for name, (dtype, make) in cases.items():
        start = fresh_objective(Recipe(**SIZE), ranks.device).to(dtype)
        objective, reference = copy.deepcopy(start), copy.deepcopy(start)
        wrapped = distributed.wrap(objective, "ddp", ranks)
        optimizers = make(objective.parameters()), make(reference.parameters())
        for step in range(10):
            ids, labels = unequal_batch(7, ranks.world, seed=step)
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


def collectives(ranks):
    """Rings beside torch.distributed's own; whole numbers, so that sums are exact in any order."""
    found = {"all-reduce": True, "reduce-scatter": True, "bytes": []}
    for size in (0, 1, 2, 7, 12, 1200):
        for dtype in (torch.float32, torch.float64, torch.int64):
            mine = (torch.arange(size) * (ranks.rank + 1)).to(dtype)
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
    everyone = [None] * ranks.world
    dist.all_gather_object(everyone, found)
    return everyone


def tensor_parallel(ranks):
    """One layer over all ranks beside the whole layer: outputs, and the gradients of input and of every weight."""
    heads = 2 * ranks.world
    sizes = {"hidden_size": 16 * heads, "intermediate_size": 24 * ranks.world, "heads": heads}
    config = Recipe(**SIZE | sizes).config()
    torch.manual_seed(0)
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
    everyone = [None] * ranks.world
    dist.all_gather_object(everyone, found)
    return everyone


def memory(ranks):
    """Bytes that a rank holds after one step, sharded and not."""
    found = {}
    for strategy in distributed.STRATEGIES:
        objective = fresh_objective(Recipe(**SIZE), ranks.device)
        weights = sum(weight.numel() for weight in objective.parameters())
        wrapped = distributed.wrap(objective, strategy, ranks)
        optimizer = torch.optim.AdamW(objective.parameters())
        mine = [distributed.share(tensor, ranks.rank, ranks.world) for tensor in unequal_batch(6, ranks.world)]
        distributed.backward(wrapped, [mine])
        optimizer.step()
        held = sum(distributed.held_bytes(objective, optimizer).values())
        stage = {"ddp": 0, "fsdp": 3}[strategy]
        found[strategy] = held / distributed.state_bytes(weights, ranks.world, stage)
    everyone = [None] * ranks.world
    dist.all_gather_object(everyone, found)
    return everyone


PARTS = (collectives, data_parallel, ten_steps, tensor_parallel, memory)


@record
def main() -> None:
    torch.set_num_threads(1)
    with distributed.start(timeout=60, device="cpu") as ranks:
        parts = {part.__name__: part(ranks) for part in PARTS}
        if ranks.first:
            json.dump(parts, sys.stdout)


if __name__ == "__main__":
    main()
