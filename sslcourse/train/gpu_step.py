"""A pretraining step for a GPU: fixed shapes, masks drawn on the device, documents kept apart, layers compiled.

On two cores none of this pays (lesson efficiency_ladder has ``torch.compile`` measured), and lessons do without it.
On a GPU a step is so short that whatever waits costs: for the host's random numbers, for a count of masks that only the
device knows, for many small kernels. So here

    DeviceTape     all tokens on the device, cut into rows there
    draw_masks     the same number of masks in every row, so that no shape ever changes and nothing has to be asked
    document_mask  who may read whom in a row of several documents, as blocks that FlexAttention skips
    masked_loss    the loss of ``EncoderForMaskedLM``, layer by layer, so that one layer is compiled and all use it
    captured       forward and backward pass recorded once and replayed, so that both are asked for by one call

The model is ``EncoderForMaskedLM``, unchanged; only how its weights are run through differs, and
``tests/test_accelerated.py`` holds loss and gradients against its own. ``benchmarks/accelerator.py`` measures it.
What this module does not do: checkpoints, schedules, several GPUs (``pretrain``, and lesson distributed_training).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from sslcourse.data import packing
from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import EncoderForMaskedLM, Layer, rotary_tables, rotate

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class DeviceTape:
    """All documents end to end in the device's memory, two bytes a token and four for the document it belongs to."""

    tokens: Int[Tensor, " total"]
    documents: Int[Tensor, " total"]
    length: int

    @classmethod
    def of(
        cls, documents: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, length: int,
        device: torch.device | str = "cpu",
    ) -> DeviceTape:  # fmt: skip
        """Pack documents as ``pretrain`` does.

        Raises:
            ValueError: if they fill less than one row, or an id does not fit into two bytes.
        """
        if len(tokenizer) > 2**15:
            raise ValueError(f"tokenizer has {len(tokenizer)} tokens; two bytes with a sign hold {2**15}")
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad")}
        ids, owners = packing.pack(documents, length, **special)
        there = owners.flatten() >= 0
        return cls(ids.flatten()[there].short().to(device), owners.flatten()[there].int().to(device), length)

    def __post_init__(self) -> None:
        if len(self.tokens) < self.length:
            raise ValueError(f"the texts hold {len(self.tokens)} tokens, less than one row of {self.length}")

    def rows(self, start: int = 0) -> tuple[Int[Tensor, "rows length"], Int[Tensor, "rows length"]]:
        """(ids, documents) of every whole row behind ``start``."""
        whole = (len(self.tokens) - start) // self.length * self.length
        cut = slice(start, start + whole)
        return self.tokens[cut].view(-1, self.length), self.documents[cut].view(-1, self.length)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """(ids, documents) of ``size`` rows, without end; every epoch is cut at another place and shuffled anew.

        Raises:
            ValueError: if there are fewer rows than a batch holds.
        """
        spare = len(self.tokens) % self.length
        if len(self.tokens) // self.length < size:
            raise ValueError(f"size={size} rows a batch, and the tape has {len(self.tokens) // self.length}; lower it")
        device = self.tokens.device
        while True:
            start = torch.randint(spare + 1, (), device=device, generator=generator)
            ids, owners = self.rows(int(start))  # the only question to the device, once an epoch
            order = torch.randperm(len(ids), device=device, generator=generator)
            for some in order[: len(order) // size * size].view(-1, size):
                yield ids[some].long(), owners[some]


def draw_masks(
    ids: Int[Tensor, "rows length"],
    *,
    count: int,
    vocab_size: int,
    mask_token_id: int,
    mask_prob: float = 0.8,
    random_prob: float = 0.1,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "rows length"], Int[Tensor, " slots"], Int[Tensor, " slots"]]:
    """Exactly ``count`` scored positions a row, 80/10/10: (inputs, their places in the flattened batch, targets).

    ``masking.mask_tokens`` tosses a coin for each position, so the number of masks is another one at each step. Here
    the ``count`` lowest of random numbers are taken. Special tokens (ids up to ``mask_token_id``) come last: a row that
    has fewer others than ``count`` is filled up with some that stay as they are and count for nothing.

    Raises:
        ValueError: for a count that no row can hold.
    """
    rows, length = ids.shape
    if not 1 <= count <= length:
        raise ValueError(f"count={count} masks a row of {length} tokens; choose from 1 to {length}")
    dice = {"device": ids.device, "generator": generator}
    order = torch.rand(ids.shape, **dice).masked_fill(ids <= mask_token_id, 2.0)
    places = order.topk(count, dim=1, largest=False).indices
    where = (places + length * torch.arange(rows, device=ids.device)[:, None]).flatten()
    originals = ids.flatten()[where]
    special = originals <= mask_token_id
    action = torch.rand(where.shape, **dice)
    ordinary = torch.randint(mask_token_id + 1, vocab_size, where.shape, dtype=ids.dtype, **dice)
    seen = torch.where(action < mask_prob + random_prob, ordinary, originals)
    seen = seen.masked_fill(action < mask_prob, mask_token_id)
    inputs = ids.flatten().index_copy(0, where, torch.where(special, originals, seen)).view_as(ids)
    return inputs, where, originals.masked_fill(special, IGNORE)


