"""How documents share a row of fixed length: packed one after the other, told apart, and kept from reading each other.

    rows, document_ids = pack(documents, 128, ...)      # in place of padding
    isolation_mask(document_ids)                        # who may read whom
    restart_positions(document_ids)                     # positions that begin anew with each document

What this module does not do: mask (``objectives.masking``), or shuffle (``train.token_rows``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


def pack(
    documents: Iterable[Sequence[int]],
    length: int,
    *,
    cls_token_id: int,
    sep_token_id: int,
    pad_token_id: int,
) -> tuple[Int[Tensor, "rows {length}"], Int[Tensor, "rows {length}"]]:
    """Lay documents end to end, each between ``[CLS]`` and ``[SEP]``, and cut the tape into rows.

    Returns:
        ``(input_ids, document_ids)``. A document that reaches the end of a row goes on in the next one; only the
        last row is padded, with document id -1.

    Raises:
        ValueError: if ``length`` is under 3, or there is no document.
    """
    if length < 3:
        raise ValueError(f"length={length} cannot hold [CLS], a token and [SEP]")
    tape: list[int] = []
    owner: list[int] = []
    for number, document in enumerate(documents):
        tape += [cls_token_id, *document, sep_token_id]
        owner += [number] * (len(document) + 2)
    if not tape:
        raise ValueError("documents is empty: there is nothing to pack")
    missing = -len(tape) % length
    tape += [pad_token_id] * missing
    owner += [-1] * missing
    return torch.tensor(tape).view(-1, length), torch.tensor(owner).view(-1, length)


def isolation_mask(document_ids: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch 1 seq seq"]:
    """True where a query (row) may read a key (column): only within its own document.

    Restarting ``position_ids`` at each document does *not* isolate packed documents; this mask does.
    """
    return document_ids[:, None, :, None] == document_ids[:, None, None, :]


def restart_positions(document_ids: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Position of each token counted from where its document starts in the row."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def padding_share(lengths: Iterable[int], max_length: int) -> float:
    """Share of positions that are padding when every text has its own row of ``max_length``."""
    lengths = [min(length, max_length) for length in lengths]
    return 1 - sum(lengths) / (max_length * len(lengths))
