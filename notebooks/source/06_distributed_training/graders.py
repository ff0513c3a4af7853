"""Graders: a ring's reduce-scatter, the loss of one rank among many, its rows, its bytes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from coursekit.checks import Answer, NotAttempted, Rng, Wrong, close, grader, same, true

WAIT = 5.0  # seconds in all for a neighbour's message: no answer may hang the learner's kernel


class Ring:
    """Ranks in threads, each with a mailbox that only its left neighbour fills."""

    def __init__(self, world: int) -> None:
        self.mailboxes: list[queue.Queue] = [queue.Queue() for _ in range(world)]
        self.sent: list[list[Tensor]] = [[] for _ in range(world)]
        self.done = [False] * world

    def exchange(self, rank: int) -> Callable[[Tensor], Tensor]:
        """This rank's only door: what it sends goes right, what it gets comes from the left."""
        world = len(self.mailboxes)

        def exchange(part: Tensor) -> Tensor:
            if not isinstance(part, Tensor):
                raise Wrong(f"exchange sends one part, a tensor; it was given {type(part).__name__}")
            if len(self.sent[rank]) > 2 * world:
                raise Wrong(f"with {world} ranks a rank sent more than {2 * world} parts; world - 1 are enough")
            self.sent[rank].append(part.clone())
            self.mailboxes[(rank + 1) % world].put(part.clone())
            for _ in range(int(WAIT / 0.02)):
                over = self.done[rank - 1]  # asked first: what it sent before its end is in the mailbox
                with suppress(queue.Empty):
                    return self.mailboxes[rank].get(timeout=0.02)
                if over:
                    break
            raise Wrong("a rank waited for a part that its left neighbour never sent: every rank must call "
                        "exchange equally often")  # fmt: skip

        return exchange


def _on_ring(answer: Answer, parts: list[list[Tensor]]) -> tuple[list[Any], Ring]:
    """What each rank returns, all of them at work at once; the first thing that went wrong is raised."""
    world = len(parts)
    ring, results, errors = Ring(world), [None] * world, []

    def work(rank: int) -> None:
        try:
            results[rank] = answer(rank, world, parts[rank], ring.exchange(rank))
        except (Wrong, NotAttempted) as error:
            errors.append(error)
        finally:
            ring.done[rank] = True

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT * (world + 2))
    true(not any(thread.is_alive() for thread in threads), "a rank never came to an end: is there a loop without one?")
    if errors:
        waiting = [error for error in errors if "waited for a part" in str(error)]
        raise next((error for error in errors if error not in waiting), errors[0])
    return results, ring


@grader("reduce_scatter", forbidden=("all_reduce", "reduce_scatter_tensor"))
def reduce_scatter(answer: Answer, rng: Rng) -> None:
    """(rank, world, parts, exchange) -> part (rank + 1) % world, summed over ranks."""
    for world in (1, 2, 3, rng.integer(4, 6)):
        shape = rng.python.choice([(rng.integer(1, 4),), (2, rng.integer(1, 3)), ()]) if world > 2 else (3, 2)
        parts = [[rng.integers(-50, 50, *shape).double() for _ in range(world)] for _ in range(world)]
        if world > 1:
            parts[0][0] = torch.zeros_like(parts[0][0])  # is sent like any other
        before = [[part.clone() for part in of_rank] for of_rank in parts]
        results, ring = _on_ring(answer, parts)
        true(same(parts, before), "your function changed one of its parts in place; add into new tensors")
        for rank, got in enumerate(results):
            place = (rank + 1) % world
            sums = [sum(of_rank[number] for of_rank in before) for number in range(world)]
            who, own = f"rank {rank} of {world}", before[rank][place]
            mistakes = {f"{who} returned part {number}, summed; it ends with part (rank + 1) % world = {place}":
                        sums[number] for number in range(world) if number != place}  # fmt: skip
            mistakes[f"{who} returned part {place} without its own number: add what came to yours"] = sums[place] - own
            for number in range(world):
                untouched = f"{who} returned its own part {number} untouched; it ends with part (rank + 1) % world = "
                mistakes[f"{untouched}{place}, to which the others' are added"] = before[rank][number]
            close(got, sums[place], f"part {place} on rank {rank} of {world}", rtol=0.0, atol=1e-9, mistakes=mistakes)
            count = len(ring.sent[rank])
            true(count == world - 1, f"with {world} ranks every rank sends world - 1 = {world - 1} parts; rank {rank} "
                 f"sent {count}")  # fmt: skip
            true(all(one.shape == sums[0].shape for one in ring.sent[rank]), "a rank sends one part at a time, not "
                 "several in one tensor: that is what keeps the bytes low")  # fmt: skip


