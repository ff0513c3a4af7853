"""Small integers in place of floating-point numbers: by hand, then by the libraries that are used in earnest.

    q = quantize(weight, axis=0)             # int8 values, a scale for each row; q.dequantize() is within half a step
    small = int8_copy(model)                 # every nn.Linear and nn.Embedding by hand, activations measured on the fly
    smooth(norm, linear, reach)              # SmoothQuant: move what is hard to round from activations to weights
    trained = fake_copy(model, bits=4)       # rounds while training, so that the weights learn to bear it (QAT)

    torchao_copy(model)                      # torchao's quantize_
    export_onnx(model, file, inputs)         # ONNX Runtime: a graph in a file, then
    int8_onnx(file, small_file)              # ... with int8 products whose activations are measured on the fly,
    static_int8_onnx(file, other, batches)   # ... or measured beforehand, on calibration data

Read it top to bottom: a grid, a product of integers, a layer, a model, and at the end the libraries. What this module
does not do: kernels. The product of integers is torch's; how fast that is beside the others, lesson quantization
measures.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from sslcourse.masking import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Int8, Int32, UInt8

LARGEST_SUM = 2**31 // 128**2  # so many products of -128 and -128 fit into an int32

# --- a grid ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantized:
    """Whole numbers and what they stand for: (values - zero_point) · scale.

    ``values`` keeps the shape of the tensor, or [..., groups, group] where groups have scales of their own; ``scale``
    and ``zero_point`` broadcast against it. Fewer than 8 bits still lie in an int8; ``pack_int4`` puts two in a byte.
    """

    values: Int8[Tensor, "*shape"]
    scale: Float[Tensor, "*shape"]
    zero_point: Int[Tensor, "*shape"]
    bits: int
    shape: torch.Size

    def dequantize(self) -> Float[Tensor, "*shape"]:
        """The tensor again; inside the range each number is at most ``scale / 2`` from what it was."""
        return ((self.values.to(self.scale.dtype) - self.zero_point) * self.scale).view(self.shape)

    @property
    def bytes(self) -> float:
        """What it takes in a file: ``bits`` a number, and a scale (and zero point) for each row or group."""
        symmetric = bool((self.zero_point == 0).all())
        return self.values.numel() * self.bits / 8 + self.scale.numel() * (4 if symmetric else 5)


def limits(bits: int, symmetric: bool = True) -> tuple[int, int]:
    """The smallest and the largest whole number: -127 and 127 for eight symmetric bits, -128 and 127 for affine ones.

    A symmetric grid leaves one number out, so that x and -x are rounded alike.
    """
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits={bits} must be a whole number from 2 to 8: the values are kept in int8")
    top = 2 ** (bits - 1) - 1
    return (-top if symmetric else -top - 1), top


def grid(
    low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], bits: int = 8, symmetric: bool = True
) -> tuple[Float[Tensor, "*shape"], Int[Tensor, "*shape"]]:
    """(scale, zero point) of a grid that covers low to high, and 0 (Jacob et al. 2018, arXiv 1712.05877, section 2.1).

    Zero is always a number of the grid: it is what padding and a ReLU give, and it must come back as zero.
    """
    bottom, top = limits(bits, symmetric)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    tiny = torch.finfo(low.dtype).tiny * 2**8  # of a row of zeros; its inverse must stay finite, too
    if symmetric:
        scale = (torch.maximum(-low, high) / top).clamp(min=tiny)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = ((high - low) / (top - bottom)).clamp(min=tiny)
    return scale, (bottom - torch.round(low / scale)).clamp(bottom, top).to(torch.int32)


def quantize(
    x: Float[Tensor, "*shape"],
    bits: int = 8,
    *,
    symmetric: bool = True,
    axis: int | None = None,
    group: int | None = None,
) -> Quantized:
    """The nearest whole numbers on a grid that covers ``x``; ties go to the even number.

    Args:
        axis: this axis keeps a scale for each of its places: 0 gives each row of a weight its own ("per channel").
        group: so many neighbours along the last axis share a scale.

    Raises:
        ValueError: for nan or infinities, an empty tensor, or an axis or a group that do not fit.
    """
    if x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: there is nothing to quantize")
    if not bool(x.isfinite().all()):
        raise ValueError("x holds nan or infinities, and no grid covers those; find where they come from, or clip them")
    if axis is not None and group is not None:
        raise ValueError(f"give axis={axis} or group={group}, not both")
    cut = _grouped(x, group)
    along = tuple(_others(cut, axis, group))
    scale, zero_point = grid(cut.amin(along, keepdim=True), cut.amax(along, keepdim=True), bits, symmetric)
    return on_grid(cut, scale, zero_point, bits, symmetric, x.shape)


def on_grid(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*shape"],
    zero_point: Int[Tensor, "*shape"],
    bits: int = 8,
    symmetric: bool = True,
    shape: torch.Size | None = None,
) -> Quantized:
    """``x`` on a grid that is given; what lies beyond its ends goes to the end (saturates)."""
    values = (torch.round(x * (1 / scale)) + zero_point).clamp(*limits(bits, symmetric)).to(torch.int8)
    return Quantized(values, scale, zero_point, bits, x.shape if shape is None else shape)


def _grouped(x: Tensor, group: int | None) -> Tensor:
    if group is None:
        return x
    if not isinstance(group, int) or group < 1 or x.shape[-1] % group:
        raise ValueError(f"group={group} does not divide the last axis of {x.shape[-1]}; choose one that does")
    return x.reshape(*x.shape[:-1], -1, group)


def _others(x: Tensor, axis: int | None, group: int | None) -> Iterable[int]:
    """The axes that share one scale."""
    if group is not None:
        return [x.ndim - 1]
    if axis is None:
        return range(x.ndim)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis={axis} is not an axis of a tensor of {x.ndim} dimensions")
    return [place for place in range(x.ndim) if place != axis % x.ndim]


def pack_int4(values: Int8[Tensor, "*rows even"]) -> UInt8[Tensor, "*rows half"]:
    """Two numbers from -8 to 7 in one byte, the first in the low half.

    Raises:
        ValueError: for a number outside, or an odd last axis.
    """
    if values.shape[-1] % 2:
        raise ValueError(f"the last axis has {values.shape[-1]} places; two share a byte, so give an even number")
    if int(values.min()) < -8 or int(values.max()) > 7:
        raise ValueError(f"values reach from {int(values.min())} to {int(values.max())}; four bits hold -8 to 7")
    low, high = (values & 0xF).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    return low | high << 4


def unpack_int4(packed: UInt8[Tensor, "*rows half"]) -> Int8[Tensor, "*rows even"]:
    """The inverse of ``pack_int4``."""
    halves = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2).to(torch.int8)
    return torch.where(halves > 7, halves - 16, halves)


# --- products of whole numbers ---------------------------------------------------------------------------------------


def int_product(a: Int8[Tensor, "n k"], b: Int8[Tensor, "k m"]) -> Int32[Tensor, "n m"]:
    """The exact product of int8 matrices, summed in int32, by the library's kernel.

    Raises:
        ValueError: if the sums might not fit into an int32.
    """
    if a.shape[-1] >= LARGEST_SUM:
        raise ValueError(f"a has {a.shape[-1]} columns; sums of {LARGEST_SUM} products of -128 do not fit into an "
                         "int32: cut the product into parts")  # fmt: skip
    return torch._int_mm(a, b)


class Int8Linear(nn.Module):
    """A linear layer in int8: y = (q_x q_Wᵀ) · s_x · s_W + b, the sum in int32.

    Weights have a scale for each output. Activations are measured as they come, a scale for each token; or, with
    ``reach`` = (low, high) from calibration, all lie on one affine grid, and the zero point is taken out of the sum:
    Σ (q_x - z) q_W = Σ q_x q_W - z Σ q_W.
    """

    def __init__(self, linear: nn.Linear, reach: tuple[float, float] | None = None) -> None:
        super().__init__()
        weight = quantize(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight.values)
        self.register_buffer("scale", weight.scale[:, 0])
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        self.reach = reach
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def accumulate(self, x: Float[Tensor, "n inputs"]) -> tuple[Int32[Tensor, "n outputs"], Quantized]:
        """(int32 sums of products, the activations on their grid)."""
        if self.reach is None:
            q = quantize(x, axis=0)
        else:
            low, high = (x.new_tensor(bound) for bound in self.reach)
            q = on_grid(x, *grid(low, high, symmetric=False), symmetric=False)
        return int_product(q.values, self.weight.t()), q

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        sums, q = self.accumulate(x.flatten(0, -2))
        if self.reach is not None:
            sums = sums - q.zero_point * self.weight.sum(1, dtype=torch.int32)
        y = sums * q.scale * self.scale
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def extra_repr(self) -> str:
        how = "on the fly" if self.reach is None else f"{self.reach[0]:.3g} to {self.reach[1]:.3g}"
        return f"{self.in_features} -> {self.out_features}, activations {how}"


class Int8Embedding(nn.Module):
    """A table of int8 rows, a scale for each."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        weight = quantize(embedding.weight.detach(), axis=0)
        self.register_buffer("weight", weight.values)
        self.register_buffer("scale", weight.scale)
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch hidden"]:
        return self.weight[ids] * self.scale[ids]


