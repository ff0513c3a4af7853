"""Every rung of lesson efficiency_ladder's ladder with several seeds, and what the order of the changes does.

    python -m benchmarks.ladder                     # 3 seeds, 20 s each; about forty minutes on two cores
    python -m benchmarks.ladder --text FOLDER       # another corpus

Three groups, all in one run, seed by seed, so that what else the machine does hits all alike:

    climb     from the article's recipe to pretrain's, and to a start from counts, one change a rung
    without   the top rung with one change taken back: what the change is worth where all the others are
    further   the top rung with one change more: what else was tried, and mostly did not pay

Writes ``data/measured/ladder.json`` with machine, versions, date and command. Let nothing else run.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from benchmarks import busy_cores, store, texts
from sslcourse.measure import hardware
from sslcourse.studies import ladder
from sslcourse.studies.ladder import ARTICLE, LADDER, Rung

TAKEN_BACK = ("start by width, outputs at zero", "decay on the clock", "no padding", "logits where they are scored",
              "bf16", "larger batches")  # fmt: skip
FURTHER: dict[str, dict[str, Any]] = {
    "Muon for the layers' matrices": {"optimizer": "muon"},
    "fewer masks towards the end": {"mask_rate_end": 0.15},
    "short rows first": {"short_rows": 0.4},
    "the last weights averaged": {"average": 0.2},
    "four heads": {"heads": 4},
}  # fmt: skip


def contestants() -> dict[str, dict[str, Rung]]:
    """Group -> name -> recipe."""
    climb = ladder.recipes()
    top = list(climb.values())[-1]
    fields = {change.name: change.fields for change in LADDER}
    without = {name: replace(top, **{field: _below(name, field) for field in fields[name]}) for name in TAKEN_BACK}
    return {"climb": climb, "without": without,
            "further": {name: replace(top, **change) for name, change in FURTHER.items()}}  # fmt: skip


def _below(name: str, field: str) -> Any:
    """What the field was before the change of that name."""
    value = getattr(ARTICLE, field)
    for change in LADDER:
        if change.name == name:
            return value
        value = change.fields.get(field, value)
    raise KeyError(name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ladder", description="Every rung of the ladder.")
    parser.add_argument("--seconds", type=float, default=20.0, help="training time of a rung")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--text", help="a folder of text files in place of the factbook")
    given = parser.parse_args(arguments)
    if not 0 < given.seconds < float("inf") or given.seeds < 1:
        print(f"error: --seconds {given.seconds} and --seeds {given.seeds} must be positive", file=sys.stderr)
        return 2
    busy = busy_cores()
    train, held_out = texts(given.text)
    text = ladder.Text.of(train, held_out[::16])  # a look is taken off the clock, and there are many
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for seed in range(given.seeds):
        turns = [(group, name, rung) for group, rungs in contestants().items() for name, rung in rungs.items()]
        first = seed * len(turns) // given.seeds  # nobody always runs on a cold machine, or always last
        for group, name, rung in turns[first:] + turns[:first]:
            track = ladder.climb(replace(rung, seed=seed), text, given.seconds, looks=10)
            found.setdefault(group, {}).setdefault(name, []).append(
                {"points": track.points, "tokens": track.tokens, "flops": track.flops, "steps": track.steps}
            )
            print(f"{seed} {group:8s} {name:40s} {track.loss:.3f} nats, {track.tokens_per_second:7,.0f} tokens/s",
                  flush=True)  # fmt: skip
    command = "python -m benchmarks.ladder " + " ".join(sys.argv[1:] if arguments is None else arguments)
    figures = {"seconds": given.seconds, "seeds": given.seeds, "busy_cores": busy, "peak_flops": hardware.peak_flops()}
    store("ladder", command.strip(), figures | found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
