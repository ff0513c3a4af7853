"""Where should weights start? By width, from a table of counts, with heads that look at neighbours, or both.

    python -m benchmarks.starts                # 4 starts, 4 seeds, 30 s each; about eleven minutes on two cores
    python -m benchmarks.starts --text FOLDER  # another corpus

All by ``pretrain``, with Muon and batches of 16 rows, which suit so short a time; in turns, the order rotating, so that
with four seeds each start once has each place. What a start costs is on the clock. A look is [seconds, held-out loss,
tokens read]: a start can save tokens and nothing else, and their number does not depend on how fast the machine
happens to be. Writes ``data/measured/starts.json``. Let nothing else run.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict, replace
from typing import Any

from benchmarks import busy_cores, store, texts
from sslcourse.data import tokenizer as wordpiece
from sslcourse.train.loop import pretrain
from sslcourse.train.recipe import Recipe

RECIPE = Recipe(optimizer="muon", learning_rate=8.4e-3, beta2=0.999, batch_size=16)
EVERY = 16  # of so many held-out documents one is scored: a look is off the clock, and there are hundreds of looks


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.starts", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="training time of a run")
    parser.add_argument("--looks", type=int, default=15, help="held-out losses of a run")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--text", help="a folder of text files in place of the factbook")
    given = parser.parse_args(arguments)
    if not 0 < given.seconds < math.inf or given.looks < 1 or given.seeds < 1:
        print(f"error: --seconds {given.seconds}, --looks {given.looks} and --seeds {given.seeds} must be positive",
              file=sys.stderr)  # fmt: skip
        return 2
    busy = busy_cores()
    train, held_out = texts(given.text)
    data = {"texts": train, "held_out": held_out[::EVERY], "tokenizer": wordpiece.train(train)}
    runs: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        first = seed % len(Recipe.STARTS)
        for start in Recipe.STARTS[first:] + Recipe.STARTS[:first]:
            run = pretrain(**data, recipe=replace(RECIPE, start=start, seed=seed), minutes=given.seconds / 60,
                           evaluations=given.looks, progress=False)  # fmt: skip
            points = [[row["seconds"], row["loss"], row["tokens"]] for row in run.history]
            runs.append({"start": start, "seed": seed, "points": points, "steps": int(run.history[-1]["step"])})
            print(f"seed {seed} {start:11s} {points[-1][1]:.3f} nats after {runs[-1]['steps']} steps", flush=True)
    command = "python -m benchmarks.starts " + " ".join(sys.argv[1:] if arguments is None else arguments)
    figures = {"seconds": given.seconds, "seeds": given.seeds, "busy_cores": busy, "recipe": asdict(RECIPE)}
    store("starts", command.strip(), figures | {"runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
