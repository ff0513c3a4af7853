"""The masked loss and the update rules: equal to PyTorch in value, gradient and update, or clear why not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sslcourse.objectives.masked_lm import (
    bits_per_byte,
    bits_per_token,
    mlm_loss,
    mlm_loss_grad,
    mlm_loss_sum,
    perplexity,
)
from sslcourse.train.update_rules import adam_step, adamw_step, sgd_step


def batch(seed: int, *shape: int, vocab: int = 11, dtype: torch.dtype = torch.float64, scored: float = 0.3):
    """Logits ``[*shape, vocab]`` and labels ``[*shape]``, at least one of them scored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, vocab, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocab, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) >= scored] = -100
    labels.view(-1)[0] = vocab - 1
    return logits.to(dtype), labels


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (7,), (4, 9), (2, 3, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_is_cross_entropy_over_the_masked_positions(shape, dtype, tolerance):
    for seed in range(5):
        logits, labels = batch(seed, *shape, dtype=dtype)
        loss = mlm_loss(logits, labels)
        assert loss.shape == ()
        assert loss.dtype == dtype
        want = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100)
        assert abs(loss.item() - want.item()) <= tolerance


def test_loss_ignores_logits_of_positions_that_are_not_masked():
    logits, labels = batch(0, 4, 9)
    changed = torch.where((labels == -100)[..., None], float("nan"), logits)
    assert torch.equal(mlm_loss(changed, labels), mlm_loss(logits, labels))


def test_loss_survives_large_logits():
    logits, labels = batch(0, 4, 9)
    loss = mlm_loss(1e4 * logits, labels)
    assert torch.isfinite(loss)
    assert loss.item() == pytest.approx(F.cross_entropy(1e4 * logits.flatten(0, 1), labels.flatten()).item(), rel=1e-12)


@pytest.mark.parametrize("vocab", [2, 7, 4096])
def test_uniform_model_loses_ln_vocab(vocab):
    logits, labels = torch.zeros(1, 3, vocab, dtype=torch.float64), torch.tensor([[0, -100, vocab - 1]])
    assert mlm_loss(logits, labels).item() == pytest.approx(math.log(vocab), abs=1e-12)


def test_sums_of_parts_give_the_loss_of_the_whole_and_means_do_not():
    logits, labels = batch(3, 8, 20)
    labels[:4, 1:] = -100  # few masked tokens in the first half
    labels[:4, 0] = 1
    parts = [mlm_loss_sum(logits[rows], labels[rows]) for rows in (slice(0, 4), slice(4, 8))]
    whole = mlm_loss(logits, labels).item()
    assert sum(float(total) for total, _ in parts) / sum(count for _, count in parts) == pytest.approx(whole, abs=1e-12)
    assert abs(sum(float(total) / count for total, count in parts) / 2 - whole) > 1e-3


def test_sum_over_nothing_is_zero_and_counts_zero():
    total, count = mlm_loss_sum(torch.randn(2, 3, 5), torch.full((2, 3), -100))
    assert (float(total), count) == (0.0, 0)


# --- its gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (4, 9), (2, 3, 5)])
@pytest.mark.parametrize("scored", [0.0, 0.3, 1.0])
def test_gradient_is_autograds(shape, scored):
    for seed in range(5):
        logits, labels = batch(seed, *shape, scored=scored)
        leaf = logits.clone().requires_grad_()
        by_own_loss = torch.autograd.grad(mlm_loss(leaf, labels), leaf)[0]
        by_library = torch.autograd.grad(F.cross_entropy(leaf.flatten(0, -2), labels.flatten()), leaf)[0]
        gradient = mlm_loss_grad(logits, labels)
        assert (gradient - by_own_loss).abs().max() <= 1e-10
        assert (gradient - by_library).abs().max() <= 1e-10
        assert not gradient[labels == -100].any()
        assert gradient.sum(-1).abs().max() <= 1e-12


def test_gradient_keeps_dtype_and_asks_for_no_graph():
    logits, labels = batch(0, 4, 9, dtype=torch.float32)
    gradient = mlm_loss_grad(logits.requires_grad_(), labels)
    assert gradient.dtype == torch.float32
    assert not gradient.requires_grad


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [mlm_loss, mlm_loss_grad])
def test_nothing_masked_is_an_error(function):
    with pytest.raises(ValueError, match="no masked position"):
        function(torch.randn(2, 3, 5), torch.full((2, 3), -100))


@pytest.mark.parametrize("function", [mlm_loss, mlm_loss_grad, mlm_loss_sum])
@pytest.mark.parametrize("label", [5, -1, -99, 4096])
def test_labels_outside_the_vocabulary_are_an_error(function, label):
    with pytest.raises(ValueError, match=r"lie in \[0, 5\)"):
        function(torch.randn(2, 3, 5), torch.full((2, 3), label))


