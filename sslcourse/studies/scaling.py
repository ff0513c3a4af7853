"""How long is a step on N processes? A cost model with five numbers, fitted on small runs and asked about large ones.

A step takes the time of its arithmetic, plus that part of its communication which the arithmetic cannot hide:

* arithmetic: a fixed time a step, one for each token of a rank, whatever the model's size, and one for each of its
  multiplications (all of it times what ranks take from each other's cores);
* communication: the ring's messages, each with a latency, and its bytes (``rings.ring_all_reduce`` counts both).

    torchrun --nproc-per-node=2 -m sslcourse.studies.scaling --rows 16 --hidden-size 128   # measures; one line of JSON

What it leaves out: stragglers, congestion, the input pipeline, failures, and that DDP's buckets and FSDP's layers are
many rings in place of one, each with its own latencies. It is a rule for thinking, with its error measured on
configurations that it has not seen (lesson distributed_training).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

STRATEGIES = ("none", "ddp", "fsdp")


@dataclass(frozen=True)
class Job:
    """One step of training, whatever it runs on."""

    weights: int
    tokens: int  # of the global batch
    gradient_bytes: float = 4.0  # a number on the wire: 4 in fp32, 2 in bf16
    weight_bytes: float = 4.0

    def flops(self) -> float:
        """6 a weight and token: 2 forward, 4 backward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""
        return 6.0 * self.weights * self.tokens


@dataclass(frozen=True)
class Network:
    """What a message costs: seconds of latency, and bytes a second of one rank."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Machine:
    """A rank: useful FLOP/s, seconds a step and a token besides, how many ranks run side by side at full speed.

    ``cores`` is infinite where every rank has a device of its own; on a laptop more ranks than cores take turns.
    """

    flops: float
    overhead: float = 0.0
    cores: float = float("inf")
    per_token: float = 0.0  # norms, softmax, the loss: what does not grow with the square of the width


def messages(strategy: str, job: Job, world: int) -> tuple[float, float]:
    """(messages one after another, bytes) that a rank sends in a step, on rings.

    DDP all-reduces gradients: 2 (N - 1) messages and 2 (N - 1) / N of their bytes. FSDP gathers weights before the
    forward and before the backward pass and reduce-scatters gradients: three times (N - 1) and (N - 1) / N.

    Raises:
        ValueError: for an unknown strategy, or fewer than one rank.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is unknown; choose {', '.join(STRATEGIES)}")
    if world < 1:
        raise ValueError(f"world={world} must be at least 1")
    part = (world - 1) / world
    if strategy == "none":
        return 0.0, 0.0
    if strategy == "ddp":
        return 2.0 * (world - 1), 2 * part * job.weights * job.gradient_bytes
    return 3.0 * (world - 1), part * job.weights * (2 * job.weight_bytes + job.gradient_bytes)


