"""A start where counting ends: the counts, the vectors, the heads, and the runs that begin so."""

import argparse
import json
import random
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_pretraining import HELD_OUT, RECIPE, TEXTS
from transformers import AutoModelForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from sslcourse.commands import pretrain as pretrain_command
from sslcourse.models import initial_weights
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM
from sslcourse.studies import ladder
from sslcourse.studies.ladder import Rung
from sslcourse.train import loop, loop_across_ranks
from sslcourse.train.loop import pretrain
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import train_step

CONFIG = EncoderConfig(vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)


def some_tokens(count=300, vocab=40, seed=0):
    return torch.randint(5, vocab, (count,), generator=torch.Generator().manual_seed(seed))


def counted_by_hand(tokens, vocab, reach):
    table = torch.zeros(vocab, vocab)
    for here, token in enumerate(tokens):
        for there in range(max(0, here - reach), min(len(tokens), here + reach + 1)):
            if there != here:
                table[token, tokens[there]] += 1 / abs(there - here)
    return table


@pytest.mark.parametrize("at_once", [7, 100, 10**6])
@pytest.mark.parametrize("mapped", [False, True])
def test_counts_are_those_of_two_loops_however_the_text_is_cut(monkeypatch, at_once, mapped):
    monkeypatch.setattr(initial_weights, "AT_ONCE", at_once)
    tokens = some_tokens()
    given = tokens.numpy().astype(np.uint16) if mapped else tokens
    found = initial_weights.neighbour_counts(given, 40, reach=3)
    assert torch.allclose(found, counted_by_hand(tokens.tolist(), 40, 3), atol=1e-4)  # sums of some hundred float32


def test_rare_tokens_are_rows_and_no_columns():
    tokens = torch.cat([some_tokens(400, vocab=20), torch.tensor([33, 34])])
    found = initial_weights.neighbour_counts(tokens, 40, reach=2, contexts=15)
    assert torch.allclose(found, counted_by_hand(tokens.tolist(), 40, 2)[:, 5:20], atol=1e-4)
    assert found[34].sum() == 0.5 * (tokens[-3] < 20)  # its neighbour 33 is rare, too; the one before that is not


def test_no_more_than_the_first_tokens_are_read(monkeypatch):
    monkeypatch.setattr(initial_weights, "MOST", 100)
    monkeypatch.setattr(initial_weights, "AT_ONCE", 50)
    tokens = some_tokens()
    other = torch.cat([tokens[:110], tokens[110:].flip(0)])
    assert torch.equal(initial_weights.neighbour_counts(tokens, 40), initial_weights.neighbour_counts(other, 40))


def test_vectors_have_the_angles_of_the_informations_root():
    counts = counted_by_hand(some_tokens(4000, vocab=20, seed=1).tolist(), 20, 2)[5:, 5:] + 0.5
    context = counts.sum(0) ** 0.75
    information = (counts / counts.sum(1, keepdim=True) / (context / context.sum())).log().clamp_min(0)
    torch.manual_seed(0)
    vectors = initial_weights.token_vectors(counts, len(counts))
    values, turned = torch.linalg.eigh(information.double() @ information.double().T)
    root = turned @ values.clamp_min(0).sqrt().diag() @ turned.T  # u s uᵀ, where the information is u s vᵀ
    angles = root / (root.diagonal()[:, None] * root.diagonal()[None]).sqrt()
    assert torch.allclose(torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1),
                          angles.float(), atol=1e-3)  # fmt: skip
    assert torch.allclose(vectors.pow(2).mean(1).sqrt(), torch.full((15,), initial_weights.SPREAD))


