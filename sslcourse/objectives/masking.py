"""Masking: which tokens are hidden, and what is put in their place.

Two decisions, kept apart. *Which* positions are scored: ``select_tokens`` draws them one by one,
``select_whole_words`` and ``select_spans`` in groups. *What* the model sees there: ``corrupt`` puts ``[MASK]`` at
80 %, a random token at 10 % and leaves 10 % as they are (Devlin et al. 2019, arXiv 1810.04805, section 3.1).
``mask_tokens`` is the two together, in two passes over the batch. ``MaskedLMDataset`` pads one text a row, as the
article that this course starts from meant to do; documents that share a row are laid by ``data.packing``.

Labels hold the original id where a position is scored and ``IGNORE`` (-100) elsewhere, as everywhere in
``transformers``. Nothing here changes its input.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from sslcourse.data.ignored import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from transformers import PreTrainedTokenizerBase


def mask_tokens(
    input_ids: Int[Tensor, "*batch seq"],
    *,
    special_tokens_mask: Bool[Tensor, "*batch seq"] | None,
    vocab_size: int,
    mask_token_id: int,
    special_ids: Iterable[int] | None = None,
    mask_rate: float = 0.15,
    mask_prob: float = 0.8,
    random_prob: float = 0.1,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "*batch seq"], Int[Tensor, "*batch seq"]]:
    """Corrupt a batch for masked language modelling.

    Each position outside ``special_tokens_mask`` is scored with probability ``mask_rate``, independently. A scored
    position becomes ``[MASK]`` with probability ``mask_prob``, a uniformly random ordinary token with
    ``random_prob`` (the original one included), and stays as it is otherwise.

    Args:
        special_tokens_mask: true (or 1) where a token must never be scored; ``None`` if there is no such position.
        special_ids: ids never drawn as a random replacement; by default every id up to ``mask_token_id``.

    Returns:
        ``(inputs, labels)``, new tensors; labels are -100 where nothing is scored.

    Raises:
        ValueError: for a rate outside [0, 1], NaN, probabilities that sum to over 1, or a vocabulary in which
            every id is special.
    """
    _check_rate("mask_rate", mask_rate)
    selected = select_tokens(input_ids, special_tokens_mask, mask_rate=mask_rate, generator=generator)
    return corrupt(
        input_ids,
        selected,
        vocab_size=vocab_size,
        mask_token_id=mask_token_id,
        special_ids=special_ids,
        mask_prob=mask_prob,
        random_prob=random_prob,
        generator=generator,
    )


def select_tokens(
    input_ids: Int[Tensor, "*batch seq"],
    special_tokens_mask: Bool[Tensor, "*batch seq"] | None,
    *,
    mask_rate: float = 0.15,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "*batch seq"]:
    """Positions to score, each drawn independently with probability ``mask_rate``."""
    _check_rate("mask_rate", mask_rate)
    selected = _uniform(input_ids.shape, input_ids.device, generator) < mask_rate
    return selected if special_tokens_mask is None else selected.masked_fill_(special_tokens_mask.bool(), False)


def corrupt(
    input_ids: Int[Tensor, "*batch seq"],
    selected: Bool[Tensor, "*batch seq"],
    *,
    vocab_size: int,
    mask_token_id: int,
    special_ids: Iterable[int] | None = None,
    mask_prob: float = 0.8,
    random_prob: float = 0.1,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "*batch seq"], Int[Tensor, "*batch seq"]]:
    """What the model sees, and the labels, once the scored positions are known.

    Only the scored positions are touched, so the cost follows their number, not the batch's.
    """
    _check_corruption(mask_prob, random_prob)
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids of dtype {input_ids.dtype} cannot hold labels of {IGNORE}; use torch.int64")
    where = selected.reshape(-1).nonzero().squeeze(1)
    originals = input_ids.reshape(-1).index_select(0, where)
    action = _uniform(where.shape, input_ids.device, generator)  # under 0.8: [MASK]; to 0.9: random; else kept
    replacement = originals
    if random_prob > 0:
        ordinary = _random_ordinary(originals, vocab_size, mask_token_id, special_ids, generator)
        replacement = torch.where(action < mask_prob + random_prob, ordinary, originals)
    replacement = replacement.masked_fill(action < mask_prob, mask_token_id)

    inputs = input_ids.clone(memory_format=torch.contiguous_format)
    inputs.view(-1).index_copy_(0, where, replacement)
    labels = torch.full_like(input_ids, IGNORE, memory_format=torch.contiguous_format)
    labels.view(-1).index_copy_(0, where, originals)
    return inputs, labels


def select_whole_words(
    word_ids: Int[Tensor, "batch seq"],
    *,
    mask_rate: float = 0.15,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "batch seq"]:
    """Positions to score, drawn word by word: all pieces of a word or none.

    ``word_ids`` gives the number of the word that each token belongs to, as a fast tokenizer's ``word_ids()``
    does, with -1 at special tokens. The expected share of scored *tokens* is still ``mask_rate``.
    """
    _check_rate("mask_rate", mask_rate)
    ordinary = word_ids >= 0
    starts = torch.ones_like(word_ids, dtype=torch.bool)
    starts[..., 1:] = word_ids[..., 1:] != word_ids[..., :-1]
    number = starts.reshape(-1).cumsum(0).view_as(word_ids) - 1  # one number a word over the whole batch
    chosen = _uniform((int(number.max()) + 1 if number.numel() else 0,), word_ids.device, generator) < mask_rate
    return chosen[number] & ordinary


def select_spans(
    special_tokens_mask: Bool[Tensor, "batch seq"],
    *,
    mask_rate: float = 0.15,
    mean_length: float = 3.0,
    max_length: int = 10,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "batch seq"]:
    """Positions to score, drawn as spans of geometric length (Joshi et al. 2020, SpanBERT, arXiv 1907.10529, 3.1).

    Spans are added to a row until ``round(mask_rate * ordinary tokens)`` are scored; the last is cut to fit, and no
    span crosses a special token.
    """
    _check_rate("mask_rate", mask_rate)
    if not (mean_length >= 1 and max_length >= 1):  # written so that NaN is refused too
        raise ValueError(f"mean_length={mean_length} and max_length={max_length} must be at least 1")
    selected = torch.zeros_like(special_tokens_mask, dtype=torch.bool)
    length_is = (1 / mean_length) * (1 - 1 / mean_length) ** torch.arange(max_length, dtype=torch.float64)
    for row, special in zip(selected, special_tokens_mask.bool(), strict=True):
        budget = round(mask_rate * int((~special).sum()))
        while budget > 0:
            free = (~special & ~row).nonzero().squeeze(1)
            start = int(free[torch.randint(len(free), (), generator=generator)])
            length = 1 + int(torch.multinomial(length_is, 1, generator=generator))
            for position in range(start, min(start + length, len(row))):
                if special[position] or row[position] or budget == 0:
                    break
                row[position] = True
                budget -= 1
    return selected


class MaskedLMDataset(Dataset):
    """Texts as masked-language-modelling examples, one text a row, cut and padded to ``max_length``.

    The class that the source article sketched, made to work: its version asked the tokenizer for a key that does
    not exist, and masked nothing. ``dynamic=True`` draws new masks every time an item is read (Liu et al. 2019,
    RoBERTa, arXiv 1907.11692); ``dynamic=False`` gives each item the same masks for ever. Items are reproducible:
    the masks of item ``i`` depend on ``(seed, i)`` and, if dynamic, on how often it was read before. In a
    ``DataLoader`` with workers they depend on the worker's seed too, hence on ``torch.manual_seed``: each epoch
    starts workers from a fresh copy of this object, which has forgotten what was read.

    Raises:
        ValueError: if ``texts`` is empty or one string, the tokenizer has no mask token, a rate lies outside [0, 1], or
            the probabilities sum to over 1.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = 128,
        mask_rate: float = 0.15,
        mask_prob: float = 0.8,
        random_prob: float = 0.1,
        dynamic: bool = True,
        seed: int = 0,
    ) -> None:
        _check_rate("mask_rate", mask_rate)
        _check_corruption(mask_prob, random_prob)
        if isinstance(texts, str):
            raise ValueError("texts is one string; give a list of texts")
        if not len(texts):
            raise ValueError("texts is empty: there is nothing to mask")
        if tokenizer.mask_token_id is None:
            raise ValueError("tokenizer has no mask token; give one of a masked language model, such as BERT's")
        self.encodings = tokenizer(
            list(texts),
            truncation=True,
            max_length=max_length,
            padding="max_length",
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        self.dynamic, self.seed = dynamic, seed
        self.reads = [0] * len(texts)
        self.masking: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "mask_token_id": tokenizer.mask_token_id,
            "special_ids": tokenizer.all_special_ids,
            "mask_rate": mask_rate,
            "mask_prob": mask_prob,
            "random_prob": random_prob,
        }

    def __len__(self) -> int:
        return len(self.reads)

    def __getitem__(self, item: int) -> dict[str, Int[Tensor, " seq"]]:
        item = range(len(self))[item]  # negative items count from the end; beyond it, IndexError
        worker = get_worker_info() if self.dynamic else None
        key = (self.seed, item, self.reads[item], worker.seed if worker else None)
        generator = torch.Generator().manual_seed(random.Random(repr(key)).getrandbits(63))
        self.reads[item] += self.dynamic
        inputs, labels = mask_tokens(
            self.encodings["input_ids"][item],
            special_tokens_mask=self.encodings["special_tokens_mask"][item].bool(),
            generator=generator,
            **self.masking,
        )
        return {"input_ids": inputs, "attention_mask": self.encodings["attention_mask"][item], "labels": labels}


