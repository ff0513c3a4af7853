"""Fewer weights: set to zero, or taken out; and a small model that learns from a large one.

    masks = magnitude_masks(prunable(model), 0.8)                  # which weights stay: the largest fifth
    fit(model, examples, settings, on_step=Hold(model, masks))     # recover, with the zeros held

    heads, columns = taylor_importance(model, examples)            # what the loss would feel
    small = remove_columns(model, lowest(columns, 128))            # smaller matrices; remove_heads, remove_layers

    fit(student, examples, settings, backward=distilled(teacher))

A mask leaves the matrices as large as they were, so nothing gets faster; what is removed is gone from the sums. Both
are here because they are so often taken for one another. Masks and removals fit into ``finetuning.fit``'s hooks.

What is removed evenly is still a stock ModernBERT and is saved as one. A removal that its configuration cannot say
(heads, uneven widths, the first layer) still runs and trains, and refuses to be saved.

What this module does not do: sparse kernels (``torch.sparse`` has them), 2:4 on a GPU
(``torch.sparse.to_sparse_semi_structured``), pruning by second derivatives.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from sslcourse.encoder import Attention, Encoder, attend, rotate
from sslcourse.finetuning import Batch, Example, SpanPredictor, TaskModel, collate
from sslcourse.masking import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Masks = dict[str, Tensor]  # a parameter's name -> True where its weights stay
TARGETS = ("Wqkv", "Wi", "Wo")

# --- which weights stay ----------------------------------------------------------------------------------------------


def prunable(model: nn.Module, targets: Sequence[str] = TARGETS) -> dict[str, nn.Parameter]:
    """The matrices of the layers by name. Embeddings, norms and heads are left out: few weights, or looked up.

    Raises:
        ValueError: if no matrix has such a name.
    """
    found = {f"{name}.weight": module.weight for name, module in model.named_modules()
             if isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets}  # fmt: skip
    if not found:
        raise ValueError(f"targets={tuple(targets)} name no matrix of {type(model).__name__}; see named_modules()")
    return found


def magnitude_masks(weights: Mapping[str, Tensor], sparsity: float, scope: str = "global") -> Masks:
    """Keep the weights of largest absolute value (Han et al. 2015, arXiv 1506.02626). See ``keep_largest``."""
    return keep_largest({name: weight.detach().abs() for name, weight in weights.items()}, sparsity, scope)


def random_masks(weights: Mapping[str, Tensor], sparsity: float, seed: int = 0) -> Masks:
    """Keep weights drawn by lot: the baseline that any score of importance has to beat."""
    generator = torch.Generator().manual_seed(seed)
    return keep_largest({name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()},
                        sparsity)  # fmt: skip


def keep_largest(scores: Mapping[str, Tensor], sparsity: float, scope: str = "global") -> Masks:
    """Keep the weights with the largest scores; exactly round(sparsity · n) go, and of equals the earlier stays.

    Args:
        sparsity: the share of zeros, 0 to 1. ``round`` is Python's, as in ``torch.nn.utils.prune``.
        scope: "global" ranks all tensors together, "layer" each by itself, with the same sparsity.

    Raises:
        ValueError: for no tensors, a sparsity outside [0, 1], an unknown scope, or scores that are nan or inf.
    """
    if not scores:
        raise ValueError("scores is empty: there is nothing to prune; see prunable")
    check_share("sparsity", sparsity)
    if scope not in ("global", "layer"):
        raise ValueError(f"scope={scope!r} is unknown; choose 'global' (all matrices together) or 'layer'")
    for name, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise ValueError(f"{name} holds nan or inf, which cannot be ranked; train the model again")
    if scope == "layer":
        return {name: _largest(score.flatten(), sparsity).view(score.shape) for name, score in scores.items()}
    flat = _largest(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    parts = flat.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _largest(scores: Float[Tensor, " n"], sparsity: float) -> Bool[Tensor, " n"]:
    keep = len(scores) - round(sparsity * len(scores))
    if not keep:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = scores.topk(keep, sorted=False).values.min()  # topk breaks ties as it likes
    mask = scores > least
    mask[(scores == least).nonzero().squeeze(1)[: keep - int(mask.sum())]] = True
    return mask


def n_of_m_mask(weight: Float[Tensor, "*rows inputs"], n: int = 2, m: int = 4) -> Bool[Tensor, "*rows inputs"]:
    """Keep the ``n`` largest of every ``m`` neighbours along the input dimension; of equals the earlier stays.

    2 of 4 is the pattern that sparse tensor cores multiply (Mishra et al. 2021, arXiv 2104.08378).

    Raises:
        ValueError: if ``m`` does not divide the width, ``n`` is not in [0, m], or a weight is nan or inf.
    """
    if m < 1 or not 0 <= n <= m:
        raise ValueError(f"n={n} of m={m} cannot be kept; n must lie between 0 and m, and m be at least 1")
    if weight.shape[-1] % m:
        raise ValueError(f"weight has {weight.shape[-1]} inputs, which groups of m={m} do not divide; leave it dense")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weight holds nan or inf, which cannot be ranked; train the model again")
    groups = weight.detach().abs().unflatten(-1, (-1, m))
    kept = groups.sort(dim=-1, descending=True, stable=True).indices[..., :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter(-1, kept, True).flatten(-2)


def sparsity_of(tensors: Mapping[str, Tensor]) -> float:
    """The share of zeros in weights or masks, all together."""
    return sum(int((one == 0).sum()) for one in tensors.values()) / sum(one.numel() for one in tensors.values())


def kept_energy(weights: Mapping[str, Tensor], masks: Masks) -> float:
    """The share of the sum of squares that lies in the weights that stay."""
    squares = {name: weight.detach().double().square() for name, weight in weights.items()}
    return float(sum(one[masks[name]].sum() for name, one in squares.items())
                 / sum(one.sum() for one in squares.values()))  # fmt: skip


def check_share(name: str, value: float) -> None:
    """ValueError unless ``value`` is a number from 0 to 1."""
    if not 0 <= value <= 1:  # false for nan, too
        raise ValueError(f"{name}={value} is a share of the weights; it must lie in [0, 1]")


# --- pruning while training: hooks of fit -----------------------------------------------------------------------------


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set to zero, in place, what the masks leave out.

    Raises:
        ValueError: for a mask whose name or shape is not one of the model's, before anything is changed.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise ValueError(f"masks[{name!r}] of shape {tuple(mask.shape)} fits no weight of this model; make the "
                             "masks from prunable(model)")  # fmt: skip
    for name, mask in masks.items():
        parameters[name].mul_(mask)


class Hold:
    """``on_step``: zeros stay zero. The optimiser moves every weight, masked or not; this puts them back."""

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        self.masks = masks
        apply_masks(model, masks)

    def __call__(self, step: int, model: nn.Module) -> None:
        apply_masks(model, self.masks)


def cubic(step: int, last: int, final: float, first: int = 0, initial: float = 0.0) -> float:
    """Sparsity at ``step``: from ``initial`` at ``first`` to ``final`` at ``last``, fast at first, then ever slower.

    final + (initial - final) · (1 - (step - first) / (last - first))³. While most weights are idle many may go at
    once; towards the end each one hurts (Zhu and Gupta 2017, arXiv 1710.01878, section 3).
    """
    check_share("final", final)
    check_share("initial", initial)
    if not first < last:
        raise ValueError(f"first={first} must come before last={last}, both in steps")
    done = min(max((step - first) / (last - first), 0.0), 1.0)
    return final + (initial - final) * (1 - done) ** 3


class Gradual:
    """``on_step``: magnitude masks drawn anew every ``every`` steps, their sparsity by ``cubic`` until ``last``."""

    def __init__(self, sparsity: float, last: int, first: int = 0, every: int = 5, scope: str = "global") -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1 step")
        cubic(0, last, sparsity, first)  # refuses what it cannot follow, before any training
        self.sparsity, self.last, self.first, self.every, self.scope = sparsity, last, first, every, scope
        self.masks: Masks = {}

    def draw(self, step: int, scores: Mapping[str, Tensor]) -> None:
        """New masks, if this step is one for them."""
        if self.first <= step <= self.last and (step % self.every == 0 or step == self.last):
            self.masks = keep_largest(scores, cubic(step, self.last, self.sparsity, self.first), self.scope)

    def __call__(self, step: int, model: nn.Module) -> None:
        self.draw(step, {name: weight.detach().abs() for name, weight in prunable(model).items()})
        apply_masks(model, self.masks)


class Movement(Gradual):
    """Keep the weights that training moves away from zero, large or small (Sanh et al. 2020, arXiv 2005.07683).

        movement = Movement(0.9, last=150)
        fit(model, examples, settings, backward=movement.backward, on_step=movement)
        movement.finish(model)

    The forward pass uses W' = W · mask. Each weight's score moves against W · dL/dW', the gradient of a score that
    multiplied the weight (straight through the mask, so masked weights are scored, too, and can come back). The mask
    keeps the largest scores (hard top-v) at a sparsity that rises by ``cubic``.

    As in the paper's own code Adam scales a score's steps, and the mask is drawn anew at every step. Both are needed
    in a short training: with plain sums, which the first, large gradients rule, or with a mask that changes by leaps
    every fifth step, some seeds were lost altogether.
    """

    def __init__(self, sparsity: float, last: int, first: int = 0, every: int = 1, scope: str = "global") -> None:
        super().__init__(sparsity, last, first, every, scope)
        self.scores: dict[str, Tensor] = {}
        self.adam: torch.optim.Optimizer | None = None

    def backward(self, model: nn.Module, batch: Batch) -> Tensor:
        """One batch through the masked model; the gradients of masked weights are zero."""
        weights = prunable(model)
        if self.adam is None:
            self.scores = {name: torch.zeros_like(weight) for name, weight in weights.items()}
            self.adam = torch.optim.Adam(self.scores.values(), lr=1.0)  # only the order of scores matters
        whole = {name: weight.detach().clone() for name, weight in weights.items()}
        apply_masks(model, self.masks)
        loss = model(**batch).loss
        loss.backward()
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(whole[name])
                self.scores[name].grad = weight * weight.grad
                if name in self.masks:
                    weight.grad *= self.masks[name]
        self.adam.step()
        return loss.detach()

    def __call__(self, step: int, model: nn.Module) -> None:
        self.draw(step, self.scores)  # the weights stay whole until ``finish``: a masked one may come back

    def finish(self, model: nn.Module) -> None:
        """Set the masked weights to zero for good."""
        if not self.masks:
            raise ValueError("there are no masks yet: the run ended before the first were drawn; train for more steps")
        apply_masks(model, self.masks)


# --- structures: what the loss would feel ----------------------------------------------------------------------------


class Importance(NamedTuple):
    """One tensor a layer: a number for each head, and for each column of the MLP."""

    heads: list[Float[Tensor, " heads"]]
    columns: list[Float[Tensor, " columns"]]


def taylor_importance(model: TaskModel, examples: Sequence[Example], batch_size: int = 32) -> Importance:
    """How much the loss would change, to first order, without each head and each MLP column.

    Multiply what a head gives by a gate that is 1. The loss's derivative by that gate is the sum of output · gradient,
    and closing the gate changes the loss by about minus that. The mean over examples of its absolute value is the
    importance (Michel et al. 2019, arXiv 1905.10650, equation 2; for channels Molchanov et al. 2019, arXiv 1906.10771).
    The loss of an example is the sum over its labels, so the answer does not depend on how examples meet in batches.

    Raises:
        ValueError: for no examples, or activations or gradients that are nan or inf.
    """
    layers, device = _layers(model), next(model.parameters()).device
    seen: dict[tuple[str, int], Tensor] = {}

    def watch(key: tuple[str, int]) -> Callable:
        def keep(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            seen[key] = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_(True)
            return (seen[key],)

        return keep

    handles = [getattr(layer, part).Wo.register_forward_pre_hook(watch((part, number)))
               for number, layer in enumerate(layers) for part in ("attn", "mlp")]  # fmt: skip
    total: dict[tuple[str, int], Tensor] = {}
    was_training = model.training
    model.eval()
    try:
        for begin in range(0, max(len(examples), 1), batch_size):
            batch = collate(examples[begin : begin + batch_size], getattr(model.body.config, "pad_token_id", None) or 0)
            batch = {name: value.to(device) for name, value in batch.items()}
            with torch.enable_grad():
                loss = model(**batch).loss * (batch["labels"] != IGNORE).sum()
            for key, gradient in zip(seen, torch.autograd.grad(loss, list(seen.values())), strict=True):
                gates = (seen[key].detach() * gradient).sum(1)  # [batch, width]: one derivative an example
                if key[0] == "attn":
                    gates = gates.unflatten(-1, (layers[key[1]].attn.heads, -1)).sum(-1)
                total[key] = total.get(key, 0) + gates.abs().sum(0)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    if not all(bool(torch.isfinite(one).all()) for one in total.values()):
        raise ValueError("the model gives nan or inf on these examples; look for them in its weights")
    mean = {key: one / len(examples) for key, one in total.items()}
    return Importance(*([mean[part, number] for number in range(len(layers))] for part in ("attn", "mlp")))


def lowest(scores: Sequence[Float[Tensor, " n"]], count: int) -> dict[int, list[int]]:
    """Layer -> its ``count`` least important heads or columns, as the removals below take them."""
    most = min(len(of_layer) for of_layer in scores)
    if not 0 <= count < most:
        raise ValueError(f"count={count} must lie in [0, {most}): the smallest layer has {most}, and one has to stay")
    return {number: sorted(of_layer.argsort(stable=True)[:count].tolist()) for number, of_layer in enumerate(scores)}


# --- structures: taken out -------------------------------------------------------------------------------------------


class CutAttention(Attention):
    """Attention with fewer heads than hidden_size / head_size: the heads no longer fill the model's width."""

    def __init__(self, whole: Attention, keep: Int[Tensor, " kept"]) -> None:
        nn.Module.__init__(self)
        size = whole.Wo.in_features // whole.heads
        hidden = whole.Wqkv.in_features
        rows = whole.Wqkv.weight.detach().view(3, whole.heads, size, hidden)[:, keep]  # q, k, v of every head
        columns = whole.Wo.weight.detach().view(hidden, whole.heads, size)[:, keep]
        self.heads = len(keep)
        self.Wqkv, self.Wo = _linear(rows.flatten(0, 2)), _linear(columns.flatten(1))

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        weights: list[Tensor] | None = None,
        where: Int[Tensor, " places"] | None = None,
    ) -> Tensor:
        if weights is not None:
            raise ValueError("output_attentions=True is not there for a model without some of its heads; leave it out")
        batch, seq, _ = x.shape
        query, key, value = self.Wqkv(x).view(batch, seq, 3, self.heads, -1).transpose(1, 3).unbind(2)
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        mixed = attend(query, key, value, mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.Wo(mixed if where is None else mixed.flatten(0, 1)[where])


def remove_heads(model: nn.Module, heads: Mapping[int, Sequence[int]]) -> nn.Module:
    """A copy without these heads, ``{layer: [head, ...]}``; its outputs are those of the model with the heads at zero.

    Raises:
        ValueError: for a layer or head that is not there or named twice, or a layer that would lose its last head.
    """
    small = copy.deepcopy(model)
    for number, layer in _chosen(small, heads):
        keep = _kept("heads", number, layer.attn.heads, heads[number])
        if len(keep) < layer.attn.heads:
            layer.attn = CutAttention(layer.attn, keep)
    return _settle(small)


def remove_columns(model: nn.Module, columns: Mapping[int, Sequence[int]]) -> nn.Module:
    """A copy without these columns of the MLPs, ``{layer: [column, ...]}``: two rows of Wi and a column of Wo each.

    With as many left in every layer the copy is a stock model with a smaller ``intermediate_size``.

    Raises:
        ValueError: as ``remove_heads``.
    """
    small = copy.deepcopy(model)
    for number, layer in _chosen(small, columns):
        width = layer.mlp.Wo.in_features
        keep = _kept("columns", number, width, columns[number])
        both = layer.mlp.Wi.weight.detach().view(2, width, -1)[:, keep]  # the activated half, and the gate
        layer.mlp.Wi, layer.mlp.Wo = _linear(both.flatten(0, 1)), _linear(layer.mlp.Wo.weight.detach()[:, keep])
    return _settle(small)


def remove_layers(model: nn.Module, layers: Sequence[int]) -> nn.Module:
    """A copy without these layers. The first has no ``attn_norm``; without it the copy cannot be saved as stock.

    Raises:
        ValueError: for a layer that is not there or named twice, or if none would be left.
    """
    small = copy.deepcopy(model)
    body = _body(small)
    keep = _kept("layers", None, len(body.layers), layers)
    body.layers = nn.ModuleList(body.layers[number] for number in keep.tolist())
    return _settle(small)


def why_not_stock(model: nn.Module) -> str | None:
    """Why this model cannot be written as a stock ModernBERT, or ``None`` if it can."""
    body = _body(model)
    cut = [number for number, layer in enumerate(body.layers) if layer.attn.heads != body.config.num_attention_heads]
    if cut:
        return (f"layer {cut[0]} has {body.layers[cut[0]].attn.heads} of {body.config.num_attention_heads} heads, and "
                "a configuration cannot say that (a head's size is hidden_size / num_attention_heads)")  # fmt: skip
    widths = [layer.mlp.Wo.in_features for layer in body.layers]
    if len(set(widths)) > 1:
        return f"its MLPs have {widths} columns, and its configuration has one intermediate_size for all layers"
    if not isinstance(body.layers[0].attn_norm, nn.Identity):
        return "its first layer has an attn_norm, because the layer that stood before it was removed"
    return None


def _settle(model: nn.Module) -> nn.Module:
    """Bring the configuration up to date; forbid saving where it cannot say what the model is."""
    body = _body(model)
    body.config.num_hidden_layers = len(body.layers)
    body.config.layer_types = body.config.layer_types[: len(body.layers)]
    if len(widths := {layer.mlp.Wo.in_features for layer in body.layers}) == 1:
        body.config.intermediate_size = widths.pop()
    reason = why_not_stock(model)
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.__dict__.pop("save_pretrained", None)
            if reason:
                part.save_pretrained = partial(_refuse_saving, reason)
    return model


def _refuse_saving(reason: str, *_: object, **__: object) -> NoReturn:
    raise ValueError(f"this model cannot be saved as a stock ModernBERT: {reason}. Nothing was written; keep its "
                     "state_dict and the removals that led to it, or export it to ONNX")  # fmt: skip


def _body(model: nn.Module) -> Encoder:
    body = getattr(model, "body", getattr(model, "model", model))
    if not isinstance(body, Encoder):
        raise ValueError(f"model={type(model).__name__} holds no sslcourse.encoder.Encoder to take parts from")
    return body


def _layers(model: nn.Module) -> nn.ModuleList:
    layers = _body(model).layers
    for number, layer in enumerate(layers):
        maps = {"attn.Wqkv": layer.attn.Wqkv, "attn.Wo": layer.attn.Wo, "mlp.Wi": layer.mlp.Wi, "mlp.Wo": layer.mlp.Wo}
        for name, one in maps.items():
            if not isinstance(one, nn.Linear):
                raise ValueError(f"layers.{number}.{name} is a {type(one).__name__}, not a linear map; prune before "
                                 "you quantise, and merge LoRA first")  # fmt: skip
        for big, small, times in (("attn.Wqkv", "attn.Wo", 3), ("mlp.Wi", "mlp.Wo", 2)):
            rows, columns = maps[big].out_features, maps[small].in_features
            if rows != times * columns:
                raise ValueError(f"layers.{number}: {big} has {rows} rows and {small} {columns} columns, which do not "
                                 f"fit ({times} rows a column); was one cut without the other?")  # fmt: skip
    return layers


def _chosen(model: nn.Module, by_layer: Mapping[int, Sequence[int]]) -> list[tuple[int, nn.Module]]:
    layers = _layers(model)
    for number in by_layer:
        if not 0 <= number < len(layers):
            raise ValueError(f"layer {number} is not there: the model has layers 0 to {len(layers) - 1}")
    return [(number, layers[number]) for number in by_layer]


def _kept(what: str, layer: int | None, have: int, drop: Sequence[int]) -> Int[Tensor, " kept"]:
    where = "the model" if layer is None else f"layer {layer}"
    drop = [int(one) for one in drop]
    for one in drop:
        if not 0 <= one < have:
            raise ValueError(f"{what}={drop[:8]}: {where} has no number {one}; they go from 0 to {have - 1}")
    if len(set(drop)) < len(drop):
        raise ValueError(f"{what}={drop[:8]} names one twice; name each once")
    if len(drop) == have:
        raise ValueError(f"{what}: all {have} of {where} would go; keep at least one"
                         + ("" if layer is None else ", or drop the layer with remove_layers"))  # fmt: skip
    return torch.tensor([one for one in range(have) if one not in set(drop)])


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.clone().contiguous())
    return linear


# --- distillation ----------------------------------------------------------------------------------------------------


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


# --- bytes -----------------------------------------------------------------------------------------------------------


class Bytes(NamedTuple):
    """What the same weights take on disk."""

    dense: int  # safetensors
    zipped: int  # the same file through zlib
    csr: int  # by formula: values and column numbers of what is not zero, and where each row begins


def stored_bytes(weights: Mapping[str, Tensor]) -> Bytes:
    """Bytes of some matrices as a dense file, as a compressed one, and in compressed sparse rows."""
    whole = save({name: weight.detach().contiguous() for name, weight in weights.items()})
    csr = sum(csr_bytes(len(weight), int((weight != 0).sum())) for weight in weights.values())
    return Bytes(len(whole), len(zlib.compress(whole)), csr)


def csr_bytes(rows: int, nonzero: int, value_bytes: int = 4, index_bytes: int = 4) -> int:
    """Compressed sparse rows: a value and a column number for each non-zero, and rows + 1 beginnings."""
    return nonzero * (value_bytes + index_bytes) + (rows + 1) * index_bytes
