"""A masked language model in about 150 lines: a bidirectional Transformer in ModernBERT's layout.

    ids -> embedding, norm -> [attention, gated MLP] x layers -> norm -> head -> logits over the vocabulary

Pre-norm without biases, rotary positions, a gated MLP, embeddings shared with the output (Warner et al. 2024,
arXiv 2412.13663; RoPE: Su et al. 2021, arXiv 2104.09864; gated MLP: Shazeer 2020, arXiv 2002.05202). Every weight
has the name and the shape that stock ``ModernBertForMaskedLM`` gives it, so what is trained here opens in
``transformers.AutoModelForMaskedLM`` with this package out of reach, with the same logits.

What is different is where the weights *start* (``_init_weights``) and that ``masked_loss`` computes logits only
where they are scored. What is left out: dropout, sliding-window attention, biases; a configuration that asks for
one of them is refused, since leaving it out in silence would change the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ModernBertConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from sslcourse.data.ignored import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

ROPE_THETA = 10_000.0
SLOTS = 64  # scored positions are filled up to a multiple of it, so that few shapes come again and again
WRITTEN_OUT = 1024  # the longest row for which bf16 attention on a CPU is not left to the fused kernel


class EncoderConfig(ModernBertConfig):
    """A ModernBERT configuration with this course's sizes: full attention in every layer, special ids 0 to 4."""

    vocab_size: int = 4096
    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 3
    num_attention_heads: int = 2
    hidden_activation: str = "silu"
    max_position_embeddings: int = 512
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3
    cls_token_id: int | None = 2
    sep_token_id: int | None = 3

    def __post_init__(self, **kwargs: Any) -> None:
        self.layer_types = self.layer_types or ["full_attention"] * self.num_hidden_layers
        rope = {"rope_type": "default", "rope_theta": ROPE_THETA}
        self.rope_parameters = self.rope_parameters or {"full_attention": rope, "sliding_attention": dict(rope)}
        super().__post_init__(**kwargs)


class Attention(nn.Module):
    """Multi-head self-attention; every token reads every token that ``mask`` allows."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.Wqkv = _linear(config.hidden_size, 3 * config.hidden_size, start=_by_width)
        self.Wo = _linear(config.hidden_size, config.hidden_size, start=init.zeros_)

    def forward(
        self,
        x: Float[Tensor, "batch seq hidden"],
        rotary: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "batch 1 q k"] | None,
        weights: list[Tensor] | None = None,
        where: Int[Tensor, " places"] | None = None,
    ) -> Float[Tensor, "batch seq hidden"] | Float[Tensor, "places hidden"]:
        """``weights``, if given, is a list to which [batch, heads, query, key] is appended."""
        batch, seq, hidden = x.shape
        query_key, value = self.Wqkv(x).view(batch, seq, 3, self.heads, -1).transpose(1, 3).split([2, 1], dim=2)
        query, key = rotate(query_key, *(table[:, :, None] for table in rotary)).unbind(2)
        if weights is not None:  # the same sum, written out, because somebody wants to see who reads whom
            weights.append(attention_weights(query, key, mask))
        mixed = attend(query, key, value.squeeze(2), mask)
        mixed = mixed.transpose(1, 2).reshape(batch, seq, hidden)
        return self.Wo(mixed if where is None else mixed.flatten(0, 1)[where])


class GatedMLP(nn.Module):
    """Wo(activation(a) * b), where a and b are the two halves of Wi(x)."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.Wi = _linear(config.hidden_size, 2 * config.intermediate_size, start=_by_width)
        self.act = ACT2FN[config.hidden_activation]
        self.Wo = _linear(config.intermediate_size, config.hidden_size, start=init.zeros_)

    def forward(self, x: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq hidden"]:
        activated, gate = self.Wi(x).chunk(2, dim=-1)
        return self.Wo(self.act(activated) * gate)


class Layer(nn.Module):
    """Attention and MLP, each normalised before and added after; layer 0 reads the embeddings' own norm."""

    def __init__(self, config: ModernBertConfig, index: int) -> None:
        super().__init__()
        self.attn_norm = nn.Identity() if index == 0 else _norm(config)
        self.attn = Attention(config)
        self.mlp_norm = _norm(config)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        weights: list[Tensor] | None = None,
        where: Int[Tensor, " places"] | None = None,
    ) -> Tensor:
        """``where``: the places of the flattened batch that anybody will read; the others are only attended to."""
        mixed = self.attn(self.attn_norm(x), rotary, mask, weights, where)
        x = (x if where is None else x.flatten(0, 1)[where]) + mixed
        return x + self.mlp(self.mlp_norm(x))


