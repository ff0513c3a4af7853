"""Layers one after another over several ranks (pipeline): who works when, and how much of the time is idle.

There is the timetable only, since its idle time is the thing to understand. What this module does not do: train a model
this way; ``torch.distributed.pipelining`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def timetable(stages: int, micro_batches: int, schedule: str = "1f1b") -> list[list[str]]:
    """Who does what when: a row a stage, an entry a unit of time, "F3" or "B3" for micro-batch 3, "" for idle.

    Forward and backward count one unit each. "gpipe" runs all forwards before all backwards; "1f1b" begins a backward
    as soon as there is one, and so holds at most as many micro-batches as there are stages left.
    Source: Huang et al. 2019, GPipe, arXiv 1811.06965; Narayanan et al. 2021, arXiv 2104.04473, section 2.2.

    Raises:
        ValueError: for an unknown schedule or a count below 1.
    """
    if schedule not in ("gpipe", "1f1b"):
        raise ValueError(f"schedule={schedule!r} is unknown; choose gpipe or 1f1b")
    if stages < 1 or micro_batches < 1:
        raise ValueError(f"stages={stages} and micro_batches={micro_batches} must be at least 1")
    done: dict[tuple[str, int, int], int] = {}  # (kind, micro-batch, stage) -> the time at which it is over
    rows: list[list[str]] = [[] for _ in range(stages)]
    time = 0
    while len(done) < 2 * stages * micro_batches:
        chosen = [_next(stage, stages, micro_batches, schedule, done, time) for stage in range(stages)]
        for stage, job in enumerate(chosen):
            rows[stage].append(f"{job[0]}{job[1] + 1}" if job else "")
            if job:
                done[*job, stage] = time + 1
        time += 1
    return rows


def _next(stage: int, stages: int, count: int, schedule: str, done: dict, time: int) -> tuple[str, int] | None:
    """What a stage can begin at this moment, by the schedule's order of preference."""
    forwards = sum(("F", number, stage) in done for number in range(count))
    backwards = sum(("B", number, stage) in done for number in range(count))

    def ready(kind: str, number: int, at: int) -> bool:
        return done.get((kind, number, at), time + 1) <= time

    forward = forwards < count and (stage == 0 or ready("F", forwards, stage - 1))
    after = ready("F", backwards, stage) if stage == stages - 1 else ready("B", backwards, stage + 1)
    backward = backwards < forwards and after
    if schedule == "gpipe":
        backward = backward and forwards == count
    else:
        forward = forward and forwards - backwards < stages - stage  # no more on the way than stages are left
    if backward:
        return "B", backwards
    return ("F", forwards) if forward else None


def bubble(stages: int, micro_batches: int) -> float:
    """Share of the time that a pipeline's stages are idle, (p - 1) / (m + p - 1), the same for both schedules."""
    if stages < 1 or micro_batches < 1:
        raise ValueError(f"stages={stages} and micro_batches={micro_batches} must be at least 1")
    return (stages - 1) / (micro_batches + stages - 1)
