"""The contestants. Each is trained for so many seconds and looked at a given number of times.

    article      the source article's recipe, repaired just enough to run: BERT 4 x 256, texts padded or cut to 128,
                 masked once, every position scored in training, AdamW at a constant 2e-5, batch 16
    run_mlm      BertForMaskedLM under transformers.Trainer with its defaults, chunks of 128 as run_mlm.py makes them
    bert         the same under Trainer, tuned: bf16, no dropout, warm-up, decay that ends with the clock, its own size
    modernbert   ModernBertForMaskedLM under Trainer, tuned as well, logits at masked positions only
    started      the stock ModernBERT, tuned as well, with this course's initial weights: what the recipe brings
    course       this course's ``pretrain``

Trainer's loop runs as it stands: its callback starts and stops the clock, and tuned peers read their learning rate from
that clock as ``pretrain`` does.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import EncoderForMaskedLM
from sslcourse.objectives import masking
from sslcourse.studies import ladder
from sslcourse.train import loop, step
from sslcourse.train.optimizers import make_optimizer
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import evaluate
from sslcourse.train.token_rows import Tape

LENGTH = 128


@dataclass(frozen=True)
class Knobs:
    """What a sweep may turn, for every tuned peer alike."""

    hidden: int = 128
    inner: int = 256
    layers: int = 3
    heads: int = 2
    activation: str = "gelu"
    rate: float = 1e-3
    warmup: float = 0.1  # share of the time
    batch: int = 32
    mask_rate: float = 0.15
    beta2: float = 0.999
    start: float = 0.02  # initializer_range
    windows: bool = False  # ModernBERT's own mix of full and sliding attention
    optimizer: str = "adamw"  # "muon" is part of this course's recipe
    counted: bool = False  # so is a start at the neighbours

    @classmethod
    def of(cls, **given: Any) -> Knobs:
        unknown = set(given) - {one.name for one in fields(cls)}
        if unknown:
            raise ValueError(f"{sorted(unknown)[0]!r} is no knob; choose from {[one.name for one in fields(cls)]}")
        return cls(**given)


@dataclass(frozen=True)
class Text(ladder.Text):
    """What all contestants read; ``pretrain`` takes it as it was written."""

    raw: tuple[list[str], list[str]]

    @classmethod
    def of(cls, texts: Sequence[str], held_out: Sequence[str], vocab_size: int = 4096) -> Text:
        return cls(**vars(ladder.Text.of(texts, held_out, vocab_size, LENGTH)), raw=(list(texts), list(held_out)))


@dataclass
class Curve:
    """What a trial brings home: one point a look, [seconds of training, held-out loss, real tokens read]."""

    points: list[tuple[float, float, int]]
    steps: int
    parameters: int


# --- Trainer's contestants -------------------------------------------------------------------------------------------


class Rows(Dataset):
    """Rows as lists, which is what ``datasets`` hands to a collator.

    With the mask of special tokens, as run_mlm.py has it: without it the collator looks up every token in Python.
    """

    def __init__(self, rows: Tensor, last_special: int) -> None:
        specials = (rows <= last_special).long().tolist()
        self.rows = [{"input_ids": row, "special_tokens_mask": special}
                     for row, special in zip(rows.tolist(), specials, strict=True)]  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> dict[str, list[int]]:
        return self.rows[item]


class Clock(TrainerCallback):
    """Counts training time, stops at the budget, and looks at the held-out loss while the clock stands still."""

    def __init__(
        self, budget: float, looks: int, look: Callable[[], float], tokens: Callable[[int], int], spent: float = 0.0
    ) -> None:
        self.budget, self.looks, self.look, self.tokens = budget, looks, look, tokens
        self.spent, self.since, self.points = spent, 0.0, []

    @property
    def progress(self) -> float:
        return min(self.spent / self.budget, 1.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:  # what came before is start-up: the first batch was built then, too
            self.since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.spent += time.perf_counter() - self.since
        if self.spent >= self.budget * (len(self.points) + 1) / self.looks or self.spent >= self.budget:
            self.points.append((self.spent, self.look(), self.tokens(state.global_step)))
        control.should_training_stop = self.spent >= self.budget
        self.since = time.perf_counter()


def by_trainer(
    model: nn.Module, rows: Dataset, collator: Any, text: Text, arguments: dict[str, Any], knobs: Knobs | None,
    seconds: float, looks: int, seed: int, tokens_a_row: float = LENGTH, spent: float = 0.0,
) -> Curve:  # fmt: skip
    """Train under ``Trainer`` until the clock says so; with ``knobs``, a schedule that ends with the clock.

    ``spent``: seconds that the model's start has used up already.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"output_dir": folder, "use_cpu": True, "report_to": "none", "save_strategy": "no",
                   "logging_strategy": "no", "disable_tqdm": True, "seed": seed, "num_train_epochs": 1000,
                   "remove_unused_columns": False} | arguments  # fmt: skip
        settings = TrainingArguments(**options)
        batch = settings.per_device_train_batch_size
        twin = copy.deepcopy(model)  # accelerate wraps the forward pass of the other in autocast; this one stays fp32

        def look() -> float:
            twin.load_state_dict(model.state_dict())
            return evaluate(twin, text.held_out, batch_size=16).loss

        clock = Clock(seconds, looks, look, lambda steps: int(steps * batch * tokens_a_row), spent)
        optimizers: tuple = (None, None)
        if knobs:
            recipe = Recipe(learning_rate=knobs.rate, warmup=knobs.warmup, beta2=knobs.beta2, optimizer=knobs.optimizer)
            update = make_optimizer(model, recipe)
            schedule = torch.optim.lr_scheduler.LambdaLR(
                update, lambda _: step.learning_rate(recipe, clock.progress) / recipe.learning_rate
            )
            optimizers = (update, schedule)
        trainer = Trainer(model, settings, train_dataset=rows, data_collator=collator, callbacks=[clock],
                          optimizers=optimizers)  # fmt: skip
        trainer.train()
    return Curve(clock.points, trainer.state.global_step, sum(one.numel() for one in model.parameters()))


