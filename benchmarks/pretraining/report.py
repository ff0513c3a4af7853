"""Times and ratios out of curves of loss against training time.

A curve is a list of points [seconds, loss, tokens]. Between two looks the loss is taken to fall in a line.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslcourse.studies.ladder import time_to

Point = Sequence[float]


def loss_at(points: Sequence[Point], seconds: float) -> float:
    """The loss after so many seconds; nan before the first look."""
    if not points or seconds < points[0][0]:
        return math.nan
    for (begin, high, *_), (end, low, *_) in zip(points, points[1:], strict=False):
        if begin <= seconds <= end:
            return high + (low - high) * (seconds - begin) / (end - begin)
    return points[-1][1]


def spread(values: Sequence[float]) -> list[float]:
    """[least, median, largest]."""
    return [min(values), statistics.median(values), max(values)]


def speedups(curves: Mapping[str, Sequence[Sequence[Point]]], ours: str = "course") -> dict[str, dict[str, Any]]:
    """For each peer and seed: when our curve reaches the loss that the peer ends with, as a ratio of times.

    Where it does not, the question is turned round, and the ratio is below 1: when was the peer where we ended? A ratio
    cannot be larger than the number of looks, since nothing is known before the first one.

    Args:
        curves: peer -> a curve for each seed, the same seeds in the same order.
    """
    found = {}
    for peer, of_seeds in curves.items():
        if peer == ours:
            continue
        ratios, goals = [], []
        for theirs, mine in zip(of_seeds, curves[ours], strict=True):
            goal, ours_at_best = (min(point[1] for point in one) for one in (theirs, mine))
            goals.append(goal)
            worse = max(goal, ours_at_best)
            ratios.append(time_to(theirs, worse) / time_to(mine, worse))
        found[peer] = {"loss": spread(goals), "times_as_fast": spread(ratios)}
    return found


def by_budget(
    goals: Mapping[str, Sequence[float]], shorter: Mapping[float, Sequence[float]], seconds: float
) -> dict[str, list[float]]:
    """For each peer and seed: how many times as short a budget of ours may be that ends no worse than the peer.

    A recipe whose rate decays is at its best when its budget ends, so this is what somebody gains who wants that loss.
    It is a lower bound, since only some budgets were tried; 0 where even the whole one ends worse.

    Args:
        goals: peer -> the best loss of each seed.
        shorter: budget in seconds -> our last loss of each seed.
    """

    def ratio(seed: int, goal: float) -> float:
        return max((seconds / budget for budget, losses in shorter.items() if losses[seed] <= goal), default=0.0)

    return {peer: [ratio(seed, goal) for seed, goal in enumerate(of_seeds)] for peer, of_seeds in goals.items()}


def against_long(trial: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], ours: str = "course") -> dict[str, Any]:
    """A long trial of one peer beside ours in the race: times to the loss that it ends with, seed by seed; 0: never.

    A peer that learns slowly looks better in a short race than it is: nobody sees there how long it takes to a loss
    that we reach in seconds. How long it would take to what the best of the others ended with is not seen here either,
    only that it is longer than the trial: ``not_by`` has that loss, and how many times as fast we were there at least.
    """
    goal = min(point[1] for point in trial["points"])
    theirs = time_to(trial["points"], goal)
    longest = max(one["seconds"] for one in trials)
    curves: dict[str, list[Sequence[Point]]] = {}
    for one in trials:
        if one["seconds"] == longest:
            curves.setdefault(one["peer"], []).append(one["points"])
    mine = curves.pop(ours, [])
    found = {"peer": trial["peer"], "loss": goal, "seconds": theirs, "points": trial["points"]}
    if mine:
        found["times_as_fast"] = spread([theirs / time_to(points, goal) for points in mine])
    ends = [statistics.median(min(point[1] for point in one) for one in of_peer) for of_peer in curves.values()]
    if mine and ends and min(ends) < goal:
        last = trial["points"][-1][0]
        found["not_by"] = {"loss": min(ends), "times_as_fast": spread([last / time_to(one, min(ends)) for one in mine])}
    return found


GOALS = (7.0, 6.0, 5.0, 4.0, 3.5, 3.0, 2.5)  # nats


def times(trials: Sequence[Mapping[str, Any]]) -> list[float]:
    """An eighth, a quarter, a half and the whole of the shortest trial."""
    shortest = min(one["points"][-1][0] for one in trials)
    return [round(shortest / part, 1) for part in (8, 4, 2)] + [round(shortest - 0.05, 1)]


def summary(trials: Sequence[Mapping[str, Any]], ours: str = "course") -> dict[str, Any]:
    """Everything that the table shows, from the trials of a race."""
    by_peer: dict[str, list[Mapping[str, Any]]] = {}
    shorter: dict[float, list[float]] = {}
    seconds = max(one["seconds"] for one in trials)
    for trial in sorted(trials, key=lambda one: one["seed"]):
        if trial["peer"] == ours:
            shorter.setdefault(trial["seconds"], []).append(trial["points"][-1][1])
        if trial["seconds"] == seconds:
            by_peer.setdefault(trial["peer"], []).append(trial)
    rows = {}
    looked_at = times([one for one in trials if one["seconds"] == seconds])  # a shorter budget would cut it short
    for peer, of_peer in by_peer.items():
        curves = [one["points"] for one in of_peer]
        speed = [points[-1][2] / points[-1][0] for points in curves]
        rows[peer] = {
            "loss": spread([min(point[1] for point in points) for points in curves]),
            "tokens_per_second": spread(speed),
            "mfu": spread([rate * one["flops_per_token"] / one["peak_flops"] for rate, one in zip(speed, of_peer,
                                                                                               strict=True)]),
            "memory_mb": max(one["memory_mb"] for one in of_peer),
            "parameters": of_peer[0]["parameters"],
            "loss_at": {str(at): spread([loss_at(points, at) for points in curves]) for at in looked_at},
            "time_to": {str(goal): [at if math.isfinite(at) else None  # JSON knows no infinity
                                    for at in spread([time_to(points, goal) for points in curves])] for goal in GOALS},
        }  # fmt: skip
    curves = {peer: [one["points"] for one in of_peer] for peer, of_peer in by_peer.items()}
    if ours not in curves:
        return {"peers": rows, "speedups": {}}
    goals = {peer: [min(point[1] for point in one) for one in of_seeds]
             for peer, of_seeds in curves.items() if peer != ours}  # fmt: skip
    ratios = speedups(curves, ours)
    for peer, of_seeds in by_budget(goals, shorter, seconds).items():
        ratios[peer]["by_budget"] = spread(of_seeds)
    return {"peers": rows, "speedups": ratios, "shorter": {str(at): spread(of) for at, of in shorter.items()}}


def table(found: Mapping[str, Any]) -> str:
    """The summary as text, one line a peer, the best at the end."""
    lines = [f"{'':11s}{'nats (median of seeds)':>26s}{'tokens/s':>10s}{'MFU':>7s}{'MB':>7s}   course is as fast: "
             "in its run; by budget"]  # fmt: skip
    for peer, row in sorted(found["peers"].items(), key=lambda pair: -pair[1]["loss"][1]):
        low, middle, high = row["loss"]
        fast = found["speedups"].get(peer)
        ratio = ""
        if fast:
            ratio = "{1:.1f} times ({0:.1f} to {2:.1f}); ".format(*fast["times_as_fast"])
            ratio += "at least {1:.1f} ({0:.1f} to {2:.1f})".format(*fast["by_budget"])
        lines.append(f"{peer:11s}{middle:9.3f} ({low:.3f} to {high:.3f}){row['tokens_per_second'][1]:9,.0f}"
                     f"{row['mfu'][1]:7.1%}{row['memory_mb']:7,.0f}   {ratio}")  # fmt: skip
    if "times_as_fast" in found.get("long", {}):
        long = found["long"]
        lines.append("{peer} for {seconds:.0f} s: {loss:.3f} nats; course is there ".format(**long)
                     + "{1:.0f} times ({0:.0f} to {2:.0f}) as fast".format(*long["times_as_fast"]))  # fmt: skip
    return "\n".join(lines)


def plot(trials: Sequence[Mapping[str, Any]], path: str | Path) -> bool:
    """Loss against seconds of training, a line a trial, a colour a peer; false where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.8))
    names = list(dict.fromkeys(one["peer"] for one in trials))
    last_shorter = next((one for one in reversed(trials) if len(one["points"]) == 1), None)
    for one in trials:
        if len(one["points"]) == 1:  # of a shorter budget
            seconds, loss, *_ = one["points"][0]
            axis.plot(seconds, loss, "k*", label=f"{one['peer']}, with this budget" if one is last_shorter else None)
            continue
        place = names.index(one["peer"])
        seconds, losses = zip(*((at, loss) for at, loss, *_ in one["points"]), strict=True)
        axis.plot(seconds, losses, color=f"C{place}", marker="osD^vX"[place % 6], markevery=max(1, len(seconds) // 6),
                  markersize=4, linewidth=1.2, label=one["peer"] if one["seed"] == 0 else None)  # fmt: skip
    axis.set(xlabel="seconds of training", ylabel="held-out loss (nats)")
    axis.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return True
