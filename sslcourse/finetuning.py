"""Transfer: a pretrained encoder, one linear head for the task, a short training run, and a score that means something.

    examples = encode_texts(tokenizer, texts, labels, classes)   # or encode_tags, encode_questions, encode_relations
    model = SequenceClassifier(body, len(classes))               # or TokenClassifier, SpanPredictor, RelationClassifier
    fit(model, examples, Settings(steps=200))
    predicted = predict(model, test_examples)

``body`` is any module that maps ``input_ids, attention_mask`` to ``.last_hidden_state`` and has a ``.config``: this
course's ``Encoder``, or what ``transformers.AutoModel`` opens. Every task has its own head and its own way to score;
all share one ``fit``. ``untrained(body)`` is the same network from random weights: whatever pretraining is worth, it is
worth beside that.

Scores are in ``scores``, LoRA in ``lora``. What this module does not do: choose hyper-parameters, keep the best of
several evaluations, use several devices. Lesson generalization builds the first two from these pieces.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.modeling_outputs import ModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from sslcourse.encoder import EncoderForMaskedLM
from sslcourse.masking import IGNORE
from sslcourse.pretraining import Diverged, Recipe, autocast, learning_rate
from sslcourse.scores import same_length

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

POOL = 8  # batches that are sorted by length together
Example = dict[str, Any]  # {"input_ids": [int], "labels": int or [int]}, and what a head needs besides
Batch = dict[str, Tensor]


# --- examples: text to ids -------------------------------------------------------------------------------------------


def encode_texts(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    labels: Sequence[str],
    classes: Sequence[str],
    max_length: int = 128,
) -> list[Example]:
    """One class a text; longer texts are cut at ``max_length`` tokens.

    Raises:
        ValueError: for no texts, unequal lengths, or a label that is not among ``classes``.
    """
    _check_texts(tokenizer, max_length, texts=texts)
    same_length(texts=texts, labels=labels)
    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return [{"input_ids": row, "labels": _index(label, classes)} for row, label in zip(ids, labels, strict=True)]


def encode_tags(
    tokenizer: PreTrainedTokenizerFast,
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
    classes: Sequence[str],
    max_length: int = 256,
) -> list[Example]:
    """One tag a word. A word's first piece carries its tag; its other pieces are not scored (Devlin et al. 2019, 5.3).

    Raises:
        ValueError: as ``encode_texts``, and where words are cut off: a cut would hide entities from the score.
    """
    same_length(words=words, tags=tags)
    examples = []
    for row, (of_words, of_tags) in enumerate(zip(words, tags, strict=True)):
        if len(of_words) != len(of_tags):
            raise ValueError(f"sentence {row} has {len(of_words)} words and {len(of_tags)} tags; give one tag a word")
        if not len(of_words):
            raise ValueError(f"sentence {row} has no words, so there is nothing to tag; leave it out")
        encoded = _encode_words(tokenizer, of_words)
        if len(encoded["input_ids"]) > max_length:
            raise ValueError(
                f"sentence {row} has {len(of_words)} words, more than max_length={max_length} tokens hold; "
                "cut it, or raise max_length"
            )
        labels, before = [], None
        for word in encoded.word_ids():
            first = word is not None and word != before
            labels.append(_index(of_tags[word], classes) if first else IGNORE)
            before = word
        examples.append({"input_ids": encoded["input_ids"], "labels": labels})
    return examples


def _encode_words(tokenizer: PreTrainedTokenizerFast, words: Sequence[str]) -> Any:
    """Pieces of every word; a word that the tokenizer leaves out (a lone control character) becomes [UNK]."""
    encoded = tokenizer(list(words), is_split_into_words=True, verbose=False)
    seen = set(encoded.word_ids())
    if len(seen - {None}) == len(words):
        return encoded
    kept = [word if place in seen else tokenizer.unk_token for place, word in enumerate(words)]
    return tokenizer(kept, is_split_into_words=True, verbose=False)


def encode_questions(
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[str],
    contexts: Sequence[str],
    spans: Sequence[tuple[int, int]],
    max_length: int = 256,
) -> list[Example]:
    """[CLS] question [SEP] context [SEP]; the label is the first and the last token of the answer.

    ``spans`` are (start, end) in characters of the context. ``offsets`` keeps each context token's characters, (0, 0)
    elsewhere, so that a prediction can be cut out of the text again.

    Raises:
        ValueError: as ``encode_texts``, and for a span that is empty, outside its context, or cut off.
    """
    _check_texts(tokenizer, max_length, questions=questions, contexts=contexts)
    same_length(questions=questions, contexts=contexts, spans=spans)
    examples = []
    for row, (question, context, (start, end)) in enumerate(zip(questions, contexts, spans, strict=True)):
        if not 0 <= start < end <= len(context):
            raise ValueError(f"spans[{row}]={(start, end)} is not a part of its context of {len(context)} characters")
        if not context[start:end].strip():
            raise ValueError(f"spans[{row}]={(start, end)} covers nothing but blanks; give the words of the answer")
        end = start + len(context[start:end].rstrip())
        asked = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        if asked + tokenizer.num_special_tokens_to_add(pair=True) >= max_length:
            raise ValueError(f"questions[{row}] alone takes {asked} tokens of max_length={max_length}, and leaves none "
                             "for the context; shorten it, or raise max_length")  # fmt: skip
        encoded = tokenizer(
            question, context, truncation="only_second", max_length=max_length, return_offsets_mapping=True
        )
        of_context = [part == 1 for part in encoded.sequence_ids()]
        pairs = zip(encoded["offset_mapping"], of_context, strict=True)
        offsets = [pair if inside else (0, 0) for pair, inside in pairs]
        first = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        if not first or max(b for _, b in offsets) < end:
            raise ValueError(f"the answer spans[{row}]={(start, end)} is cut off at max_length={max_length}; raise it")
        examples.append({"input_ids": encoded["input_ids"], "labels": [first[0], first[-1]], "offsets": offsets})
    return examples


def encode_relations(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    subjects: Sequence[tuple[int, int]],
    objects: Sequence[tuple[int, int]],
    labels: Sequence[str],
    classes: Sequence[str],
    max_length: int = 256,
) -> list[Example]:
    """The text with its two arguments marked, ``@ subject @ ... # object #``, and where the two markers are.

    Punctuation as markers needs no new rows in the embedding table (Zhou and Chen 2022, arXiv 2102.01373, section 3.2).

    Raises:
        ValueError: as ``encode_texts``, and for arguments that overlap, lie outside the text or are cut off.
    """
    _check_texts(tokenizer, max_length, texts=texts)
    same_length(texts=texts, subjects=subjects, objects=objects, labels=labels)
    examples = []
    for row, (text, subject, item, label) in enumerate(zip(texts, subjects, objects, labels, strict=True)):
        for name, (start, end) in (("subjects", subject), ("objects", item)):
            if not 0 <= start < end <= len(text):
                raise ValueError(f"{name}[{row}]={(start, end)} is not a part of its text of {len(text)} characters")
        if max(subject[0], item[0]) < min(subject[1], item[1]):
            raise ValueError(f"subjects[{row}]={subject} and objects[{row}]={item} overlap; they must be apart")
        marked, starts = mark_arguments(text, subject, item)
        encoded = tokenizer(marked, truncation=True, max_length=max_length)
        tokens = [encoded.char_to_token(start) for start in starts]
        if None in tokens:
            raise ValueError(f"subjects[{row}] or objects[{row}] is cut off at max_length={max_length}; raise it")
        examples.append({"input_ids": encoded["input_ids"], "labels": _index(label, classes), "markers": tokens})
    return examples


def mark_arguments(text: str, subject: tuple[int, int], item: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """The text with its arguments marked, and the characters at which the subject's and the object's markers open."""
    pieces, at, starts = [], 0, {}
    for sign, (start, end) in sorted((("@", subject), ("#", item)), key=lambda pair: pair[1]):
        pieces.append(text[at:start])
        starts[sign] = sum(map(len, pieces))
        pieces.append(f"{sign} {text[start:end]} {sign}")
        at = end
    return "".join([*pieces, text[at:]]), (starts["@"], starts["#"])


def answer_text(example: Example, context: str, span: Sequence[int]) -> str:
    """The characters of the context between two tokens, both included."""
    return context[example["offsets"][span[0]][0] : example["offsets"][span[1]][1]]


def _check_texts(tokenizer: PreTrainedTokenizerFast, max_length: int, **columns: Sequence[str]) -> None:
    """ValueError, naming the argument and the row, for what a tokenizer would refuse or misread."""
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise ValueError(f"max_length={max_length} leaves no room beside {special} special tokens; give more")
    for name, texts in columns.items():
        if isinstance(texts, str):
            raise ValueError(f"{name}={texts[:40]!r} is one string, which would be read letter by letter; give a list")
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{name}[{row}]={text!r} is a {type(text).__name__}, not a string")
            if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
                raise ValueError(f"{name}[{row}] holds half of a surrogate pair; decode the file as UTF-8, or drop it")


def _index(label: str, classes: Sequence[str]) -> int:
    if len(set(classes)) < len(classes):
        raise ValueError(f"classes={list(classes)[:8]} names a class twice; give each once")
    try:
        return list(classes).index(label)
    except ValueError:
        known = ", ".join(map(str, list(classes)[:8]))
        raise ValueError(f"label {label!r} is not among classes ({known}); add it, or drop the example") from None


def collate(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Pad to the longest; labels that are lists of tags are padded with -100.

    Raises:
        ValueError: for no examples.
    """
    if not examples:
        raise ValueError("examples is empty: there is nothing to train on or to score")
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, fill: int) -> Tensor:
        return torch.tensor([list(row[name]) + [fill] * (longest - len(row[name])) for row in examples])

    ids = padded("input_ids", pad_token_id)
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    batch = {"input_ids": ids, "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}
    tagged = isinstance(examples[0]["labels"], list) and "offsets" not in examples[0]
    batch["labels"] = padded("labels", IGNORE) if tagged else torch.tensor([row["labels"] for row in examples])
    if "markers" in examples[0]:
        batch["markers"] = torch.tensor([row["markers"] for row in examples])
    if "offsets" in examples[0]:
        inside = [[b > a for a, b in row["offsets"]] + [False] * (longest - len(row["offsets"])) for row in examples]
        batch["answerable"] = torch.tensor(inside)
    return batch


# --- models: a body and a head ---------------------------------------------------------------------------------------


class TaskModel(nn.Module):
    """A body, one linear map to ``outputs`` scores, a loss. What differs between tasks is which vectors are scored."""

    vectors = 1  # how many of the body's vectors the head reads at once

    def __init__(self, body: PreTrainedModel, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        if outputs < 1:
            raise ValueError(f"outputs={outputs} must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is a share; it must lie in [0, 1)")
        self.body, self.outputs = body, outputs
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.vectors * body.config.hidden_size, outputs)

    def forward(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Tensor, labels: Tensor | None = None, **where: Tensor
    ) -> ModelOutput:
        """``logits``, and ``loss`` if there are labels."""
        self.check_input(input_ids)
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.score(self.dropout(hidden), attention_mask, **where).float()
        if labels is None:
            return ModelOutput(logits=logits)
        if labels.dtype != torch.long:
            raise ValueError(f"labels has dtype={labels.dtype}; labels number classes or places, so give integers")
        self.check(labels, logits)
        return ModelOutput(loss=self.loss(logits, labels), logits=logits)

    def check_input(self, input_ids: Tensor) -> None:
        """ValueError for a sequence that is too long, or an id that is not in the table."""
        most = positions(self.body)
        if input_ids.shape[1] > most:
            raise ValueError(
                f"input_ids holds sequences of {input_ids.shape[1]} tokens, more than the model's {most} positions "
                f"(max_position_embeddings); encode with max_length={most} or less"
            )
        rows = self.body.get_input_embeddings().num_embeddings
        if int(input_ids.min()) < 0 or int(input_ids.max()) >= rows:
            raise ValueError(
                f"input_ids holds {int(input_ids.max())}, and the model's table has {rows} rows: the examples were "
                "encoded by another tokenizer; use the one that was saved with the model"
            )

    def score(self, hidden: Float[Tensor, "batch seq hidden"], mask: Tensor, **where: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over what is labelled."""
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE)

    def check(self, labels: Tensor, logits: Tensor) -> None:
        """ValueError for labels of another task, or one that no output stands for."""
        if labels.shape != logits.shape[:-1]:
            raise ValueError(f"labels has shape {tuple(labels.shape)}, and {type(self).__name__} scores "
                             f"{tuple(logits.shape[:-1])}; encode the examples for this task")  # fmt: skip
        if not bool((labels != IGNORE).any()):
            raise ValueError("labels holds -100 only, so a batch has nothing to learn from; leave such examples out")
        wrong = labels[(labels != IGNORE) & ((labels < 0) | (labels >= self.outputs))]
        if len(wrong):
            raise ValueError(
                f"labels holds {int(wrong[0])}, outside 0 to {self.outputs - 1}; the head was made for "
                f"outputs={self.outputs} classes"
            )

    def best(self, logits: Tensor) -> Tensor:
        """What the model predicts."""
        return logits.argmax(-1)


class SequenceClassifier(TaskModel):
    """One class a text, from the mean of its tokens' vectors. logits: [batch, classes]."""

    def score(self, hidden: Tensor, mask: Tensor, **_: Tensor) -> Tensor:
        weights = mask[..., None].to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1))