@grader("rank_loss")
def rank_loss(answer: Answer, rng: Rng) -> None:
    """(loss_sum, count, world, total) -> what this rank calls backward on."""
    cases = [[5], [3, 5], [4, 0], [1, 9, 2], [0, 7, 0, 2], [rng.integer(1, 9) for _ in range(rng.integer(2, 5))]]
    for counts in cases:
        world, everywhere = len(counts), sum(counts)
        directions = [rng.normal(4, dtype=torch.float64) * (count > 0) for count in counts]  # d loss_sum / d weights
        want = sum(directions) / everywhere
        gradients = []
        for direction, count in zip(directions, counts, strict=True):
            loss_sum = (rng.uniform(1)[0].double() * count).requires_grad_(True)
            asked: list[float] = []

            def total(number: float, asked: list = asked, whole: int = everywhere) -> float:
                asked.append(float(number))
                return float(whole)

            got = answer(loss_sum, count, world, total)
            true(isinstance(got, Tensor) and got.ndim == 0, "return one number, a tensor to call backward on")
            true(got.requires_grad, "the result has lost its graph: behind `.item()` or `float()` nothing is trained")
            true(bool(torch.isfinite(got)), f"with {count} masked tokens on this rank the result is "
                 f"{float(got.detach())}; divide by the count of all ranks, which is not zero")  # fmt: skip
            true(len(asked) == 1, f"call total exactly once on every rank, also on one without a masked token; it was "
                 f"called {len(asked)} times, and the others would wait for ever")  # fmt: skip
            true(asked[0] == count, f"total adds up what each rank hands in: its own count, {count}, not {asked[0]:g}")
            true(loss_sum.grad is None, "leave `backward` to the caller: called twice, its gradients count twice")
            try:
                (factor,) = torch.autograd.grad(got, loss_sum, allow_unused=True)
            except RuntimeError as error:
                raise Wrong(f"backward cannot be called on the result: {error}") from error
            true(factor is not None, "the result does not depend on loss_sum")
            close(got.detach(), (factor * loss_sum).detach(), "the loss", rtol=1e-9, atol=1e-12)
            gradients.append(factor * direction)
        mean = sum(gradients) / world
        own = [direction / max(count, 1) for direction, count in zip(directions, counts, strict=True)]
        mistakes = {
            "that is the mean of the ranks' means: a token of a rank with few masked tokens would weigh more. Divide "
            "by the count of all ranks": sum(own) / world,
            "the gradients are world times too small: they are averaged over ranks afterwards, so multiply by world":
                want / world,
            "the gradients are world times too large: multiply by world once, not twice": want * world,
            "the gradients are those of a sum over tokens; divide by the count of all ranks": want * everywhere,
        }  # fmt: skip
        close(mean, want, f"the averaged gradient for counts {counts}", rtol=1e-9, atol=1e-12, mistakes=mistakes)


