"""The encoder that lesson mlm_pretraining pretrains, for the lessons that start from it.

    run = lesson_encoder.load()    # from data/cache, or made from its recipe when it is not there
    run.model, run.tokenizer

The folder in the cache is named after a hash of everything that decides what is in it: the recipe, the number of steps
and the texts. Change one of them and another encoder is made beside the first. The budget is counted in steps, since
minutes would give another encoder on every machine: 1,850 steps are what two cores do in three to five minutes.

What this module does not do: download anything. An encoder from the hub is ``transformers.AutoModel``'s business.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoTokenizer

from sslcourse.data import corpus
from sslcourse.data.whole_files import fingerprint
from sslcourse.models.encoder import EncoderForMaskedLM
from sslcourse.train.checkpoint import InUse
from sslcourse.train.loop import Run, pretrain
from sslcourse.train.recipe import Recipe

STEPS = 1850


def cache_folder() -> Path:
    """``$SSLCOURSE_CACHE``, else ``data/cache`` of the checkout, else a folder in the user's own cache."""
    if chosen := os.environ.get("SSLCOURSE_CACHE"):
        return Path(chosen)
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "data" / "measured").is_dir():
        return checkout / "data" / "cache"
    return Path.home() / ".cache" / "sslcourse"


def load(
    steps: int = STEPS,
    recipe: Recipe | None = None,
    *,
    texts: Sequence[str] | None = None,
    held_out: Sequence[str] | None = None,
    every: int = 1,
    cache: str | Path | None = None,
    progress: bool | None = False,
) -> Run:
    """The encoder of ``recipe`` after ``steps`` steps, read from the cache or trained and put there.

    Args:
        texts, held_out: by default the factbook's training and validation countries.
        every: read only every so many passages, for a quick try that is worth little.
        cache: by default ``cache_folder()``.
        progress: a bar on stderr while training; ``None`` shows it in a terminal only.

    Raises:
        ValueError: if only one of ``texts`` and ``held_out`` is given, or ``pretrain`` refuses its arguments.
    """
    if (texts is None) != (held_out is None):
        raise ValueError("give texts and held_out together, or neither: a loss needs text that was not trained on")
    if texts is None or held_out is None:
        splits = corpus.load_splits()
        texts, held_out = ([row["text"] for row in splits[name]] for name in ("train", "validation"))
    if every < 1:
        raise ValueError(f"every={every} must be at least 1, which takes every passage")
    texts, held_out, recipe = texts[::every], held_out[::every], recipe or Recipe()
    folder = Path(cache or cache_folder()) / f"encoder-{key(recipe, steps, texts, held_out)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    while not folder.is_dir():
        try:
            return pretrain(texts, held_out, recipe, steps=steps, out=folder, resume=True, evaluations=5,
                            progress=progress)  # fmt: skip
        except InUse:  # another lesson is making it
            time.sleep(1)
    return _open(folder, recipe)


def key(recipe: Recipe, steps: int, texts: Sequence[str], held_out: Sequence[str]) -> str:
    """Twelve hexadecimal digits that name an encoder."""
    whole = {"recipe": asdict(recipe), "steps": steps, "texts": fingerprint(texts, held_out)}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]


def _open(folder: Path, recipe: Recipe) -> Run:
    try:
        model, report = EncoderForMaskedLM.from_pretrained(folder, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        strange = [*report["missing_keys"], *report["unexpected_keys"]]
        if strange or not history:
            raise ValueError(f"{strange[0]} does not fit its config.json" if strange else "history.json is empty")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the cached encoder in {str(folder)!r} is damaged ({error}); delete the folder") from error
    return Run(model.eval(), tokenizer, recipe, history, stopped="steps")