def step_seconds(
    strategy: str,
    job: Job,
    world: int,
    machine: Machine,
    network: Network,
    *,
    node: int = 1,
    inside: Network | None = None,
    overlap: float = 0.0,
) -> dict[str, float]:
    """Seconds of one step: ``arithmetic``, ``communication``, ``exposed`` (what is not hidden), and their ``total``.

    Args:
        network: between ranks; with ``inside``, between nodes of ``node`` ranks each.
        inside: the network of a node. Then ranks of a node first reduce-scatter among themselves, nodes all-reduce
            the parts (each rank its own, all at once), and ranks gather again.
        overlap: share of the arithmetic that can hide communication: the backward pass is two thirds of it, and the
            last bucket has nothing to hide behind.

    Raises:
        ValueError: as ``messages``; for an overlap outside [0, 1]; if ``world`` is not whole nodes.
    """
    if not 0 <= overlap <= 1:
        raise ValueError(f"overlap={overlap} is a share of the arithmetic; it must lie in [0, 1]")
    crowd = max(1.0, world / machine.cores)
    of_rank = job.flops() / world / machine.flops + job.tokens / world * machine.per_token
    arithmetic = crowd * (machine.overhead + of_rank)
    if inside is None or world <= node:
        turns, sent = messages(strategy, job, world)
        near = network if inside is None else inside
        communication = turns * near.latency + sent / near.bandwidth
    else:
        if world % node:
            raise ValueError(f"world={world} is not a whole number of nodes of {node} ranks")
        turns, sent = messages(strategy, job, node)
        communication = turns * inside.latency + sent / inside.bandwidth
        turns, sent = messages(strategy, job, world // node)
        communication += turns * network.latency + sent / node / network.bandwidth
    exposed = max(0.0, communication - overlap * arithmetic)
    return {"arithmetic": arithmetic, "communication": communication, "exposed": exposed, "total": arithmetic + exposed}


def efficiency(strategy: str, job: Job, world: int, machine: Machine, network: Network, **more: Any) -> float:
    """Speed-up over one rank, divided by the number of ranks, with the global batch held fixed (strong scaling)."""
    alone = step_seconds("none", job, 1, machine, network)["total"]
    return alone / step_seconds(strategy, job, world, machine, network, **more)["total"] / world


def fit(measured: Sequence[dict[str, Any]], cores: float) -> tuple[Machine, Network]:
    """The five numbers that explain measured steps best: least squares of relative errors, none of them negative.

    Overlap is taken to be none: on a laptop who sends and who computes share the cores.

    Args:
        measured: records with ``strategy``, ``weights``, ``tokens``, ``world`` and ``seconds``, as ``measure`` prints.

    Raises:
        ValueError: for fewer than five records, or ones from which some number cannot be told.
    """
    if len(measured) < 5:
        raise ValueError(f"measured holds {len(measured)} records; five numbers need at least five")
    rows = []
    for one in measured:
        job, world = Job(one["weights"], one["tokens"]), one["world"]
        crowd = max(1.0, world / cores)
        arithmetic = [crowd, job.flops() / world * crowd, job.tokens / world * crowd]
        rows.append([*arithmetic, *messages(one["strategy"], job, world)])
    seconds = np.array([one["seconds"] for one in measured])
    found = _not_negative(np.array(rows) / seconds[:, None], np.ones(len(seconds)))
    overhead, per_flop, per_token, latency, per_byte = found
    if per_flop <= 0:
        raise ValueError("measured does not tell what arithmetic costs: give runs with different numbers of tokens")
    bandwidth = 1 / per_byte if per_byte > 0 else float("inf")
    return Machine(1 / per_flop, overhead, cores, per_token), Network(latency, bandwidth)


def predicted(record: dict[str, Any], machine: Machine, network: Network) -> float:
    """Seconds of the step that a record of ``measure`` is about, by the model."""
    job = Job(record["weights"], record["tokens"])
    return step_seconds(record["strategy"], job, record["world"], machine, network)["total"]


def left_out(measured: Sequence[dict[str, Any]], cores: float) -> list[float]:
    """For each record the error of its prediction from all the others, as a share of what was measured."""
    errors = []
    for one in measured:
        machine, network = fit([other for other in measured if other is not one], cores)
        errors.append(predicted(one, machine, network) / one["seconds"] - 1)
    return errors


def _not_negative(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares with no negative coefficient: of all subsets of columns, the best whose own solution has none."""
    scale = np.abs(matrix).max(0)
    scale[scale == 0] = 1.0
    best, least = np.zeros(matrix.shape[1]), np.inf
    for size in range(1, matrix.shape[1] + 1):
        for columns in map(list, combinations(range(matrix.shape[1]), size)):
            part = matrix[:, columns] / scale[columns]
            solution = np.linalg.lstsq(part, wanted, rcond=None)[0]
            error = float(((part @ solution - wanted) ** 2).sum())
            if (solution >= 0).all() and error < least - 1e-12:
                best, least = np.zeros(matrix.shape[1]), error
                best[columns] = solution / scale[columns]
    return best


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(rows: int, hidden_size: int, strategy: str, steps: int, layers: int = 2, length: int = 64) -> dict | None:
    """Seconds of a step of this course's encoder on the ranks of the group; None on all but the first.

    ``rows`` is the global batch. Steps are counted from a barrier, so that the slowest rank counts. Of all steps the
    lower quartile is kept: whatever else runs on the machine can only make one longer.
    """
    import torch
    import torch.distributed as dist

    from sslcourse.train import across_ranks
    from sslcourse.train.loop_across_ranks import fresh_objective
    from sslcourse.train.recipe import Recipe

    ranks = across_ranks.Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    sizes = {"hidden_size": hidden_size, "intermediate_size": 2 * hidden_size, "layers": layers}
    recipe = Recipe(**sizes, vocab_size=1024, heads=max(1, hidden_size // 64), precision="fp32")
    objective = fresh_objective(recipe, ranks.device)
    weights = sum(weight.numel() for weight in objective.parameters())
    wrapped = across_ranks.wrap(objective, "ddp" if strategy == "none" else strategy, ranks)
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
    ids = torch.randint(5, 1024, (rows, length), generator=torch.Generator().manual_seed(0))
    mine = across_ranks.share(ids, ranks.rank, ranks.world)
    seconds = []
    for _ in range(steps + 2):
        dist.barrier()
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        across_ranks.backward(wrapped, [(mine, mine)])
        optimizer.step()
        dist.barrier()
        seconds.append(time.perf_counter() - began)
    if not ranks.first:
        return None
    taken = sorted(seconds[2:])  # the first two build buckets and warm caches
    return {
        "strategy": strategy if ranks.world > 1 else "none", "weights": weights, "tokens": rows * length,
        "world": ranks.world, "seconds": taken[len(taken) // 4], "spread": [taken[0], taken[-1]],
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    from sslcourse.train import across_ranks

    parser = argparse.ArgumentParser(
        prog="torchrun ... -m sslcourse.studies.scaling", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[16], help="of the global batch (default: 16)")
    parser.add_argument("--hidden-size", type=int, nargs="+", default=[128])
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args(arguments)
    with across_ranks.start(device="cpu") as ranks:
        for rows in given.rows:
            for hidden_size in given.hidden_size:
                record = measure(rows, hidden_size, given.strategy, given.steps)
                if ranks.first:
                    print(json.dumps(record), flush=True)


def described(machine: Machine, network: Network) -> str:
    """The five numbers in words."""
    return (f"{machine.flops / 1e9:.0f} GFLOP/s a rank, besides {1e3 * machine.overhead:.1f} ms a step and "
            f"{1e6 * machine.per_token:.1f} µs a token, {1e3 * network.latency:.2f} ms a message, "
            f"{network.bandwidth / 1e9:.2f} GB/s")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
