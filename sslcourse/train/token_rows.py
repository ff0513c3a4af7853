"""One long tape of tokens: all documents end to end, cut into rows anew in every epoch.

``Tape`` holds it in memory, ``TapeOnDisk`` maps it from a file, for a corpus that memory does not hold; both give the
same batches. Everything random depends on (seed, epoch) or (seed, step) alone, so it does not matter how a run came to
where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sslcourse.data import packing
from sslcourse.objectives import masking
from sslcourse.train.recipe import Recipe

if TYPE_CHECKING:
    from jaxtyping import Int
    from transformers import PreTrainedTokenizerFast

EVALUATION_RATE = 0.15  # held-out text is always masked at 15 %, 80/10/10, whatever the rate in training
EVALUATION_SEED = 15


def drawn_from(seed: int, number: int, stream: int) -> torch.Generator:
    """Randomness that depends on where a run is and not on how it came there; ``stream`` keeps uses apart."""
    return torch.Generator().manual_seed(((seed * 1_000_003 + number) * 8 + stream) % 2**63)


class Tape:
    """All documents end to end, cut into rows anew in every epoch.

    The documents stay in the corpus's order, so that a row reads on as the text does. Each epoch starts the cut at
    another place and shuffles the rows; batch ``step`` depends on ``(seed, step)`` alone.
    """

    def __init__(self, documents: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast, length: int) -> None:
        total = sum(len(document) + 2 for document in documents)
        _refuse_less_than_a_row(total, length)
        rows, _ = packing.pack(
            documents,
            length,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.tokens: Int[Tensor, " total"] = rows.flatten()[:total]
        self.length = length
        self.last_special = tokenizer.mask_token_id

    def __len__(self) -> int:
        """Whole rows on the tape."""
        return len(self.tokens) // self.length

    def rows(self, seed: int, epoch: int) -> Int[Tensor, "rows length"]:
        """The rows of one epoch, shuffled."""
        generator = drawn_from(seed, epoch, stream=1)
        spare = len(self.tokens) % self.length
        start = int(torch.randint(spare + 1, (), generator=generator)) if epoch else 0
        rows = self.tokens[start : start + len(self.tokens) - spare].view(-1, self.length)
        return rows[torch.randperm(len(rows), generator=generator)]

    def batches(self, recipe: Recipe, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) of steps ``first_step``, ``first_step + 1``, ... without end."""
        per_epoch = len(self) // recipe.batch_size
        step = first_step
        while True:
            rows = self.rows(recipe.seed, step // per_epoch)
            while True:
                place = step % per_epoch * recipe.batch_size
                yield self.mask(rows[place : place + recipe.batch_size], recipe.mask_rate, recipe, recipe.seed, step)
                step += 1
                if step % per_epoch == 0:
                    break

    def mask(self, rows: Tensor, rate: float, recipe: Recipe, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Corrupt rows; special tokens, which all have the lowest ids, are never scored."""
        return masking.mask_tokens(
            rows,
            special_tokens_mask=rows <= self.last_special,
            vocab_size=recipe.vocab_size,
            mask_token_id=self.last_special,
            mask_rate=rate,
            mask_prob=recipe.mask_prob,
            random_prob=recipe.random_prob,
            generator=drawn_from(seed, step, stream=2),
        )


class TapeOnDisk(Tape):
    """``Tape`` over a memory-mapped file: the same batches, of which only those in use are in memory.

    All ranks of a machine share one copy, the system's. The numbers' kind is the file's ending (``.uint16``).

    Raises:
        ValueError: if the file holds less than one row.
    """

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerFast, length: int) -> None:
        kind = np.dtype(path.suffix.removeprefix("."))
        total = path.stat().st_size // kind.itemsize
        _refuse_less_than_a_row(total, length)
        self.tokens = np.memmap(path, dtype=kind, mode="r")
        self.length = length
        self.last_special = tokenizer.mask_token_id

    def rows(self, seed: int, epoch: int) -> _Rows:
        """As ``Tape.rows``, drawn by the same numbers, but a row is read when its turn comes."""
        generator = drawn_from(seed, epoch, stream=1)
        spare = len(self.tokens) % self.length
        start = int(torch.randint(spare + 1, (), generator=generator)) if epoch else 0
        rows = self.tokens[start : start + len(self.tokens) - spare].reshape(-1, self.length)
        return _Rows(rows, torch.randperm(len(rows), generator=generator).numpy())


class _Rows:
    """Rows of a file in another order, none of them read before somebody takes a slice."""

    def __init__(self, rows: np.ndarray, order: np.ndarray) -> None:
        self.table, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, part: slice) -> Tensor:
        return torch.from_numpy(self.table[self.order[part]].astype(np.int64))


def _refuse_less_than_a_row(total: int, length: int) -> None:
    if total < length:
        raise ValueError(
            f"the texts hold {total} tokens, less than one row of sequence_length={length}; "
            "give more text, or a shorter sequence_length"
        )


class MaskedRows(Dataset):
    """Rows masked once: the held-out set, the same positions at every evaluation and for every model."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return {"input_ids": self.inputs[item], "labels": self.labels[item]}


def held_out_rows(documents: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast, length: int) -> MaskedRows:
    """Held-out documents packed and masked at 15 %, 80/10/10, with a fixed seed; specials count as in training."""
    tape = Tape(documents, tokenizer, length)
    rows = tape.tokens[: len(tape.tokens) // length * length].view(-1, length)
    fixed = Recipe(vocab_size=len(tokenizer))
    return MaskedRows(*tape.mask(rows, EVALUATION_RATE, fixed, EVALUATION_SEED, 0))
