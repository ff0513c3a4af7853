"""A small model that learns from a large one: the loss between their outputs, as ``fit``'s backward pass.

    fit(student, examples, settings, backward=distilled(teacher))

What this module does not do: distil hidden states or attention.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslcourse.compress.pruning import check_share
from sslcourse.data.ignored import IGNORE
from sslcourse.tasks.encoding import Batch
from sslcourse.tasks.task_heads import SpanPredictor, TaskModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def distillation_loss(
    student: Float[Tensor, "*batch classes"],
    teacher: Float[Tensor, "*batch classes"],
    scored: Bool[Tensor, "*batch"],
    temperature: float = 2.0,
) -> Float[Tensor, ""]:
    """T² · KL(softmax(teacher / T) || softmax(student / T)), the mean over the positions that are ``scored``.

    The gradient of the softened loss shrinks as 1 / T²; the factor puts it back beside the labels' own (Hinton et al.
    2015, arXiv 1503.02531, section 2).

    Raises:
        ValueError: for unequal shapes, a temperature that is not positive and finite, or nothing that is scored.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student has logits of shape {tuple(student.shape)} and teacher {tuple(teacher.shape)}; they "
                         "must have the same classes and see the same batch")  # fmt: skip
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be positive and finite; 1 leaves the probabilities alone")
    if not bool(scored.any()):
        raise ValueError("scored is false everywhere: there is nothing to learn from")
    soft_student = (student[scored] / temperature).log_softmax(-1)
    soft_teacher = (teacher[scored] / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(soft_student, soft_teacher, reduction="batchmean", log_target=True)


def distilled(
    teacher: TaskModel, temperature: float = 2.0, soft_share: float = 0.5
) -> Callable[[nn.Module, Batch], Tensor]:
    """A ``backward`` for ``fit``: soft_share · distillation + (1 - soft_share) · the labels' own loss.

    With ``soft_share`` 1 labels say only which positions are scored, so the teacher can label any text.

    Raises:
        ValueError: for a share outside [0, 1] or a teacher of spans; when called, for a student with other classes or
            another vocabulary.
    """
    check_share("soft_share", soft_share)
    if isinstance(teacher, SpanPredictor):
        raise ValueError("teacher=SpanPredictor scores positions, not classes; distil a classifier")
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)

    def learn(student: nn.Module, batch: Batch) -> Tensor:
        check_pupil(teacher, student)
        answer = student(**batch)
        with torch.no_grad():
            known = teacher(**{name: value for name, value in batch.items() if name != "labels"}).logits
        soft = distillation_loss(answer.logits, known, batch["labels"] != IGNORE, temperature)
        loss = soft_share * soft + (1 - soft_share) * answer.loss
        loss.backward()
        return loss.detach()

    return learn


def check_pupil(teacher: TaskModel, student: TaskModel) -> None:
    """ValueError unless both score the same classes over the same vocabulary."""
    if type(student) is not type(teacher) or student.outputs != teacher.outputs:
        raise ValueError(f"student={type(student).__name__} with {student.outputs} classes cannot learn from "
                         f"{type(teacher).__name__} with {teacher.outputs}; give both the same task")  # fmt: skip
    theirs, ours = (one.body.get_input_embeddings().num_embeddings for one in (teacher, student))
    if theirs != ours:
        raise ValueError(f"teacher has a vocabulary of {theirs} and student of {ours}; a text must give both the same "
                         "ids, so use one tokenizer")  # fmt: skip