def _check_rate(name: str, value: float) -> None:
    if not 0 <= value <= 1 or math.isnan(value):
        raise ValueError(f"{name}={value} is not a probability; it must lie in [0, 1]")


def _check_corruption(mask_prob: float, random_prob: float) -> None:
    _check_rate("mask_prob", mask_prob)
    _check_rate("random_prob", random_prob)
    if mask_prob + random_prob > 1 + 1e-9:  # a hair over 1 is the caller's rounding
        raise ValueError(f"mask_prob={mask_prob} and random_prob={random_prob} sum to more than 1; lower one of them")


def _uniform(shape: Sequence[int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    return torch.rand(tuple(shape), device=device, generator=generator)


def _random_ordinary(
    originals: Int[Tensor, " scored"],
    vocab_size: int,
    mask_token_id: int,
    special_ids: Iterable[int] | None,
    generator: torch.Generator | None,
) -> Int[Tensor, " scored"]:
    """For each original an id drawn uniformly from those that are not special."""
    special = range(mask_token_id + 1) if special_ids is None else sorted({mask_token_id, *map(int, special_ids)})
    special = [token for token in special if 0 <= token < vocab_size]
    if len(special) == vocab_size:
        raise ValueError(f"all vocab_size={vocab_size} ids are special: none is left to draw; pass special_ids")
    first = len(special) if special == list(range(len(special))) else 0  # the usual layout: special ids come first
    drawn = torch.randint(
        first, first + vocab_size - len(special), originals.shape,
        dtype=originals.dtype, device=originals.device, generator=generator,
    )
    for token in special if first == 0 else []:  # any other layout: step over each special id, lowest first
        drawn += drawn >= token
    return drawn
