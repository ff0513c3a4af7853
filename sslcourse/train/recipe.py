"""Everything that decides how a pretraining run goes, apart from its texts and its budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from transformers.activations import ACT2FN

from sslcourse.models.encoder import EncoderConfig


@dataclass(frozen=True)
class Recipe:
    """Sizes, data, optimisation and masks of a run. The defaults suit two CPU cores and some minutes."""

    STARTS: ClassVar[tuple[str, ...]] = ("width", "table", "heads", "neighbours")

    vocab_size: int = 4096
    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 2
    activation: str = "silu"
    start: str = "width"  # or "table", "heads", "neighbours" (both): begin where counting ends (models.initial_weights)

    sequence_length: int = 128  # tokens a row
    batch_size: int = 32  # rows a step
    learning_rate: float = 6e-3  # at the end of the warm-up
    schedule: str = "linear"  # or "cosine", "constant": what follows the warm-up
    warmup: float = 0.1  # share of the budget
    optimizer: str = "adamw"  # or "muon": for all matrices but the table; about twice the rate (train.optimizers)
    weight_decay: float = 0.01
    beta2: float = 0.98
    max_grad_norm: float = 1.0
    mask_rate: float = 0.3  # more signal a step than 0.15, which evaluation keeps (Portes et al. 2023, MosaicBERT)
    mask_prob: float = 0.8
    random_prob: float = 0.1
    precision: str = "auto"  # "fp32", "bf16" (autocast), or whichever is faster here
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "sequence_length", "batch_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.schedule not in ("linear", "cosine", "constant"):
            raise ValueError(f"schedule={self.schedule!r} is unknown; choose linear, cosine or constant")
        if self.activation not in ACT2FN:
            raise ValueError(f"activation={self.activation!r} is unknown; choose silu, gelu, relu, ...")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer={self.optimizer!r} is unknown; choose adamw or muon")
        if self.start not in self.STARTS:
            raise ValueError(f"start={self.start!r} is unknown; choose {', '.join(self.STARTS)}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision={self.precision!r} is unknown; choose auto, fp32 or bf16")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} is a share of the budget; it must lie in [0, 1)")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive and finite")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay} must be 0 or more")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2={self.beta2} must lie in [0, 1): it is the memory of a running mean of squares")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} must be positive; inf does not clip")
        if not 0 < self.mask_rate <= 1:
            raise ValueError(f"mask_rate={self.mask_rate} must lie in (0, 1]: without a mask there is nothing to learn")

    def config(self) -> EncoderConfig:
        """The encoder's configuration."""
        return EncoderConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            hidden_activation=self.activation,
            max_position_embeddings=max(512, self.sequence_length),
        )
