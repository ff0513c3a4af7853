"""Graders: operations a token, the time to a loss, where packing stops paying, flaws of a benchmark."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

from coursekit.checks import Answer, Rng, Wrong, close, grader, true


@grader("operations_a_token", forbidden=("flops_per_token",))
def operations_a_token(answer: Answer, rng: Rng) -> None:
    """(recipe) -> executed operations a real token."""
    for round_ in range(8):
        recipe = {
            "layers": rng.integer(2, 6), "hidden": 32 * rng.integer(2, 9), "inner": 32 * rng.integer(3, 17),
            "gated": bool(round_ % 2), "vocabulary": rng.integer(1000, 9000), "length": 32 * rng.integer(1, 8) + 1,
            "scored": 0.0 if round_ == 6 else round(rng.python.uniform(0.1, 0.45), 3), "sparse": round_ % 3 == 0,
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


CURVES = [  # (points, loss): what a curve can do
    ([(10.0, 6.0), (20.0, 4.0), (30.0, 5.0)], 5.0),
    ([(10.0, 6.0), (20.0, 4.0), (30.0, 3.0)], 2.5),  # never
    ([(10.0, 6.0), (20.0, 4.0), (30.0, 3.0)], 4.0),  # at a look
    ([(7.0, 5.0), (9.0, 4.0)], 5.0), ([(7.0, 5.0), (9.0, 4.0)], 5.5),  # at the first look
    ([(2.0, 6.0), (5.0, 3.0), (8.0, 5.0), (9.0, 1.0)], 4.0),  # twice, the second time lower
    ([(5.0, 3.0), (8.0, 6.0), (12.0, 2.0)], 4.0),  # at the first look, then up, then down
    ([(4.0, 3.0)], 3.5), ([(4.0, 3.0)], 3.0), ([(4.0, 3.0)], 2.5),  # one look
    ([(0.0, 3.0), (5.0, 2.0)], 3.5),
    ([(3.0, 5.0), (6.0, 6.0), (11.0, 2.0)], 4.0),  # up just before
    ([(2.0, 6.0), (4.0, 5.0), (7.0, 5.0), (9.0, 3.0)], 4.0),  # a plateau above
    ([(2.0, 6.0), (4.0, 5.0), (7.0, 5.0), (9.0, 3.0)], 5.0),  # a plateau at the loss
    ([(2.0, 6.0), (5.0, 3.0), (8.0, 5.0), (9.0, 4.0)], 4.0),  # low, high, and at a look again
    ([(2.0, 6.0), (4.0, 3.0), (8.0, 7.0)], 4.0),  # ends above
    ([(1.0, 6.0), (2.0, 6.5), (4.0, 6.2), (8.0, 4.0), (9.0, 4.5), (12.0, 1.0)], 5.0),
]  # fmt: skip


@grader("seconds_to", forbidden=("time_to",))
def seconds_to(answer: Answer, rng: Rng) -> None:
    """(points, loss) -> seconds."""
    for plain, goal in rng.python.sample(CURVES, len(CURVES)):
        stretch, shift = rng.python.choice([0.5, 1.0, 2.0, 4.0]), rng.integer(0, 3)
        points = [(stretch * at, loss + shift) for at, loss in plain]
        _compare_time(answer(list(points), goal + shift), points, goal + shift)
    for _ in range(4):
        losses = sorted((round(rng.python.uniform(2, 7), 3) for _ in range(6)), reverse=True)
        points = list(zip(sorted(rng.python.sample(range(1, 200), 6)), losses, strict=True))
        goal = round(rng.python.uniform(losses[-1], losses[0]), 4)
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


@grader("packing_stops_paying")
def packing_stops_paying(answer: Answer, rng: Rng) -> None:
    """(token, attention, packing, length) -> the share of padding."""
    for round_ in range(8):
        token = rng.python.uniform(1e-6, 5e-5)
        attention = token * rng.python.uniform(0.001, 0.02)
        length = 32 * rng.integer(1, 16)
        packing = token * rng.python.uniform(0.01, 0.6)
        if round_ == 2:  # dearer than the work itself
            packing = 3 * (token + attention * length)
        elif round_ == 3:
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


FLAWS = ("timed compile", "other masks", "untuned peer", "one seed", "warm cache")


@grader("flaws")
def flaws(answer: Answer, rng: Rng) -> None:
    """(report) -> the set of flaws."""
    cases: list[tuple[set[str], list[Edit]]] = [(set(), []), *((set(), [trap]) for trap in CLEAN)]
    cases += [({flaw}, [form]) for flaw, forms in FORMS.items() for form in forms]
    cases += [({"timed compile", "warm cache"}, [a, b]) for a in FORMS["timed compile"] for b in FORMS["warm cache"]]
    plans = [*itertools.combinations(FLAWS, 2), *(rng.python.sample(FLAWS, rng.integer(3, 5)) for _ in range(4))]
    cases += [(set(plan), [rng.python.choice(FORMS[flaw]) for flaw in plan]) for plan in plans]
    for wanted, edits in rng.python.sample(cases, len(cases)):
        report = _clean(rng)
        for edit in edits:
            edit(report["ours"], report["theirs"])
        got = answer(copy.deepcopy(report))
        true(isinstance(got, (set, frozenset)), f"return a set of names, got {type(got).__name__}")
        unknown = sorted(str(one) for one in got if one not in FLAWS)
        true(not unknown, f"{unknown[0] if unknown else ''!r} is no flaw of the list {FLAWS}")
        missed, wrong = sorted(wanted - got), sorted(set(got) - wanted)
        if missed:
            raise Wrong(f"{report}: you missed {missed[0]!r}")
        if wrong:
            raise Wrong(f"{report}: {wrong[0]!r} is not the matter here")


Edit = Callable[[dict[str, Any], dict[str, Any]], Any]


def _clean(rng: Rng) -> dict[str, Any]:
    """A report without a flaw."""
    entry = {"compiled": False, "clock_starts": "first step", "mask_seed": rng.integer(1, 99), "mask_rate": 0.15,
             "trials": rng.integer(4, 9), "seeds": sorted(rng.python.sample(range(50), 3)), "cache": "cold"}
    return {"ours": entry, "theirs": copy.deepcopy(entry)}


def _both(**changes: Any) -> Edit:
    return lambda ours, theirs: (ours.update(copy.deepcopy(changes)), theirs.update(copy.deepcopy(changes)))


def _ours(**changes: Any) -> Edit:
    return lambda ours, theirs: ours.update(changes)


def _theirs(**changes: Any) -> Edit:
    return lambda ours, theirs: theirs.update(changes)


def _fewer_trials(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    theirs["trials"] = ours["trials"] - 1


def _more_trials(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    theirs["trials"] = ours["trials"] + 1


def _other_mask_seed(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    theirs["mask_seed"] = ours["mask_seed"] + 1


TIMED = {"compiled": True, "clock_starts": "first call"}
FORMS: dict[str, list[Edit]] = {  # the ways in which each flaw comes
    "timed compile": [_ours(**TIMED), _theirs(**TIMED), _both(**TIMED)],
    "other masks": [_other_mask_seed, _ours(mask_seed=0), _theirs(mask_seed=0), _theirs(mask_rate=0.3),
                    _theirs(mask_rate=0.1), _theirs(mask_rate=0.151),
                    lambda ours, theirs: (_both(mask_seed=0)(ours, theirs), theirs.update(mask_rate=0.2))],
    "untuned peer": [_fewer_trials, _theirs(trials=0)],
    "one seed": [_ours(seeds=[7]), _theirs(seeds=[7]), _ours(seeds=[7, 7, 7]), _theirs(seeds=[7, 7]), _both(seeds=[7]),
                 lambda ours, theirs: (ours.update(seeds=[7]), theirs.update(seeds=[8]))],
    "warm cache": [_ours(cache="warm"), _theirs(cache="warm")],
}  # fmt: skip
CLEAN: list[Edit] = [  # what looks like a flaw and is none
    _both(compiled=True), _both(clock_starts="first call"), _ours(clock_starts="first call"), _theirs(compiled=True),
    _both(cache="warm"), _more_trials, _ours(seeds=[1, 2, 1]), _theirs(seeds=[1, 1, 2]), _both(seeds=[1, 2]),
    _ours(seeds=[4, 5]), _theirs(seeds=[7, 8, 9]), _both(mask_seed=0),
    lambda ours, theirs: (ours.update(compiled=True), theirs.update(clock_starts="first call")),
]  # fmt: skip
