"""Masking: the contract of mask_tokens, its distribution, the other ways to select, packing and isolation.

Statistical tests raise a false alarm with probability ALARM or less, and draw from fixed seeds besides.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.utils.data import DataLoader

from sslcourse.data import packing, tokenizer
from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM
from sslcourse.objectives import masking
from sslcourse.objectives.masking import mask_tokens

ALARM = 1e-6
V, MASK = 200, 4
RULES = {"vocab_size": V, "mask_token_id": MASK}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(*shape: int, seed: int = 0, dtype: torch.dtype = torch.int64) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with special tokens among them, and the mask of the special ones."""
    ids = torch.randint(0, V, shape, generator=seeded(seed)).to(dtype)
    return ids, ids <= MASK


def p_value(observed, probabilities) -> float:
    observed, probabilities = (torch.as_tensor(x, dtype=torch.float64) for x in (observed, probabilities))
    expected = observed.sum() * probabilities
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(observed) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


# --- mask_tokens: the contract ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64,), (8, 32), (2, 4, 16)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_shapes_dtypes_labels_and_the_callers_tensors(shape, dtype):
    ids, special = batch(*shape, dtype=dtype)
    before = ids.clone(), special.clone()
    inputs, labels = mask_tokens(ids, special_tokens_mask=special, mask_rate=0.5, **RULES)
    assert torch.equal(ids, before[0])
    assert torch.equal(special, before[1])
    assert inputs.shape == labels.shape == ids.shape
    assert inputs.dtype == labels.dtype == dtype
    assert len({ids.data_ptr(), inputs.data_ptr(), labels.data_ptr()}) == 3
    scored = labels != IGNORE
    assert scored.any()
    assert not (scored & special).any()
    assert torch.equal(labels[scored], ids[scored])
    assert torch.equal(inputs[~scored], ids[~scored])


def test_input_that_is_not_contiguous():
    ids, special = batch(32, 8)
    inputs, labels = mask_tokens(ids.T, special_tokens_mask=special.T, mask_rate=0.5, **RULES)
    scored = labels != IGNORE
    assert torch.equal(labels[scored], ids.T[scored])
    assert torch.equal(inputs[~scored], ids.T[~scored])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_special_tokens_mask_may_be_boolean_or_ones_and_zeros(dtype):
    ids, special = batch(8, 32)
    _, labels = mask_tokens(ids, special_tokens_mask=special.to(dtype), mask_rate=1.0, **RULES)
    assert torch.equal(labels == IGNORE, special)


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0.0), (1.0, 1.0), (0, 0.0), (1, 1.0)])
def test_mask_rate_0_and_1_are_exact(rate, share):
    ids, _ = batch(50, 100)
    inputs, labels = mask_tokens(ids, special_tokens_mask=None, mask_rate=rate, **RULES)
    assert float((labels != IGNORE).float().mean()) == share
    if not rate:
        assert torch.equal(inputs, ids)


@pytest.mark.parametrize("shape", [(0,), (0, 16), (4, 0)])
def test_empty_batch(shape):
    ids, special = batch(*shape)
    inputs, labels = mask_tokens(ids, special_tokens_mask=special, **RULES)
    assert inputs.shape == labels.shape == shape


@pytest.mark.parametrize("name", ["mask_rate", "mask_prob", "random_prob"])
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, -math.inf])
def test_rates_outside_0_to_1_are_refused_by_name(name, value):
    ids, _ = batch(2, 8)
    with pytest.raises(ValueError, match=name):
        mask_tokens(ids, special_tokens_mask=None, **RULES, **{name: value})


def test_probabilities_that_sum_to_more_than_1_are_refused():
    ids, _ = batch(2, 8)
    with pytest.raises(ValueError, match="sum to more than 1"):
        mask_tokens(ids, special_tokens_mask=None, mask_prob=0.8, random_prob=0.21, **RULES)
    mask_tokens(ids, special_tokens_mask=None, mask_prob=0.9, random_prob=0.1, **RULES)
    mask_tokens(ids, special_tokens_mask=None, mask_prob=0.9, random_prob=0.1 + 1e-12, **RULES)  # rounding, no mistake


def test_vocabulary_of_special_tokens_only_is_refused():
    ids = torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="special"):
        mask_tokens(ids, special_tokens_mask=None, vocab_size=5, mask_token_id=4)


