"""What N ranks compute, beside what one computes on the whole batch; the first rank prints the differences as JSON.

    torchrun --nproc-per-node=3 -m sslcourse.studies.rank_proofs --seed 1
    torchrun --nproc-per-node=2 -m sslcourse.studies.rank_proofs data_parallel memory
    torchrun --nproc-per-node=4 -m sslcourse.studies.rank_proofs data_parallel --layers 3 --dtype float64

Every rank builds the whole batch itself, and from it the gradients that one process would have, so that nothing needs
to be sent to compare. Lesson distributed_training shows these numbers, and the tests hold them to their bounds.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record

from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import Layer, rotary_tables
from sslcourse.studies.tensor_parallel import ParallelLayer, part_of
from sslcourse.train import across_ranks, rings
from sslcourse.train.loop_across_ranks import fresh_objective
from sslcourse.train.recipe import Recipe

if TYPE_CHECKING:
    from sslcourse.train.across_ranks import Objective, Ranks

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
    pairs = [(across_ranks.whole(a.grad), b.grad) for a, b in both]
    largest = max(float(b.abs().max()) for _, b in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / largest


def data_parallel(ranks: Ranks, recipe: Recipe) -> dict[str, float]:
    """Gradients by hand, by DDP and by FSDP2, with and without accumulation; and those of the mean of means."""
    found, seed = {}, recipe.seed
    ids, labels = unequal_batch(2 * ranks.world + 1, ranks.world, seed)  # shares of unequal length, too
    mine = [across_ranks.share(tensor, ranks.rank, ranks.world) for tensor in (ids, labels)]
    reference = fresh_objective(recipe, ranks.device)
    whole_loss = one_process(reference, ids, labels)

    by_hand = fresh_objective(recipe, ranks.device)
    loss, _ = by_hand(*mine)
    (everywhere,) = across_ranks.total(int((mine[1] != IGNORE).sum()))
    (loss / everywhere).backward()
    across_ranks.average_gradients(by_hand)
    across_ranks.scale_gradients(by_hand, ranks.world)
    found["by hand"] = gap(by_hand, reference)

    means = fresh_objective(recipe, ranks.device)  # the classic bug, which must be seen to differ
    loss, _ = means(*mine)
    (loss / max(1, int((mine[1] != IGNORE).sum()))).backward()
    across_ranks.average_gradients(means)
    found["mean of means"] = gap(means, reference)

    for strategy in across_ranks.STRATEGIES:
        objective = fresh_objective(recipe, ranks.device)
        wrapped = across_ranks.wrap(objective, strategy, ranks)
        loss = across_ranks.backward(wrapped, [mine])
        found[f"{strategy} loss"] = abs(float(loss) - whole_loss)
        found[strategy] = gap(objective, reference)
        wrapped.zero_grad(set_to_none=True)
        loss = across_ranks.backward(wrapped, list(zip(*(tensor.tensor_split(2) for tensor in mine), strict=True)))
        found[f"{strategy} accumulated"] = gap(objective, reference)

        alone = fresh_objective(recipe, ranks.device)  # fewer rows than ranks: the last have none at all
        one_process(alone, ids[:1], labels[:1])
        wrapped.zero_grad(set_to_none=True)
        row = [across_ranks.share(tensor[:1], ranks.rank, ranks.world) for tensor in (ids, labels)]
        across_ranks.backward(wrapped, [row])
        found[f"{strategy} one row"] = gap(objective, alone)
    return found


def ten_steps(ranks: Ranks, recipe: Recipe) -> dict[str, float]:
    """Weights after ten steps: SGD in fp32, AdamW in fp64 and, to show why, in fp32."""
    found, seed = {}, recipe.seed
    cases = {
        "sgd fp32": (torch.float32, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        "adamw fp64": (torch.float64, lambda p: torch.optim.AdamW(p, lr=1e-3)),
        "adamw fp32": (torch.float32, lambda p: torch.optim.AdamW(p, lr=1e-3)),
    }
    for name, (dtype, make) in cases.items():
        start = fresh_objective(recipe, ranks.device).to(dtype)
        objective, reference = copy.deepcopy(start), copy.deepcopy(start)
        wrapped = across_ranks.wrap(objective, "ddp", ranks)
        optimizers = make(objective.parameters()), make(reference.parameters())
        for step in range(10):
            ids, labels = unequal_batch(2 * ranks.world + 1, ranks.world, seed=1000 * seed + step)
            mine = [across_ranks.share(tensor, ranks.rank, ranks.world) for tensor in (ids, labels)]
            for optimizer in optimizers:
                optimizer.zero_grad()
            across_ranks.backward(wrapped, [mine])
            one_process(reference, ids, labels)
            for optimizer in optimizers:
                optimizer.step()
        pairs = zip(objective.parameters(), reference.parameters(), strict=True)
        found[name] = max(float((a - b).abs().max()) for a, b in pairs)
    return found


def collectives(ranks: Ranks, recipe: Recipe) -> list[dict[str, Any]]:
    """Rings beside torch.distributed's own; whole numbers, so that sums are exact in any order."""
    found = {"all-reduce": True, "reduce-scatter": True, "bytes": []}
    for size in (0, 1, 2, 7, 12, 1200):
        for dtype in (torch.float32, torch.float64, torch.int64):
            mine = ((torch.arange(size) + recipe.seed) * (ranks.rank + 1)).to(dtype)
            theirs, part = mine.clone(), mine.clone()
            dist.all_reduce(theirs)
            kept, _ = rings.ring_reduce_scatter(part)
            wanted = theirs.tensor_split(ranks.world)[(ranks.rank + 1) % ranks.world]
            found["reduce-scatter"] &= torch.equal(kept, wanted)
            sent = rings.ring_all_reduce(mine)
            found["all-reduce"] &= torch.equal(mine, theirs)
            if size == 1200:
                found["bytes"].append(sent / (2 * (ranks.world - 1) / ranks.world * mine.nbytes))
    square = torch.zeros(4, 4).t()[1:]
    try:
        rings.ring_all_reduce(square)
    except ValueError as error:
        found["not contiguous"] = str(error)
    return _of_every_rank(found)