Mask = BlockMask | Tensor | None


def document_mask(documents: Int[Tensor, "rows length"], blocks: bool | None = None) -> BlockMask | Tensor:
    """A token reads those of its own document.

    ``blocks``, by default on a GPU: for FlexAttention, which skips blocks without any such pair. It has no backward
    pass on a CPU (torch 2.13); there the same stands in a table, ``packing.isolation_mask``.
    """
    if not (documents.is_cuda if blocks is None else blocks):
        return packing.isolation_mask(documents)
    rows, length = documents.shape

    def same(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return documents[row, query] == documents[row, key]

    make = _compiled_blocks if documents.is_cuda else create_block_mask
    return make(same, rows, None, length, length, device=str(documents.device))


# Compiled, the table of all pairs is never written to memory. Once, not at each step: every call makes a new wrapper.
_compiled_blocks = torch.compile(create_block_mask, dynamic=False)


def run_layer(
    layer: Layer,
    x: Float[Tensor, "rows length hidden"],
    rotary: tuple[Tensor, Tensor],
    mask: Mask,
    where: Int[Tensor, " slots"] | None,
) -> Float[Tensor, "rows length hidden"] | Float[Tensor, "slots hidden"]:
    """``layer(x, rotary, mask, where=where)``, also with a mask of blocks; without one a token reads its whole row."""
    rows, length, hidden = x.shape
    attention = layer.attn
    parts = attention.Wqkv(layer.attn_norm(x)).view(rows, length, 3, attention.heads, -1).transpose(1, 3)
    query_key, value = parts.split([2, 1], dim=2)
    query, key = rotate(query_key, *(table[:, :, None] for table in rotary)).unbind(2)
    value = value.squeeze(2)
    if isinstance(mask, BlockMask):
        mixed = flex_attention(query, key, value, block_mask=mask)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    mixed = mixed.transpose(1, 2).reshape(rows * length, hidden)
    x = x.flatten(0, 1)
    if where is not None:  # what nobody scores is needed as key and value, and not behind that
        mixed, x = mixed[where], x[where]
    x = x + attention.Wo(mixed)
    x = x + layer.mlp(layer.mlp_norm(x))
    return x if where is not None else x.view(rows, length, hidden)


def scores_loss(
    model: EncoderForMaskedLM, hidden: Float[Tensor, "slots hidden"], targets: Int[Tensor, " slots"]
) -> Float[Tensor, ""]:
    """Mean loss of scored positions from what the last layer says of them."""
    logits = model.decoder(model.head(model.model.final_norm(hidden)))
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE)