def test_tokens_with_the_same_neighbours_point_the_same_way_and_unseen_ones_somewhere():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(5, 25, (3000, 2), generator=generator)
    middle = torch.where(torch.rand(3000, generator=generator) < 0.5, 30, 31)  # 30 and 31 stand for each other
    middle = torch.where(frames[:, 0] < 15, middle, torch.where(middle == 30, 32, 33))
    tokens = torch.stack([frames[:, 0], middle, frames[:, 1]], dim=1).flatten()
    torch.manual_seed(0)
    vectors = initial_weights.token_vectors(initial_weights.neighbour_counts(tokens, 50, reach=1), 16)
    alike = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    assert alike[30, 31] > 0.8
    assert alike[32, 33] > 0.8
    assert alike[30, 32] < 0.5
    assert 0.5 * initial_weights.SPREAD < vectors[40:].std() < 2 * initial_weights.SPREAD
    assert not torch.equal(vectors[40], vectors[41])


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_prefer_their_neighbour_by_the_contrast_wherever_it_stands(heads):
    config = EncoderConfig(vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=3,
                           num_attention_heads=heads, norm_eps=1e-12)  # fmt: skip
    torch.manual_seed(0)
    model = EncoderForMaskedLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.attn.Wqkv.weight.zero_()  # what the start adds is then all there is
    initial_weights.look_at_neighbours(model)
    with torch.no_grad():
        attentions = model.model(some_tokens(40)[None], output_attentions=True).attentions
    for weights in attentions[: initial_weights.LAYERS]:
        for head in range(heads):
            offset = (head // 2 + 1) * (1 if head % 2 else -1)
            logs = weights[0, head].log()
            rows = torch.arange(8, 32)
            assert bool((weights[0, head][rows].argmax(-1) == rows + offset).all())
            for side in (-1, 1):
                preferred = logs[rows, rows + offset] - logs[rows, rows + offset + side]
                assert torch.allclose(preferred, torch.tensor(initial_weights.CONTRAST), atol=1e-3)
    assert torch.allclose(attentions[-1], torch.tensor(1 / 40))  # the last layer begins as ever
    assert not any(bool(one.any()) for one in model.model.layers[-1].attn.Wqkv.weight)


def test_a_model_on_another_device_is_started_there():
    """No GPU is needed to see that nothing is mixed: on "meta" there are shapes and devices alone."""
    model = EncoderForMaskedLM(CONFIG).to("meta")
    initial_weights.look_at_neighbours(model)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


def test_what_tokens_share_changes_no_score():
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(50, 64) * 0.02)
    common = initial_weights.give_in_common(table, pad=0)
    assert float(common @ common) == pytest.approx(1)
    assert not bool(table[0].any())
    normalised = torch.nn.functional.layer_norm(table[1:], (64,), eps=1e-12)
    assert torch.allclose(normalised @ common, torch.tensor(initial_weights.SHARE * 64**0.5), atol=1e-4)
    assert torch.allclose(table[1:] @ common, (table[1:] @ common).mean(), rtol=0.5)


def test_the_stock_class_begins_with_the_same_weights():
    stock = ModernBertForMaskedLM(ModernBertConfig(**{**CONFIG.to_dict(), "sparse_prediction": True}))
    ours = EncoderForMaskedLM(CONFIG)
    stock.load_state_dict(ours.state_dict())
    for model in (ours, stock):
        torch.manual_seed(3)
        initial_weights.start_at_neighbours(model, some_tokens())
    before, after = EncoderForMaskedLM(CONFIG).state_dict(), stock.state_dict()
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, after[name]), name
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("tok_embeddings" in name for name in changed)


@pytest.mark.parametrize(("what", "table", "heads"), [("table", True, False), ("heads", False, True)])
def test_each_half_alone(what, table, heads):
    torch.manual_seed(0)
    model = EncoderForMaskedLM(CONFIG)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    initial_weights.start_at_neighbours(model, some_tokens(), what)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert any("Wqkv" in name for name in changed) == heads
    embedding = model.get_input_embeddings().weight.detach()
    if table:
        assert torch.allclose(embedding.pow(2).mean(1).sqrt()[5:40], torch.tensor(initial_weights.SPREAD), rtol=1e-3)
    else:  # the rows as they were drawn, and what all have in common beside them
        rows, drawn = embedding[1:], before["model.embeddings.tok_embeddings.weight"][1:]
        alike = torch.nn.functional.cosine_similarity(rows, drawn).mean()
        assert float(alike) == pytest.approx((1 - initial_weights.SHARE**2) ** 0.5, abs=0.05)


# --- runs that begin so ----------------------------------------------------------------------------------------------

BEGINS = replace(RECIPE, start="neighbours")
OPTIONS = {"steps": 30, "evaluations": 3, "progress": False}


def test_a_run_is_repeatable_and_opens_in_the_stock_class(tmp_path):
    in_memory = pretrain(TEXTS, HELD_OUT, BEGINS, **OPTIONS)
    mapped = pretrain(TEXTS, HELD_OUT, BEGINS, out=tmp_path / "run", **OPTIONS)
    for one, other in zip(in_memory.model.parameters(), mapped.model.parameters(), strict=True):
        assert torch.equal(one, other)
    plain = pretrain(TEXTS, HELD_OUT, RECIPE, **OPTIONS)
    assert not torch.equal(next(plain.model.parameters()), next(mapped.model.parameters()))
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path / "run").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.allclose(stock(input_ids=ids).logits, mapped.model(input_ids=ids).logits, atol=1e-4)