def test_the_generator_decides_and_the_global_state_is_left_alone():
    ids, special = batch(16, 64)
    before = torch.get_rng_state()
    first, again, other = (
        mask_tokens(ids, special_tokens_mask=special, generator=seeded(seed), **RULES) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_without_a_generator_two_calls_differ_and_manual_seed_repeats_them():
    ids, special = batch(16, 64)
    torch.manual_seed(3)
    first = mask_tokens(ids, special_tokens_mask=special, **RULES)[1]
    assert not torch.equal(first, mask_tokens(ids, special_tokens_mask=special, **RULES)[1])
    torch.manual_seed(3)
    assert torch.equal(first, mask_tokens(ids, special_tokens_mask=special, **RULES)[1])


# --- mask_tokens: which replacements ----------------------------------------------------------------------------------


def replaced_by(special_ids, mask_token_id=MASK, vocab_size=20) -> set[int]:
    """Ids that the random branch draws, from very many draws."""
    ids = torch.full((20_000,), mask_token_id)
    rules = {"vocab_size": vocab_size, "mask_token_id": mask_token_id, "special_ids": special_ids}
    inputs, _ = mask_tokens(
        ids, special_tokens_mask=None, mask_rate=1, mask_prob=0, random_prob=1, generator=seeded(), **rules
    )
    return set(inputs.tolist())


def test_by_default_every_id_up_to_mask_is_never_drawn():
    assert replaced_by(None) == set(range(5, 20))


@pytest.mark.parametrize(
    ("special_ids", "mask_token_id", "want"),
    [
        ([0, 1, 2, 3, 4], 4, set(range(5, 20))),
        ([0, 7, 19], 7, set(range(20)) - {0, 7, 19}),  # scattered, the last id among them
        ([19], 19, set(range(19))),
        ([], 3, set(range(20)) - {3}),  # [MASK] itself never, even if it is not listed
        ([2, 2, 100, -100], 2, set(range(20)) - {2}),  # repeated, and outside the vocabulary
        (torch.tensor([0, 1, 1]), 0, set(range(2, 20))),
    ],
)
def test_explicit_special_ids_are_never_drawn(special_ids, mask_token_id, want):
    assert replaced_by(special_ids, mask_token_id) == want


@pytest.mark.parametrize("special_ids", [None, [0, 50, 199]])
def test_random_replacements_are_uniform(special_ids):
    ids = torch.zeros(100_000, dtype=torch.int64)
    inputs, _ = mask_tokens(ids, special_tokens_mask=None, special_ids=special_ids, mask_rate=1, mask_prob=0,
                            random_prob=1, generator=seeded(1), **RULES)  # fmt: skip
    special = set(range(5)) if special_ids is None else {MASK, *special_ids}
    counts = torch.bincount(inputs, minlength=V)[[i for i in range(V) if i not in special]]
    assert int(counts.sum()) == len(ids)
    assert p_value(counts, torch.full((len(counts),), 1 / len(counts))) > ALARM


def counts_of_classes(ids, inputs, labels) -> list[int]:
    scored = labels != IGNORE
    masked, same = scored & (inputs == MASK), scored & (inputs == ids)
    return [int(x.sum()) for x in (~scored, masked, scored & ~masked & ~same, same)]


def law(rate, mask, drawn) -> list[float]:
    changed = drawn * (1 - 1 / (V - 5))
    return [1 - rate, rate * mask, rate * changed, rate * (1 - mask - changed)]


@pytest.mark.parametrize("rates", [(0.15, 0.8, 0.1), (0.3, 0.5, 0.4), (0.4, 0.1, 0.8)])
def test_the_four_classes_have_their_probabilities(rates):
    ids = torch.randint(5, V, (500, 400), generator=seeded(2))
    rate, mask, drawn = rates
    found = mask_tokens(
        ids, special_tokens_mask=None, mask_rate=rate, mask_prob=mask, random_prob=drawn, generator=seeded(3), **RULES
    )
    counts = counts_of_classes(ids, *found)
    assert p_value(counts, law(*rates)) > ALARM
    assert p_value(counts, law(rate, mask - 0.02, drawn)) < ALARM  # the test would notice two points less


def test_no_random_token_when_random_prob_is_0_and_no_mask_when_mask_prob_is_0():
    ids = torch.randint(5, V, (100, 100), generator=seeded(4))
    inputs, labels = mask_tokens(ids, special_tokens_mask=None, mask_prob=0.5, random_prob=0.0, **RULES)
    assert not ((inputs != ids) & (inputs != MASK)).any()
    inputs, labels = mask_tokens(ids, special_tokens_mask=None, mask_prob=0.0, random_prob=0.5, **RULES)
    assert not (inputs == MASK).any()
    assert (labels != IGNORE).any()


def test_positions_are_drawn_independently():
    ids = torch.randint(5, V, (2000, 100), generator=seeded(5))
    scored = mask_tokens(ids, special_tokens_mask=None, generator=seeded(6), **RULES)[1] != IGNORE
    for left, right in ((scored[:, ::2], scored[:, 1::2]), (scored[::2], scored[1::2])):
        pairs = torch.bincount((2 * left.int() + right.int()).flatten(), minlength=4)
        assert p_value(pairs, [0.85**2, 0.85 * 0.15, 0.15 * 0.85, 0.15**2]) > ALARM


def test_corrupt_touches_selected_positions_only():
    ids, _ = batch(8, 32)
    selected = torch.rand(8, 32, generator=seeded(7)) < 0.3
    inputs, labels = masking.corrupt(ids, selected, **RULES)
    assert torch.equal(labels != IGNORE, selected)
    assert torch.equal(inputs[~selected], ids[~selected])


# --- whole words and spans --------------------------------------------------------------------------------------------


def words_of(rows=400, seq=60, seed=0) -> torch.Tensor:
    """Words of 1 to 4 pieces, numbered from 0 in every row, -1 at both ends."""
    start = torch.rand(rows, seq, generator=seeded(seed)) < 0.5
    start |= torch.arange(seq) % 4 == 1
    words = start.cumsum(1) - 1
    words[:, 0] = words[:, -1] = -1
    return words - (words[:, 1:2] * (words >= 0))


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.5, 1.0])
def test_whole_words_are_scored_all_or_not_at_all(rate):
    words = words_of()
    selected = masking.select_whole_words(words, mask_rate=rate, generator=seeded(1))
    assert selected.dtype == torch.bool
    assert not selected[words < 0].any()
    same_word = (words[:, 1:] == words[:, :-1]) & (words[:, 1:] >= 0)
    assert torch.equal(selected[:, 1:][same_word], selected[:, :-1][same_word])
    first = (words >= 0) & torch.cat([torch.ones(len(words), 1).bool(), ~same_word], 1)
    hits, number = int((selected & first).sum()), int(first.sum())
    if rate in (0.0, 1.0):
        assert hits == rate * number
    else:
        assert p_value([hits, number - hits], [rate, 1 - rate]) > ALARM