# --- a whole model ---------------------------------------------------------------------------------------------------


def quantizable(model: nn.Module, keep: Iterable[str] = (), only: Iterable[str] | None = None) -> dict[str, nn.Module]:
    """Name -> module of every ``nn.Linear`` and ``nn.Embedding``; without ``keep``, or ``only`` some.

    Raises:
        ValueError: for a model that is quantized already, weights that are nan or infinite, a name that is no module,
            a module of a kind that has no integer form here, or nothing left to quantize.
    """
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        ours = isinstance(module, (Int8Linear, Int8Embedding, FakeLinear))
        theirs = isinstance(weight, Tensor) and type(weight) not in (Tensor, nn.Parameter)
        if ours or theirs or ".quantized" in type(module).__module__:  # the last: torch.ao's modules
            raise ValueError(f"model is quantized already ({name} is a {type(module).__name__} with weights of type "
                             f"{type(weight).__name__}); start from the fp32 model")  # fmt: skip
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise ValueError(f"the weight {name} holds nan or infinities, and no grid covers those; train it again")
    modules = dict(model.named_modules())
    keep, only = ([one] if isinstance(one, str) else one for one in (keep, only))
    for what, names in (("keep", keep), ("only", only or ())):
        for name in names:
            if name not in modules:
                known = ", ".join(list(_leaves(model))[:4])
                raise ValueError(f"{what} names {name!r}, which is no module of the model (it has {known}, ...)")
            if what == "only" and not isinstance(modules[name], (nn.Linear, nn.Embedding)):
                raise ValueError(f"only names {name!r}, a {type(modules[name]).__name__}: only nn.Linear and "
                                 "nn.Embedding have an integer form here; leave it in fp32")  # fmt: skip
    found = {name: one for name, one in _leaves(model).items()
             if name not in set(keep) and (only is None or name in set(only))}  # fmt: skip
    if not found:
        raise ValueError("model has no nn.Linear or nn.Embedding to quantize, or keep names all of them")
    return found


