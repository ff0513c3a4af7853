"""Command line; see the package."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks import BUILD, MEASURED, busy_cores, store, texts
from benchmarks.pretraining import peers, report
from benchmarks.pretraining.peers import Knobs
from sslcourse.measure import hardware

SWEEP_SEED = 100  # not one of a race's
SHORTER = (2, 3, 6, 12)  # `course` also runs in such parts of the time: who wants a loss picks a budget
LONG = ("article", 3.0)  # a recipe that learns so slowly, and its looks a minute, where a race gives it more time
EVERY = 8  # of so many held-out documents one is scored: a look at the largest peer takes 12 s else, off the clock
BEGIN = Knobs(rate=3e-3, activation="silu", mask_rate=0.3, beta2=0.98)  # of a sweep
OURS = replace(BEGIN, optimizer="muon", rate=6e-3, counted=True)  # of those that have this course's recipe
MOVES: list[dict[str, Any]] = [  # tried one after the other on what is best so far; a number multiplies, two alternate
    {"rate": 0.5}, {"rate": 2.0}, {"mask_rate": [0.15, 0.3]}, {"warmup": [0.1, 0.3]}, {"batch": 0.5},
    {"start": 3.0}, {"hidden": 1.5, "inner": 1.5, "heads": [2, 3]}, {"activation": ["gelu", "silu"]},
    {"beta2": [0.999, 0.98]}, {"windows": [False, True]}, {"rate": 1.4},
]  # fmt: skip
IDLE = {"start": ("started", "course"), "windows": ("bert", "started", "course")}  # knobs that do nothing there
INSTEAD = {  # what such a peer tries in their place: as many trials for all
    "bert": ({"rate": 0.7}, {"rate": 1.2}),
    "started": ({"optimizer": ["adamw", "muon"], "rate": 0.5}, {"batch": 0.5}),
    "course": ({"optimizer": ["adamw", "muon"], "rate": 0.5}, {"batch": 0.5}),
}


def moved(knobs: Knobs, move: dict[str, Any]) -> Knobs:
    """The knobs after a move: times a number, or the other one of two."""
    changes = {}
    for name, by in move.items():
        now = getattr(knobs, name)
        if isinstance(by, list):
            changes[name] = by[0] if now == by[1] else by[1]
        else:
            changes[name] = type(now)(now * by)
    return replace(knobs, **changes)


def trial(given: dict[str, Any]) -> dict[str, Any]:
    """One contestant in this process."""
    train, held_out = texts(given["text"])
    text = peers.Text.of(train, held_out[::EVERY])
    found = peers.run(given["peer"], text, Knobs.of(**given["knobs"]), given["seconds"], given["looks"], given["seed"])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    peak = hardware.peak_flops(torch.bfloat16)
    return given | found | {"peak_flops": peak, "memory_mb": memory, "threads": torch.get_num_threads()}


def in_a_process(given: dict[str, Any]) -> dict[str, Any]:
    """The same in a process of its own, so that memory and warm caches are nobody else's.

    Raises:
        RuntimeError: if it fails, with the end of what it said.
    """
    command = [sys.executable, "-m", "benchmarks.pretraining", "trial", json.dumps(given)]
    quiet = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
    if done.returncode:
        raise RuntimeError(f"{given['peer']} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def race(
    names: Sequence[str], knobs: dict[str, Knobs], seconds: float, seeds: int, looks: int, text: str | None
) -> list[dict[str, Any]]:
    """Every contestant with every seed, in turns, the order rotating; this course's also in less time."""
    trials = []
    entries = [(name, seconds) for name in names]
    entries += [("course", seconds / part) for part in SHORTER] * ("course" in names)
    for seed in range(seeds):
        turn = seed % len(entries)
        for name, budget in [*entries[turn:], *entries[:turn]]:
            given = {"peer": name, "knobs": asdict(knobs.get(name, Knobs())), "seconds": budget,
                     "looks": looks if budget == seconds else 1, "seed": seed, "text": text}  # fmt: skip
            trials.append(in_a_process(given))
            last = trials[-1]["points"][-1]
            print(f"seed {seed} {name:11s} {last[1]:.3f} nats after {last[0]:.0f} s", flush=True)
    return trials


def long_run(seconds: float, text: str | None) -> dict[str, Any]:
    """The article's recipe, once, for longer than a race lasts: a bound for how far it is behind."""
    name, looks_a_minute = LONG
    given = {"peer": name, "knobs": asdict(Knobs()), "seconds": seconds, "seed": 0, "text": text,
             "looks": max(1, round(looks_a_minute * seconds / 60))}  # fmt: skip
    return in_a_process(given)