def test_a_resumed_run_does_not_begin_again(tmp_path, monkeypatch):
    whole = pretrain(TEXTS, HELD_OUT, BEGINS, **OPTIONS)
    step, calls = train_step, []

    def asked(*given):
        calls.append(1)
        if len(calls) == 13:
            signal.raise_signal(signal.SIGTERM)  # a job in the background ignores SIGINT
        return step(*given)

    monkeypatch.setattr(loop, "train_step", asked)
    with pytest.raises(loop.Interrupted):
        pretrain(TEXTS, HELD_OUT, BEGINS, out=tmp_path / "run", **OPTIONS)
    monkeypatch.setattr(loop, "start_at_neighbours", lambda *_: pytest.fail("it has begun already"))
    resumed = pretrain(TEXTS, HELD_OUT, BEGINS, out=tmp_path / "run", resume=True, **OPTIONS)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_counting_is_on_the_clock(monkeypatch):
    ticks = iter(range(0, 10**6, 2))  # a clock that shows two seconds more whenever somebody looks
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(ticks))
    tokens = some_tokens()
    model = EncoderForMaskedLM(CONFIG)
    assert loop.started(model, tokens, replace(BEGINS, vocab_size=50)) == 2
    assert loop.started(model, tokens, replace(RECIPE, vocab_size=50)) == 0
    run = pretrain(TEXTS, HELD_OUT, BEGINS, minutes=5 / 60, evaluations=1, progress=False)
    assert (run.history[-1]["step"], run.history[-1]["seconds"]) == (2, 6)  # two to count, two a step
    with pytest.raises(ValueError, match=r"minutes=0\.03.*start='neighbours' alone took 2\.0 seconds.*start='width'"):
        pretrain(TEXTS, HELD_OUT, BEGINS, minutes=0.03, evaluations=1, progress=False)


def test_it_learns_sooner_where_neighbours_tell():
    """Each word has one successor. The starts lie 1.1 to 1.5 nats apart after 80 steps, the two seeds 0.3."""
    names = [first + rest for first in "bdfgklmn" for rest in ("ar", "el", "ot", "un", "is")]
    chain = random.Random(1).sample(names, len(names))
    begins = random.Random(2).choices(range(len(chain)), k=400)
    texts = [" ".join(chain[(begin + at) % len(chain)] for at in range(12)) for begin in begins]
    recipe = Recipe(vocab_size=120, hidden_size=32, intermediate_size=32, layers=2, sequence_length=32, batch_size=8)
    for seed in (0, 1):
        at_neighbours, by_width = (
            pretrain(texts[:350], texts[350:], replace(recipe, seed=seed, start=start), steps=80, evaluations=1,
                     progress=False).loss for start in ("neighbours", "width"))  # fmt: skip
        assert at_neighbours < by_width - 0.7, seed


def test_the_command_offers_every_start():
    """It does not read them off the recipe, since that would import torch before a wrong path is named."""
    parser = argparse.ArgumentParser()
    pretrain_command.add_arguments(parser)
    for start_name in Recipe.STARTS:
        assert parser.parse_args(["--text", "a", "--out", "b", "--start", start_name]).start == start_name


def test_the_command_passes_it_on(tmp_path):
    from sslcourse.commands.command_line import main

    source = tmp_path / "text.txt"
    source.write_text("\n\n".join(TEXTS), encoding="utf-8")
    assert main(["pretrain", "--text", str(source), "--out", str(tmp_path / "out"), "--steps", "3", "--hidden-size",
                 "64", "--layers", "1", "--vocab-size", "120", "--sequence-length", "16", "--batch-size", "4",
                 "--start", "heads"]) == 0  # fmt: skip
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["start"] == "heads"


def test_a_start_depends_on_its_seed_alone():
    drawn = EncoderForMaskedLM(CONFIG).state_dict()
    found = []
    for seed, elsewhere in ((0, 1), (0, 2), (3, 2)):
        model = EncoderForMaskedLM(CONFIG)
        model.load_state_dict(drawn)
        torch.manual_seed(elsewhere)
        loop.started(model, some_tokens(), replace(BEGINS, seed=seed))
        assert torch.initial_seed() == elsewhere
        found.append(model.get_input_embeddings().weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_the_ladder_climbs_from_there(monkeypatch):
    lines = [f"the river {name} is {100 + at} km long" for at in range(60) for name in ("alba", "borma", "cella")]
    text = ladder.Text.of(lines[:160], lines[160:], vocab_size=300, length=32)
    size = {"hidden_size": 32, "intermediate_size": 32, "layers": 2, "sequence_length": 32, "batch_size": 8}
    begins = Rung(**size, start="neighbours")
    assert ladder.climb(begins, text, seconds=1.0, looks=2).steps > 0
    monkeypatch.setattr(ladder, "started", lambda *_: 99.9)
    whole = ladder.climb(begins, text, seconds=100.0, looks=1)  # a tenth of a second is left to train
    assert whole.points[-1][0] >= 100
    assert whole.steps < 100
    late = ladder.climb(begins, text, seconds=50.0, looks=3)  # the start alone took longer
    assert (late.steps, len(late.points)) == (1, 1)
    assert late.tokens_per_second > 0
    with pytest.raises(ValueError, match=r"start='heads' needs body='prenorm'"):
        Rung(body="bert", start="heads")


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="start='counts' is unknown; choose width, table, heads, neighbours"):
        Recipe(start="counts")
    with pytest.raises(ValueError, match="start='library' is unknown"):
        Recipe(start="library")
    with pytest.raises(ValueError, match=r"start='table' is for one process.*choose width"):
        loop_across_ranks.pretrain(
            ["a"], ["b"], Recipe(start="table"), ranks=SimpleNamespace(world=2), out=tmp_path, steps=1
        )
