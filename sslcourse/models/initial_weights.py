"""Weights that begin where counting ends.

A network that starts at random has to find out by steps what a table of counts knows: which tokens have the same
neighbours, and that neighbours are worth a look. Both can be written into the weights before the first step:

* ``token_vectors``: rows of the embedding from the counts of neighbours, as word vectors were once made;
* ``look_at_neighbours``: heads of the first layers that read the token on their left and the one on their right.

The model stays what it was, a stock ModernBERT: nothing but the values of its weights is different, and training may
undo them. What this module does not do: several processes (``train.loop_across_ranks`` refuses it).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from transformers import PreTrainedModel

REACH = 4  # tokens to either side that count as neighbours
POWER = 0.75  # a neighbour twice as frequent counts as 1.7 times as probable (Levy et al. 2015, section 3.1)
CONTEXTS = 4096  # the commonest tokens; a rarer one is counted as a token and not as a neighbour
MOST = 2**24  # tokens that are counted: of a larger text the first, since the clock runs
AT_ONCE = 2**22  # tokens in memory at a time
SPREAD = 0.02  # root mean square of the table, as the library starts it

LAYERS = 2  # that begin by looking at neighbours; deeper ones begin as ever
PAIRS = 6  # coordinates of a head that tell distances of a few tokens apart: those that rotation turns the fastest
CONTRAST = 2.0  # nats by which a head prefers its neighbour to the tokens next to that one
SHARE = 0.5  # of a token's vector, the direction that all tokens have in common


def start_at_neighbours(
    model: PreTrainedModel, tokens: Int[Tensor, " total"] | np.ndarray, what: str = "neighbours"
) -> None:
    """Give a fresh model the table, the heads, or both, in place.

    Draws from torch's global generator, as every start does.

    Args:
        model: this course's ``EncoderForMaskedLM`` or stock ``ModernBertForMaskedLM``; both have the same weights.
        tokens: the training text, end to end; may be a file that is mapped (``token_rows.TapeOnDisk``).
        what: "table", "heads" or "neighbours", which is both.
    """
    table = model.get_input_embeddings().weight
    if what != "heads":
        vectors = token_vectors(neighbour_counts(tokens, len(table)), table.shape[1])
        with torch.no_grad():
            table.copy_(vectors)
    if what != "table":
        look_at_neighbours(model)


def neighbour_counts(
    tokens: Int[Tensor, " total"] | np.ndarray, vocab_size: int, reach: int = REACH, contexts: int = CONTEXTS
) -> Float[Tensor, "vocab contexts"]:
    """How often each token stands near each of the ``contexts`` commonest, at distance d counted 1/d.

    Both sides count, up to ``reach`` tokens away, in the first ``MOST`` tokens. The columns are the commonest tokens in
    the order of their ids, so that with no more tokens than ``contexts`` the table is square and symmetric.
    """
    seen = sum(torch.bincount(part[:AT_ONCE], minlength=vocab_size) for part in _parts(tokens, reach))
    common = seen.topk(min(contexts, vocab_size)).indices.sort().values
    column = torch.full((vocab_size,), -1)
    column[common] = torch.arange(len(common))
    counts = torch.zeros(vocab_size * len(common))
    for part in _parts(tokens, reach):
        for distance in range(1, reach + 1):
            right = part[distance : AT_ONCE + distance]
            left = part[: len(right)]
            for token, neighbour in ((left, right), (right, left)):
                context = column[neighbour]
                place = (token * len(common) + context)[context >= 0]
                counts.index_add_(0, place, torch.full((len(place),), 1 / distance))
    return counts.view(vocab_size, len(common))


def _parts(tokens: Tensor | np.ndarray, more: int) -> Iterator[Int[Tensor, " some"]]:
    """``AT_ONCE`` tokens at a time, and after them the ``more`` that are their neighbours."""
    for at in range(0, min(len(tokens), MOST), AT_ONCE):
        yield torch.from_numpy(np.asarray(tokens[at : at + AT_ONCE + more]).astype(np.int64))


def token_vectors(counts: Float[Tensor, "vocab contexts"], width: int) -> Float[Tensor, "vocab width"]:
    """Tokens with the same neighbours get vectors that point the same way.

    Positive pointwise mutual information, max(0, log p(token, neighbour) / (p(token) p(neighbour))), factorised to
    ``width`` columns: what word2vec does in many small steps (Levy and Goldberg 2014; Levy, Goldberg and Dagan 2015,
    sections 2.1 and 3.1, with the smoothed p(neighbour), and section 7, with the root of the singular values). Each row
    is scaled to root mean square ``SPREAD``; a token that was not seen starts at random.
    """
    of_token, of_context = counts.sum(1, keepdim=True), counts.sum(0) ** POWER
    of_context = of_context / of_context.sum()
    information = (counts / (of_token * of_context).clamp_min(1e-9)).log().clamp_min(0)  # log 0 is less than 0, too
    rank = min(width, *information.shape)
    left, values, _ = torch.svd_lowrank(information, q=rank, niter=2)
    vectors = torch.zeros(len(counts), width)
    vectors[:, :rank] = left * values.sqrt()
    length = vectors.norm(dim=1, keepdim=True)
    unseen = (length == 0).squeeze(1)
    vectors = vectors / length.clamp_min(1e-9) * SPREAD * width**0.5
    vectors[unseen] = torch.randn(int(unseen.sum()), width) * SPREAD
    return vectors


@torch.no_grad()
def look_at_neighbours(model: PreTrainedModel) -> None:
    """Heads of the first ``LAYERS`` layers in turn begin by reading the token 1 left, 1 right, 2 left, 2 right, ...

    A rotary head sees distance only through a query and a key that are there in every token. So all tokens first get
    one direction in common, and query and key are taken from it, in those coordinates that rotation turns fastest:
    their product at distance d is then a sum of cos(theta (d - offset)), which is largest at the offset (Su et al.
    2021, arXiv 2104.09864, section 3.2.2). What a head makes of the token that it reads is left to training, and what
    the tokens share leaves the scores as they are, since it adds the same number to all of them.
    """
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads
    common = give_in_common(model.get_input_embeddings().weight, config.pad_token_id)
    theta = config.rope_parameters["full_attention"]["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    fast = (torch.arange(size // 2) < PAIRS).float()
    strength = (CONTRAST / (fast * (1 - theta.cos())).sum() * size**0.5) ** 0.5
    reads = strength / (SHARE * width**0.5)  # the common direction in a normalised vector is that long
    for layer in model.base_model.layers[:LAYERS]:
        weight = layer.attn.Wqkv.weight
        query, key, _ = weight.view(3, heads, size, width).unbind(0)
        for head in range(heads):
            turn = theta * (head // 2 + 1) * (1 if head % 2 else -1)
            for part, phase in ((query, turn), (key, torch.zeros_like(turn))):
                wave = torch.cat([fast * phase.cos(), fast * phase.sin()]) * reads
                part[head] += torch.outer(wave.to(common), common)


@torch.no_grad()
def give_in_common(table: nn.Parameter, pad: int | None) -> Float[Tensor, " width"]:
    """Add one direction to all rows, which makes it ``SHARE`` of each normalised vector; the direction, of length 1.

    It has mean zero, as have the rows after this, so that the norm which follows leaves its share as it is.
    """
    common = torch.randn(table.shape[1])
    common = common - common.mean()
    common = (common / common.norm()).to(table)
    rows = table - table.mean(1, keepdim=True)
    rows -= torch.outer(rows @ common, common)
    length = rows.norm(dim=1, keepdim=True)
    table.copy_(rows + length * SHARE / (1 - SHARE**2) ** 0.5 * common)
    if pad is not None:
        table[pad] = 0
    return common