def packed(text: Text) -> Rows:
    """Documents end to end, cut into rows, as ``group_texts`` of run_mlm.py does it."""
    return Rows(Tape(text.train, text.tokenizer, LENGTH).rows(0, 0), text.tokenizer.mask_token_id)


def article(text: Text, knobs: Knobs, seconds: float, looks: int, seed: int) -> Curve:
    set_seed(seed)
    model = BertForMaskedLM(bert_config(text, replace(knobs, hidden=256, inner=1024, layers=4, heads=4), dropout=0.1))
    ids = text.padded(LENGTH)
    inputs, _ = masking.mask_tokens(
        ids, special_tokens_mask=ids <= text.tokenizer.mask_token_id, vocab_size=len(text.tokenizer),
        mask_token_id=text.tokenizer.mask_token_id, mask_rate=0.15, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    there = (ids != text.tokenizer.pad_token_id).long()
    labels = ids.masked_fill(there == 0, IGNORE)
    rows = [{"input_ids": a, "attention_mask": b, "labels": c} for a, b, c in zip(inputs, there, labels, strict=True)]
    arguments = {"per_device_train_batch_size": 16, "learning_rate": 2e-5, "lr_scheduler_type": "constant"}
    return by_trainer(model, rows, None, text, arguments, None, seconds, looks, seed, float(there.sum() / len(rows)))


def run_mlm(text: Text, knobs: Knobs, seconds: float, looks: int, seed: int) -> Curve:
    set_seed(seed)
    model = BertForMaskedLM(bert_config(text, replace(knobs, hidden=256, inner=1024, layers=4, heads=4), dropout=0.1))
    collator = DataCollatorForLanguageModeling(text.tokenizer, mlm_probability=0.15)
    # run_mlm.py decays over three epochs; with a thousand the rate is hardly lower at the end, which favours it here
    return by_trainer(model, packed(text), collator, text, {}, None, seconds, looks, seed)


def tuned(
    text: Text, knobs: Knobs, seconds: float, looks: int, seed: int, make: Callable[[], nn.Module]
) -> Curve:  # fmt: skip
    set_seed(seed)
    model, spent = make(), 0.0
    if knobs.counted:
        tape = Tape(text.train, text.tokenizer, LENGTH)
        spent = loop.started(model, tape.tokens, course_recipe(text, knobs, seed))
    collator = DataCollatorForLanguageModeling(text.tokenizer, mlm_probability=knobs.mask_rate)
    arguments = {"per_device_train_batch_size": knobs.batch, "bf16": step.has_bf16(), "max_grad_norm": 1.0}
    return by_trainer(model, packed(text), collator, text, arguments, knobs, seconds, looks, seed, spent=spent)


def bert(text: Text, knobs: Knobs, seconds: float, looks: int, seed: int) -> Curve:
    return tuned(text, knobs, seconds, looks, seed, lambda: BertForMaskedLM(bert_config(text, knobs)))


def modernbert(text: Text, knobs: Knobs, seconds: float, looks: int, seed: int) -> Curve:
    return tuned(text, knobs, seconds, looks, seed, lambda: ModernBertForMaskedLM(modernbert_config(text, knobs)))


def started(text: Text, knobs: Knobs, seconds: float, looks: int, seed: int) -> Curve:
    def make() -> nn.Module:
        model = ModernBertForMaskedLM(modernbert_config(text, knobs))
        ours = EncoderForMaskedLM(course_recipe(text, knobs, seed).config())
        model.load_state_dict(ours.state_dict())  # an error for a weight that one has and the other has not
        return model

    return tuned(text, knobs, seconds, looks, seed, make)


def bert_config(text: Text, knobs: Knobs, dropout: float = 0.0) -> BertConfig:
    return BertConfig(
        vocab_size=len(text.tokenizer), hidden_size=knobs.hidden, intermediate_size=knobs.inner,
        num_hidden_layers=knobs.layers, num_attention_heads=knobs.heads, hidden_act=knobs.activation,
        initializer_range=knobs.start, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        max_position_embeddings=LENGTH, pad_token_id=text.tokenizer.pad_token_id,
    )  # fmt: skip


def modernbert_config(text: Text, knobs: Knobs) -> ModernBertConfig:
    one = text.tokenizer
    kinds = None if knobs.windows else ["full_attention"] * knobs.layers
    return ModernBertConfig(
        vocab_size=len(one), hidden_size=knobs.hidden, intermediate_size=knobs.inner, num_hidden_layers=knobs.layers,
        num_attention_heads=knobs.heads, hidden_activation=knobs.activation, initializer_range=knobs.start,
        max_position_embeddings=512, layer_types=kinds, sparse_prediction=True, pad_token_id=one.pad_token_id,
        cls_token_id=one.cls_token_id, sep_token_id=one.sep_token_id, bos_token_id=one.cls_token_id,
        eos_token_id=one.sep_token_id,
    )  # fmt: skip


# --- this course -----------------------------------------------------------------------------------------------------


def course_recipe(text: Text, knobs: Knobs, seed: int) -> Recipe:
    return Recipe(
        vocab_size=len(text.tokenizer), hidden_size=knobs.hidden, intermediate_size=knobs.inner, layers=knobs.layers,
        heads=knobs.heads, activation=knobs.activation, sequence_length=LENGTH, batch_size=knobs.batch,
        learning_rate=knobs.rate, warmup=knobs.warmup, beta2=knobs.beta2, mask_rate=knobs.mask_rate, seed=seed,
        optimizer=knobs.optimizer, start="neighbours" if knobs.counted else "width",
    )  # fmt: skip


def course(text: Text, knobs: Knobs, seconds: float, looks: int, seed: int) -> Curve:
    recipe = course_recipe(text, knobs, seed)
    try:
        run = loop.pretrain(*text.raw, recipe, minutes=seconds / 60, tokenizer=text.tokenizer, evaluations=looks,
                                   progress=False)  # fmt: skip
    except loop.Diverged:
        return Curve([(seconds, math.inf, 0)], 0, 0)
    points = [(row["seconds"], row["loss"], int(row["tokens"])) for row in run.history]
    return Curve(points, int(run.history[-1]["step"]), sum(one.numel() for one in run.model.parameters()))


PEERS: dict[str, Callable[[Text, Knobs, float, int, int], Curve]] = {
    "article": article, "run_mlm": run_mlm, "bert": bert, "modernbert": modernbert, "started": started,
    "course": course,
}  # fmt: skip
TUNED = ("bert", "modernbert", "started", "course")


def useful_flops(name: str, knobs: Knobs, vocab_size: int) -> float:
    """Useful operations a real token, as ``ladder.flops_per_token`` counts them: of what is computed, that is."""
    if name in ("article", "run_mlm"):
        return ladder.flops_per_token(replace(ladder.ARTICLE, vocab_size=vocab_size))
    whole = ladder.flops_per_token(ladder.Rung(
        body="bert" if name == "bert" else "prenorm", vocab_size=vocab_size, hidden_size=knobs.hidden,
        intermediate_size=knobs.inner, layers=knobs.layers, mask_rate=knobs.mask_rate, sequence_length=LENGTH,
    ))  # fmt: skip
    after_attention = knobs.hidden**2 + 3 * knobs.hidden * knobs.inner  # of the last layer, which `pretrain` narrows
    return whole - 6 * (1 - knobs.mask_rate) * after_attention if name == "course" else whole


def run(name: str, text: Text, knobs: Knobs, seconds: float, looks: int, seed: int) -> dict[str, Any]:
    """One trial of one contestant.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in PEERS:
        raise ValueError(f"peer {name!r} is unknown; choose from {', '.join(PEERS)}")
    curve = PEERS[name](text, knobs, seconds, looks, seed)
    curve.points = [(at, loss if math.isfinite(loss) else math.inf, read) for at, loss, read in curve.points]
    return asdict(curve) | {"flops_per_token": useful_flops(name, knobs, len(text.tokenizer))}
