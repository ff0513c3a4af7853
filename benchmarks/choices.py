"""Which learning rate for which task of lesson fine_tuning? Three each, on the validation countries, two seeds.

    python -m benchmarks.choices

Every contender gets its own best rate: the pretrained encoder, its untrained twin, LoRA, a head on a frozen body; and
the bag of words that reads relations gets its best window. Writes ``data/measured/fine_tuning_choices.json``, from
which the lesson reads rates and sizes. The seeds are not the lesson's, and the test countries are not looked at. Ten
minutes on two cores.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline

from benchmarks import best, store
from sslcourse.data import labelled
from sslcourse.models.lora import add_lora
from sslcourse.studies import lesson_encoder
from sslcourse.tasks import encoding, fitting, pretrained_bodies, scores, task_heads
from sslcourse.tasks.fitting import Settings

SEEDS = (100, 101)
RATES = (1e-3, 2e-3, 3e-3)
TAGS = ["O", "B-PER", "I-PER"]


class Size(NamedTuple):
    """A task's budget, the same for every contender."""

    labels: int
    steps: int
    batch: int = 16


SIZES = {
    "names": Size(200, 150),
    "adapters": Size(200, 100),
    "section": Size(100, 80),
    "region": Size(800, 100),
    "relation": Size(800, 200, 8),
    "question": Size(3200, 250),
}


def main() -> None:
    run = lesson_encoder.load()
    tokenizer, body = run.tokenizer, run.model.model
    table: dict[str, dict[str, list[float]]] = {}
    chosen: dict[str, float] = {}

    def compare(name: str, values: tuple, score: Callable[[Any, int], float]) -> None:
        found = {value: [score(value, seed) for seed in SEEDS] for value in values}
        table[name] = {f"{value:g}": of_value for value, of_value in found.items()}
        chosen[name] = best(found)
        print(name, {value: f"{sum(f) / len(f):.3f}" for value, f in found.items()}, "->", chosen[name], flush=True)

    def contend(
        task: str,
        rows: dict[str, list],
        head: Callable[[Any], task_heads.TaskModel],
        encode: Callable[[list], list],
        measure: Callable[[list, list, list], float],
    ) -> None:
        """The best rate of the pretrained encoder and of its twin."""
        held_out = rows["validation"][:400]
        encoded = encode(held_out)

        def score(model: task_heads.TaskModel, rate: float, seed: int, size: Size = SIZES[task]) -> float:
            sample = encode(random.Random(seed).sample(rows["train"], size.labels))
            fitting.fit(model, sample, Settings(size.steps, size.batch, rate, seed=seed, precision="fp32"))
            return measure(held_out, encoded, fitting.predict(model, encoded))

        def pretrained_score(rate: float, seed: int) -> float:
            torch.manual_seed(seed)
            return score(head(copy.deepcopy(body)), rate, seed)

        def scratch_score(rate: float, seed: int) -> float:
            torch.manual_seed(seed)
            return score(head(pretrained_bodies.untrained(body, seed)), rate, seed)

        compare(f"{task}, pretrained", RATES, pretrained_score)
        compare(f"{task}, scratch", RATES, scratch_score)
        if task == "names":

            def adapted_score(rate: float, seed: int, prepare: Callable) -> float:
                torch.manual_seed(seed)
                model = head(copy.deepcopy(body))
                prepare(model)
                return score(model, rate, seed, SIZES["adapters"])

            for kind, rates, prepare in (
                ("everything", RATES, lambda model: None),
                ("LoRA", (3e-3, 6e-3, 1e-2), lambda model: add_lora(model.body, rank=8)),
                ("head alone", (3e-3, 1e-2, 3e-2), lambda model: model.body.requires_grad_(False)),
            ):
                compare(f"adapters, {kind}", rates, lambda rate, seed, how=prepare: adapted_score(rate, seed, how))

    names = labelled.person_names()
    contend(
        "names",
        names,
        lambda body: task_heads.TokenClassifier(body, len(TAGS)),
        lambda rows: encoding.encode_tags(tokenizer, [r.words for r in rows], [r.tags for r in rows], TAGS),
        lambda rows, encoded, found: scores.token_score(
            [r.tags for r in rows], [[TAGS[tag] for tag in row] for row in found]).f1,
    )  # fmt: skip
    for task, load in (("section", labelled.sections), ("region", labelled.regions)):
        rows = load()
        classes = labelled.label_names(rows["train"])
        contend(
            task,
            rows,
            lambda body, classes=classes: task_heads.SequenceClassifier(body, len(classes)),
            lambda rows, classes=classes: encoding.encode_texts(
                tokenizer, [r.text for r in rows], [r.label for r in rows], classes, 64),
            lambda rows, _, found, classes=classes: scores.accuracy([classes.index(r.label) for r in rows], found),
        )  # fmt: skip
    relations = labelled.relations()
    kinds = labelled.label_names(relations["train"])

    def windowed(reach: int, seed: int) -> float:
        sample = random.Random(seed).sample(relations["train"], SIZES["relation"].labels)
        words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
                              SGDClassifier(loss="log_loss", alpha=1e-5, random_state=0))  # fmt: skip

        def around(row: labelled.Relation) -> str:
            return row.text[max(0, row.object[0] - reach) : row.object[1] + reach]

        words.fit([around(row) for row in sample], [row.label for row in sample])
        held_out = relations["validation"]
        return scores.accuracy([row.label for row in held_out], list(words.predict([around(row) for row in held_out])))

    compare("relation, window", (10, 20, 40, 80), windowed)
    contend(
        "relation",
        relations,
        lambda body: task_heads.RelationClassifier(body, len(kinds)),
        lambda rows: encoding.encode_relations(
            tokenizer, *([getattr(r, n) for r in rows] for n in ("text", "subject", "object", "label")), kinds),
        lambda rows, encoded, found: scores.accuracy([kinds.index(r.label) for r in rows], found),
    )  # fmt: skip
    contend(
        "question",
        labelled.questions(),
        task_heads.SpanPredictor,
        lambda rows: encoding.encode_questions(
            tokenizer, [r.question for r in rows], [r.context for r in rows], [(r.start, r.end) for r in rows]),
        lambda rows, encoded, found: sum(
            scores.answer_f1(r.answer, encoding.answer_text(one, r.context, span))
            for r, one, span in zip(rows, encoded, found, strict=True)) / len(rows),
    )  # fmt: skip
    figures = {"best": chosen, "score": table, "sizes": {task: size._asdict() for task, size in SIZES.items()}}
    store("fine_tuning_choices", "python -m benchmarks.choices", figures | {"seeds": SEEDS})


if __name__ == "__main__":
    main()
