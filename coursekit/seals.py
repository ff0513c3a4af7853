"""Hashes that tell a figure edited by hand from one that a run has left.

    outputs of a cell    in the lesson's ledger, a hash for each code cell        written when a run is stored
    the ledger itself    in its field ``seal``                                    written by ``Ledger.write``
    measured figures     in data/measured/SHA256SUMS, a line for each file        written by ``seal``

What this module does not do: keep anybody from writing a new hash too. It finds slips and edits, not forgers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who only measures needs no notebooks
    from nbformat import NotebookNode

SUMS = "SHA256SUMS"  # as `sha256sum -c SHA256SUMS` reads it


def of(content: Any) -> str:
    """A short hash of what JSON can hold; the order of keys does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def of_outputs(cell: NotebookNode) -> str:
    """Of all that a code cell has left behind: text, tables, pictures; not of its number in the run."""
    return of([{key: value for key, value in output.items() if key != "execution_count"} for output in cell.outputs])


# --- measured figures -------------------------------------------------------------------------------------------------


def seal(path: Path) -> None:
    """Keep the hash of a file of figures beside it; the command that writes such a file ends with this."""
    sums = _sums(path.parent) | {path.name: _hash(path)}
    lines = [f"{sum_}  {name}\n" for name, sum_ in sorted(sums.items())]
    (path.parent / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def broken(folder: Path) -> Iterator[str]:
    """Files of figures that are not as the command left them which made them, a line each."""
    sums = _sums(folder)
    files = {path.name: path for path in folder.glob("[!.]*") if path.name != SUMS}
    for name in sorted(sums.keys() | files.keys()):
        if name not in files:
            yield f"{folder.name}/{name}: it is gone, and {SUMS} still has its line"
        elif name not in sums:
            yield f"{folder.name}/{name}: it has no line in {SUMS}: run the command that makes it"
        elif sums[name] != _hash(files[name]):
            yield f"{folder.name}/{name}: it was edited since its command wrote it: restore it, or run that"


def _sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {name: sum_ for sum_, _, name in (line.partition("  ") for line in lines)}


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()  # as git has it, on Windows too
