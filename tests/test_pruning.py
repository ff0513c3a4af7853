"""Masks equal torch's own, removals equal the masked original, and what cannot be is refused in words."""

import copy
import math
import zlib

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch.nn.utils import prune
from transformers import AutoModelForMaskedLM

from sslcourse.compress import distillation, pruning
from sslcourse.compress.distillation import distilled
from sslcourse.compress.pruning import (
    Gradual,
    Hold,
    Movement,
    apply_masks,
    keep_largest,
    magnitude_masks,
    n_of_m_mask,
    prunable,
    sparsity_of,
)
from sslcourse.compress.removal import lowest, remove_columns, remove_heads, remove_layers, taylor_importance
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM
from sslcourse.models.lora import add_lora
from sslcourse.tasks.encoding import collate
from sslcourse.tasks.fitting import Settings, fit
from sslcourse.tasks.robustness import KeepBest
from sslcourse.tasks.task_heads import SequenceClassifier, SpanPredictor, TokenClassifier

HIDDEN, COLUMNS, HEADS = 32, 24, 4
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


@pytest.fixture
def language_model():
    torch.manual_seed(0)
    config = EncoderConfig(vocab_size=60, hidden_size=HIDDEN, intermediate_size=COLUMNS, num_attention_heads=HEADS)
    model = EncoderForMaskedLM(config).eval()
    for weight in model.parameters():  # layers start as the identity, through which no removal would show
        torch.nn.init.normal_(weight, std=0.2)
    return model


@pytest.fixture
def model(language_model):
    torch.manual_seed(1)
    return TokenClassifier(copy.deepcopy(language_model.model), 3).eval()


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(2)
    rows = []
    for length in (5, 9, 7, 12, 6, 8, 10, 11):
        ids = torch.randint(5, 60, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] + [token % 3 for token in ids[1:]]})
    return rows


@pytest.fixture
def batch(examples):
    return collate(examples, 0)


def logits(model, batch):
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"]).logits[batch["attention_mask"].bool()]


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.333, 0.5, 0.9, 1.0])
def test_magnitude_masks_are_torchs(model, sparsity):
    ours = magnitude_masks(prunable(model), sparsity)
    alone = magnitude_masks(prunable(model), sparsity, scope="layer")
    theirs = copy.deepcopy(model)
    modules = [(theirs.get_submodule(name.removesuffix(".weight")), "weight") for name in ours]
    prune.global_unstructured(modules, prune.L1Unstructured, amount=sparsity)
    for (name, mask), (module, _) in zip(ours.items(), modules, strict=True):
        assert torch.equal(mask, module.weight_mask.bool()), name
        single = prune.l1_unstructured(copy.deepcopy(model).get_submodule(name.removesuffix(".weight")), "weight",
                                       amount=sparsity)  # fmt: skip
        assert torch.equal(alone[name], single.weight_mask.bool()), name


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.61, 1.0])
def test_the_number_of_zeros_is_exact_and_of_equals_the_earlier_stays(sparsity):
    scores = {"a": torch.ones(3, 7), "b": torch.ones(5)}
    masks = keep_largest(scores, sparsity)
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    kept = 26 - round(sparsity * 26)
    assert flat.tolist() == [True] * kept + [False] * (26 - kept)
    mixed = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0])
    assert keep_largest({"a": mixed}, 0.4)["a"].tolist() == [True, True, False, True, False]


def test_global_and_layer_share_out_differently():
    weights = {"small": 0.01 * torch.rand(10), "large": 1 + torch.rand(10)}
    assert sparsity_of({"small": magnitude_masks(weights, 0.5)["small"]}) == 1.0
    assert sparsity_of({"small": magnitude_masks(weights, 0.5, "layer")["small"]}) == 0.5