@pytest.mark.parametrize("function", [mlm_loss, mlm_loss_grad, mlm_loss_sum])
@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1), (2, 3, 5)])
def test_shapes_that_do_not_fit_are_an_error(function, shape):
    with pytest.raises(ValueError, match="need labels of shape"):
        function(torch.randn(2, 3, 5), torch.zeros(shape, dtype=torch.long))


def test_no_input_is_changed():
    logits, labels = batch(0, 4, 9)
    before = logits.clone(), labels.clone()
    mlm_loss(logits, labels)
    mlm_loss_grad(logits, labels)
    assert torch.equal(logits, before[0])
    assert torch.equal(labels, before[1])


# --- optimisers -------------------------------------------------------------------------------------------------------

OPTIMISERS = {
    "sgd": (sgd_step, torch.optim.SGD, {"lr": 0.05}),
    "sgd with decay": (sgd_step, torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.1}),
    "momentum": (sgd_step, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}),
    "momentum with decay": (sgd_step, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}),
    "adam": (adam_step, torch.optim.Adam, {"lr": 0.03}),
    "adam with L2": (adam_step, torch.optim.Adam, {"lr": 0.03, "weight_decay": 0.1}),
    "adam, other settings": (adam_step, torch.optim.Adam, {"lr": 0.03, "betas": (0.7, 0.95), "eps": 1e-2}),
    "adamw": (adamw_step, torch.optim.AdamW, {"lr": 0.03}),
    "adamw, strong decay": (adamw_step, torch.optim.AdamW, {"lr": 0.03, "weight_decay": 0.5}),
    "adamw, other settings": (
        adamw_step, torch.optim.AdamW, {"lr": 0.03, "betas": (0.7, 0.95), "eps": 1e-2, "weight_decay": 0.0},
    ),
}


def paths(name: str, dtype: torch.dtype, steps: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """A decoder's weight after each step, by hand and by the library, on the masked loss of fresh batches."""
    step, optimiser_class, settings = OPTIMISERS[name]
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(steps, 24, 6, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(9, (steps, 24), generator=generator)
    weight = torch.randn(9, 6, generator=generator, dtype=torch.float64).to(dtype)
    theirs = weight.clone().requires_grad_()
    optimiser, state, ours_path, theirs_path = optimiser_class([theirs], **settings), {}, [], []
    for h, y in zip(hidden, labels, strict=True):
        returned = step(weight, mlm_loss_grad(h @ weight.T, y).T @ h, state, **settings)
        assert returned is weight
        optimiser.zero_grad()
        F.cross_entropy(h @ theirs.T, y).backward()
        optimiser.step()
        ours_path.append(weight.clone())
        theirs_path.append(theirs.detach().clone())
    return torch.stack(ours_path), torch.stack(theirs_path)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_hundred_steps_are_torch_optims(name):
    ours, theirs = paths(name, torch.float64)
    assert (ours - theirs).abs().max() <= 1e-10
    assert (ours[-1] - ours[0]).abs().max() > 1e-2  # it moved


@pytest.mark.parametrize("name", ["momentum with decay", "adam with L2", "adamw, strong decay"])
def test_a_hundred_steps_in_float32(name):
    ours, theirs = paths(name, torch.float32)
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() <= 1e-3


def test_steps_leave_the_gradient_alone():
    for step in (sgd_step, adam_step, adamw_step):
        grad = torch.ones(3)
        step(torch.ones(3), grad, {}, lr=0.1, weight_decay=0.1)
        assert torch.equal(grad, torch.ones(3))


def test_steps_work_on_a_parameter_that_requires_grad():
    parameter = torch.nn.Parameter(torch.ones(3))
    for step in (sgd_step, adam_step, adamw_step):
        assert step(parameter, torch.ones(3), {}, lr=0.1) is parameter
        assert parameter.grad_fn is None


def test_adam_with_l2_is_not_adamw():
    """Large gradients hide the decay from Adam with L2; AdamW shrinks every weight alike."""
    shrunk = {}
    for step in (adam_step, adamw_step):
        for scale in (0.1, 10.0):
            noise = torch.Generator().manual_seed(0)
            weight, state = torch.ones(300, dtype=torch.float64), {}
            for _ in range(200):
                grad = scale * torch.randn(300, generator=noise, dtype=torch.float64)
                step(weight, grad, state, lr=0.01, weight_decay=0.1)
            shrunk[step.__name__, scale] = weight.mean().item()
    assert abs(shrunk["adamw_step", 0.1] - shrunk["adamw_step", 10.0]) < 1e-5
    assert shrunk["adam_step", 10.0] - shrunk["adam_step", 0.1] > 0.5


# --- units ------------------------------------------------------------------------------------------------------------


def test_units():
    assert perplexity(math.log(16)) == pytest.approx(16)
    assert bits_per_token(math.log(16)) == pytest.approx(4)
    assert bits_per_byte(math.log(16), bytes_per_token=2) == pytest.approx(2)