def test_words_of_the_same_number_in_different_rows_are_drawn_apart():
    words = torch.arange(50).repeat(4000, 1)
    selected = masking.select_whole_words(words, mask_rate=0.5, generator=seeded(2))
    agree = int((selected[::2] == selected[1::2]).sum())
    assert p_value([agree, 100_000 - agree], [0.5, 0.5]) > ALARM


def test_whole_words_of_nothing():
    assert masking.select_whole_words(torch.empty(0, 8, dtype=torch.int64)).shape == (0, 8)
    assert not masking.select_whole_words(torch.full((2, 8), -1), mask_rate=1.0).any()


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.5, 1.0])
def test_spans_fill_their_budget_and_cross_no_special_token(rate):
    special = torch.rand(20, 60, generator=seeded(3)) < 0.1
    selected = masking.select_spans(special, mask_rate=rate, generator=seeded(4))
    assert not (selected & special).any()
    assert selected.sum(1).tolist() == [round(rate * int(n)) for n in (~special).sum(1)]


def test_spans_are_runs_longer_than_single_draws_make():
    special = torch.zeros(200, 100, dtype=torch.bool)
    runs = [
        float(selected.sum() / (selected & ~torch.cat([torch.zeros(200, 1).bool(), selected[:, :-1]], 1)).sum())
        for selected in (masking.select_spans(special, generator=seeded(5)),
                         masking.select_tokens(special.long(), None, generator=seeded(5)))
    ]  # fmt: skip
    assert runs[0] > 2.2  # 3 on average, cut at 10, at borders and at the budget
    assert runs[1] < 1.3


def test_spans_of_an_all_special_row():
    assert not masking.select_spans(torch.ones(2, 8, dtype=torch.bool), mask_rate=1.0).any()


@pytest.mark.parametrize("wrong", [{"mean_length": 0.5}, {"mean_length": math.nan}, {"max_length": 0}])
def test_span_lengths_under_1_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        masking.select_spans(torch.zeros(2, 8, dtype=torch.bool), **wrong)


@pytest.mark.parametrize(
    "select",
    [
        lambda rate: masking.select_tokens(torch.zeros(2, 8).long(), None, mask_rate=rate),
        lambda rate: masking.select_whole_words(torch.zeros(2, 8).long(), mask_rate=rate),
        lambda rate: masking.select_spans(torch.zeros(2, 8).bool(), mask_rate=rate),
    ],
)
@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_every_selection_refuses_a_bad_rate(select, rate):
    with pytest.raises(ValueError, match="mask_rate"):
        select(rate)