@grader("my_rows")
def my_rows(answer: Answer, rng: Rng) -> None:
    """(order, batch_size, step, rank, world) -> this rank's rows of a global batch."""
    shapes = [(12, 4, 2), (13, 4, 2), (7, 4, 3), (5, 8, 3), (3, 2, 4), (1, 4, 2)]
    shapes.append((rng.integer(10, 40), rng.integer(2, 9), rng.integer(2, 5)))
    for rows, batch_size, world in shapes:
        order = torch.randperm(rows, generator=rng.torch).tolist()
        if rows == 12:  # a rule by row number would give a whole batch to one rank
            order.sort(key=lambda row: row % world)
        steps = -(-rows // batch_size)
        seen: list[int] = []
        for step in range(steps):
            shares = []
            where = f"rows={rows}, {batch_size=}, {world=}, step {step}"
            for rank in range(world):
                got = answer(list(order), batch_size, step, rank, world)
                true(isinstance(got, list), f"return a list of rows, got {type(got).__name__}")
                shares.append(list(got))
            batch = [row for share in shares for row in share]
            want = order[step * batch_size : (step + 1) * batch_size]
            twice = len(batch) - len(set(batch))
            true(not twice, f"{where}: {twice} row(s) are with two ranks; a row that counts twice pulls twice")
            lost = set(want) - set(batch)
            true(not lost, f"{where}: {len(lost)} of {len(want)} rows are with no rank; a batch that does not divide "
                 "by world is no reason to lose rows")  # fmt: skip
            true(set(batch) == set(want), f"{where}: rows of another batch are among them; the global batch is "
                 "order[step * batch_size : (step + 1) * batch_size], whatever the number of ranks")  # fmt: skip
            sizes = [len(share) for share in shares]
            true(max(sizes) - min(sizes) <= 1, f"{where}: the ranks get {sizes} rows; shares differ by one row at "
                 "most, or the others wait for the longest")  # fmt: skip
            seen += batch
        true(sorted(seen) == list(range(rows)), f"rows={rows}: an epoch has every row once")


@grader("bytes_a_rank")
def bytes_a_rank(answer: Answer, rng: Rng) -> None:
    """(weights, world, stage) -> bytes for weights, gradients and AdamW's moments in fp32."""
    # No number of ranks here divides its number of bytes: a share that is rounded shows. With one rank, or nothing
    # sharded, some mistakes look alike; so those come last.
    cases = []
    for stage in (1, 2, 3, 3, 0):
        world = rng.python.choice((7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61))
        cases.append((world * rng.integer(10**5, 10**6) + rng.integer(1, 6), world, stage))
    cases += [(1_000_000, 1, stage) for stage in range(4)]
    for weights, world, stage in cases:
        got = answer(weights, world, stage)
        parts = (8.0, 4.0, 4.0)  # moments, gradients, weights

        def held(sharded: int, sizes: tuple = parts, weights: int = weights, world: int = world) -> float:
            return sum(weights * size / (world if sharded > level else 1) for level, size in enumerate(sizes))

        where = f"weights={weights:,}, {world=}, {stage=}"
        mistakes = {
            "AdamW keeps two numbers a weight, so its state takes 8 bytes, not 4": held(stage, (4.0, 4.0, 4.0)),
            "the gradients are missing: 4 bytes a weight": held(stage, (8.0, 0.0, 4.0)),
            "stage 1 shards the optimiser's state first, since it is the largest; weights come last":
                held(stage, (4.0, 4.0, 8.0)),
            "each stage shards one thing more; you are one stage behind": held(stage - 1),
            "everything is sharded at stage 3 only": held(3),
            "each stage shards one thing more; you are one stage ahead": held(stage + 1),
            "4 bytes a number in fp32, not 2": held(stage) / 2,
            "that is for all ranks together; divide what is sharded by world": held(0) * world,
        }  # fmt: skip
        number = isinstance(got, (int, float, Tensor)) or hasattr(got, "dtype")
        true(number, f"return a number, got {type(got).__name__}")
        got = torch.as_tensor(got, dtype=torch.float64)  # a byte in a billion is lost in fp32
        known = {hint: torch.tensor(wrong, dtype=torch.float64) for hint, wrong in mistakes.items()}
        want = torch.tensor(held(stage), dtype=torch.float64)
        close(got, want, f"the number of bytes for {where}", rtol=1e-12, atol=1e-6, mistakes=known)