class Embeddings(nn.Module):
    """A row of the table for each id, normalised. Positions come later, as rotations."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.norm = _norm(config)

    def forward(
        self, input_ids: Int[Tensor, "batch seq"] | None, inputs_embeds: Float[Tensor, "batch seq hidden"] | None = None
    ) -> Float[Tensor, "batch seq hidden"]:
        return self.norm(self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds)


class Head(nn.Module):
    """The last transformation before the scores: dense, activation, norm."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.dense = _linear(config.hidden_size, config.hidden_size, start=init.eye_)
        self.act = ACT2FN[config.classifier_activation]
        self.norm = _norm(config)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        return self.norm(self.act(self.dense(x)))


class _Pretrained(PreTrainedModel):
    config_class = EncoderConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The library's start, a normal distribution of standard deviation 0.02, unless a layer says otherwise.

        0.02 suits a width of 768 and is far too small at 128: training then sits on the unigram plateau (lesson
        efficiency_ladder measures it). So what reads the residual stream starts at its width's own scale, what writes
        to it starts at zero, and each layer is the identity at first (Zhang et al. 2019, arXiv 1901.09321).
        """
        super()._init_weights(module)
        if hasattr(module, "start"):
            module.start(module.weight)


class Encoder(_Pretrained):
    """Ids in, one vector a position out."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        _refuse_what_is_left_out(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.final_norm = _norm(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.tok_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another table of token vectors in place."""
        self.embeddings.tok_embeddings = value

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
        inputs_embeds: Float[Tensor, "batch seq hidden"] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        where: Int[Tensor, " places"] | None = None,
        **_: Any,
    ) -> BaseModelOutput:
        """One vector a position, and on request what every layer holds and reads.

        Args:
            attention_mask: [batch, seq] (true where a token may be read) or [batch, 1, query, key], boolean.
            inputs_embeds: rows in place of ``input_ids``, as the table would give them: for attribution and attacks.
            output_hidden_states: also the vectors before the first layer and after each, the last one normalised.
            output_attentions: also each layer's attention, [batch, heads, query, key], rows summing to 1.
            where: places of the flattened batch; the last layer then computes, and the result holds, these alone.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, not both or neither")
        mask = attention_mask
        if mask is not None:
            mask = mask.bool() if mask.ndim == 4 else mask.bool()[:, None, None, :]
        x = self.embeddings(input_ids, inputs_embeds)
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        theta = self.config.rope_parameters["full_attention"]["rope_theta"]
        rotary = rotary_tables(position_ids, self.config.hidden_size // self.config.num_attention_heads, theta)
        states, weights = [x], [] if output_attentions else None
        for index, layer in enumerate(self.layers, 1):
            x = layer(x, rotary, mask, weights, where if index == len(self.layers) else None)
            states.append(x)
        states[-1] = x = self.final_norm(x)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(weights) if weights is not None else None,
        )


class EncoderForMaskedLM(_Pretrained):
    """The encoder with a head that scores every token of the vocabulary."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}  # noqa: RUF012 - the library's name

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        self.model = Encoder(config)
        self.head = Head(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder = new_embeddings

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
        labels: Int[Tensor, "batch seq"] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> MaskedLMOutput:
        """Logits at every position, and the mean loss over the masked ones if there are labels.

        ``Trainer`` passes ``num_items_in_batch``, the masked positions of all the batches that it accumulates: then the
        sum is divided by that number, and accumulated batches give the gradient of one. What ``Encoder`` takes besides
        (``inputs_embeds``, ``output_hidden_states``, ``output_attentions``) is passed on.
        """
        encoded = self.model(input_ids, attention_mask, position_ids, **inputs)
        logits = self.decoder(self.head(encoded.last_hidden_state))
        loss = None
        if labels is not None:
            how = "mean" if num_items_in_batch is None else "sum"
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction=how)
            if num_items_in_batch is not None:
                loss = loss / num_items_in_batch
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )

    def masked_logits(
        self,
        input_ids: Int[Tensor, "batch seq"],
        labels: Int[Tensor, "batch seq"],
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "masked vocab"]:
        """Logits at the masked positions alone, in reading order, in fp32.

        At 15 % masks the head and the decoder do 15 % of the work; the values are those of ``forward``.
        """
        hidden = self.model(input_ids, attention_mask, position_ids).last_hidden_state
        where = (labels != IGNORE).flatten().nonzero().squeeze(1)
        return self.decoder(self.head(hidden.flatten(0, 1)[where])).float()

    def masked_loss(
        self,
        input_ids: Int[Tensor, "batch seq"],
        labels: Int[Tensor, "batch seq"],
        *,
        narrow: bool = False,
        **inputs: Tensor,
    ) -> tuple[Float[Tensor, ""], int]:
        """(sum of losses, number of masked positions), with logits at masked positions alone.

        ``narrow``: so is what the last layer does after its attention, which nobody reads elsewhere. The values are the
        same; ``step_costs.flops`` counts the work without it.
        """
        where, targets = scored_slots(labels)
        if narrow:
            hidden = self.model(input_ids, where=where, **inputs).last_hidden_state
        else:
            hidden = self.model(input_ids, **inputs).last_hidden_state.flatten(0, 1)[where]
        logits = self.decoder(self.head(hidden)).float()
        return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum"), int((labels != IGNORE).sum())

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As in ``transformers``, under the stock class's name, so that it loads without this package."""
        super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / "config.json"
        if not path.is_file():  # only the main process of several writes it
            return
        config = json.loads(path.read_text(encoding="utf-8"))
        config["architectures"] = ["ModernBertForMaskedLM"]
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def filled_up(count: int) -> int:
    """The least multiple of ``SLOTS`` that is not smaller."""
    return -(-count // SLOTS) * SLOTS


def scored_slots(labels: Int[Tensor, "*batch seq"]) -> tuple[Int[Tensor, " slots"], Int[Tensor, " slots"]]:
    """Places and targets of the scored positions, in reading order, filled up with places that count for nothing.

    Each step masks another number of tokens. With shapes that never repeat, the allocator cannot use its memory again,
    oneDNN compiles its kernels anew, and a process grows with every step (``tests/test_faults.py`` watches that).
    """
    flat = labels.flatten()
    where = (flat != IGNORE).nonzero().squeeze(1)
    spare = filled_up(len(where)) - len(where)
    return F.pad(where, (0, spare)), F.pad(flat[where], (0, spare), value=IGNORE)


def attend(
    query: Float[Tensor, "batch heads q head"],
    key: Float[Tensor, "batch heads k head"],
    value: Float[Tensor, "batch heads k head"],
    mask: Bool[Tensor, "batch 1 q k"] | None = None,
) -> Float[Tensor, "batch heads q head"]:
    """softmax(query keyᵀ / sqrt(head)) value, by the library's fused kernel, except for bf16 on a CPU.

    There, the kernel's backward pass is slow (torch 2.13; ``python -m benchmarks`` measures it), and two products and a
    softmax written out are several times as fast. Their memory grows with the square of the length.
    """
    if mask is None and query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.shape[2] <= WRITTEN_OUT:
        return (query / query.shape[-1] ** 0.5 @ key.transpose(-1, -2)).softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def attention_weights(
    query: Float[Tensor, "batch heads q head"], key: Float[Tensor, "batch heads k head"], mask: Tensor | None
) -> Float[Tensor, "batch heads q k"]:
    """softmax(query keyᵀ / sqrt(head)) over the keys that ``mask`` allows."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.float().softmax(-1)


def rotary_tables(
    position_ids: Int[Tensor, "batch seq"], head_size: int, theta: float = ROPE_THETA
) -> tuple[Float[Tensor, "batch 1 seq head"], Float[Tensor, "batch 1 seq head"]]:
    """Cosine and sine of every position's angles: position times theta^(-2i/head_size), i-th pair of coordinates."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_size, 2, device=position_ids.device) / head_size)
    angles = position_ids[:, None, :, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "*batch seq head"], cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + head/2}) by its position's angle; dot products then depend on distance alone.

    The tables are rounded to the type of ``x``: in bf16 half the bytes are moved, and ``x`` is no more exact itself.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