def _leaves(model: nn.Module) -> dict[str, nn.Module]:
    return {name: one for name, one in model.named_modules() if isinstance(one, (nn.Linear, nn.Embedding)) and name}


def int8_copy(
    model: nn.Module,
    *,
    keep: Iterable[str] = (),
    only: Iterable[str] | None = None,
    reaches: Mapping[str, tuple[float, float]] | None = None,
) -> nn.Module:
    """A copy with ``Int8Linear`` and ``Int8Embedding`` in place; the model itself stays as it is.

    ``reaches`` are ranges of inputs from ``observe``: modules named there are static. What shares a weight (a decoder
    and its embedding) still shares it.

    Raises:
        ValueError: as ``quantizable``.
    """
    made, tables = copy.deepcopy(model).eval().requires_grad_(False), {}
    for name, module in quantizable(made, keep, only).items():
        shared = tables.get(module.weight.data_ptr())
        if isinstance(module, nn.Embedding):
            new: nn.Module = Int8Embedding(module)
        else:
            new = Int8Linear(module, (reaches or {}).get(name))
        if shared is not None:
            new.weight = shared
        tables[module.weight.data_ptr()] = new.weight
        _replace(made, name, new)
    return made


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    above, _, last = name.rpartition(".")
    setattr(model.get_submodule(above), last, module)