def test_only_matrices_of_the_layers(model):
    names = set(prunable(model))
    assert names == {f"body.layers.{i}.{part}.weight" for i in range(3)
                     for part in ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")}  # fmt: skip


@pytest.mark.parametrize("value", [-0.1, 1.01, math.nan, math.inf])
def test_a_sparsity_that_cannot_be(model, value):
    for attempt in (
        lambda: magnitude_masks(prunable(model), value),
        lambda: pruning.random_masks(prunable(model), value),
        lambda: Gradual(value, last=10),
        lambda: Movement(value, last=10),
    ):
        with pytest.raises(ValueError, match=rf"={value} is a share of the weights; it must lie in \[0, 1\]"):
            attempt()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_cannot_be_ranked(model, bad):
    with torch.no_grad():
        model.body.layers[1].mlp.Wi.weight[3, 4] = bad
    with pytest.raises(ValueError, match=r"body\.layers\.1\.mlp\.Wi\.weight holds nan or inf"):
        magnitude_masks(prunable(model), 0.5)
    with pytest.raises(ValueError, match="weight holds nan or inf"):
        n_of_m_mask(model.body.layers[1].mlp.Wi.weight)


def test_other_bad_input_to_masks(model):
    with pytest.raises(ValueError, match=r"targets=\('query',\) name no matrix"):
        prunable(model, ("query",))
    with pytest.raises(ValueError, match="scores is empty"):
        keep_largest({}, 0.5)
    with pytest.raises(ValueError, match="scope='row' is unknown"):
        keep_largest({"a": torch.ones(3)}, 0.5, "row")
    before = copy.deepcopy(model.state_dict())
    masks = {name: torch.zeros_like(weight) for name, weight in prunable(model).items()}
    with pytest.raises(ValueError, match=r"masks\['nobody'\] of shape \(2,\) fits no weight"):
        apply_masks(model, {**masks, "nobody": torch.zeros(2)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "nothing was changed"


@pytest.mark.parametrize("shape", [(4,), (3, 8), (2, 5, 12), (0, 4)])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (0, 4), (4, 4)])
def test_n_of_m_keeps_the_largest_of_each_group(shape, n, m):
    if shape[-1] % m:
        pytest.skip("another width")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    mask = n_of_m_mask(weight, n, m)
    assert mask.shape == weight.shape
    groups, kept = weight.abs().reshape(-1, m), mask.reshape(-1, m)
    assert bool((kept.sum(1) == n).all())
    for values, stays in zip(groups, kept, strict=True):
        assert set(values[stays].tolist()) == set(sorted(values.tolist(), reverse=True)[:n])


def test_n_of_m_ties_and_bad_input():
    assert n_of_m_mask(torch.tensor([1.0, -1, 1, 1, 0, 0, 0, 2])).tolist() == [True, True, False, False,
                                                                              True, False, False, True]  # fmt: skip
    with pytest.raises(ValueError, match="6 inputs, which groups of m=4 do not divide"):
        n_of_m_mask(torch.ones(8, 6))
    with pytest.raises(ValueError, match="n=5 of m=4 cannot be kept"):
        n_of_m_mask(torch.ones(8, 8), n=5)


# --- while training --------------------------------------------------------------------------------------------------


def test_cubic():
    assert [pruning.cubic(step, 10, 0.8) for step in (0, 10, 99)] == [0.0, 0.8, 0.8]
    assert pruning.cubic(5, 10, 0.8) == pytest.approx(0.7)
    assert pruning.cubic(4, 10, 0.8, first=4, initial=0.3) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="first=5 must come before last=5"):
        pruning.cubic(1, 5, 0.5, first=5)


def test_held_zeros_stay_and_the_rest_learns(model, examples):
    weights = prunable(model)
    masks = magnitude_masks(weights, 0.7)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    fit(model, examples, Settings(steps=5, batch_size=4, precision="fp32"), on_step=Hold(model, masks))
    for name, weight in weights.items():
        assert bool((weight[~masks[name]] == 0).all())
        assert bool((weight != before[name])[masks[name]].any())
    assert sparsity_of(weights) == pytest.approx(0.7, abs=1e-3)