def masked_loss(
    model: EncoderForMaskedLM,
    inputs: Int[Tensor, "rows length"],
    where: Int[Tensor, " slots"],
    targets: Int[Tensor, " slots"],
    mask: Mask = None,
    run: Callable[..., Any] = run_layer,
    score: Callable[..., Any] = scores_loss,
    stream: torch.dtype | None = None,
) -> Float[Tensor, ""]:
    """Mean loss of the scored positions, with ``model.masked_loss``'s narrow last layer.

    ``run`` and ``score`` may be compiled: all layers share one compiled function, so that sixteen of them start as fast
    as one. ``stream`` is what layers hand on to each other in, inside of autocast: left alone it stays fp32, which is
    read and written at every norm and every sum, and takes twice the memory and its time of bf16.
    """
    encoder = model.model
    config = encoder.config
    positions = torch.arange(inputs.shape[1], device=inputs.device)[None]
    theta = config.rope_parameters["full_attention"]["rope_theta"]
    rotary = rotary_tables(positions, config.hidden_size // config.num_attention_heads, theta)
    x = encoder.embeddings(inputs)
    if stream is not None:
        x = x.to(stream)
    for number, layer in enumerate(encoder.layers, start=1):
        x = run(layer, x, rotary, mask, where if number == len(encoder.layers) else None)
    return score(model, x, targets)


WARM_UP = 3  # passes before a recording: compilers and libraries choose and allocate in the first ones


def captured(
    passes: Callable[..., Tensor], weights: Sequence[nn.Parameter], batch: Sequence[Tensor], pool: Any = None
) -> Callable[..., Tensor]:
    """``passes``, forward and backward, as one CUDA graph: a function of a batch that gives the same.

    A step of a small model is many hundred kernels of a few microseconds; Python may need longer to ask for them than
    the GPU to run them. Recorded once, all of them are asked for by one call (Nguyen et al. 2021, "Accelerating PyTorch
    with CUDA Graphs"). It is possible because no shape changes from step to step and nothing is asked of the device.

    Gradients are written anew at each call, never added to: no ``zero_grad`` is needed, and none has an effect. They
    and the loss lie where the next call, of this recording or of another in the same pool, writes again: use them
    before it. Call this outside of autocast (``passes`` may enter it), or the recording would keep weights as they were
    cast when it was made; and let no loss of these weights be alive that was computed elsewhere.

    Args:
        passes: gives the loss of the tensors of a batch, and leaves gradients; what it compiles is compiled here.
        weights: that get them; they must stay where they are (``load_state_dict`` copies into them).
        batch: of the shapes that all batches will have.
        pool: ``torch.cuda.graph_pool_handle()``, memory that several recordings may share, on one device.

    Raises:
        ValueError: inside of autocast; by the function, for a batch of other shapes.
    """
    if torch.is_autocast_enabled("cuda"):
        raise ValueError("captured() was called inside of autocast; enter it in `passes`")
    held = [one.clone() for one in batch]
    side = _side_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            _without_gradients(weights)
            passes(*held)
    torch.cuda.current_stream().wait_stream(side)
    _without_gradients(weights)  # so that the recorded pass makes its own, in memory that stays its own
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=side):
        found = passes(*held)
    gradients = [weight.grad for weight in weights]

    def replay(*batch: Tensor) -> Tensor:
        for place, one in zip(held, batch, strict=True):
            if one.shape != place.shape:  # copy_ would broadcast
                raise ValueError(f"shape {tuple(one.shape)} was not recorded, {tuple(place.shape)} was")
            place.copy_(one)
        graph.replay()
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        return found

    return replay


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """One for all recordings: memory that was freed on one stream is not given to another, even in one pool."""
    return torch.cuda.Stream()


def _without_gradients(weights: Sequence[nn.Parameter]) -> None:
    for weight in weights:
        weight.grad = None