class TokenClassifier(TaskModel):
    """One class a token. logits: [batch, seq, classes]."""

    def score(self, hidden: Tensor, mask: Tensor, **_: Tensor) -> Tensor:
        return self.head(hidden)


class RelationClassifier(TaskModel):
    """One class a pair, from the vectors at the two opening markers, side by side. logits: [batch, classes]."""

    vectors = 2

    def score(self, hidden: Tensor, mask: Tensor, *, markers: Tensor | None = None, **_: Tensor) -> Tensor:
        if markers is None:
            raise ValueError("the examples have no markers; make them with encode_relations")
        if int(markers.min()) < 0 or int(markers.max()) >= hidden.shape[1]:
            raise ValueError(f"markers holds {markers.tolist()[0]}, outside the {hidden.shape[1]} tokens of the batch")
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        return self.head(hidden[rows, markers].flatten(1))


class SpanPredictor(TaskModel):
    """Where an answer starts and where it ends. logits: [batch, 2, seq], -inf outside the context.

    Source: Devlin et al. 2019, section 4.2.
    """

    longest = 64  # tokens of an answer

    def __init__(self, body: PreTrainedModel, outputs: int = 2, dropout: float = 0.0) -> None:
        super().__init__(body, outputs, dropout)

    def score(self, hidden: Tensor, mask: Tensor, *, answerable: Tensor | None = None, **_: Tensor) -> Tensor:
        if answerable is None:
            raise ValueError("the examples have no offsets; make them with encode_questions")
        return self.head(hidden).transpose(1, 2).masked_fill(~answerable[:, None], float("-inf"))

    def check(self, labels: Tensor, logits: Tensor) -> None:
        """ValueError for labels that are not two positions of the context."""
        if labels.shape != logits.shape[:-1]:
            raise ValueError(f"labels has shape {tuple(labels.shape)}; a span is two positions, (first, last)")
        inside = (labels >= 0) & (labels < logits.shape[-1])
        at_label = logits.gather(-1, labels.clamp(0, logits.shape[-1] - 1)[..., None]).squeeze(-1)
        outside = labels[~inside | (at_label == -math.inf)]
        if len(outside):
            raise ValueError(f"labels holds position {int(outside[0])}, outside its context; an answer is a part of it")

    def best(self, logits: Tensor) -> Int[Tensor, "batch 2"]:
        """The pair start <= end, at most ``longest`` tokens, whose scores add up to the most."""
        start, end = logits.unbind(1)
        pairs = start[:, :, None] + end[:, None, :]
        seq = pairs.shape[-1]
        allowed = torch.ones(seq, seq, dtype=torch.bool, device=logits.device).triu().tril(self.longest - 1)
        flat = pairs.masked_fill(~allowed, float("-inf")).flatten(1).argmax(1)
        return torch.stack([flat // seq, flat % seq], dim=1)


def positions(body: PreTrainedModel) -> float:
    """How many tokens a sequence may have; RoBERTa and its kin count positions from behind the padding id."""
    config = body.config
    most = getattr(config, "max_position_embeddings", math.inf)
    table = getattr(getattr(body, "embeddings", None), "position_embeddings", None)
    shifted = getattr(table, "padding_idx", None) is not None
    return most - config.pad_token_id - 1 if shifted else most


def untrained(body: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The same network, started at random: the baseline that says what pretraining was worth."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(body)(copy.deepcopy(body.config))


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How a model is fine-tuned. One rate for body and head; ``layer_decay`` below 1 slows the lower layers."""

    steps: int = 200
    batch_size: int = 16
    learning_rate: float = 1e-3  # a small encoder bears more than 2e-5, which suits large ones (lesson fine_tuning)
    warmup: float = 0.1  # share of the steps; then down to zero in a line
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    max_grad_norm: float = 1.0
    precision: str = "auto"  # as in pretraining.Recipe
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be a whole number, at least 1")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} must be positive; math.inf clips nothing")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must lie in (0, 1]; 1 trains every layer alike")
        self.schedule()

    def schedule(self) -> Recipe:
        """The same numbers as pretraining's recipe, which checks them and knows the schedule."""
        return Recipe(
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            precision=self.precision,
            batch_size=self.batch_size,
            seed=self.seed,
        )


def backward(model: nn.Module, batch: Batch) -> Tensor:
    """Gradients of the batch's loss; returns the loss. Lesson generalization puts other functions in its place."""
    loss = model(**batch).loss
    loss.backward()
    return loss.detach()


def fit(
    model: TaskModel,
    examples: Sequence[Example],
    settings: Settings | None = None,
    *,
    backward: Callable[[nn.Module, Batch], Tensor] = backward,
    on_step: Callable[[int, nn.Module], bool | None] | None = None,
) -> list[float]:
    """Train ``model`` in place for ``settings.steps`` steps and return the losses.

    Batches are drawn without replacement, epoch after epoch, by ``settings.seed``; the same seed, model and examples
    give the same weights on one machine. Parameters that need no gradient stay as they are.

    Args:
        backward: does one batch's forward and backward pass and returns the loss.
        on_step: called after each step with its number, from 1, and the model; true ends the run.

    Raises:
        ValueError: for no examples, a label out of range, a sequence too long for the model, or nothing to train.
        Diverged: at the first loss or gradient that is not finite; the weights are as before that step.
    """
    settings = settings or Settings()
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, settings)
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule = settings.schedule()
    batches = _batches(examples, settings, _pad_token_id(model))
    losses: list[float] = []
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # dropout
        for step in range(1, settings.steps + 1):
            batch = {name: value.to(device) for name, value in next(batches).items()}
            share = learning_rate(schedule, step / (settings.steps + 1)) / settings.learning_rate
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            optimizer.zero_grad(set_to_none=True)
            with autocast(schedule, device):
                loss = float(backward(model, batch))
            if not math.isfinite(loss):
                raise Diverged(
                    f"the loss is {loss} at step {step}: lower learning_rate={settings.learning_rate:g}, or look for "
                    "nan in the inputs and for answers outside their context"
                )
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm))
            if not math.isfinite(norm):
                raise Diverged(
                    f"the gradient's norm is {norm} at step {step}, though the loss is {loss:.4g}; no step was made. "
                    f"Lower learning_rate={settings.learning_rate:g}, or look for nan in weights and in backward"
                )
            optimizer.step()
            losses.append(loss)
            if on_step and on_step(step, model):
                break
    model.eval()
    return losses


