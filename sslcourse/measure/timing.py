"""How long a call takes: alone, or beside its rivals: interleaved, several times, median and spread.

    times = side_by_side({"fp32": run_fp32, "int8": run_int8}, rounds=20)
    summary(times["int8"])                  # Timing: p50, p95, ...
    ratio(times["fp32"], times["int8"])     # Ratio: how many times as fast, median and quartiles of the pairs
    seconds(call)                           # one call alone, on a CPU or a GPU

A machine's speed changes while one looks: with its temperature, with what else it does. Rivals that take turns meet the
same changes, so each round gives one ratio, and their median can be trusted where two separate means cannot. What this
module does not do: see whether anything else runs. ``busy`` says what the operating system knows about that.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds of one call."""

    p50: float
    p95: float  # one call in twenty takes longer
    rounds: int


class Ratio(NamedTuple):
    """How many times as fast as the baseline: median and quartiles over the rounds."""

    low: float
    median: float
    high: float


PAUSE = 0.01  # seconds before each turn: idle worker threads of the rival before wait for more work by spinning


def side_by_side(
    calls: Mapping[str, Callable[[], Any]], rounds: int = 20, warmup: int = 2, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds of every call in every round; in each round every rival has its turn, and the order rotates.

    A turn is a pause, one call that is not timed (the caches hold what the rival before used, and nobody changes models
    between two requests), and the call that is.

    Args:
        warmup: calls of each before the first round: what they set up is not the question.
        repeats: calls between two looks at the clock; for work of a few microseconds.

    Raises:
        ValueError: for no rivals, or a count below its least.
    """
    if not calls:
        raise ValueError("calls is empty: there is nothing to time")
    for name, value, least in (("rounds", rounds, 1), ("warmup", warmup, 0), ("repeats", repeats, 1)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    for call in calls.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for round_ in range(rounds):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            calls[name]()
            began = time.perf_counter()
            for _ in range(repeats):
                calls[name]()
            times[name].append((time.perf_counter() - began) / repeats)
    return times


def summary(seconds: Sequence[float]) -> Timing:
    """Median and 95th percentile (the nearest observed value above it)."""
    ordered = sorted(seconds)
    above = min(len(ordered) - 1, int(0.95 * len(ordered)))
    return Timing(statistics.median(ordered), ordered[above], len(ordered))


def ratio(baseline: Sequence[float], rival: Sequence[float]) -> Ratio:
    """Baseline over rival, round by round: above 1 the rival is faster.

    Raises:
        ValueError: if they do not come from the same rounds.
    """
    if len(baseline) != len(rival):
        raise ValueError(f"baseline has {len(baseline)} rounds and rival {len(rival)}; time both in one run")
    pairs = [slow / fast for slow, fast in zip(baseline, rival, strict=True)]
    if len(pairs) == 1:
        return Ratio(*3 * pairs)
    return Ratio(*statistics.quantiles(pairs, n=4, method="inclusive"))


def busy() -> float:
    """Processes that wanted a core in the last minute; nan where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile); of one value, that value three times."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _clock(device: torch.device | str = "cpu") -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(
    work: Callable[[], Any],
    repeats: int = 5,
    device: torch.device | str = "cpu",
    pick: Callable[[list[float]], float] = statistics.median,
) -> float:
    """The time of ``work()`` after one run to warm up: the median of ``repeats``, or what ``pick`` makes of them.

    Short work is done several times between two looks at the clock, for 10 ms: else a GPU's launches would be timed.
    """
    work()
    began = _clock(device)
    work()
    calls = max(1, math.ceil(0.01 / max(_clock(device) - began, 1e-6)))
    times = []
    for _ in range(repeats):
        began = _clock(device)
        for _ in range(calls):
            work()
        times.append((_clock(device) - began) / calls)
    return pick(times)
