"""sslcourse.train.gpu_step: the GPU's step gives the encoder's own loss and gradients; its masks are what it says."""

import pytest
import torch

from sslcourse.data import packing
from sslcourse.data import tokenizer as wordpiece
from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM
from sslcourse.train import gpu_step, token_rows
from sslcourse.train.gpu_step import DeviceTape

MASK, VOCAB = 4, 300


@pytest.fixture(scope="module")
def batch():
    """Four rows of three documents each, with their [CLS] and [SEP], masked."""
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(MASK + 1, VOCAB, (4, 24), generator=dice)
    documents = torch.tensor([0] * 7 + [1] * 9 + [2] * 8).expand(4, -1) + 3 * torch.arange(4)[:, None]
    ids[:, [0, 7, 16]], ids[:, [6, 15, 23]] = 2, 3
    return (*gpu_step.draw_masks(ids, count=6, vocab_size=VOCAB, mask_token_id=MASK, generator=dice), documents)


@pytest.fixture
def model():
    """An encoder whose layers do something: at the start they are the identity."""
    torch.manual_seed(0)
    one = EncoderForMaskedLM(EncoderConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3))
    with torch.no_grad():
        for weight in one.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return one


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("apart", [False, True])
def test_loss_and_gradients_are_the_encoders_own(model, batch, apart):
    inputs, where, targets, documents = batch
    labels = torch.full_like(inputs, IGNORE).flatten().index_copy(0, where, targets).view_as(inputs)
    reads = {"attention_mask": packing.isolation_mask(documents)} if apart else {}
    total, count = model.masked_loss(inputs, labels, **reads)
    theirs, expected = total / count, gradients(model, total / count)
    mask = gpu_step.document_mask(documents) if apart else None
    ours = gpu_step.masked_loss(model, inputs, where, targets, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)  # a mean of 24 terms in another order
    found = gradients(model, ours)
    for name, gradient in expected.items():
        error = float((found[name] - gradient).abs().max())
        assert error <= 1e-5 * float(gradient.abs().max()), name  # sums of some hundred fp32 terms


def test_layers_hand_on_bf16_if_told_and_the_loss_hardly_moves(model, batch):
    inputs, where, targets, _ = batch
    handed_on = []

    def run(layer, x, *others):
        handed_on.append(x.dtype)
        return gpu_step.run_layer(layer, x, *others)

    losses, found = {}, {}
    for stream in (None, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = gpu_step.masked_loss(model, inputs, where, targets, run=run, stream=stream)
        losses[stream], found[stream] = float(loss.detach()), gradients(model, loss)
    assert handed_on == [torch.float32] * 3 + [torch.bfloat16] * 3
    assert losses[torch.bfloat16] == pytest.approx(losses[None], rel=2**-8)  # bf16 rounds to half of that
    for name, gradient in found[None].items():
        error = float((found[torch.bfloat16][name] - gradient).norm() / gradient.norm())
        assert error < 0.05, name  # a dozen roundings of 2**-9, on small differences


@torch.no_grad()  # FlexAttention has no backward pass on a CPU
def test_blocks_are_the_same_mask_and_documents_apart_another_loss_than_together(model, batch):
    inputs, where, targets, documents = batch
    table, blocks = (gpu_step.document_mask(documents, blocks=kind) for kind in (False, True))
    together, by_table, by_blocks = (gpu_step.masked_loss(model, inputs, where, targets, mask)
                                     for mask in (None, table, blocks))  # fmt: skip
    torch.testing.assert_close(by_blocks, by_table, rtol=1e-6, atol=0)
    assert abs(float(together - by_table)) > 1e-3


@pytest.mark.parametrize("apart", [False, True])
@torch.no_grad()
def test_all_layers_and_all_batches_share_what_is_compiled(model, batch, apart):
    inputs, where, targets, documents = batch
    masks = [gpu_step.document_mask(one, blocks=True) if apart else None for one in (documents, documents.flip(1))]
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    run = torch.compile(gpu_step.run_layer, backend=count, dynamic=False, fullgraph=True)
    losses = [gpu_step.masked_loss(model, inputs, where, targets, mask, run) for mask in masks]
    assert len(graphs) == 3  # the first layer, which has no norm before; those between; the last, which is narrow
    gpu_step.masked_loss(model, inputs, where[:12], targets[:12], masks[0], run)
    torch._dynamo.reset()
    assert len(graphs) == 4  # with another number of places only the last layer is another
    for mask, loss in zip(masks, losses, strict=True):
        plain = gpu_step.masked_loss(model, inputs, where, targets, mask)
        torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)


def draw(ids, count, seed=0, **options):
    return gpu_step.draw_masks(ids, count=count, vocab_size=VOCAB, mask_token_id=MASK,
                                  generator=torch.Generator().manual_seed(seed), **options)  # fmt: skip