def test_gradual_ends_at_its_sparsity_and_stays(model, examples):
    seen = []
    gradual = Gradual(0.9, last=8, every=3)

    def watch(step, model):
        gradual(step, model)
        seen.append(sparsity_of(prunable(model)))

    fit(model, examples, Settings(steps=12, batch_size=4, precision="fp32"), on_step=watch)
    wanted = [0.0, 0.0] + [pruning.cubic(3, 8, 0.9)] * 3 + [pruning.cubic(6, 8, 0.9)] * 2 + [0.9] * 5
    assert seen == pytest.approx(wanted, abs=1e-3)


class Scored(torch.nn.Module):
    """The same scores by autograd: a weight times (hard mask + score - score.detach())."""

    def __init__(self, scores, mask):
        super().__init__()
        self.scores, self.mask = torch.nn.Parameter(scores.clone()), mask

    def forward(self, weight):
        return weight * (self.mask + self.scores - self.scores.detach())


def test_movement_scores_are_autograds_straight_through(model, batch):
    model = model.double()
    movement = Movement(0.6, last=9)
    twin = copy.deepcopy(model)
    movement.backward(model, batch)
    movement.masks = keep_largest(movement.scores, 0.6)
    for score in movement.scores.values():  # Adam's first step goes against the gradient, and has a length of 1
        assert torch.allclose(score, -score.grad / (score.grad.abs() + 1e-8))
    first = {name: score.clone() for name, score in movement.scores.items()}
    for parameter in model.parameters():
        parameter.grad = None
    movement.backward(model, batch)
    for name in prunable(twin):
        module = twin.get_submodule(name.removesuffix(".weight"))
        torch.nn.utils.parametrize.register_parametrization(module, "weight", Scored(first[name], movement.masks[name]))
    twin(**batch).loss.backward()
    for name, weight in prunable(model).items():
        theirs = twin.get_submodule(name.removesuffix(".weight")).parametrizations.weight
        assert torch.allclose(movement.scores[name].grad, theirs[0].scores.grad, atol=1e-12)
        assert torch.allclose(weight.grad, theirs.original.grad, atol=1e-12)
        assert bool((weight.grad[~movement.masks[name]] == 0).all())


def test_movement_leaves_weights_whole_until_it_is_finished(model, examples):
    movement = Movement(0.8, last=6, every=2)
    fit(model, examples, Settings(steps=8, batch_size=4, precision="fp32"), backward=movement.backward,
        on_step=movement)  # fmt: skip
    assert sparsity_of(prunable(model)) < 0.01
    movement.finish(model)
    assert sparsity_of(prunable(model)) == pytest.approx(0.8, abs=1e-3)
    with pytest.raises(ValueError, match="there are no masks yet"):
        Movement(0.8, last=6).finish(model)
    with pytest.raises(ValueError, match="every=0 must be at least 1 step"):
        Gradual(0.5, 5, every=0)


# --- importance ------------------------------------------------------------------------------------------------------


def test_importance_is_the_derivative_by_a_gate(model, examples):
    """One example, gates by hand: finite differences of the summed loss when a head's output is scaled."""
    model, one = model.double(), examples[:1]
    heads, columns = taylor_importance(model, one)
    batch, scored = collate(one, 0), len(one[0]["labels"]) - 1
    size, step = HIDDEN // HEADS, 1e-2  # logits are fp32, so a smaller step drowns
    for part, found, width in (("attn", heads[1], size), ("mlp", columns[1], 1)):
        number = int(found.argmax())
        places = slice(number * width, (number + 1) * width)
        weight = getattr(model.body.layers[1], part).Wo.weight
        losses = []
        for factor in (1 + step, 1 - step):
            changed = copy.deepcopy(model)
            getattr(changed.body.layers[1], part).Wo.weight.data[:, places] = weight.data[:, places] * factor
            losses.append(float(changed(**batch).loss.detach()) * scored)
        assert float(found[number]) == pytest.approx(abs(losses[0] - losses[1]) / (2 * step), rel=2e-3, abs=5e-5)