def tensor_parallel(ranks: Ranks, recipe: Recipe) -> list[dict[str, float]]:
    """One layer over all ranks beside the whole layer: outputs, and the gradients of input and of every weight."""
    heads = 2 * ranks.world
    sizes = {"hidden_size": 16 * heads, "intermediate_size": 24 * ranks.world, "heads": heads}
    config = replace(recipe, **sizes).config()
    torch.manual_seed(recipe.seed)
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


def memory(ranks: Ranks, recipe: Recipe) -> list[dict[str, float]]:
    """Bytes that a rank holds after one step, as a share of the formula's, sharded and not."""
    found, number = {}, torch.get_default_dtype().itemsize
    sizes = {"weight_bytes": number, "gradient_bytes": number, "optimizer_bytes": 2 * number}
    for strategy in across_ranks.STRATEGIES:
        objective = fresh_objective(recipe, ranks.device)
        weights = sum(weight.numel() for weight in objective.parameters())
        wrapped = across_ranks.wrap(objective, strategy, ranks)
        optimizer = torch.optim.AdamW(objective.parameters())
        mine = [
            across_ranks.share(tensor, ranks.rank, ranks.world)
            for tensor in unequal_batch(2 * ranks.world, ranks.world, recipe.seed)
        ]
        across_ranks.backward(wrapped, [mine])
        optimizer.step()
        held = sum(across_ranks.held_bytes(objective, optimizer).values())
        stage = {"ddp": 0, "fsdp": 3}[strategy]
        found[strategy] = held / across_ranks.state_bytes(weights, ranks.world, stage, **sizes)
    return _of_every_rank(found)


def in_bf16(state, bucket):  # DDP compares annotations with the types themselves; as text it refuses them
    """Half the bytes on the wire. As torch's ``bf16_compress_hook``, which DDP refuses where there is no GPU."""
    short = bucket.buffer().bfloat16() / dist.get_world_size()
    sent = dist.all_reduce(short, async_op=True).get_future()
    return sent.then(lambda done: bucket.buffer().copy_(done.value()[0]))


