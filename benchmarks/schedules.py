"""What do learning rate, schedule and warm-up do to the curve of the held-out loss? Stored, for lessons.

    python -m benchmarks.schedules                        # 54 settings, 10 s each; about thirteen minutes on two cores
    python -m benchmarks.schedules --seeds 3 --seconds 20 # steadier, an hour and ten minutes
    python -m benchmarks.schedules --rates 3e-3 24e-3 --schedules linear --warmups 0.1 --seconds 3    # two, to try it

Every rate with every schedule and every warm-up, by ``pretrain``, in an order drawn once, so that what else the machine
does hits all alike. Batches of 16 rows, not 32: in so short a time more steps count (the ladder has it measured). A run
that diverges is stored with the looks that it had. Writes ``data/measured/schedules.json``. Let nothing else run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
from typing import Any

from benchmarks import busy_cores, store, texts
from sslcourse.data import tokenizer as wordpiece
from sslcourse.train.loop import Diverged, pretrain
from sslcourse.train.recipe import Recipe

RATES = (0.75e-3, 1.5e-3, 3e-3, 6e-3, 12e-3, 24e-3)
SCHEDULES = ("constant", "linear", "cosine")
WARMUPS = (0.0, 0.1, 0.3)
EVERY = 16  # of so many held-out documents one is scored: a look is off the clock, and there are hundreds of looks


def trial(data: dict[str, Any], recipe: Recipe, seconds: float, looks: int) -> dict[str, Any]:
    """One run: [seconds, held-out loss] at each look, how often it went back to a good state, and whether for good."""
    rows: list[dict[str, float]] = []
    restores: list[dict[str, Any]] = []
    diverged = False
    try:
        pretrain(**data, recipe=recipe, minutes=seconds / 60, evaluations=looks, progress=False,
                 on_evaluation=rows.append, on_restore=restores.append)  # fmt: skip
    except Diverged:
        diverged = True
    return {
        "rate": recipe.learning_rate, "schedule": recipe.schedule, "warmup": recipe.warmup, "seed": recipe.seed,
        "points": [[row["seconds"], row["loss"]] for row in rows], "restores": len(restores), "diverged": diverged,
        "steps": int(rows[-1]["step"]) if rows else 0,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schedules", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="training time of a run")
    parser.add_argument("--looks", type=int, default=10, help="held-out losses of a run")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    parser.add_argument("--warmups", type=float, nargs="+", default=WARMUPS)
    given = parser.parse_args(arguments)
    if not 0 < given.seconds < math.inf or given.looks < 1 or given.seeds < 1:
        print(f"error: --seconds {given.seconds}, --looks {given.looks} and --seeds {given.seeds} must be positive",
              file=sys.stderr)  # fmt: skip
        return 2
    try:
        recipes = settings(given)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    busy = busy_cores()
    train, held_out = texts(None)
    data = {"texts": train, "held_out": held_out[::EVERY], "tokenizer": wordpiece.train(train)}
    runs = []
    for number, recipe in enumerate(recipes, start=1):
        runs.append(trial(data, recipe, given.seconds, given.looks))
        ended = "diverged" if runs[-1]["diverged"] else f"{runs[-1]['points'][-1][1]:.3f} nats"
        print(f"{number:3d} of {len(recipes)}  {recipe.learning_rate:8.2e} {recipe.schedule:8s} warm-up "
              f"{recipe.warmup:.1f} seed {recipe.seed}  {ended} after {runs[-1]['steps']} steps, "
              f"{runs[-1]['restores']} times back", flush=True)  # fmt: skip
    command = "python -m benchmarks.schedules " + " ".join(sys.argv[1:] if arguments is None else arguments)
    figures = {"seconds": given.seconds, "seeds": given.seeds, "batch_size": recipes[0].batch_size,
               "vocab_size": recipes[0].vocab_size, "busy_cores": busy, "runs": runs}  # fmt: skip
    store("schedules", command.strip(), figures)
    return 0


def settings(given: argparse.Namespace) -> list[Recipe]:
    """All combinations, in an order drawn once.

    Raises:
        ValueError: for a rate or a warm-up that cannot be.
    """
    every = itertools.product(given.rates, given.schedules, given.warmups, range(given.seeds))
    recipes = [Recipe(batch_size=16, learning_rate=rate, schedule=schedule, warmup=warmup, seed=seed)
               for rate, schedule, warmup, seed in every]  # fmt: skip
    random.Random(0).shuffle(recipes)
    return recipes


if __name__ == "__main__":
    sys.exit(main())
