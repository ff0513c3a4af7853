"""Smaller matrices: heads, columns and whole layers taken out of an encoder, the least important first.

    heads, columns = taylor_importance(model, examples)            # what the loss would feel
    small = remove_columns(model, lowest(columns, 128))            # or remove_heads, remove_layers

What is removed evenly is still a stock ModernBERT and is saved as one. A removal that its configuration cannot say
(heads, uneven widths, the first layer) still runs and trains, and refuses to be saved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import Attention, Encoder, attend, rotate
from sslcourse.tasks.encoding import Example, collate
from sslcourse.tasks.task_heads import TaskModel

if TYPE_CHECKING:
    from jaxtyping import Float, Int


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
        raise ValueError(f"model={type(model).__name__} holds no sslcourse.models.encoder.Encoder to take parts from")
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