def test_importance_does_not_depend_on_batches_and_leaves_no_trace(model, examples):
    model = model.double().train()
    whole = taylor_importance(model, examples, batch_size=8)
    for size in (1, 3):
        for a, b in zip(whole, taylor_importance(model, examples, batch_size=size), strict=True):
            assert all(torch.allclose(x, y, rtol=1e-9) for x, y in zip(a, b, strict=True))
    alone = [taylor_importance(model, [one]) for one in examples]  # absolute values first, then the mean
    for part in (0, 1):
        wanted = torch.stack([one[part][1] for one in alone]).mean(0)
        assert torch.allclose(whole[part][1], wanted, rtol=1e-9)
        assert bool((wanted > 0).all())
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())
    frozen = copy.deepcopy(model).requires_grad_(False)
    assert torch.allclose(taylor_importance(frozen, examples).columns[2], whole.columns[2], rtol=1e-9)
    with pytest.raises(ValueError, match="examples is empty"):
        taylor_importance(model, [])
    with torch.no_grad():
        model.body.final_norm.weight[0] = math.nan
    with pytest.raises(ValueError, match="gives nan or inf"):
        taylor_importance(model, examples)


def test_lowest():
    scores = [torch.tensor([3.0, 1, 2]), torch.tensor([1.0, 1, 1])]
    assert lowest(scores, 2) == {0: [1, 2], 1: [0, 1]}
    assert lowest(scores, 0) == {0: [], 1: []}
    with pytest.raises(ValueError, match=r"count=3 must lie in \[0, 3\)"):
        lowest(scores, 3)


# --- removal ---------------------------------------------------------------------------------------------------------


def silenced(model, heads=None, columns=None):
    """The original with what is to go at zero, where it enters Wo."""
    masked = copy.deepcopy(model)
    size = HIDDEN // HEADS
    with torch.no_grad():
        for layer, gone in (heads or {}).items():
            for head in gone:
                masked.body.layers[layer].attn.Wo.weight[:, head * size : (head + 1) * size] = 0
        for layer, gone in (columns or {}).items():
            masked.body.layers[layer].mlp.Wo.weight[:, list(gone)] = 0
    return masked


@pytest.mark.parametrize("heads", [{0: [1]}, {0: [0, 3], 1: [2], 2: [0, 1, 2]}, {2: []}])
def test_removed_heads_are_silenced_heads(model, batch, heads):
    small = remove_heads(model, heads)
    assert torch.allclose(logits(small, batch), logits(silenced(model, heads=heads), batch), atol=1e-5)
    gone = sum(map(len, heads.values())) * HIDDEN // HEADS
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters()) == 4 * HIDDEN * gone
    if gone:
        assert not torch.allclose(logits(small, batch), logits(model, batch), atol=1e-2)


def test_a_cut_last_layer_can_be_read_at_some_places(model):
    small = remove_heads(model, {2: [0, 1]})
    ids, places = torch.randint(5, 60, (2, 7)), torch.tensor([1, 12, 5])
    everywhere = small.body(ids).last_hidden_state.flatten(0, 1)
    assert torch.allclose(small.body(ids, where=places).last_hidden_state, everywhere[places], atol=1e-6)


def test_heads_may_go_in_two_goes(model, batch):
    at_once = remove_heads(model, {1: [0, 2]})
    in_two = remove_heads(remove_heads(model, {1: [0]}), {1: [1]})  # what was number 2 is number 1 by then
    assert torch.equal(logits(at_once, batch), logits(in_two, batch))


