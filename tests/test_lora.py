"""LoRA in twenty lines equals the peft library, starts as the identity, and merges without a trace."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sslcourse.models.encoder import Encoder, EncoderConfig
from sslcourse.models.lora import LoRALinear, add_lora, merge_lora

TARGETS = ("Wqkv", "Wi", "Wo")


@pytest.fixture
def body():
    torch.manual_seed(0)
    body = Encoder(EncoderConfig(vocab_size=50, hidden_size=32, intermediate_size=48))
    for weight in body.parameters():  # layers start as the identity, through which no adapter would show
        torch.nn.init.normal_(weight, std=0.2)
    return body


@pytest.fixture
def ids():
    return torch.randint(5, 50, (3, 9), generator=torch.Generator().manual_seed(1))


def trained(body, rank=4):
    """A copy with LoRA whose B is no longer zero."""
    torch.manual_seed(2)
    adapted = add_lora(copy.deepcopy(body), rank=rank, alpha=8, targets=TARGETS)
    for module in adapted.modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.B, std=0.3)
    return adapted


def test_equal_to_peft_in_outputs_and_gradients(body, ids):
    ours = trained(body)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=list(TARGETS))
    theirs = get_peft_model(copy.deepcopy(body), config)
    modules = dict(theirs.named_modules())
    pairs = []
    for name, module in ours.named_modules():
        if isinstance(module, LoRALinear):
            twin = modules[f"base_model.model.{name}"]
            twin.lora_A["default"].weight.data.copy_(module.A.data)
            twin.lora_B["default"].weight.data.copy_(module.B.data)
            pairs.append((module, twin))
    assert len(pairs) == 12  # three layers of four maps
    a, b = ours(ids).last_hidden_state, theirs(ids).last_hidden_state
    assert torch.allclose(a, b, atol=1e-5)  # fp32, three layers
    a.square().sum().backward()
    b.square().sum().backward()
    for module, twin in pairs:
        for mine, their in ((module.A, twin.lora_A["default"].weight), (module.B, twin.lora_B["default"].weight)):
            assert torch.allclose(mine.grad, their.grad, rtol=1e-3, atol=1e-4 * float(their.grad.abs().max()))


def test_starts_where_the_body_was(body, ids):
    adapted = add_lora(copy.deepcopy(body), rank=4, targets=TARGETS)
    assert torch.equal(adapted(ids).last_hidden_state, body(ids).last_hidden_state)


def test_only_adapters_are_trained(body):
    adapted = add_lora(body, rank=4, targets=("Wqkv",))
    names = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert names == {f"layers.{i}.attn.Wqkv.{one}" for i in range(3) for one in "AB"}


def test_merged_is_plain_and_the_same(body, ids):
    adapted = trained(body)
    want = adapted(ids).last_hidden_state
    merged = merge_lora(copy.deepcopy(adapted))
    assert not any(isinstance(module, LoRALinear) for module in merged.modules())
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in body.named_parameters()}
    assert torch.allclose(merged(ids).last_hidden_state, want, atol=1e-4)  # fp32, other order of sums
    assert not torch.allclose(body(ids).last_hidden_state, want, atol=1e-2)


@pytest.mark.parametrize("rank", [0, -1, 33])
def test_a_rank_that_cannot_be_is_refused(body, rank):
    with pytest.raises(ValueError, match=f"rank={rank}"):
        add_lora(body, rank=rank)


def test_targets_that_are_not_there_are_refused(body):
    with pytest.raises(ValueError, match="names no linear map"):
        add_lora(body, targets=("query",))
