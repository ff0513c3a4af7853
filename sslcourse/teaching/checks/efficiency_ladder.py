"""Graders of lesson 08: operations a token, the time to a loss, where packing stops paying, flaws of a benchmark."""

from __future__ import annotations

import copy
import math
from typing import Any

from sslcourse.teaching.checks import Answer, Rng, Wrong, close, grader, true


@grader("8.1", forbidden=("flops_per_token",))
def operations_a_token(answer: Answer, rng: Rng) -> None:
    """(recipe) -> executed operations a real token."""
    for round_ in range(8):
        recipe = {
            "layers": rng.integer(2, 6), "hidden": 32 * rng.integer(2, 9), "inner": 32 * rng.integer(3, 17),
            "gated": bool(round_ % 2), "vocabulary": rng.integer(1000, 9000), "length": 32 * rng.integer(1, 9),
            "scored": round(rng.python.uniform(0.1, 0.45), 3), "sparse": round_ % 3 == 0,
            "real": round(rng.python.uniform(0.3, 0.9), 3) if round_ % 4 else 1.0,
        }  # fmt: skip
        close(answer(recipe), _operations(recipe), f"{recipe}: the operations", rtol=1e-6, atol=0.0,
              mistakes=_operation_mistakes(recipe))  # fmt: skip


def _operations(r: dict[str, Any], **changed: Any) -> float:
    r = {**r, **changed}
    matrices = 4 * r["hidden"] ** 2 + (3 if r["gated"] else 2) * r["hidden"] * r["inner"]
    share = r["scored"] if r["sparse"] else 1.0
    head = share * (r["hidden"] ** 2 + r["vocabulary"] * r["hidden"])
    attention = 12 * r["layers"] * r["length"] * r["hidden"]
    return (6 * (r["layers"] * matrices + head) + attention) / r["real"]


def _operation_mistakes(r: dict[str, Any]) -> dict[str, float]:
    want, H, V = _operations(r), r["hidden"], r["vocabulary"]  # noqa: N806 - the formula's own letters
    share = r["scored"] if r["sparse"] else 1.0
    found = {
        "forward only: the backward pass costs twice that again": want / 3,
        "padding is worked on, too: divide by the share of real tokens": want * r["real"],
        "padding makes it more work a real token, not less: divide": want * r["real"] ** 2,
        "a sparse head works on the scored share only, a dense one on every position":
            _operations(r, sparse=not r["sparse"]),
        "gated MLPs have three matrices, plain ones two": _operations(r, gated=not r["gated"]),
        "attention's products are missing": want - 12 * r["layers"] * r["length"] * H / r["real"],
        "attention happens in every layer": want - 12 * (r["layers"] - 1) * r["length"] * H / r["real"],
        "the head's dense layer, H · H, is missing": want - 6 * share * H**2 / r["real"],
        "the head's logits, V · H, are missing": want - 6 * share * V * H / r["real"],
        "each layer has four matrices of H · H: query, key, value and output":
            want - 6 * r["layers"] * 3 * H**2 / r["real"],
        "the head is there once, not in every layer":
            want + 6 * (r["layers"] - 1) * share * (H**2 + V * H) / r["real"],
    }  # fmt: skip
    return {hint: value for hint, value in found.items() if not math.isclose(value, want, rel_tol=1e-6)}


@grader("8.2", forbidden=("time_to",))
def time_to(answer: Answer, rng: Rng) -> None:
    """(points, loss) -> seconds."""
    for round_ in range(8):
        seconds = sorted(rng.python.sample(range(1, 200), 6))
        losses = sorted((round(rng.python.uniform(2, 7), 3) for _ in range(6)), reverse=True)
        goal = round(rng.python.uniform(losses[-1], losses[0]), 4)
        if round_ == 1:  # rises again
            losses[4], losses[3] = losses[3], losses[4]
            goal = round((losses[2] + losses[3]) / 2, 4)
        elif round_ == 2:
            goal = losses[-1] - 0.5
        elif round_ == 3:
            goal = losses[0] + 0.5
        elif round_ == 4:
            goal = losses[2]
        elif round_ == 5:  # low, high, low again: the first time counts
            losses = [6.0, 3.0, 5.0, 2.5, 2.4, 2.3]
            goal = round(rng.python.uniform(3.2, 4.8), 3)
        elif round_ == 6:
            seconds, losses = seconds[:1], losses[:1]
            goal = losses[0] - rng.python.choice([0.5, 0.0])
        elif round_ == 7:
            losses[1] = losses[2] = losses[3]  # a plateau
            goal = losses[3]
        points = list(zip(map(float, seconds), losses, strict=True))
        _compare_time(answer(list(points), goal), points, goal)


def _truth(points: list[tuple[float, float]], goal: float) -> float:
    before = None
    for second, loss in points:
        if loss <= goal:
            if before is None:
                return second
            return before[0] + (second - before[0]) * (before[1] - goal) / (before[1] - loss)
        before = second, loss
    return math.inf


