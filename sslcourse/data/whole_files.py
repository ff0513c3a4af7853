"""Files that are whole or refused: what was written is on disk, and a changed one is known by its hash.

    digest, fingerprint    of a file; of texts
    sealed, unsealed       JSON that knows whether it was changed
    onto_disk              wait until the files of a folder are written

What this module does not do: keep anything secret. A seal tells damage, not a forger.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any


def sealed(record: dict[str, Any]) -> str:
    """JSON that knows whether it was changed."""
    return json.dumps(record | {"seal": _seal(record)})


def unsealed(text: str) -> dict[str, Any]:
    """What ``sealed`` was given.

    Raises:
        ValueError: if it was changed, or is something else.
    """
    record = json.loads(text)
    if not isinstance(record, dict) or "seal" not in record:
        raise ValueError("state.json has no seal")
    if record.pop("seal") != _seal(record):
        raise ValueError("state.json is not what was written")
    return record


def _seal(record: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(record))  # as it is read: tuples are lists, keys are text
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def onto_disk(folder: Path) -> None:
    """Wait until the files of a folder are written."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def fingerprint(texts: Iterable[str], held_out: Iterable[str]) -> str:
    """SHA-256 of texts, told apart from each other and from those held out."""
    total = hashlib.sha256()
    for text in chain(texts, ["\0"], held_out):
        data = text.encode("utf-8", "surrogatepass")
        total.update(b"%d:" % len(data) + data)
    return total.hexdigest()