@pytest.mark.parametrize("columns", [{0: [0]}, {0: range(10), 1: range(5, 15), 2: range(14, 24)}, {1: [3, 23, 7]}])
def test_removed_columns_are_silenced_columns(model, batch, columns):
    small = remove_columns(model, columns)
    assert torch.allclose(logits(small, batch), logits(silenced(model, columns=columns), batch), atol=1e-5)
    gone = sum(map(len, columns.values()))
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters()) == 3 * HIDDEN * gone


@pytest.mark.parametrize("layers", [[2], [1], [0], [0, 2], []])
def test_a_removed_layer_adds_nothing(model, batch, layers):
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for number in layers:
            silent.body.layers[number].attn.Wo.weight.zero_()
            silent.body.layers[number].mlp.Wo.weight.zero_()
    small = remove_layers(model, layers)
    assert len(small.body.layers) == 3 - len(layers) == small.body.config.num_hidden_layers
    assert torch.allclose(logits(small, batch), logits(silent, batch), atol=1e-5)


def test_the_original_is_as_it_was(model, batch):
    before, config = logits(model, batch), copy.deepcopy(model.body.config)
    small = remove_layers(remove_columns(remove_heads(model, {0: [1]}), {0: [0], 1: [0], 2: [0]}), [2])
    with torch.no_grad():
        for weight in small.parameters():
            weight.add_(1.0)
    assert torch.equal(logits(model, batch), before)
    assert model.body.config.to_dict() == config.to_dict()


def test_what_is_cut_still_trains(model, examples):
    small = remove_layers(remove_columns(remove_heads(model, {0: [1], 1: [0, 2]}), {0: [0, 5]}), [2])
    losses = fit(small, examples, Settings(steps=40, batch_size=8, learning_rate=3e-3, precision="fp32"))
    assert losses[-1] < 0.7 * losses[0]
    keep = KeepBest(lambda model: 1.0, every=1)
    fit(small, examples, Settings(steps=2, precision="fp32"), on_step=keep)
    keep.restore(small)


EVEN = {0: [1, 2], 1: [0, 23], 2: [7, 9]}


@pytest.mark.parametrize("cut", [
    lambda model: remove_columns(model, EVEN),
    lambda model: remove_layers(model, [2]),
    lambda model: remove_layers(model, [1, 2]),
    lambda model: remove_layers(remove_columns(model, EVEN), [1]),
    lambda model: remove_layers(remove_heads(model, {2: [0]}), [2]),  # the uneven layer went, too
])  # fmt: skip
def test_even_cuts_open_in_stock_transformers(language_model, batch, tmp_path, cut):
    small = cut(language_model)
    small.save_pretrained(tmp_path)
    stock, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(stock).__module__.startswith("transformers.")
    assert stock.config.intermediate_size == small.config.intermediate_size
    assert torch.allclose(logits(stock, batch), logits(small, batch), atol=1e-5)


@pytest.mark.parametrize(("cut", "words"), [
    (lambda model: remove_heads(model, {1: [0]}), "layer 1 has 3 of 4 heads"),
    (lambda model: remove_heads(model, {0: [0], 1: [0], 2: [0]}), "layer 0 has 3 of 4 heads"),
    (lambda model: remove_columns(model, {1: [0]}), r"its MLPs have \[24, 23, 24\] columns"),
    (lambda model: remove_layers(model, [0]), "its first layer has an attn_norm"),
    (lambda model: copy.deepcopy(remove_heads(model, {1: [0]})), "layer 1 has 3 of 4 heads"),
])  # fmt: skip
def test_uneven_cuts_refuse_to_be_saved_and_write_nothing(language_model, tmp_path, cut, words):
    small = cut(language_model)
    for part in (small, small.model):
        with pytest.raises(ValueError, match=words):
            part.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    language_model.save_pretrained(tmp_path / "whole")  # the original still can


