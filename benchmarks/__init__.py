"""Side-by-side measurements; ``python -m benchmarks`` runs them."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from coursekit import seals
from sslcourse.commands.library_warnings import hush

hush()  # here, because every benchmark imports this package before it imports transformers

MEASURED = Path(__file__).resolve().parents[1] / "data" / "measured"
BUILD = Path("build/bench")  # what nobody asked to store
Setting = TypeVar("Setting")


def busy_cores() -> float:
    """How many cores others keep busy, looked at for a second; warns on stderr if that is more than a tenth of one."""
    import psutil

    cores = psutil.cpu_percent(interval=1.0) / 100 * (psutil.cpu_count() or 1)
    if cores > 0.1:
        print(f"warning: other work keeps {cores:.1f} cores busy; what is slow now is told with that", file=sys.stderr)
    return cores


def texts(folder: str | None) -> tuple[list[str], list[str]]:
    """(training, held-out) documents: the factbook, or a folder's files, split as ``sslcourse pretrain`` does."""
    from sslcourse.data import corpus, text_files

    if folder is not None:
        return text_files.split(text_files.read_texts(folder), seed=0)
    splits = corpus.load_splits()
    return tuple([row["text"] for row in splits[name]] for name in ("train", "validation"))


def best(scores: Mapping[Setting, Sequence[float]]) -> Setting:
    """The setting whose scores, one a seed, add up to most; the first of equals."""
    return max(scores, key=lambda setting: sum(scores[setting]))


def store(name: str, command: str, figures: dict[str, Any], folder: Path | None = None) -> None:
    """Write ``<name>.json``: the figures, and where, when and by which command they were measured.

    Args:
        folder: by default ``data/measured``, where its hash is kept, too: an edit of it turns the gate red.
    """
    import torch
    import transformers

    from sslcourse.measure import hardware

    origin = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{hardware.cpu_name()}, {hardware.allowed_cores()} cores",
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
        "command": command,
    }
    out = (folder or MEASURED) / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures | origin, indent=1) + "\n", encoding="utf-8")
    if folder is None:
        seals.seal(out)
    print(f"written: {out.name}")