def best_of(tried: Sequence[dict[str, Any]]) -> Knobs:
    """The settings of the trial with the lowest loss; the first of equals."""
    return Knobs.of(**min(tried, key=lambda one: one["loss"])["knobs"])


def next_trial(name: str, tried: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], Knobs]:
    """The move of a sweep that comes after those that were tried, and the settings to which it leads."""
    instead = iter(INSTEAD.get(name, ()))
    moves = [next(instead) if any(name in IDLE.get(knob, ()) for knob in move) else move for move in MOVES]
    move = [{}, *moves][len(tried)]
    begin = OURS if name in ("started", "course") else BEGIN
    return move, moved(best_of(tried) if tried else begin, move)


def sweep(names: Sequence[str], seconds: float, text: str | None) -> dict[str, Any]:
    """For each peer the same number of trials: each changes what is best so far by one move, and is kept if better."""
    table: dict[str, Any] = {}
    for name in names:
        tried: list[dict[str, Any]] = []
        while len(tried) <= len(MOVES):
            move, knobs = next_trial(name, tried)
            given = {"peer": name, "knobs": asdict(knobs), "seconds": seconds, "looks": 1, "seed": SWEEP_SEED,
                     "text": text}  # fmt: skip
            loss = in_a_process(given)["points"][-1][1]
            tried.append({"move": move, "knobs": asdict(knobs), "loss": loss})
            print(f"{name:11s} {move} {loss:.3f}{' *' if best_of(tried) == knobs else ''}", flush=True)
        table[name] = {"best": asdict(best_of(tried)), "trials": tried, "seconds": seconds, "text": text,
                       "date": datetime.date.today().isoformat()}  # fmt: skip
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretraining", description="Pretraining side by side.")
    commands = parser.add_subparsers(dest="what", required=True)
    for what, seconds in (("race", 120.0), ("sweep", 60.0)):
        one = commands.add_parser(what)
        one.add_argument("--seconds", type=float, default=seconds, help="training time of a trial")
        one.add_argument("--peers", nargs="+", choices=list(peers.PEERS), default=None)
        one.add_argument("--text", help="a folder of text files in place of the factbook")
        one.add_argument("--store", nargs="?", const=what, metavar="NAME",
                         help=f"write data/measured/pretraining_NAME.json, by default {what}")  # fmt: skip
    commands.choices["race"].add_argument("--seeds", type=int, default=3)
    commands.choices["race"].add_argument("--looks", type=int, default=24, help="held-out losses a trial")
    commands.choices["race"].add_argument("--long", type=float, default=None, metavar="SECONDS",
                                          help="afterwards run the article's recipe once for so long")  # fmt: skip
    commands.add_parser("trial").add_argument("given")
    given = parser.parse_args(arguments)
    if given.what == "trial":
        print(json.dumps(trial(json.loads(given.given))))
        return 0
    if not 0 < given.seconds < float("inf"):
        print(f"error: --seconds {given.seconds} must be positive", file=sys.stderr)
        return 2
    if given.what == "race" and given.long is not None and not given.seconds < given.long < float("inf"):
        print(f"error: --long {given.long} must be more than --seconds {given.seconds}", file=sys.stderr)
        return 2
    busy = busy_cores()
    command = "python -m benchmarks.pretraining " + " ".join(sys.argv[1:] if arguments is None else arguments)
    if given.what == "sweep":
        swept = sweep(given.peers or peers.TUNED, given.seconds, given.text)
        found: dict[str, Any] = {"busy_cores": busy, "peers": _stored_sweep() | swept}  # of one peer: the others stay
    else:
        trials = race(given.peers or list(peers.PEERS), _swept(), given.seconds, given.seeds, given.looks, given.text)
        found = {"busy_cores": busy, "seconds": given.seconds} | report.summary(trials) | {"trials": trials}
        if given.long:
            found["long"] = report.against_long(long_run(given.long, given.text), trials)
        print(report.table(found))
    BUILD.mkdir(parents=True, exist_ok=True)
    if given.what == "race" and report.plot(found["trials"], BUILD / "pretraining_race.png"):
        print(f"written: {BUILD / 'pretraining_race.png'}")
    store(f"pretraining_{given.store or given.what}", command, found, None if given.store else BUILD)
    return 0


def _stored_sweep() -> dict[str, Any]:
    stored = MEASURED / "pretraining_sweep.json"
    return json.loads(stored.read_text(encoding="utf-8"))["peers"] if stored.is_file() else {}


def _swept() -> dict[str, Knobs]:
    """The best settings of the stored sweep; where there is none, where a sweep would begin."""
    found = dict.fromkeys(peers.TUNED, BEGIN)
    return found | {name: Knobs.of(**one["best"]) for name, one in _stored_sweep().items()}


if __name__ == "__main__":
    sys.exit(main())