def thin_average(gradient: Tensor, lost: Tensor, rank: int = 4) -> tuple[Tensor, Tensor]:
    """(about the average over ranks, what this rank's part of it lost), sending two thin factors of each matrix.

    One round of PowerSGD (Vogels et al. 2019, arXiv 1905.13727, algorithm 1): the next gradient gets back what was
    lost. torch has it as ``powerSGD_hook``. A gradient that is small already is sent whole.
    """
    mine, world = gradient + lost, dist.get_world_size()
    if mine.ndim < 2 or rank * sum(mine.shape) >= mine.numel():
        mine = mine.contiguous()
        dist.all_reduce(mine)
        return mine / world, torch.zeros_like(lost)
    right = torch.randn(mine.shape[1], rank, generator=torch.Generator().manual_seed(mine.shape[1]), dtype=mine.dtype)
    left = mine @ right
    dist.all_reduce(left)
    left = torch.linalg.qr(left).Q
    right = mine.T @ left
    dist.all_reduce(right)
    average = left @ (right / world).T
    return average, mine - average


def compression(ranks: Ranks, recipe: Recipe, steps: int = 60) -> dict[str, dict[str, float]]:
    """Gradients sent in fewer bytes: the bytes of a step, as a share of fp32's, how far the first gradient is off,
    and the loss on one batch after ``steps`` steps, which says whether that matters."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_hook

    found = {}
    ids, labels = unequal_batch(2 * ranks.world + 1, ranks.world, recipe.seed)
    mine = [across_ranks.share(tensor, ranks.rank, ranks.world) for tensor in (ids, labels)]
    reference = fresh_objective(recipe, ranks.device)
    one_process(reference, ids, labels)
    for name, hook in {"fp32": allreduce_hook, "bf16": in_bf16, "fp16": fp16_compress_hook, "thin": None}.items():
        objective = fresh_objective(recipe, ranks.device)
        wrapped = across_ranks.wrap(objective, "ddp", ranks)
        if hook:
            wrapped.register_comm_hook(None, hook)
        optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
        lost = {weight: torch.zeros_like(weight) for weight in objective.parameters()}
        for step in range(steps):
            optimizer.zero_grad()
            with _reduced() as sizes:
                loss = across_ranks.backward(wrapped, [mine]) if hook else _thin_backward(objective, mine, lost)
            if step == 0:
                found[name] = {"difference": gap(objective, reference)}
            optimizer.step()
        found[name] |= {"bytes": sum(sizes), "loss": float(loss)}
    whole = found["fp32"]["bytes"]
    return {name: one | {"bytes": one["bytes"] / whole} for name, one in found.items()}


def _thin_backward(objective: Objective, mine: Sequence[Tensor], lost: dict[Tensor, Tensor]) -> float:
    """As ``across_ranks.backward``, with ``thin_average`` in place of DDP's all-reduce."""
    loss, _ = objective(*mine)
    summed, everywhere = across_ranks.total(float(loss), int((mine[1] != IGNORE).sum()))
    (loss / everywhere).backward()
    for weight in objective.parameters():
        average, lost[weight] = thin_average(weight.grad, lost[weight])
        weight.grad = average * dist.get_world_size()
    return summed / everywhere


@contextmanager
def _reduced() -> Iterator[list[int]]:
    """Bytes of every all-reduce inside but those of single numbers, which are counts and not gradients."""
    sizes, plain = [], dist.all_reduce

    def counting(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.extend([tensor.nbytes] * (tensor.numel() > 1))
        return plain(tensor, *arguments, **options)

    dist.all_reduce = counting
    try:
        yield sizes
    finally:
        dist.all_reduce = plain


def _of_every_rank(found: dict) -> list[dict]:
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    return everyone


PARTS: dict[str, Callable[[Ranks, Recipe], Any]] = {
    part.__name__: part for part in (collectives, data_parallel, ten_steps, tensor_parallel, memory, compression)
}


@record
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="torchrun ... -m sslcourse.studies.rank_proofs", description=__doc__.splitlines()[0]
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--hidden-size", type=int, default=SMALL.hidden_size, help="a multiple of 4 (default: 32)")
    parser.add_argument("--layers", type=int, default=SMALL.layers, help="(default: 2)")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), default="float32", help="of weights")
    given = parser.parse_args()
    for part in given.parts:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}; choose {', '.join(PARTS)}")
    sizes = {"hidden_size": given.hidden_size, "intermediate_size": 2 * given.hidden_size, "layers": given.layers}
    recipe = replace(SMALL, seed=given.seed, **sizes)
    torch.set_default_dtype(getattr(torch, given.dtype))
    with across_ranks.start(timeout=60, device="cpu") as ranks:
        found = {part: PARTS[part](ranks, recipe) for part in given.parts or PARTS}
        if ranks.first:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