@torch.no_grad()
def predict(model: TaskModel, examples: Sequence[Example], batch_size: int = 64, precision: str = "auto") -> list[Any]:
    """What the model predicts for each example, in order: a class, a class for each scored token, or (first, last).

    Raises:
        ValueError: for no examples, or a model whose scores are nan.
    """
    if not examples:
        raise ValueError("examples is empty: there is nothing to score")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))  # little padding
    found: dict[int, Any] = {}
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        batch = collate([examples[i] for i in places], _pad_token_id(model))
        labels = batch.pop("labels")
        with autocast(Recipe(precision=precision), device):
            logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
        check_scores(model, logits)
        best = model.best(logits).cpu()
        if isinstance(model, TokenClassifier):
            found |= {i: row[kept].tolist() for i, row, kept in zip(places, best, labels != IGNORE, strict=True)}
        else:
            found |= dict(zip(places, best.tolist(), strict=True))
    model.train(was_training)
    return [found[i] for i in range(len(examples))]


def check_scores(model: TaskModel, logits: Tensor) -> None:
    """ValueError for nan or +inf, which an argmax would turn into an answer."""
    if bool((logits.isnan() | (logits == math.inf)).any()):
        wrong = next((name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())), None)
        where = f"the weight {wrong} holds nan or inf" if wrong else "no weight does, so it arises on the way"
        raise ValueError(f"model={type(model).__name__} gives scores that are nan or inf ({where}); train it again")