@pytest.mark.parametrize(("attempt", "words"), [
    (lambda m: remove_heads(m, {3: [0]}), "layer 3 is not there: the model has layers 0 to 2"),
    (lambda m: remove_columns(m, {-1: [0]}), "layer -1 is not there"),
    (lambda m: remove_heads(m, {0: [4]}), "layer 0 has no number 4; they go from 0 to 3"),
    (lambda m: remove_heads(m, {0: [1, 1]}), "names one twice"),
    (lambda m: remove_heads(m, {0: [0, 1, 2, 3]}), "all 4 of layer 0 would go; keep at least one"),
    (lambda m: remove_columns(m, {2: range(24)}), "all 24 of layer 2 would go; keep at least one"),
    (lambda m: remove_columns(m, {2: [24]}), "layer 2 has no number 24"),
    (lambda m: remove_layers(m, [0, 1, 2]), "all 3 of the model would go; keep at least one"),
    (lambda m: remove_layers(m, [5]), "the model has no number 5"),
    (lambda m: remove_layers(m, [1, 1]), "names one twice"),
    (lambda m: remove_heads(torch.nn.Linear(2, 2), {0: [0]}), "model=Linear holds no sslcourse.models.encoder.Encoder"),
])  # fmt: skip
def test_removals_that_cannot_be(model, attempt, words):
    with pytest.raises(ValueError, match=words):
        attempt(model)


def test_a_model_that_was_cut_or_wrapped_otherwise_is_refused(model, examples):
    broken = copy.deepcopy(model)
    broken.body.layers[1].mlp.Wi = torch.nn.Linear(HIDDEN, 2 * COLUMNS - 2, bias=False)
    for attempt in (lambda: remove_columns(broken, {0: [1]}), lambda: taylor_importance(broken, examples)):
        with pytest.raises(ValueError, match=r"layers\.1: mlp\.Wi has 46 rows and mlp\.Wo 24 columns"):
            attempt()
    adapted = copy.deepcopy(model)
    add_lora(adapted.body, rank=2)
    with pytest.raises(ValueError, match=r"layers\.0\.attn\.Wqkv is a LoRALinear, not a linear map"):
        remove_heads(adapted, {0: [1]})
    with pytest.raises(ValueError, match="output_attentions=True is not there"):
        remove_heads(model, {0: [1]}).body(torch.tensor([[5, 6]]), output_attentions=True)


# --- distillation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_distillation_loss_by_hand(temperature):
    generator = torch.Generator().manual_seed(4)
    student, teacher = (torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    scored = torch.rand(3, 5, generator=generator) > 0.3
    p, q = ((one[scored] / temperature).softmax(-1) for one in (teacher, student))
    want = temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    got = distillation.distillation_loss(student, teacher, scored, temperature)
    assert float(got) == pytest.approx(float(want), rel=1e-12)
    assert float(distillation.distillation_loss(teacher, teacher, scored, temperature)) == 0.0


def test_distilled_mixes_the_two_losses_and_leaves_the_teacher_alone(model, batch):
    student = remove_layers(model, [1, 2])
    known = copy.deepcopy(model.state_dict())
    answer = student(**batch)
    soft = distillation.distillation_loss(answer.logits, model(**batch).logits, batch["labels"] != -100, 3.0)
    for share in (0.0, 0.3, 1.0):
        loss = distilled(model, temperature=3.0, soft_share=share)(student, batch)
        want = float((share * soft + (1 - share) * answer.loss).detach())
        assert float(loss) == pytest.approx(want, rel=1e-6)
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(value, known[name]) for name, value in model.state_dict().items())


def test_a_share_of_one_does_not_read_the_labels(model, batch):
    student = remove_layers(model, [1, 2])
    learn = distilled(model, soft_share=1.0)
    shuffled = {**batch, "labels": torch.where(batch["labels"] == -100, -100, (batch["labels"] + 1) % 3)}
    assert float(learn(student, batch)) == pytest.approx(float(learn(student, shuffled)), rel=1e-6)