def test_every_row_has_the_same_number_of_masks_in_places_that_differ():
    ids = torch.randint(MASK + 1, VOCAB, (64, 100))
    inputs, where, targets = draw(ids, 30)
    rows = where // 100
    assert rows.bincount().tolist() == [30] * 64
    assert where.unique().numel() == where.numel()
    assert torch.equal(targets, ids.flatten()[where])
    untouched = torch.ones(ids.numel(), dtype=torch.bool)
    untouched[where] = False
    assert torch.equal(inputs.flatten()[untouched], ids.flatten()[untouched])
    taken = torch.stack([draw(ids, 30, seed)[1].bincount(minlength=6400) for seed in range(60)]).sum(0).float()
    assert abs(float(taken.mean()) - 18) < 1e-6
    expected = (60 * 0.3 * 0.7) ** 0.5
    assert abs(float(taken.std()) - expected) < 0.15 * expected  # binomial: no place is preferred


def test_of_the_masked_eight_in_ten_show_mask_and_one_another_token():
    ids = torch.full((400, 100), VOCAB - 1)
    inputs, where, _ = draw(ids, 50)
    seen = inputs.flatten()[where]
    shares = [float((seen == MASK).float().mean()), float(((seen != MASK) & (seen != VOCAB - 1)).float().mean())]
    random = 0.1 * (1 - 1 / (VOCAB - MASK - 1))  # the original itself is drawn, too
    for share, wanted in zip(shares, (0.8, random), strict=True):
        assert abs(share - wanted) < 5 * (wanted * (1 - wanted) / len(seen)) ** 0.5
    assert int(seen.min()) == MASK
    assert len(seen[(seen != MASK)].unique()) > 0.9 * (VOCAB - MASK - 1)
    everything, _, _ = draw(ids, 50, mask_prob=0.0, random_prob=0.0)
    assert torch.equal(everything, ids)


def test_special_tokens_stay_and_count_for_nothing_also_in_a_row_with_little_else():
    ids = torch.full((2, 12), 3)
    ids[0, :4] = 50
    ids[1] = 60
    inputs, where, targets = draw(ids, 8, mask_prob=1.0, random_prob=0.0)
    assert (inputs[0, :4] == MASK).all()
    assert (inputs[0, 4:] == 3).all()
    assert sorted(targets[where < 12].tolist()) == [IGNORE] * 4 + [50] * 4
    assert int((inputs[1] == MASK).sum()) == 8


@pytest.mark.parametrize("count", [0, 13, -1])
def test_a_count_that_no_row_holds_is_refused(count):
    with pytest.raises(ValueError, match=rf"count={count} masks a row of 12 tokens; choose from 1 to 12"):
        draw(torch.full((2, 12), 50), count)


@pytest.fixture(scope="module")
def documents():
    texts = [f"the river {name} is {100 + at} km long and ends in the sea" for at in range(20)
             for name in ("alba", "borma")]  # fmt: skip
    tokenizer = wordpiece.train(texts, 200)
    return wordpiece.encode(tokenizer, texts), tokenizer


def test_the_tape_on_the_device_is_that_of_pretrain_and_each_epoch_reads_each_row_once(documents):
    ours, theirs = DeviceTape.of(*documents, 16), token_rows.Tape(*documents, 16)
    assert torch.equal(ours.tokens.long(), theirs.tokens)
    assert ours.documents.unique().tolist() == list(range(40))
    starts = ours.tokens == documents[1].cls_token_id
    assert torch.equal(ours.documents.long(), starts.long().cumsum(0) - 1)
    batches = ours.batches(4, torch.Generator().manual_seed(0))
    whole = len(ours.tokens) // 16 // 4
    for _ in range(2):
        read = torch.cat([torch.stack(next(batches), -1) for _ in range(whole)]).flatten(0, 1)  # [token, document]
        seen = read.unique(dim=0, return_counts=True)[1].sum()
        assert int(seen) == whole * 4 * 16
    first = next(ours.batches(4, torch.Generator().manual_seed(0)))
    assert torch.equal(first[0], next(ours.batches(4, torch.Generator().manual_seed(0)))[0])
    assert not torch.equal(first[0], next(ours.batches(4, torch.Generator().manual_seed(1)))[0])


def test_a_tape_that_is_too_short_or_has_too_many_tokens_is_refused(documents):
    with pytest.raises(ValueError, match="less than one row of 100000"):
        DeviceTape.of(*documents, 100_000)
    with pytest.raises(ValueError, match="size=10000 rows a batch, and the tape has"):
        next(DeviceTape.of(*documents, 16).batches(10_000, torch.Generator()))
