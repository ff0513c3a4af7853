"""What a training step of the encoder costs, by formula: weights, bytes and floating-point operations.

    memory(config, batch, seq, masked)["total"]     # bytes: weights, gradients, optimizer, activations
    flops(config, batch, seq, masked)               # floating-point operations
    checkpointed(model)                             # keep less and compute again

Each formula is held against what ``measure.memory_use`` and ``measure.operation_counts`` count. What this module
does not do: time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from sslcourse.models.encoder import WRITTEN_OUT, EncoderConfig, EncoderForMaskedLM, filled_up
from sslcourse.train.mixed_precision import PRECISIONS, check_precision


def parameter_count(config: EncoderConfig) -> int:
    """Weights of ``EncoderForMaskedLM(config)``, the shared table counted once."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    norms = 2 * layers + 2  # embeddings, final, head; two a layer but for the first, which has one
    return config.vocab_size * (hidden + 1) + layers * (4 * hidden**2 + 3 * hidden * inner) + hidden**2 + norms * hidden


def memory(
    config: EncoderConfig,
    batch: int,
    seq: int,
    masked: int | None,
    precision: str = "fp32",
    *,
    checkpointed: bool = False,
    device: str = "cpu",
) -> dict[str, int]:
    """Bytes of one training step with AdamW, by formula: weights, gradients, optimizer, activations, total.

    "activations" is everything that the forward pass keeps for the backward pass, each storage once, without the
    weights themselves, but with autocast's copies of them: what ``saved_bytes`` measures. Working space that comes and
    goes within one operation is not in it; ``peak_bytes`` shows that.

    Args:
        masked: positions that are scored; None for a head that runs over all positions (``model(...).loss``).
        precision: one of PRECISIONS.
        checkpointed: whether each layer keeps only its input (``checkpointed``).
        device: where it runs; on a CPU in bf16 attention is written out (``encoder.attend``) and keeps its weights.
    """
    if precision not in PRECISIONS:
        check_precision(precision)
    if masked is not None and not 0 < masked <= batch * seq:
        raise ValueError(f"masked={masked} must lie in 1 to batch * seq = {batch * seq}, or be None for a dense head")
    if batch < 1 or seq < 1:
        raise ValueError(f"batch={batch} and seq={seq} must be at least 1")
    weights = parameter_count(config)
    stored = 2 if precision.startswith("pure_") else 4
    more = 2 if precision == "pure_bf16_kahan" else 0
    parts = {
        "weights": stored * weights,
        "gradients": stored * weights,
        "optimizer": (8 + more) * weights,  # two moments in fp32, and what Kahan's sum remembers
    }
    how = {"checkpointed": checkpointed, "device": device}
    parts["activations"] = sum(activation_terms(config, batch, seq, masked, precision, **how).values())
    return parts | {"total": sum(parts.values())}


def activation_terms(
    config: EncoderConfig,
    batch: int,
    seq: int,
    masked: int | None,
    precision: str = "fp32",
    *,
    checkpointed: bool = False,
    device: str = "cpu",
) -> dict[str, int]:
    """"activations" of ``memory`` term by term, in bytes: what each operation keeps to compute its gradient.

    A linear map keeps its input; a norm its input and two numbers a row; a product both factors. Attention by the fused
    kernel keeps q, k, v, its output and one number a query and head (FlashAttention, Dao et al. 2022, arXiv 2205.14135,
    section 3.1: not the seq x seq matrix), and v keeps the storage of all of Wqkv's output alive. Written out, as in
    bf16 on a CPU, it keeps copies of q, k and v and the seq x seq weights of each head.
    """
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    tokens, scored = batch * seq, batch * seq if masked is None else filled_up(masked)
    stream = 2 if precision.startswith("pure_") else 4  # the residual stream, and what norms read
    work = 4 if precision in ("fp32", "tf32") else 2  # what matrix products read and write
    statistic = stream  # mean and 1/deviation of a row come in the weights' type
    norm = stream * hidden + 2 * statistic

    written_out = work == 2 and device == "cpu" and seq <= WRITTEN_OUT
    if written_out:
        # x; q, k and v (copies; with one head or one row views, of q and k together and of qkv); out; weights
        copies_or_views = 3 * hidden if batch > 1 and heads > 1 else hidden + 2 * hidden + 3 * hidden
        attention = work * (hidden + copies_or_views + hidden + heads * seq)
    else:
        attention = work * (hidden + 3 * hidden + 2 * hidden + hidden) + 4 * heads  # x, qkv, rotated q, k, out, sums
    mlp = norm + work * (hidden + 2 * inner + inner + inner)  # norm, x, Wi's output, activated, product
    each = tokens * (attention + mlp)
    matrices = 4 * hidden**2 + 3 * hidden * inner
    copies = work if work < stream else 0  # autocast casts every matrix once a pass and keeps the copy

    terms = {
        "embeddings": tokens * (8 + norm),  # the ids, then a norm
        "rotary tables": (4 if work == 4 else 2 * layers) * 2 * seq * (hidden // heads),  # in 16 bits each layer's own
        "layers": layers * each + (layers - 1) * tokens * norm,  # layer 0 has no norm before attention
        "final norm": tokens * norm,
        "head": scored * (work * 4 * hidden + 2 * statistic),  # x, dense's output, gelu's output, norm's output
        "scores": scored * (4 * vocab + 8) + 4,  # log-probabilities in fp32, the targets, their number
        "gather": 0 if masked is None else 8 * scored,
        "weight copies": copies * (layers * matrices + hidden**2 + vocab * hidden),
    }
    if checkpointed:
        terms["layers"] = layers * tokens * stream * hidden
        terms["rotary tables"] = 0  # handed through as an argument, so no operation of the graph keeps them
        terms["weight copies"] = copies * (hidden**2 + vocab * hidden)
    return terms


@contextmanager
def checkpointed(model: EncoderForMaskedLM) -> Iterator[EncoderForMaskedLM]:
    """Within the context each layer keeps its input only, and is computed again in the backward pass.

    The backward pass must be inside too. About a third more arithmetic in the layers (Chen et al. 2016,
    arXiv 1604.06174).
    """
    from torch.utils.checkpoint import checkpoint

    layers = list(model.model.layers)
    for layer in layers:
        layer.forward = partial(checkpoint, type(layer).forward.__get__(layer), use_reentrant=False)
    try:
        yield model
    finally:
        for layer in layers:
            del layer.forward  # the method of its class is found again


def flops(
    config: EncoderConfig,
    batch: int,
    seq: int,
    masked: int | None,
    *,
    training: bool = True,
    recompute: bool = False,
) -> int:
    """Floating-point operations of one step's matrix products, by formula; one multiplication and one sum are two.

    A matrix of n weights costs 2n a token forward and twice that backward; attention 4 * seq * hidden a token and
    layer forward. Norms, activations and the optimizer are left out: they cost time, and hardly any arithmetic.

    Args:
        masked: positions that the head sees; None for all. What is executed is ``encoder.filled_up`` of them.
        training: forward and backward; False for the forward pass alone.
        recompute: count also that FlashAttention's backward computes the scores again: executed, not useful, work.
    """
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens, scored = batch * seq, batch * seq if masked is None else masked
    matrices = tokens * layers * (4 * hidden**2 + 3 * hidden * inner)
    head = scored * (hidden**2 + config.vocab_size * hidden)
    passes = 3 if training else 1
    again = 2 * layers * tokens * seq * hidden if training and recompute else 0
    return passes * (2 * (matrices + head) + 4 * layers * tokens * seq * hidden) + again
