"""Tokens on disk: texts tokenised once, into a file of nothing but ids, for a corpus that memory does not hold.

``kept_tape`` finds the file that an earlier start has left, or writes it. What this module does not do: cut it into
rows. ``train.token_rows.TapeOnDisk`` maps it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sslcourse.data import tokenizer as wordpiece
from sslcourse.data.whole_files import digest, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def token_kind(vocab_size: int) -> type:
    """The smallest whole number that holds every id: two bytes a token up to 65,536 of them."""
    return np.uint16 if vocab_size <= 2**16 else np.int32


def write_tape(path: Path, texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, at_once: int = 2**20) -> int:
    """Tokenise once, about ``at_once`` characters at a time, into a file of nothing but ids; how many tokens it holds.

    Documents stand end to end, each between [CLS] and [SEP], as ``packing.pack`` lays them. The file gets its name
    when it is whole.
    """
    kind, total = token_kind(len(tokenizer)), 0
    fresh = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    with fresh.open("wb") as file:
        for some in _parts(texts, at_once):
            for document in wordpiece.encode(tokenizer, some):
                ids = np.array([tokenizer.cls_token_id, *document, tokenizer.sep_token_id], dtype=kind)
                file.write(ids.tobytes())
                total += len(ids)
    fresh.replace(path)
    return total


def _parts(texts: Iterable[str], at_once: int) -> Iterator[list[str]]:
    some, characters = [], 0
    for text in texts:
        some.append(text)
        characters += len(text)
        if characters >= at_once:
            yield some
            some, characters = [], 0
    if some:
        yield some


def kept_tape(folder: Path, texts: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Path:
    """The file in ``folder`` that holds the tokens of ``texts``; written, if an earlier start has not left it whole.

    Its name says which texts and which tokenizer, and what is in it, so that a damaged file is known and made anew.
    """
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    name, kind = f"tokens-{fingerprint(texts, [vocabulary])[:16]}", np.dtype(token_kind(len(tokenizer))).name
    for path in folder.glob(f"{name}-*.{kind}"):
        if path.stem == f"{name}-{digest(path)[:16]}":
            return path
        path.unlink()
    fresh = folder / f"{name}.{kind}"
    write_tape(fresh, texts, tokenizer)
    return fresh.replace(folder / f"{name}-{digest(fresh)[:16]}.{kind}")