# --- MaskedLMDataset --------------------------------------------------------------------------------------------------

TEXTS = [f"the river number {i} flows from the north of the country to the south of it" for i in range(40)]


@pytest.fixture(scope="module")
def trained():
    return tokenizer.train(TEXTS, vocab_size=150)


def dataset(trained, **how) -> masking.MaskedLMDataset:
    return masking.MaskedLMDataset(TEXTS, trained, max_length=32, **how)


def test_an_item_has_what_a_model_takes(trained):
    items = dataset(trained, mask_rate=0.5)
    assert len(items) == len(TEXTS)
    item = items[0]
    assert set(item) == {"input_ids", "attention_mask", "labels"}
    assert all(value.shape == (32,) for value in item.values())
    scored = item["labels"] != IGNORE
    assert scored.any()
    assert not scored[item["attention_mask"] == 0].any()
    original = items.encodings["input_ids"][0]
    assert torch.equal(item["labels"][scored], original[scored])
    assert torch.equal(item["input_ids"][~scored], original[~scored])


def labels_of(items) -> torch.Tensor:
    return torch.stack([items[i]["labels"] for i in range(len(items))])


def test_static_masks_stay_and_dynamic_masks_change(trained):
    static, dynamic = dataset(trained, dynamic=False), dataset(trained)
    assert torch.equal(labels_of(static), labels_of(static))
    assert not torch.equal(labels_of(dynamic), labels_of(dynamic))


@pytest.mark.parametrize("dynamic", [True, False])
def test_the_seed_decides(trained, dynamic):
    first, again, other = (dataset(trained, seed=seed, dynamic=dynamic) for seed in (1, 1, 2))
    for _ in range(2):
        epoch = labels_of(first)
        assert torch.equal(epoch, labels_of(again))
        assert not torch.equal(epoch, labels_of(other))


def test_masks_do_not_depend_on_the_order_of_reading(trained):
    forward, backward = dataset(trained), dataset(trained)
    there = [forward[i]["labels"] for i in range(len(TEXTS))]
    back = [backward[i]["labels"] for i in reversed(range(len(TEXTS)))][::-1]
    assert torch.equal(torch.stack(there), torch.stack(back))


def test_items_are_masked_apart(trained):
    items = masking.MaskedLMDataset([TEXTS[0]] * 20, trained, max_length=32)
    assert len({tuple((labels != IGNORE).tolist()) for labels in labels_of(items)}) > 10


def test_indices_as_a_list_has_them(trained):
    items = dataset(trained, dynamic=False)
    assert torch.equal(items[-1]["labels"], items[len(items) - 1]["labels"])
    with pytest.raises(IndexError):
        items[len(items)]


@pytest.mark.parametrize("workers", [0, 2])
def test_dynamic_masks_change_between_epochs_of_a_loader(trained, workers):
    """Workers start each epoch from a fresh copy, which has forgotten what was read."""
    torch.manual_seed(0)
    loader = DataLoader(dataset(trained), batch_size=8, num_workers=workers)
    first, second = (torch.cat([part["labels"] for part in loader]) for _ in range(2))
    assert first.shape == (len(TEXTS), 32)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    again = DataLoader(dataset(trained), batch_size=8, num_workers=workers)
    assert torch.equal(first, torch.cat([part["labels"] for part in again]))


def test_static_masks_are_the_same_with_and_without_workers(trained):
    epochs = [
        torch.cat([part["labels"] for part in DataLoader(dataset(trained, dynamic=False), batch_size=8, num_workers=n)])
        for n in (0, 2)
    ]
    assert torch.equal(*epochs)


@pytest.mark.parametrize("wrong", [{"mask_rate": 1.5}, {"mask_prob": math.nan}, {"mask_prob": 0.9, "random_prob": 0.2}])
def test_bad_rates_are_refused_at_once(trained, wrong):
    with pytest.raises(ValueError, match="mask_"):
        dataset(trained, **wrong)


def test_no_texts_are_refused(trained):
    with pytest.raises(ValueError, match="texts is empty"):
        masking.MaskedLMDataset([], trained)
    with pytest.raises(ValueError, match="texts is one string"):
        masking.MaskedLMDataset("the whole text", trained)


def test_a_tokenizer_without_a_mask_is_refused(trained):
    maskless = copy.deepcopy(trained)
    maskless.mask_token = None
    with pytest.raises(ValueError, match="tokenizer has no mask token"):
        masking.MaskedLMDataset(["some text"], maskless)


