"""The contract of ``sslcourse.objectives.entropy_floor``: the scored posterior is exact, and its loss is a floor."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sslcourse.objectives.entropy_floor import MarkovSource, random_transition, stationary
from sslcourse.objectives.masking import mask_tokens

CHAINS = {
    "dense": [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]],
    "two tokens": [[0.9, 0.1], [0.4, 0.6]],
    "forbidden steps": [[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.2, 0.8, 0.0]],
    "absorbing": [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]],
    "cycle": [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]],
}
RATES = {
    "15 %, 80/10/10": {"mask_rate": 0.15, "mask_prob": 0.8, "random_prob": 0.1},
    "all selected": {"mask_rate": 1.0, "mask_prob": 0.8, "random_prob": 0.1},
    "no random": {"mask_rate": 0.3, "mask_prob": 0.8, "random_prob": 0.0},
    "no mask": {"mask_rate": 0.4, "mask_prob": 0.0, "random_prob": 0.5},
    "nothing kept": {"mask_rate": 0.4, "mask_prob": 0.7, "random_prob": 0.3},
    "masks only": {"mask_rate": 0.4, "mask_prob": 1.0, "random_prob": 0.0},
    "random only": {"mask_rate": 0.4, "mask_prob": 0.0, "random_prob": 1.0},
}


def chain(name: str) -> MarkovSource:
    transition = torch.tensor(CHAINS[name], dtype=torch.float64)
    size = len(transition)
    return MarkovSource(transition, initial=torch.full((size,), 1 / size))  # every text can start everywhere


def corrupted(source: MarkovSource, n: int, length: int, seed: int = 0, **rates: float):
    generator = torch.Generator().manual_seed(seed)
    size = source.vocab_size
    return mask_tokens(source.sample(n, length, generator), special_tokens_mask=None, vocab_size=size + 1,
                       mask_token_id=size, special_ids=[size], generator=generator, **rates)


def enumerated(source, seen, mask_rate, mask_prob, random_prob, scored=True):
    """[length, V]: sums over every text and every selection; NaN where the condition has probability 0."""
    size, length = source.vocab_size, len(seen)
    joint = torch.zeros(length, size, dtype=torch.float64)
    for text in itertools.product(range(size), repeat=length):
        prior = source.initial[text[0]].item()
        prior *= math.prod(source.transition[a, b].item() for a, b in itertools.pairwise(text))
        for chosen in itertools.product((False, True), repeat=length):
            p = prior
            for token, shown, is_chosen in zip(text, seen, chosen, strict=True):
                kept = (1 - mask_prob - random_prob) * (shown == token)
                if_chosen = mask_prob if shown == size else kept + random_prob / size
                p *= mask_rate * if_chosen if is_chosen else (1 - mask_rate) * (shown == token)
            for i, token in enumerate(text):
                if chosen[i] or not scored:
                    joint[i, token] += p
    return joint / joint.sum(-1, keepdim=True)


# --- exact ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scored", [True, False], ids=["scored", "other reading"])
@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("name", CHAINS)
def test_posterior_is_the_enumerations(name, rates, scored):
    source = chain(name)
    inputs, _ = corrupted(source, 4, 4, seed=1, **RATES[rates])
    posterior = source.masked_posterior(inputs, **RATES[rates], scored=scored)
    assert posterior.shape == (4, 4, source.vocab_size)
    assert posterior.dtype == torch.float64
    assert torch.allclose(posterior.sum(-1), torch.ones(4, 4, dtype=torch.float64))
    for row, got in zip(inputs, posterior, strict=True):
        want = enumerated(source, row.tolist(), **RATES[rates], scored=scored)
        can_be_scored = ~want.isnan().any(-1)
        assert torch.allclose(got[can_be_scored], want[can_be_scored], rtol=0, atol=1e-12)


def test_every_input_of_a_small_chain():
    source = MarkovSource(random_transition(2, concentration=0.7, generator=torch.Generator().manual_seed(0)))
    rates = RATES["15 %, 80/10/10"]
    inputs = torch.tensor(list(itertools.product(range(3), repeat=4)))
    want = torch.stack([enumerated(source, row, **rates) for row in inputs.tolist()])
    assert (source.masked_posterior(inputs) - want).abs().max() <= 1e-12


def test_a_position_that_cannot_be_scored_holds_what_is_seen():
    source = chain("dense")
    posterior = source.masked_posterior(torch.tensor([[0, 3, 2]]), mask_prob=1.0, random_prob=0.0)
    assert posterior[0, 0].tolist() == [1, 0, 0]
    assert posterior[0, 2].tolist() == [0, 0, 1]


def test_floor_with_masks_only():
    rates = RATES["masks only"]
    source = chain("dense")
    inputs, labels = corrupted(source, 50, 10, **rates)
    assert 0 < source.floor(inputs, labels, **rates) < math.log(3)


def test_one_masked_position_alone_is_the_initial_distribution():
    source = MarkovSource(torch.tensor(CHAINS["dense"]), initial=torch.tensor([0.7, 0.2, 0.1]))
    posterior = source.masked_posterior(torch.tensor([[3]]))
    assert torch.allclose(posterior[0, 0], source.initial)


def test_long_texts_do_not_underflow():
    source = MarkovSource(random_transition(20, concentration=0.05, generator=torch.Generator().manual_seed(0)))
    inputs, labels = corrupted(source, 2, 5000)
    posterior = source.masked_posterior(inputs)
    assert torch.isfinite(posterior).all()
    assert torch.allclose(posterior.sum(-1), torch.ones(2, 5000, dtype=torch.float64))
    assert math.isfinite(source.floor(inputs, labels))
    assert torch.isfinite(source.masked_posterior(torch.full((1, 5000), 20))).all()


def test_calls_change_nothing():
    source = chain("dense")
    inputs, labels = corrupted(source, 20, 8)
    before = inputs.clone(), labels.clone(), source.transition.clone(), source.initial.clone()
    source.floor(inputs, labels)
    for now, then in zip((inputs, labels, source.transition, source.initial), before, strict=True):
        assert torch.equal(now, then)


# --- a floor ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_sample():
    source = MarkovSource(random_transition(6, concentration=0.3, generator=torch.Generator().manual_seed(2)))
    inputs, labels = corrupted(source, 6000, 16, seed=3)
    return source, inputs, labels


def losses(distribution: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    scored = labels != -100
    return -distribution[scored].gather(-1, labels[scored][:, None]).squeeze(-1).log()


def z_score(differences: torch.Tensor) -> float:
    return (differences.mean() / (differences.std() / math.sqrt(len(differences)))).item()


def test_floor_is_the_mean_of_its_losses(large_sample):
    source, inputs, labels = large_sample
    each = source.floor_losses(inputs, labels)
    assert torch.allclose(each, losses(source.masked_posterior(inputs), labels))
    assert source.floor(inputs, labels) == pytest.approx(each.mean().item(), abs=1e-12)


def test_scored_posterior_is_calibrated_where_it_is_scored(large_sample):
    """Of the scored positions given probability about p, a share of about p holds the token; within 4.5 deviations."""
    source, inputs, labels = large_sample
    scored = labels != -100
    visible = scored & (inputs != source.vocab_size)
    for where in (scored, visible):  # the visible ones are where the two readings differ
        predicted = source.masked_posterior(inputs)[where].flatten()
        happened = torch.nn.functional.one_hot(labels[where], source.vocab_size).flatten().double()
        for low in torch.arange(0, 1, 0.1).tolist():
            group = (predicted >= low) & (predicted < low + 0.1)
            if int(group.sum()) < 50:
                continue
            deviation = (predicted[group] * (1 - predicted[group])).sum().sqrt()
            assert abs((happened[group] - predicted[group]).sum()) < 4.5 * deviation + 1


def test_other_reading_is_not_calibrated_and_not_a_bound(large_sample):
    source, inputs, labels = large_sample
    honest = source.floor_losses(inputs, labels)  # it uses the inputs and nothing else
    other = losses(source.masked_posterior(inputs, scored=False), labels)
    assert honest.mean() < other.mean()
    assert z_score(honest - other) < -6


def test_no_other_distribution_is_below_the_floor(large_sample):
    """The exact posterior, bent in several ways, only loses."""
    source, inputs, labels = large_sample
    posterior = source.masked_posterior(inputs)
    floor = losses(posterior, labels)
    bent = {
        "sharper": posterior**1.3,
        "flatter": posterior**0.7,
        "smoothed": posterior + 0.03,
        "other corruption": source.masked_posterior(inputs, random_prob=0.02),
        "other rate": source.masked_posterior(inputs, mask_rate=0.6),
        "unigram": source.initial.expand_as(posterior),
    }
    for name, distribution in bent.items():
        assert z_score(losses(distribution / distribution.sum(-1, keepdim=True), labels) - floor) > 2, name


def test_a_leak_dips_below(large_sample):
    source, inputs, labels = large_sample
    texts = torch.where(labels != -100, labels, inputs)
    leaky = torch.where(torch.arange(len(inputs))[:, None] % 4 == 0, texts, inputs)
    differences = losses(source.masked_posterior(leaky), labels) - source.floor_losses(inputs, labels)
    assert z_score(differences) < -6


# --- the source -------------------------------------------------------------------------------------------------------


def test_sample_follows_the_chain():
    source = MarkovSource(torch.tensor(CHAINS["dense"]))
    ids = source.sample(4000, 12, torch.Generator().manual_seed(0))
    assert ids.shape == (4000, 12)
    assert ids.dtype == torch.long
    counts = torch.zeros(3, 3, dtype=torch.float64)
    for before, after in itertools.product(range(3), repeat=2):
        counts[before, after] = ((ids[:, :-1] == before) & (ids[:, 1:] == after)).sum()
    assert torch.allclose(counts / counts.sum(-1, keepdim=True), source.transition, atol=0.02)
    for t in (0, 11):
        assert torch.allclose(torch.bincount(ids[:, t], minlength=3) / 4000.0, source.initial.float(), atol=0.04)


def test_sample_is_reproducible():
    source = chain("dense")
    first, second = (source.sample(5, 9, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, source.sample(5, 9, torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("name", CHAINS)
def test_stationary_stays_as_it_is(name):
    transition = torch.tensor(CHAINS[name], dtype=torch.float64)
    p = stationary(transition)
    assert torch.allclose(p @ transition, p, atol=1e-12)
    assert p.sum().item() == pytest.approx(1)
    assert (p >= 0).all()


def test_random_transition_is_a_distribution_and_concentration_sharpens_it():
    generator = torch.Generator().manual_seed(0)
    sharp, flat = (random_transition(30, concentration=c, generator=generator) for c in (0.05, 50))
    for rows in (sharp, flat):
        assert torch.allclose(rows.sum(-1), torch.ones(30, dtype=torch.float64))
    assert sharp.max(-1).values.mean() > 0.4 > 0.1 > flat.max(-1).values.mean()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("transition", "initial", "match"), [
    ([[0.5, 0.5]], None, "square"),
    ([0.5, 0.5], None, "square"),
    ([[0.5, 0.6], [0.5, 0.5]], None, "transition"),
    ([[1.5, -0.5], [0.5, 0.5]], None, "transition"),
    ([[float("nan"), 0.5], [0.5, 0.5]], None, "transition"),
    ([[0.5, 0.5], [0.5, 0.5]], [1.0], "initial"),
    ([[0.5, 0.5], [0.5, 0.5]], [0.5, 0.6], "initial"),
    ([[0.5, 0.5], [0.5, 0.5]], [-0.5, 1.5], "initial"),
])
def test_what_is_not_a_distribution_is_an_error(transition, initial, match):
    with pytest.raises(ValueError, match=match):
        MarkovSource(torch.tensor(transition), None if initial is None else torch.tensor(initial))


@pytest.mark.parametrize("size", [{"n": 0, "length": 3}, {"n": 3, "length": 0}])
def test_empty_samples_are_an_error(size):
    with pytest.raises(ValueError, match="at least 1"):
        chain("dense").sample(**size)


@pytest.mark.parametrize("inputs", [[[0, 4]], [[-1, 0]], [0, 1], [[[0, 1]]], [[]]])
def test_inputs_that_do_not_fit_are_an_error(inputs):
    with pytest.raises(ValueError, match="inputs"):
        chain("dense").masked_posterior(torch.tensor(inputs, dtype=torch.long))


@pytest.mark.parametrize("name", ["mask_rate", "mask_prob", "random_prob"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_rates_that_are_no_probabilities_are_an_error(name, value):
    with pytest.raises(ValueError, match=name):
        chain("dense").masked_posterior(torch.tensor([[0, 3]]), **{name: value})


def test_probabilities_that_sum_to_over_one_are_an_error():
    with pytest.raises(ValueError, match="sum to more than 1"):
        chain("dense").masked_posterior(torch.tensor([[0, 3]]), mask_prob=0.8, random_prob=0.3)


def test_impossible_inputs_are_an_error():
    cycle, masks_only = chain("cycle"), {"mask_prob": 1.0, "random_prob": 0.0}
    with pytest.raises(ValueError, match="cannot come from this source"):
        cycle.masked_posterior(torch.tensor([[0, 0, 3]]), **masks_only)  # 0 is always followed by 1
    with pytest.raises(ValueError, match="cannot come from this source"):
        cycle.masked_posterior(torch.tensor([[0, 3, 2]]), mask_rate=0.0)  # nothing can be masked


@pytest.mark.parametrize(("labels", "match"), [
    ([[-100, -100]], "no masked position"),
    ([[-100, 3]], r"lie in \[0, 3\)"),
    ([[-100, -1]], r"lie in \[0, 3\)"),
    ([[-100]], "differ"),
])
def test_labels_that_do_not_fit_are_an_error(labels, match):
    for function in (chain("dense").floor, chain("dense").floor_losses):
        with pytest.raises(ValueError, match=match):
            function(torch.tensor([[0, 3]]), torch.tensor(labels))


def test_an_impossible_label_is_an_error():
    with pytest.raises(ValueError, match="probability 0"):
        chain("cycle").floor(torch.tensor([[0, 3]]), torch.tensor([[-100, 2]]), mask_prob=1.0, random_prob=0.0)