@dataclass
class Reach:
    """What the inputs of a module were, over all batches."""

    low: float = math.inf
    high: float = -math.inf
    channels: Float[Tensor, " inputs"] | None = None  # the largest absolute value of each

    def see(self, x: Float[Tensor, "... inputs"]) -> None:
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        most = x.flatten(0, -2).abs().amax(0)
        self.channels = most if self.channels is None else torch.maximum(self.channels, most)


@torch.no_grad()
def observe(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], tokenizer: Any | None = None
) -> dict[str, Reach]:
    """Name -> what came into every ``nn.Linear`` while the model read the calibration batches.

    Raises:
        ValueError: for no batches, ids that are not in the model's table, or a tokenizer that is not the model's.
    """
    batches = list(batches)
    check_calibration(batches, _rows(model), tokenizer)
    seen: dict[str, Reach] = {name: Reach() for name, one in _leaves(model).items() if isinstance(one, nn.Linear)}
    hooks = [model.get_submodule(name).register_forward_pre_hook(lambda _, x, reach=reach: reach.see(x[0]))
             for name, reach in seen.items()]  # fmt: skip
    was_training = model.training
    try:
        model.eval()
        for batch in batches:
            model(**batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return {name: reach for name, reach in seen.items() if reach.channels is not None}


def _rows(model: nn.Module) -> int:
    body = getattr(model, "body", model)
    return body.get_input_embeddings().num_embeddings


def check_calibration(batches: Sequence[Mapping[str, Tensor]], rows: int, tokenizer: Any | None = None) -> None:
    """ValueError for calibration data that cannot be the model's own."""
    if not batches:
        raise ValueError("batches is empty: calibration needs text; a few dozen rows of the training data will do")
    if tokenizer is not None and not 0 <= rows - len(tokenizer) < 64:
        raise ValueError(f"tokenizer has {len(tokenizer)} pieces and the model's table {rows} rows: the calibration "
                         "data is of another tokenizer; open both from one folder")  # fmt: skip
    for number, batch in enumerate(batches):
        ids = batch["input_ids"]
        if int(ids.min()) < 0 or int(ids.max()) >= rows:
            raise ValueError(f"batches[{number}] holds id {int(ids.max())}, and the model's table has {rows} rows: the "
                             "calibration data was encoded by another tokenizer; use the model's own")  # fmt: skip


def smoothing(
    weight: Float[Tensor, "outputs inputs"], reach: Float[Tensor, " inputs"], alpha: float = 0.5
) -> Float[Tensor, " inputs"]:
    """What to divide activations by, and multiply weights with, channel by channel: max|x|^α / max|w|^(1-α).

    Source: Xiao et al. 2023, SmoothQuant, arXiv 2211.10438, equation 4.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must lie in [0, 1]: 0 leaves all to the activations, 1 all to the weights")
    columns = weight.abs().amax(0)
    factors = reach**alpha / columns ** (1 - alpha)
    return torch.where((reach > 0) & (columns > 0), factors, torch.ones_like(factors))


@torch.no_grad()
def smooth(norm: nn.LayerNorm, linear: nn.Linear, reach: Float[Tensor, " inputs"], alpha: float = 0.5) -> None:
    """Divide what ``norm`` gives by the factors and multiply the columns of ``linear`` with them, in place.

    The two together compute what they did. ``linear`` must be all that reads ``norm``.
    """
    factors = smoothing(linear.weight, reach, alpha)
    norm.weight /= factors
    if norm.bias is not None:
        norm.bias /= factors
    linear.weight *= factors


# --- training that knows about rounding ------------------------------------------------------------------------------


class _Fake(torch.autograd.Function):
    """Forward on the grid; backward as if nothing had happened, but for what saturated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        levels = torch.round(x * (1 / scale)) + zero_point
        ctx.save_for_backward((levels >= low) & (levels <= high))
        return (levels.clamp(low, high) - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None, None


def fake_quantize(
    x: Float[Tensor, "*shape"], scale: Float[Tensor, "*shape"], zero_point: Int[Tensor, "*shape"], low: int, high: int
) -> Float[Tensor, "*shape"]:
    """Quantized and dequantized at once, with a gradient that passes straight through inside the range.

    Rounding has a gradient of zero almost everywhere, which would teach nothing. So the backward pass leaves it out
    (the straight-through estimator: Bengio et al. 2013, arXiv 1308.3432). Equal to
    ``torch.fake_quantize_per_tensor_affine``, forward and backward.
    """
    return _Fake.apply(x, scale, zero_point, low, high)


class FakeLinear(nn.Linear):
    """A linear layer that rounds its weights (in groups) and its inputs (a scale for each token) as it computes."""

    def __init__(self, linear: nn.Linear, bits: int, group: int | None, activation_bits: int | None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.bits, self.group, self.activation_bits = bits, group, activation_bits

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if self.activation_bits is not None:
            x = _faked(x, self.activation_bits)
        weight = _faked(_grouped(self.weight, self.group), self.bits).view_as(self.weight)
        return F.linear(x, weight, self.bias)


def _faked(x: Tensor, bits: int) -> Tensor:
    most = x.detach().abs().amax(-1, keepdim=True)
    return fake_quantize(x, *grid(-most, most, bits), *limits(bits))


def fake_copy(
    model: nn.Module,
    bits: int = 8,
    *,
    group: int | None = None,
    activation_bits: int | None = 8,
    keep: Iterable[str] = (),
    only: Iterable[str] | None = None,
) -> nn.Module:
    """A copy whose linear layers round as they compute; it can be trained, and its weights stay in fp32.

    Raises:
        ValueError: as ``quantizable``; or if ``group`` does not divide a layer's inputs.
    """
    limits(bits)
    made = copy.deepcopy(model)
    for name, module in quantizable(made, keep, only).items():
        if isinstance(module, nn.Linear):
            _grouped(module.weight, group)
            _replace(made, name, FakeLinear(module, bits, group, activation_bits))
    return made


# --- how good, how large ---------------------------------------------------------------------------------------------


def sqnr(exact: Float[Tensor, "*shape"], rounded: Float[Tensor, "*shape"]) -> float:
    """Signal to quantization noise in decibels, 10 log10(Σ exact² / Σ (exact - rounded)²); a bit is worth 6 dB."""
    exact, rounded = exact.detach().double(), rounded.detach().double()
    noise = float((exact - rounded).square().sum())
    return math.inf if noise == 0 else 10 * math.log10(float(exact.square().sum()) / noise)


def agreement(exact: Float[Tensor, "n classes"], rounded: Float[Tensor, "n classes"]) -> float:
    """Share of rows whose first guess is the same."""
    return float((exact.argmax(-1) == rounded.argmax(-1)).double().mean())


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that a model consists of, once, and those of torchao taken apart into what they are stored as."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        for part, plain in _taken_apart(name, tensor.detach()):
            if plain.data_ptr() not in seen:
                seen.add(plain.data_ptr())
                found[part] = plain
    return found


def _taken_apart(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for inner in tensor.__tensor_flatten__()[0]:
        yield from _taken_apart(f"{name}.{inner}", getattr(tensor, inner))


def memory_bytes(model: nn.Module) -> int:
    """Bytes of all weights as they lie in memory."""
    return sum(tensor.nbytes for tensor in plain_tensors(model).values())


def disk_bytes(model: nn.Module) -> int:
    """Bytes of a safetensors file with all of them."""
    return len(save({name: tensor.contiguous() for name, tensor in plain_tensors(model).items()}))


# --- torchao ---------------------------------------------------------------------------------------------------------


def torchao_copy(model: nn.Module, how: str = "dynamic", *, tables: bool = False) -> nn.Module:
    """A copy whose linear layers torchao computes: "dynamic" int8 products, or "weight-only", which saves memory alone.

    The modules stay ``nn.Linear``; what changes is the type of their weight, and with it which kernel runs.

    Args:
        tables: also put embeddings into int8. Each call then unpacks a whole table to read some of its rows, unless
            ``torch.compile`` joins the two.

    Raises:
        ValueError: as ``quantizable``, or for an unknown ``how``.
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    configs = {"dynamic": Int8DynamicActivationInt8WeightConfig, "weight-only": Int8WeightOnlyConfig}
    if how not in configs:
        raise ValueError(f"how={how!r} is unknown; choose {' or '.join(map(repr, configs))}")
    quantizable(model)
    made = copy.deepcopy(model).eval()
    quantize_(made, configs[how]())
    if tables:
        quantize_(made, Int8WeightOnlyConfig(), filter_fn=lambda module, _: isinstance(module, nn.Embedding))
    return made


# --- ONNX Runtime ----------------------------------------------------------------------------------------------------


class _Graph(nn.Module):
    """(input_ids, attention_mask) -> logits, or the last hidden state of a model without a head.

    The checks of ``finetuning.TaskModel`` look at values, which a graph cannot; so its parts are called directly.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if hasattr(self.model, "score"):
            hidden = self.model.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return self.model.score(hidden, attention_mask)
        found = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return found.logits if getattr(found, "logits", None) is not None else found.last_hidden_state


def export_onnx(model: nn.Module, path: str | Path, inputs: Mapping[str, Tensor]) -> Path:
    """Write the model as an ONNX graph whose batch and sequence are free, and return its path.

    Args:
        inputs: "input_ids" and "attention_mask" of any batch of two rows or more; the graph is traced with them.

    Raises:
        ValueError: for inputs that are missing or too small, or a model that is quantized or holds nan.
    """
    missing = [name for name in ("input_ids", "attention_mask") if name not in inputs]
    if missing:
        raise ValueError(f"inputs lacks {missing[0]}; give input_ids and attention_mask, each [batch, seq]")
    if min(inputs["input_ids"].shape) < 2:
        raise ValueError(f"inputs have shape {tuple(inputs['input_ids'].shape)}; with one row or one token the tracer "
                         "would take that 1 for a constant: give two or more of each")  # fmt: skip
    quantizable(model)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    was_training = model.training
    try:
        with _quiet(), torch.no_grad(), _written(Path(path)) as target:
            graph = torch.onnx.export(
                _Graph(model).eval(),
                (inputs["input_ids"], inputs["attention_mask"]),
                dynamo=True,
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_shapes={"input_ids": dict(free), "attention_mask": dict(free)},
                verbose=False,
            )
            graph.save(target)
    finally:
        model.train(was_training)
    return Path(path)


def refilled_onnx(source: str | Path, target: str | Path, old: nn.Module, new: nn.Module) -> Path:
    """The graph of ``old`` in ``source`` with the weights of ``new``, which has the same shapes, written to ``target``.

    Exporting takes seconds, filling in takes none. A weight is found by its values, as it is or transposed.

    Raises:
        ValueError: for models of other shapes, or a weight of ``old`` that is not in the graph exactly once.
    """
    import onnx
    from onnx import numpy_helper

    check_onnx(source, target)
    before, after = ({name: weight.detach().numpy() for name, weight in model.named_parameters()}
                     for model in (old, new))  # fmt: skip
    if {name: one.shape for name, one in before.items()} != {name: one.shape for name, one in after.items()}:
        raise ValueError("old and new have other weights, or other shapes of weights; export new by itself")
    quantizable(new)
    graph = onnx.load(source)
    held = {one.name: numpy_helper.to_array(one) for one in graph.graph.initializer}
    filled = {}
    for name, was in before.items():
        now = after[name]
        fits = [(place, flip) for place, array in held.items() for flip in (False, True)
                if not (flip and was.ndim != 2) and np.array_equal(array, was.T if flip else was)]  # fmt: skip
        if len(fits) != 1:
            raise ValueError(f"{name} of old stands {len(fits)} times in {str(source)!r}, not once; is it old's graph?")
        ((place, flip),) = fits
        filled[place] = np.ascontiguousarray(now.T if flip else now)
    for one in graph.graph.initializer:
        if one.name in filled:
            one.CopyFrom(numpy_helper.from_array(filled[one.name], one.name))
    with _written(Path(target)) as out:
        onnx.save(graph, out)
    return Path(target)


def int8_onnx(source: str | Path, target: str | Path, *, per_channel: bool = False) -> Path:
    """ONNX Runtime's dynamic int8: every product with a weight, and every table; activations measured as they come.

    Raises:
        ValueError: for a file that is no graph, one that is quantized already, or weights that are nan or infinite.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    check_onnx(source, target)
    with _quiet(), _written(Path(target)) as out:
        quantize_dynamic(source, out, weight_type=QuantType.QInt8, per_channel=per_channel)
    return Path(target)


def static_int8_onnx(
    source: str | Path, target: str | Path, batches: Sequence[Mapping[str, Tensor]], method: str = "minmax"
) -> Path:
    """ONNX Runtime's static int8: ranges of activations are measured once, on ``batches``, and written into the graph.

    Args:
        method: which range: "minmax" all that was seen, "percentile" all but 1 in 100,000.

    Raises:
        ValueError: as ``int8_onnx``; for no batches, ids outside the model's table, or an unknown method.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    methods = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    if method not in methods:
        raise ValueError(f"method={method!r} is unknown; choose {', '.join(methods)}")
    graph = check_onnx(source, target)
    tables = [graph_input for node in graph.node if node.op_type == "Gather" and node.input[1] == "input_ids"
              for graph_input in graph.initializer if graph_input.name == node.input[0]]  # fmt: skip
    check_calibration(batches, tables[0].dims[0])

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter({name: value.numpy() for name, value in batch.items()} for batch in batches)

        def get_next(self) -> dict | None:
            return next(self.rows, None)

    # Products with a weight only: what attention multiplies is softmax's output, which one grid for all serves badly.
    names = {one.name for one in graph.initializer}
    chosen = [node.name for node in graph.node
              if (node.op_type == "Gather" and node.input[0] in names)
              or (node.op_type in ("MatMul", "Gemm") and node.input[1] in names)]  # fmt: skip
    with _quiet(), _written(Path(target)) as out:
        quantize_static(onnx.load(source), out, Reader(), calibrate_method=methods[method], nodes_to_quantize=chosen,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True)  # fmt: skip
    return Path(target)


def check_onnx(source: str | Path, target: str | Path | None = None) -> Any:
    """The graph of an ONNX file that can be quantized.

    Raises:
        ValueError: see ``int8_onnx``; also if ``target`` is ``source``.
    """
    import onnx
    from onnx import numpy_helper

    if target is not None and Path(target).resolve() == Path(source).resolve():
        raise ValueError(f"target={str(target)!r} is the source itself; give another name, so that nothing is lost")
    if not Path(source).is_file():
        raise ValueError(f"source={str(source)!r} does not exist; write it with export_onnx")
    try:
        graph = onnx.load(source).graph
    except Exception as error:  # onnx raises protobuf's own errors, which have no common class to name here
        raise ValueError(f"source={str(source)!r} is no ONNX graph, or cut off ({error}); export it again") from error
    kinds = operations(graph)
    small = [kind for kind in ("DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear") if kind in kinds]
    if small:
        raise ValueError(f"source={str(source)!r} is quantized already ({small[0]} in it); start from the fp32 graph")
    for weight in graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(weight)).all():
            raise ValueError(f"{weight.name} in {str(source)!r} holds nan or infinities, and no grid covers those")
    return graph


def operations(graph: Any) -> Counter[str]:
    """How often each kind of operation stands in an ONNX graph (or in the file of one)."""
    if isinstance(graph, (str, Path)):
        import onnx

        graph = onnx.load(graph).graph
    return Counter(node.op_type for node in graph.node)


class OnnxModel:
    """A graph in ONNX Runtime, called like a model: ``model(input_ids=..., attention_mask=...)`` gives the logits."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        import onnxruntime

        if not Path(path).is_file():
            raise ValueError(f"path={str(path)!r} does not exist; write it with export_onnx or int8_onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base class
            raise ValueError(f"path={str(path)!r} is not a graph that ONNX Runtime opens ({error})") from error
        self.path = Path(path)

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def __call__(self, input_ids: Int[Tensor, "batch seq"], attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        found = self.session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": mask.long().numpy()})
        return torch.from_numpy(found[0])


@contextmanager
def _written(target: Path) -> Iterator[str]:
    """A name to write to; what stands there at the end becomes ``target`` at once, or nothing does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        part = Path(scratch) / target.name
        yield str(part)
        os.replace(part, target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that exporters give: about pre-processing, and about what will change in years to come."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            for kind in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        root.setLevel(level)


# --- all of them side by side ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Route:
    """One way to compute a model: what to call, and what it weighs."""

    model: nn.Module  # model(input_ids=..., attention_mask=...).logits
    graph: Path | None = None  # the file that ONNX Runtime computes, if it does

    def __call__(self, **batch: Tensor) -> Tensor:
        with torch.inference_mode():
            found = self.model(**batch)
        return found.logits if getattr(found, "logits", None) is not None else found.last_hidden_state

    @property
    def disk(self) -> int:
        """Bytes of its file."""
        return disk_bytes(self.model) if self.graph is None else self.graph.stat().st_size

    @property
    def memory(self) -> int:
        """Bytes of all weights; or, of a graph, what a fresh process grows by when it opens it."""
        return memory_bytes(self.model) if self.graph is None else resident_bytes(self.graph)


def routes(
    model: nn.Module, inputs: Mapping[str, Tensor], folder: str | Path, calibration: Sequence[Mapping[str, Tensor]] = ()
) -> dict[str, Route]:
    """The model in fp32, in bf16, and in int8 by every route that this module knows, exported files under ``folder``.

    Args:
        inputs: an example batch of two rows or more.
        calibration: batches for static int8; without them that route is left out.

    Raises:
        ValueError: as ``quantizable`` and ``export_onnx``.
    """
    folder = Path(folder)
    found = {
        "fp32": Route(copy.deepcopy(model).eval()),
        "bf16 weights": Route(copy.deepcopy(model).eval().to(torch.bfloat16)),
        "int8 by hand": Route(int8_copy(model)),
        "torchao dynamic": Route(torchao_copy(model)),
        "torchao weight-only": Route(torchao_copy(model, "weight-only")),
    }
    graphs = {"ONNX fp32": export_onnx(model, folder / "fp32.onnx", inputs)}
    graphs["ONNX dynamic"] = int8_onnx(graphs["ONNX fp32"], folder / "dynamic.onnx")
    if calibration:
        graphs["ONNX static"] = static_int8_onnx(graphs["ONNX fp32"], folder / "static.onnx", calibration)
    return found | {name: Route(served(model, OnnxModel(path)), path) for name, path in graphs.items()}


def served(model: nn.Module, graph: OnnxModel) -> nn.Module:
    """A copy of ``model`` that looks like it and lets ONNX Runtime compute, for ``evaluate`` and ``predict``."""
    made = copy.deepcopy(model).eval()

    def forward(input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> ModelOutput:
        return ModelOutput(logits=graph(input_ids, attention_mask))

    def masked_logits(input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return graph(input_ids, attention_mask)[labels != IGNORE]

    made.forward = forward
    if hasattr(made, "masked_logits"):
        made.masked_logits = masked_logits
    return made


def resident_bytes(path: str | Path) -> int:
    """By how much a fresh process grows when it opens a graph and answers one row of 128 tokens.

    Raises:
        ValueError: if the graph cannot be opened.
    """
    done = subprocess.run([sys.executable, "-c", _GROWS, str(path)], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise ValueError(f"path={str(path)!r} is not a graph that ONNX Runtime opens ({done.stderr.strip()[-300:]})")
    return int(done.stdout)


_GROWS = """
import sys
import numpy, onnxruntime, psutil
onnxruntime.set_default_logger_severity(3)
before = psutil.Process().memory_info().rss
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
row = numpy.ones((1, 128), dtype=numpy.int64)
session.run(None, {"input_ids": row, "attention_mask": row})
print(psutil.Process().memory_info().rss - before)
"""
