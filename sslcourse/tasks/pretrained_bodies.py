"""Encoders to start from: one opened from a folder or the hub with its tokenizer, or the same one untrained.

    body, tokenizer = open_encoder("folder")
    untrained(body)                # whatever pretraining is worth, it is worth beside this

What this module does not do: download by itself. A name on the hub is found in the local cache, or online if asked.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from sslcourse.models.encoder import EncoderForMaskedLM

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


def untrained(body: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The same network, started at random: the baseline that says what pretraining was worth."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(body)(copy.deepcopy(body.config))


def open_encoder(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Body and tokenizer from a folder that ``pretrain`` or ``save_pretrained`` wrote; safetensors only.

    A folder in this course's layout gives this course's ``Encoder``, any other encoder the library's class.

    Raises:
        ValueError: if the folder holds no model, one of another kind, or a tokenizer that is not the model's.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"folder={str(folder)!r} holds no config.json, so no model; give a folder that pretrain wrote")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"config.json in {str(folder)!r} cannot be read ({_first_line(error)}); save anew") from error
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"folder={str(folder)!r} holds a {config.model_type}, not an encoder; use one of BERT's kin")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"folder={str(folder)!r} holds no weights in safetensors; pickled ones are not opened")
    body = _open_body(folder, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ValueError(f"folder={str(folder)!r} holds no tokenizer that can be read ({_first_line(error)}); save it "
                         "beside the model with tokenizer.save_pretrained") from error  # fmt: skip
    check_pair(body, tokenizer)
    return body.eval(), tokenizer


def _open_body(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """In fp32, whatever the file holds: weights of 16 bits lose small updates (lesson mixed_precision)."""
    ours = (config.model_type == "modernbert" and set(config.layer_types) == {"full_attention"}
            and config.architectures == ["ModernBertForMaskedLM"])  # fmt: skip
    options = {"use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
    try:
        try:
            model, report = (EncoderForMaskedLM if ours else AutoModel).from_pretrained(folder, **options)
        except ValueError:  # stock ModernBERT with a flag that this course's encoder does not have
            if not ours:
                raise
            ours = False
            model, report = AutoModel.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights in {str(folder)!r} are damaged, or of another shape than its config.json says "
                         f"({_first_line(error)})") from error  # fmt: skip
    parts = ("pooler", "head.", "decoder.", "cls.", "lm_head", "classifier", "predictions", "vocab_")
    strange = [name for name in (*report["missing_keys"], *report["unexpected_keys"])
               if not any(part in name for part in parts)]  # fmt: skip
    if strange:
        kind = "lacks" if strange[0] in report["missing_keys"] else "has"
        raise ValueError(
            f"the checkpoint in {str(folder)!r} {kind} {strange[0]} ({len(strange)} such weights in all), which does "
            f"not fit the {config.model_type} of its config.json: it is of another architecture"
        )
    return model.model if ours else model


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''}"


def check_pair(body: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """ValueError unless the tokenizer can be the model's: as many pieces as rows, and the same special ids."""
    if not hasattr(body, "get_input_embeddings"):
        raise ValueError(f"body={type(body).__name__} is no model; the arguments are (body, tokenizer), in this order")
    rows = body.get_input_embeddings().num_embeddings
    padded = rows % 64 == 0 and 0 < rows - len(tokenizer) < 64  # a table is often filled up to a multiple of 64
    if len(tokenizer) != rows and not padded:
        raise ValueError(
            f"tokenizer has {len(tokenizer)} pieces and the model's embedding table {rows} rows: it belongs to another "
            "checkpoint; open both from the same folder"
        )
    for name in ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        theirs = getattr(body.config, name, None)
        if theirs is not None and theirs != getattr(tokenizer, name):
            raise ValueError(
                f"tokenizer.{name} is {getattr(tokenizer, name)} and the model's is {theirs}: the tokenizer belongs to "
                "another checkpoint; open both from the same folder"
            )