# --- packing ----------------------------------------------------------------------------------------------------------

IDS = {"cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}


@pytest.mark.parametrize("lengths", [[1], [6], [3, 40, 5], [6, 6, 6], [0, 4], [100]])
@pytest.mark.parametrize("length", [3, 8, 64])
def test_packing_loses_no_token(lengths, length):
    documents = [list(range(10 * i + 10, 10 * i + 10 + n)) for i, n in enumerate(lengths)]
    ids, owner = packing.pack(documents, length, **IDS)
    assert ids.shape == owner.shape
    assert ids.shape[1] == length
    flat, numbers = ids.flatten(), owner.flatten()
    for number, document in enumerate(documents):
        assert flat[numbers == number].tolist() == [2, *document, 3]
    assert (flat[numbers == -1] == 0).all()
    assert int((numbers == -1).sum()) < length
    assert numbers[: int((numbers >= 0).sum())].tolist() == sorted(n for n in numbers.tolist() if n >= 0)


def test_packing_refuses_what_cannot_be_packed():
    with pytest.raises(ValueError, match="length=2"):
        packing.pack([[5]], 2, **IDS)
    with pytest.raises(ValueError, match="documents is empty"):
        packing.pack([], 8, **IDS)


def test_packing_takes_an_iterator_and_leaves_lists_alone():
    documents = [[5, 6], [7]]
    packing.pack(iter(documents), 4, **IDS)
    assert documents == [[5, 6], [7]]


def test_isolation_mask_and_positions():
    owner = torch.tensor([[0, 0, 1, 1, 1, -1], [1, 2, 2, 3, 3, 3]])
    mask = packing.isolation_mask(owner)
    assert mask.shape == (2, 1, 6, 6)
    assert mask.dtype == torch.bool
    for row in range(2):
        for query in range(6):
            for key in range(6):
                assert bool(mask[row, 0, query, key]) == (owner[row, query] == owner[row, key])
    assert mask.any(-1).all()  # a query that may read nothing gives nan
    assert packing.restart_positions(owner).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 1, 0, 1, 2]]


@pytest.fixture(scope="module")
def model():
    """An encoder whose attention matters: output projections start at zero, and then nothing could leak."""
    torch.manual_seed(0)
    found = EncoderForMaskedLM(EncoderConfig(vocab_size=V, hidden_size=64, intermediate_size=128)).eval()
    for name, weight in found.named_parameters():
        if name.endswith("Wo.weight"):
            torch.nn.init.normal_(weight, std=0.1)
    return found


@pytest.fixture(scope="module")
def packed():
    documents = [torch.randint(5, V, (n,), generator=seeded(n)).tolist() for n in (12, 20, 9)]
    ids, owner = packing.pack(documents, 48, **IDS)
    return documents, ids, owner


@torch.no_grad()
def neighbours_moved(model, packed, **how) -> float:
    _, ids, owner = packed
    changed = torch.where((owner == 1) & (ids > 4), 5 + (ids + 17) % (V - 5), ids)
    difference = (model(ids, **how).logits - model(changed, **how).logits).abs().amax(-1)
    assert difference[owner == 1].max() > 0.1  # what was changed does move
    return float(difference[(owner != 1) & (owner >= 0)].max())


def test_isolated_documents_do_not_read_each_other(model, packed):
    owner = packed[2]
    assert neighbours_moved(model, packed, attention_mask=packing.isolation_mask(owner)) <= 1e-6


def test_restarted_positions_alone_leak(model, packed):
    assert neighbours_moved(model, packed) > 1e-3
    assert neighbours_moved(model, packed, position_ids=packing.restart_positions(packed[2])) > 1e-3


@torch.no_grad()
def test_a_packed_document_gives_what_it_gives_alone(model, packed):
    documents, ids, owner = packed
    together = model(ids, attention_mask=packing.isolation_mask(owner)).logits
    assert together.isfinite().all()
    for number, document in enumerate(documents):
        alone = model(torch.tensor([[2, *document, 3]])).logits[0]
        torch.testing.assert_close(together[owner == number], alone, rtol=0, atol=1e-4)


def test_padding_share():
    assert packing.padding_share([4, 8, 16], 8) == pytest.approx(4 / 24)
    assert packing.padding_share([8], 8) == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_ids_of_a_type_that_cannot_hold_labels_are_refused(dtype):
    with pytest.raises(ValueError, match="dtype"):
        masking.mask_tokens(torch.full((2, 8), 9).to(dtype), special_tokens_mask=None, vocab_size=50, mask_token_id=4)
