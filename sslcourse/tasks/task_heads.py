"""A body and one linear head for a task: a class a text, a tag a word, a relation of two, a span that answers.

    model = SequenceClassifier(body, classes)   # or TokenClassifier, RelationClassifier, SpanPredictor

``body`` is any module that maps ``input_ids, attention_mask`` to ``.last_hidden_state`` and has a ``.config``. What
this module does not do: train (``tasks.fitting``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from sslcourse.data.ignored import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from transformers import PreTrainedModel


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
