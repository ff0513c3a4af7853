"""The small package behind the lessons: rooms one upon another, and their contracts by name.

    from sslcourse import load_corpus, train_tokenizer, mask_tokens, Recipe, pretrain

Lowest room first; a room imports only from those before it:

    data, measure -> objectives, models -> train -> tasks -> compress -> studies -> commands

A name is looked up when it is asked for, so that ``import sslcourse`` alone costs nothing and loads no torch. Nothing
here imports Jupyter or a plotting library: the training side runs on a bare node that has torch, transformers, numpy,
accelerate and safetensors. What this module does not do: give every name of the package. The rest is in its rooms.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers read; it says the same as the table below, and a test compares
    from sslcourse.data.corpus import load as load_corpus
    from sslcourse.data.tokenizer import train as train_tokenizer
    from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM
    from sslcourse.objectives.entropy_floor import MarkovSource
    from sslcourse.objectives.masked_lm import mlm_loss, mlm_loss_grad
    from sslcourse.objectives.masking import MaskedLMDataset, mask_tokens
    from sslcourse.train.loop import pretrain
    from sslcourse.train.recipe import Recipe
    from sslcourse.train.step import evaluate, train_epoch
    from sslcourse.train.update_rules import adamw_step

# A tokenizer that has used threads warns at every later fork; the course's runs are small enough to do without.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"

_WHERE = {  # the module that a name stands in; behind a colon what it is called there, where that is another name
    "EncoderConfig": "models.encoder",
    "EncoderForMaskedLM": "models.encoder",
    "MarkovSource": "objectives.entropy_floor",
    "MaskedLMDataset": "objectives.masking",
    "Recipe": "train.recipe",
    "adamw_step": "train.update_rules",
    "evaluate": "train.step",
    "load_corpus": "data.corpus:load",
    "mask_tokens": "objectives.masking",
    "mlm_loss": "objectives.masked_lm",
    "mlm_loss_grad": "objectives.masked_lm",
    "pretrain": "train.loop",
    "train_epoch": "train.step",
    "train_tokenizer": "data.tokenizer:train",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    """The function or class of that name, from its module, which is imported now if nobody has before."""
    if name not in _WHERE:
        raise AttributeError(f"module 'sslcourse' has no attribute {name!r}")
    module, _, called = _WHERE[name].partition(":")
    return getattr(importlib.import_module(f"sslcourse.{module}"), called or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
