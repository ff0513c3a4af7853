"""A copy of a model in small integers: by hand, rounding while it trains, or by torchao; how large it is and how near.

    small = int8_copy(model)                 # every nn.Linear and nn.Embedding by hand, activations measured on the fly
    trained = fake_copy(model, bits=4)       # rounds while training, so that the weights learn to bear it (QAT)
    torchao_copy(model)                      # torchao's quantize_
    memory_bytes(small), disk_bytes(small)   # what it takes; sqnr and agreement: what it lost

What this module does not do: kernels. How fast each is beside the others, lesson quantization measures.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from safetensors.torch import save
from torch import Tensor, nn

from sslcourse.compress.fake_quantization import FakeLinear
from sslcourse.compress.int8_layers import Int8Embedding, Int8Linear
from sslcourse.compress.integers import _grouped, limits

if TYPE_CHECKING:
    from jaxtyping import Float


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
