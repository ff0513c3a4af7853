"""Muon written here: its singular values, its agreement with torch's, what it leaves to AdamW, and a run resumed."""

import copy
from types import SimpleNamespace

import pytest
import torch

from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM
from sslcourse.train import loop_across_ranks
from sslcourse.train.optimizers import MuonWithAdamW, inner_matrices, make_optimizer, orthogonal
from sslcourse.train.recipe import Recipe

TINY = EncoderConfig(vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2)


def a_model():
    torch.manual_seed(0)
    return EncoderForMaskedLM(TINY)


def gradients(model, seed):
    """Any will do, as long as two models get the same."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("shape", [(2, 16, 48), (1, 48, 16), (3, 16, 16)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonal(matrices).float()
    assert found.shape == shape
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    aligned = (u.mT @ found @ v.mT).diagonal(dim1=-2, dim2=-1)  # what is left on the same pairs of vectors
    assert aligned.min() > 0.5


def test_muon_is_torchs_own():
    ours, theirs = a_model(), a_model()
    recipe = Recipe(optimizer="muon", learning_rate=0.02, weight_decay=0.1)
    optimizer = make_optimizer(ours, recipe)
    peer = torch.optim.Muon(inner_matrices(theirs), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        peer.step()
    before = dict(a_model().named_parameters())
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if any(other is matrix for matrix in inner_matrices(theirs)):
            moved = (other - before[name]).norm()
            assert (one - other).norm() < 0.02 * moved, name  # both compute in bf16, in another order
            assert moved > 0.1


def test_the_rest_is_adamws():
    ours, theirs = a_model(), a_model()
    optimizer = make_optimizer(ours, Recipe(optimizer="muon", learning_rate=0.02))
    peer = make_optimizer(theirs, Recipe(learning_rate=0.02))
    assert type(peer) is torch.optim.AdamW
    for step in range(2):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        peer.step()
    inside = {id(weight) for weight in inner_matrices(ours)}
    assert len(inside) == 9  # four matrices a layer, and the head's
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other) == (id(one) not in inside), name


def test_every_weight_is_in_one_group():
    model = a_model()
    groups = make_optimizer(model, Recipe(optimizer="muon")).param_groups
    together = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(together) == sorted(id(weight) for weight in model.parameters())
    assert [("momentum" in group, group["weight_decay"] > 0) for group in groups] == [
        (False, True), (False, False), (True, True),
    ]  # fmt: skip


def test_its_state_goes_over_to_another():
    model = a_model()
    optimizer = make_optimizer(model, Recipe(optimizer="muon"))
    gradients(model, 0)
    optimizer.step()
    other = copy.deepcopy(model)
    heir = make_optimizer(other, Recipe(optimizer="muon"))
    heir.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert isinstance(heir, MuonWithAdamW)
    for one in (model, other):
        gradients(one, 1)
    optimizer.step()
    heir.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_an_unknown_one_and_one_for_many_processes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="optimizer='sgd' is unknown; choose adamw or muon"):
        Recipe(optimizer="sgd")
    with pytest.raises(ValueError, match="optimizer='muon' needs whole matrices"):
        loop_across_ranks.pretrain(
            ["a"], ["b"], Recipe(optimizer="muon"), ranks=SimpleNamespace(world=2), out=tmp_path, steps=1
        )


def test_a_weight_without_gradient_stays():
    model = a_model()
    optimizer = make_optimizer(model, Recipe(optimizer="muon"))
    gradients(model, 0)
    still = model.model.layers[1].mlp.Wi.weight
    still.grad, before = None, still.detach().clone()
    optimizer.step()
    assert torch.equal(still, before)
    assert not torch.equal(model.model.layers[0].mlp.Wi.weight, a_model().model.layers[0].mlp.Wi.weight)
    assert len(optimizer.param_groups) == 3  # AdamW's part put them back
