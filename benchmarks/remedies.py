"""How strong should each remedy of generalization be? Three strengths each, on the validation countries, three seeds.

    python -m benchmarks.remedies
    python -m benchmarks.remedies --confirm       # afterwards: some of them on the test countries, with twenty seeds

Plain fine-tuning gets its best learning rate first, and the remedies are tried at that rate: a remedy that only makes
up for a badly chosen rate helps nobody. Writes ``data/measured/remedies_strength.json``; the lesson uses the best
strength of each. The seeds are not the lesson's, and the test countries are not looked at. Eight minutes on two cores.

``--confirm`` takes the strengths that were stored and writes ``data/measured/remedies_twenty_seeds.json``: entity F1 of
plain fine-tuning and of the remedies that change most, for four times the lesson's seeds. Ten minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Callable

import torch

from benchmarks import MEASURED, best, store
from sslcourse.data import labelled
from sslcourse.models.lora import add_lora
from sslcourse.studies import lesson_encoder
from sslcourse.tasks import encoding, fitting, scores, task_heads
from sslcourse.tasks.fitting import Settings
from sslcourse.tasks.robustness import WeightAverage, adversarial, augmented, drop_spans, drop_tokens, replace_tokens

SEEDS = (100, 101, 102)
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
COUNT = STEPS = 100
TAGS = ["O", "B-PER", "I-PER"]
CONFIRMING_SEEDS = 20
CONFIRMED = ("layer-wise rates", "span masking", "FGM, epsilon", "PGD of 3 steps, epsilon")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remedies", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--confirm", action="store_true", help="twenty seeds on the test countries, at stored strengths"
    )
    confirm = parser.parse_args(arguments).confirm
    run = lesson_encoder.load()
    tokenizer, names = run.tokenizer, labelled.person_names()
    held_out = names["test"] if confirm else names["validation"][:300]

    def encode(rows: list) -> list:
        return encoding.encode_tags(tokenizer, [row.words for row in rows], [row.tags for row in rows], TAGS)

    held_out_encoded = encode(held_out)

    def score(seed: int, dropout: float = 0.0, prepare: Callable = lambda model: None, hooks: dict | None = None,
              **settings: float) -> float:  # fmt: skip
        torch.manual_seed(seed)
        model = task_heads.TokenClassifier(copy.deepcopy(run.model.model), len(TAGS), dropout)
        prepare(model)
        hooks = hooks or {}
        if "learning_rate" not in settings:
            settings["learning_rate"] = plain_rate
        examples = encode(random.Random(seed).sample(names["train"], COUNT))
        fitting.fit(model, examples, Settings(STEPS, seed=seed, precision="fp32", **settings), **hooks)
        if "on_step" in hooks:
            hooks["on_step"].restore(model)
        found = [[TAGS[tag] for tag in row] for row in fitting.predict(model, held_out_encoded)]
        return scores.entity_score([row.tags for row in held_out], found).f1

    def changed(make: Callable) -> Callable:
        return lambda strength, seed: {"hooks": {"backward": augmented(make(strength, seed))}}

    def attacked(steps: int) -> Callable:
        return lambda strength, seed: {"hooks": {"backward": adversarial(strength, steps)}}

    table: dict[str, dict[str, list[float]]] = {}

    def compare(name: str, strengths: tuple, change: Callable) -> float:
        """Score every strength; the one that did best."""
        found = {strength: [score(seed, **change(strength, seed)) for seed in SEEDS] for strength in strengths}
        chosen = best(found)
        table[name] = {str(strength): f1 for strength, f1 in found.items()}
        means = ", ".join(f"{strength} {sum(f1) / len(f1):.3f}" for strength, f1 in found.items())
        print(f"{name}: {means} -> {chosen}", flush=True)
        return chosen

    stored = json.loads((MEASURED / "remedies_strength.json").read_text(encoding="utf-8")) if confirm else {}
    plain_rate = stored.get("learning_rate")
    if not confirm:
        plain_rate = compare("plain, learning rate", RATES, lambda strength, seed: {"learning_rate": strength})
    remedies: dict[str, tuple[tuple, Callable]] = {
        "dropout": ((0.1, 0.3, 0.5), lambda strength, seed: {"dropout": strength}),
        "weight decay": ((0.03, 0.3, 1.0), lambda strength, seed: {"weight_decay": strength}),
        "layer-wise rates": ((0.5, 0.7, 0.9), lambda strength, seed: {"layer_decay": strength}),
        "LoRA of rank 8, learning rate": ((3e-3, 6e-3, 1e-2), lambda strength, seed: {
            "learning_rate": strength, "prepare": lambda model: add_lora(model.body, rank=8)}),
        "token dropout": ((0.1, 0.2, 0.4), changed(lambda strength, seed: drop_tokens(tokenizer, strength, seed))),
        "span masking": ((0.1, 0.2, 0.4), changed(lambda strength, seed: drop_spans(tokenizer, strength, seed))),
        "replaced words": ((0.1, 0.2, 0.4), changed(
            lambda strength, seed: replace_tokens(run.model, tokenizer, strength, seed))),
        "FGM, epsilon": ((0.03, 0.1, 0.3), attacked(1)),
        "PGD of 3 steps, epsilon": ((0.03, 0.1, 0.3), attacked(3)),
        "weight averaging, first step": ((25, 50, 75), lambda strength, seed: {
            "hooks": {"on_step": WeightAverage(strength)}}),
    }  # fmt: skip
    if confirm:
        found: dict[str, list[float]] = {name: [] for name in ("plain", *CONFIRMED)}
        for seed in range(CONFIRMING_SEEDS):
            found["plain"].append(score(seed))
            for name in CONFIRMED:
                strength = float(best(stored["entity_f1"][name]))
                found[name].append(score(seed, **remedies[name][1](strength, seed)))
            print(seed, {name: f"{of_seed[-1]:.3f}" for name, of_seed in found.items()}, flush=True)
        figures = {"entity_f1": found, "seeds": CONFIRMING_SEEDS}
        store("remedies_twenty_seeds", "python -m benchmarks.remedies --confirm", figures)
        return
    for name, (strengths, change) in remedies.items():
        compare(name, strengths, change)
    figures = {"entity_f1": table, "seeds": SEEDS, "learning_rate": plain_rate}
    store("remedies_strength", "python -m benchmarks.remedies", figures)


if __name__ == "__main__":
    main()