def _linear(inputs: int, outputs: int, start: Callable[[Tensor], Tensor]) -> nn.Linear:
    """A linear map without bias that remembers how its weight starts; ``_init_weights`` calls ``start``."""
    linear = nn.Linear(inputs, outputs, bias=False)
    linear.start = start
    return linear


def _by_width(weight: Tensor) -> Tensor:
    """Uniform in ±1/sqrt(inputs), PyTorch's own start for a linear layer (He et al. 2015, arXiv 1502.01852)."""
    return init.kaiming_uniform_(weight, a=5**0.5)


def _norm(config: ModernBertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)


def _refuse_what_is_left_out(config: ModernBertConfig) -> None:
    if config.hidden_size % config.num_attention_heads or config.hidden_size // config.num_attention_heads % 2:
        raise ValueError(
            f"hidden_size={config.hidden_size} must split into num_attention_heads="
            f"{config.num_attention_heads} heads of an even size"
        )
    if set(config.layer_types) != {"full_attention"}:
        raise ValueError(
            f"layer_types={config.layer_types} asks for sliding windows; this encoder has full attention only. "
            "Load the model with transformers.AutoModelForMaskedLM instead"
        )
    for name in (
        "attention_bias",
        "mlp_bias",
        "norm_bias",
        "classifier_bias",
        "attention_dropout",
        "mlp_dropout",
        "embedding_dropout",
    ):
        if getattr(config, name):
            raise ValueError(
                f"{name}={getattr(config, name)} is not part of this encoder; set it to 0, or load the model "
                "with transformers.AutoModelForMaskedLM"
            )
    rope = config.rope_parameters["full_attention"]
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_parameters asks for rope_type={rope['rope_type']!r}; this encoder has the default only")
    if config.sparse_prediction:
        raise ValueError("sparse_prediction=True changes the shape of the logits; use masked_loss, which is sparse")
    if not config.decoder_bias or not config.tie_word_embeddings:
        raise ValueError("decoder_bias and tie_word_embeddings must stay true: the output shares the embeddings")