def _compare_time(got: Any, points: list[tuple[float, float]], goal: float) -> None:
    want = _truth(points, goal)
    case = f"points={points}, loss={goal}"
    true(isinstance(got, (int, float)) and not isinstance(got, bool), f"{case}: return a number, got {got!r}")
    if math.isinf(want):
        true(got == math.inf, f"{case}: the loss is never that low, so return float('inf'), not {got}")
        return
    first = next(second for second, loss in points if loss <= goal)
    last = max((second for second, loss in points if loss > goal), default=points[0][0])
    mistakes = {
        "that is the first look at which it is that low; between two looks go along the line": first,
        "that is the last look before; between two looks go along the line": last,
        "count from where the loss is *first* that low; later it may rise and fall again": _truth(points[::-1], goal),
    }
    true(not math.isinf(got), f"{case}: the loss does get that low, expected {want:.6g}")
    close(float(got), want, f"{case}: the time", rtol=1e-6, atol=1e-9,
          mistakes={hint: value for hint, value in mistakes.items() if not math.isclose(value, want)})  # fmt: skip


@grader("8.3")
def packing_stops_paying(answer: Answer, rng: Rng) -> None:
    """(token, attention, packing, length) -> the share of padding."""
    for round_ in range(8):
        token = rng.python.uniform(1e-6, 5e-5)
        attention = token * rng.python.uniform(0.001, 0.02)
        length = 32 * rng.integer(1, 16)
        packing = token * rng.python.uniform(0.01, 0.6)
        if round_ == 3:
            packing = 0.0
        elif round_ == 4:
            attention = 0.0
        work = token + attention * length
        want = packing / (work + packing)
        close(answer(token, attention, packing, length), want, f"token={token:.3g}, attention={attention:.3g}, "
              f"packing={packing:.3g}, length={length}: the share", rtol=1e-6, atol=1e-12, mistakes={
            "packing costs something on top of the work: the sum belongs below the line": packing / work,
            "attention reads the whole row: its cost a token grows with the length":
                packing / (token + attention + packing),
            "attention is missing in the work a token": packing / (token + packing),
            "that is the share of real tokens; padding is the rest": 1 - want,
            "divide packing by the work, not the work by packing": work / (work + packing),
        } | ({} if packing == 0 else {"that is the ratio of the two": (work + packing) / packing}))  # fmt: skip


FLAWS = ("timed compile", "other masks", "untuned peer", "one seed", "warm cache")


@grader("8.4")
def flaws(answer: Answer, rng: Rng) -> None:
    """(report) -> the set of flaws."""
    plans: list[set[str]] = [set(), set(FLAWS), *({flaw} for flaw in FLAWS)]
    plans += [set(rng.python.sample(FLAWS, rng.integer(2, 4))) for _ in range(8)]
    for plan in rng.python.sample(plans, len(plans)):
        for variant in range(3):
            report = benchmark_report(rng, plan, variant)
            got = answer(copy.deepcopy(report))
            true(isinstance(got, (set, frozenset)), f"return a set of names, got {type(got).__name__}")
            unknown = sorted(str(one) for one in got if one not in FLAWS)
            true(not unknown, f"{unknown[0] if unknown else ''!r} is no flaw of the list {FLAWS}")
            missed, wrong = sorted(plan - got), sorted(set(got) - plan)
            if missed:
                raise Wrong(f"{report}: you missed {missed[0]!r}")
            if wrong:
                raise Wrong(f"{report}: {wrong[0]!r} is not the matter here")


def benchmark_report(rng: Rng, plan: set[str], variant: int) -> dict[str, Any]:
    """A report with these flaws and no other; ``variant`` says in which of several ways."""
    seed = rng.integer(0, 99)
    trials = rng.integer(4, 9)
    entry = {"mask_seed": seed, "mask_rate": 0.15, "trials": trials, "seeds": sorted(rng.python.sample(range(50), 3)),
             "compiled": False, "clock_starts": "first step", "cache": "cold"}  # fmt: skip
    ours, theirs = {"name": "ours", **entry}, {"name": "theirs", **entry}
    ours["compiled"] = theirs["compiled"] = variant == 1
    if variant == 2:
        ours["cache"] = theirs["cache"] = "warm"  # for both: no flaw
    one = ours if rng.integer(0, 1) else theirs
    if "timed compile" in plan:
        one |= {"compiled": True, "clock_starts": "first call"}
    elif variant == 0:
        one["clock_starts"] = "first call"  # nothing is compiled there, so nothing is timed
        one["compiled"] = False
    if "other masks" in plan:
        theirs |= {"mask_seed": seed + 1} if rng.integer(0, 1) else {"mask_rate": 0.3}
    if "untuned peer" in plan:
        theirs["trials"] = rng.integer(0, trials - 1)
    elif variant == 1:
        theirs["trials"] = trials + rng.integer(1, 5)  # more than ours: not against us
    if "one seed" in plan:
        one = ours if rng.integer(0, 1) else theirs
        one["seeds"] = [one["seeds"][0]] * rng.integer(1, 3)
    if "warm cache" in plan:
        ours["cache"], theirs["cache"] = ("warm", "cold") if rng.integer(0, 1) else ("cold", "warm")
    return {"ours": ours, "theirs": theirs}