def make_optimizer(model: TaskModel, settings: Settings) -> torch.optim.AdamW:
    """AdamW with decay on matrices only; layer ``l`` of ``L`` learns at rate · layer_decay^(L - l), the head at rate.

    Source of the layer-wise rates: Howard and Ruder 2018, arXiv 1801.06146, section 3.2.

    Raises:
        ValueError: if no parameter needs a gradient.
    """
    layers = getattr(model.body.config, "num_hidden_layers", 0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            depth = _depth(name, layers)
            rate = settings.learning_rate * settings.layer_decay ** (layers + 1 - depth)
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ValueError("model has no parameter that needs a gradient: there is nothing to train")
    named = [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]
    return torch.optim.AdamW(named, betas=(0.9, 0.98), fused=True)


def _depth(name: str, layers: int) -> int:
    """0 for embeddings, 1 to ``layers`` for layers, one more for what comes after them."""
    parts = name.split(".")
    for before, part in pairwise(parts):
        if before in ("layers", "layer") and part.isdigit():
            return int(part) + 1
    return 0 if "embeddings" in name else layers + 1


def _batches(examples: Sequence[Example], settings: Settings, pad_token_id: int) -> Iterator[Batch]:
    """Epoch after epoch in a random order; within a pool of batches, sentences of like length stand together.

    A batch is padded to its longest sentence, so this halves the work and leaves the order of batches random.
    """
    if not examples:
        raise ValueError("examples is empty: there is nothing to train on")
    generator = torch.Generator().manual_seed(settings.seed)
    size = min(settings.batch_size, len(examples))
    lengths = [len(example["input_ids"]) for example in examples]
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        order = order[: len(order) // size * size]
        for begin in range(0, len(order), POOL * size):
            pool = order[begin : begin + POOL * size]
            if len(pool) > size:
                pool.sort(key=lengths.__getitem__)
            for place in torch.randperm(len(pool) // size, generator=generator).tolist():
                yield collate([examples[i] for i in pool[place * size : (place + 1) * size]], pad_token_id)


def _pad_token_id(model: TaskModel) -> int:
    return getattr(model.body.config, "pad_token_id", None) or 0


def trained_parameters(model: nn.Module) -> int:
    """How many weights a step changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


# --- opening somebody's checkpoint -----------------------------------------------------------------------------------


def open_encoder(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Body and tokenizer from a folder that ``pretrain`` or ``save_pretrained`` wrote; safetensors only.

    A folder in this course's layout gives this course's ``Encoder``, any other encoder the library's class.

    Raises:
        ValueError: if the folder holds no model, one of another kind, or a tokenizer that is not the model's.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"folder={str(folder)!r} holds no config.json, so no model; give a folder that pretrain wrote")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"config.json in {str(folder)!r} cannot be read ({_first_line(error)}); save anew") from error
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"folder={str(folder)!r} holds a {config.model_type}, not an encoder; use one of BERT's kin")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"folder={str(folder)!r} holds no weights in safetensors; pickled ones are not opened")
    body = _open_body(folder, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ValueError(f"folder={str(folder)!r} holds no tokenizer that can be read ({_first_line(error)}); save it "
                         "beside the model with tokenizer.save_pretrained") from error  # fmt: skip
    check_pair(body, tokenizer)
    return body.eval(), tokenizer


def _open_body(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """In fp32, whatever the file holds: weights of 16 bits lose small updates (lesson mixed_precision)."""
    ours = (config.model_type == "modernbert" and set(config.layer_types) == {"full_attention"}
            and config.architectures == ["ModernBertForMaskedLM"])  # fmt: skip
    options = {"use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
    try:
        try:
            model, report = (EncoderForMaskedLM if ours else AutoModel).from_pretrained(folder, **options)
        except ValueError:  # stock ModernBERT with a flag that this course's encoder does not have
            if not ours:
                raise
            ours = False
            model, report = AutoModel.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights in {str(folder)!r} are damaged, or of another shape than its config.json says "
                         f"({_first_line(error)})") from error  # fmt: skip
    parts = ("pooler", "head.", "decoder.", "cls.", "lm_head", "classifier", "predictions", "vocab_")
    strange = [name for name in (*report["missing_keys"], *report["unexpected_keys"])
               if not any(part in name for part in parts)]  # fmt: skip
    if strange:
        kind = "lacks" if strange[0] in report["missing_keys"] else "has"
        raise ValueError(
            f"the checkpoint in {str(folder)!r} {kind} {strange[0]} ({len(strange)} such weights in all), which does "
            f"not fit the {config.model_type} of its config.json: it is of another architecture"
        )
    return model.model if ours else model


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''}"


def check_pair(body: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """ValueError unless the tokenizer can be the model's: as many pieces as rows, and the same special ids."""
    if not hasattr(body, "get_input_embeddings"):
        raise ValueError(f"body={type(body).__name__} is no model; the arguments are (body, tokenizer), in this order")
    rows = body.get_input_embeddings().num_embeddings
    padded = rows % 64 == 0 and 0 < rows - len(tokenizer) < 64  # a table is often filled up to a multiple of 64
    if len(tokenizer) != rows and not padded:
        raise ValueError(
            f"tokenizer has {len(tokenizer)} pieces and the model's embedding table {rows} rows: it belongs to another "
            "checkpoint; open both from the same folder"
        )
    for name in ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        theirs = getattr(body.config, name, None)
        if theirs is not None and theirs != getattr(tokenizer, name):
            raise ValueError(
                f"tokenizer.{name} is {getattr(tokenizer, name)} and the model's is {theirs}: the tokenizer belongs to "
                "another checkpoint; open both from the same folder"
            )