def test_a_student_comes_near_its_teacher(model, examples):
    student = remove_layers(model, [2])
    losses = fit(student, examples, Settings(steps=60, batch_size=8, learning_rate=3e-3, precision="fp32"),
                 backward=distilled(model, soft_share=1.0))  # fmt: skip
    assert losses[-1] < 0.3 * losses[0]


def test_one_class_a_text_can_be_distilled_too(language_model, examples):
    texts = [{"input_ids": row["input_ids"], "labels": number % 2} for number, row in enumerate(examples)]
    teacher = SequenceClassifier(language_model.model, 2)
    assert distilled(teacher)(remove_layers(teacher, [0]), collate(texts, 0)) > 0


def test_pupils_that_do_not_fit(model, language_model, batch):
    other = TokenClassifier(copy.deepcopy(language_model.model), 4)
    with pytest.raises(ValueError, match=r"student=TokenClassifier with 4 classes cannot learn .* with 3"):
        distilled(model)(other, batch)
    other = SequenceClassifier(copy.deepcopy(language_model.model), 3)
    with pytest.raises(ValueError, match="student=SequenceClassifier with 3 classes cannot learn"):
        distilled(model)(other, batch)
    words = EncoderForMaskedLM(EncoderConfig(vocab_size=70, hidden_size=HIDDEN, intermediate_size=COLUMNS)).model
    with pytest.raises(ValueError, match="a vocabulary of 60 and student of 70"):
        distilled(model)(TokenClassifier(words, 3), batch)
    with pytest.raises(ValueError, match=r"soft_share=1\.5 is a share"):
        distilled(model, soft_share=1.5)
    with pytest.raises(ValueError, match="teacher=SpanPredictor scores positions"):
        distilled(SpanPredictor(language_model.model))
    here = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"student has logits of shape \(2, 3, 4\) and teacher \(2, 3, 5\)"):
        distillation.distillation_loss(torch.ones(2, 3, 4), torch.ones(2, 3, 5), here)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"temperature={wrong} must be positive and finite"):
            distillation.distillation_loss(torch.ones(2, 3, 4), torch.ones(2, 3, 4), here, wrong)
    with pytest.raises(ValueError, match="scored is false everywhere"):
        distillation.distillation_loss(torch.ones(2, 3, 4), torch.ones(2, 3, 4), ~here)


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 1.0])
def test_bytes_are_what_torch_and_zlib_say(sparsity):
    weight = torch.randn(40, 60, generator=torch.Generator().manual_seed(5))
    weight *= keep_largest({"w": weight.abs()}, sparsity)["w"]
    found = pruning.stored_bytes({"w": weight})
    whole = save({"w": weight})
    assert (found.dense, found.zipped) == (len(whole), len(zlib.compress(whole)))
    rows = weight.to_sparse_csr()
    crow, col = rows.crow_indices().to(torch.int32), rows.col_indices().to(torch.int32)
    assert found.csr == rows.values().nbytes + crow.nbytes + col.nbytes
    assert pruning.csr_bytes(40, 5, index_bytes=8) == 5 * 12 + 41 * 8


def test_kept_energy():
    weights = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([12.0])}
    assert pruning.kept_energy(weights, {"a": torch.tensor([False, True]), "b": torch.tensor([True])}) == 160 / 169


def test_equal_sparsity_costs_2_of_4_more_energy(model):
    weights = prunable(model)
    pattern = {name: n_of_m_mask(weight) for name, weight in weights.items()}
    free = magnitude_masks(weights, 0.5, "layer")
    assert sparsity_of(pattern) == sparsity_of(free) == 0.5
    assert pruning.kept_energy(weights, pattern) < pruning.kept_energy(weights, free)


def test_pruned_weights_still_compute(model, batch):
    weight = model.body.layers[0].mlp.Wi.weight.detach() * n_of_m_mask(model.body.layers[0].mlp.Wi.weight)
    x = torch.randn(7, HIDDEN)
    assert torch.allclose((weight.to_sparse_csr() @ x.T).T, F.linear(x, weight), atol=1e-5)
