"""Every rung of the ladder runs, differs from the one below by its own change, and is measured as it says."""

import itertools
import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks import ladder as bench
from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import EncoderForMaskedLM
from sslcourse.studies import ladder
from sslcourse.studies.ladder import ARTICLE, LADDER, Batch, Rung, Text, Track
from sslcourse.train.recipe import Recipe
from sslcourse.train.token_rows import Tape

SMALL = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 1, "batch_size": 4, "sequence_length": 32}
CURVE = [(10.0, 6.0), (20.0, 4.0), (30.0, 5.0)]


@pytest.fixture(scope="module")
def text():
    lines = [f"the river {name} is {100 + at} km long and ends in the sea of {name}" for at in range(60)
             for name in ("alba", "borma", "cella")]  # fmt: skip
    return Text.of(lines[:160], lines[160:], vocab_size=300, length=32)


def small(rung, text):
    return replace(rung, **SMALL, vocab_size=len(text.tokenizer))


def test_each_rung_is_the_one_below_with_its_own_change_and_no_other():
    rungs = list(ladder.recipes().values())
    assert len(rungs) == len(LADDER) + 1
    for below, above, change in zip(rungs[:-1], rungs[1:], LADDER, strict=True):
        differing = {name for name, value in asdict(above).items() if value != asdict(below)[name]}
        assert differing == set(change.fields)
        assert change.kind in ("learning", "fewer", "faster")


def test_the_ladder_leads_to_what_pretrain_does_and_then_to_its_start_from_counts():
    *_, by_default, top = ladder.recipes().values()
    for rung, recipe in ((by_default, Recipe()), (top, Recipe(start="neighbours"))):
        plain = asdict(recipe)
        assert {name: value for name, value in asdict(rung).items() if name in plain} == plain
        new = asdict(Rung())
        assert {name: value for name, value in asdict(rung).items() if name not in plain} == {
            name: value for name, value in new.items() if name not in plain
        }


def test_what_is_taken_back_from_the_top_is_as_it_was_below():
    groups, rungs = bench.contestants(), list(ladder.recipes().values())
    top = rungs[-1]
    assert list(groups["climb"].values()) == rungs
    for name, without in groups["without"].items():
        at = [change.name for change in LADDER].index(name)
        for field, value in asdict(without).items():
            changed = field in LADDER[at].fields
            assert value == getattr(rungs[at] if changed else top, field), (name, field)
    for name, further in groups["further"].items():
        differing = {field for field, value in asdict(further).items() if value != getattr(top, field)}
        assert differing == set(bench.FURTHER[name])


def test_the_ladders_benchmark_stores_every_contestant(tmp_path, monkeypatch):
    words = "the river is {at} km long and ends in the sea. "
    for at in range(60):
        (tmp_path / f"{at}.txt").write_text((words * 60).format(at=at))
    monkeypatch.setattr("benchmarks.MEASURED", tmp_path / "measured")
    monkeypatch.setattr(bench, "contestants", lambda: {"climb": {"top": replace(Rung(), **SMALL)}})
    assert bench.main(["--seconds", "0.3", "--seeds", "2", "--text", str(tmp_path)]) == 0
    stored = json.loads((tmp_path / "measured" / "ladder.json").read_text())
    assert [one["points"][-1][0] >= 0.3 for one in stored["climb"]["top"]] == [True, True]
    assert {"seconds", "seeds", "busy_cores", "date", "machine", "command"} <= set(stored)
    assert bench.main(["--seconds", "0"]) == 2


@pytest.mark.parametrize("name", ladder.recipes())
def test_every_rung_learns(text, name):
    track = ladder.climb(small(ladder.recipes()[name], text), text, 0.5, 2)
    assert 1 <= len(track.points) <= 2
    assert track.points[-1][0] >= 0.5
    assert math.isfinite(track.loss)
    assert track.tokens_per_second > 0


FURTHER = [{"optimizer": "muon"}, {"mask_rate_end": 0.15}, {"short_rows": 0.5}, {"average": 0.5}]


@pytest.mark.parametrize("fields", FURTHER)
def test_every_further_change_learns(text, fields):
    assert ladder.climb(small(Rung(**fields), text), text, 1.0, 1).loss < math.log(len(text.tokenizer))


def test_a_packed_rung_reads_what_pretrain_reads(text):
    rung = small(Rung(), text)
    ours, theirs = ladder.batches(rung, text), Tape(text.train, text.tokenizer, 32).batches(rung)
    batch = next(ours)
    for step, (inputs, labels) in zip(range(60), theirs, strict=False):  # theirs has no end
        assert torch.equal(batch.inputs, inputs)
        assert torch.equal(batch.labels, labels)
        batch = ours.send(step / 60)


def test_fixed_masks_stay_and_new_ones_do_not(text):
    fixed = small(replace(ARTICLE, scored="masked"), text)
    for rung, same in ((fixed, True), (replace(fixed, masks="new"), False)):
        source, seen, again = ladder.batches(rung, text), {}, 0
        batch = next(source)
        for _ in range(2 * len(text.train) // rung.batch_size):
            for row, labels in zip(batch.inputs, batch.labels, strict=True):
                whole = tuple(torch.where(labels == IGNORE, row, labels).tolist())
                again += whole in seen and seen[whole] == tuple(row.tolist())
                seen[whole] = tuple(row.tolist())
            batch = source.send(0.0)
        assert (again > 100) == same


def test_all_scored_means_every_real_token(text):
    batch = next(ladder.batches(small(ARTICLE, text), text))
    assert torch.equal(batch.labels != IGNORE, batch.real)
    assert bool((batch.inputs == text.tokenizer.mask_token_id).any())


@pytest.mark.parametrize("body", ["prenorm", "bert"])
def test_both_heads_give_the_same_loss_and_gradients(text, body):
    rung = small(Rung(body=body), text)
    batch = next(ladder.batches(rung, text))
    found = []
    for head in ("sparse", "dense"):
        model = ladder.build(rung).double()
        total, count = ladder.loss_sum(model, batch, head)
        total.backward()
        found.append((total, count, [weight.grad for weight in model.parameters()]))
    assert found[0][1] == found[1][1] == int((batch.labels != IGNORE).sum())
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-6)  # the loss itself is taken in fp32
    for a, b in zip(found[0][2], found[1][2], strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_sparse_loss_is_the_encoders_own(text):
    rung = small(Rung(), text)
    model, batch = ladder.build(rung), next(ladder.batches(rung, text))
    ours, theirs = ladder.loss_sum(model, batch), model.masked_loss(batch.inputs, batch.labels)
    assert torch.equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]


def test_padding_is_not_read(text):
    rung = small(replace(ARTICLE, dropout=0.0), text)
    model, batch = ladder.build(rung).eval(), next(ladder.batches(rung, text))
    assert not bool(batch.real.all())
    other = Batch(torch.where(batch.real, batch.inputs, 7), batch.labels, batch.real)
    assert torch.allclose(ladder.loss_sum(model, batch, "dense")[0], ladder.loss_sum(model, other, "dense")[0])


def test_the_start_by_the_library_is_small_everywhere(text):
    rung = small(Rung(start="library"), text)
    model = ladder.build(rung)
    assert isinstance(model, EncoderForMaskedLM)
    for layer in model.model.layers:
        for weight in (layer.attn.Wo.weight, layer.attn.Wqkv.weight, layer.mlp.Wi.weight):
            assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.15)


def test_an_average_is_the_mean_of_the_last_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    average = ladder._Average(Rung(average=0.5))
    for value, progress in ((1.0, 0.2), (2.0, 0.5), (4.0, 0.9)):
        model.weight.data.fill_(value)
        average.add(model, progress)
    with average.used(model):
        assert model.weight.item() == 3.0
    assert model.weight.item() == 4.0


def test_the_rate_of_masks_moves_in_a_line():
    rung = Rung(mask_rate=0.3, mask_rate_end=0.1)
    assert [round(ladder.mask_rate(rung, at), 3) for at in (0, 0.5, 1, 2)] == [0.3, 0.2, 0.1, 0.1]


@pytest.mark.parametrize(("loss", "seconds"), [(7.0, 10.0), (6.0, 10.0), (5.0, 15.0), (4.0, 20.0), (3.9, math.inf)])
def test_time_to_a_loss_is_when_it_is_first_that_low(loss, seconds):
    assert ladder.time_to(CURVE, loss) == seconds


def test_a_speedup_asks_who_was_first_at_the_worse_of_two_ends():
    slow, fast = Track([(10.0, 6.0), (20.0, 5.0)]), Track([(10.0, 4.0), (20.0, 3.0)])
    assert ladder.speedup(slow, fast) == 2.0
    assert ladder.speedup(fast, slow) == 0.5
    assert ladder.speedup(slow, slow) == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"body": "gpt"}, "body='gpt' is unknown; choose prenorm or bert"),
        ({"dropout": 1.0}, "dropout=1.0 is a share"),
        ({"mask_rate_end": 0.0}, "mask_rate_end=0.0"),
        ({"masks": "fixed"}, "masks='fixed' needs rows='padded'"),
        ({"scored": "all"}, "scored='all' needs head='dense'"),
    ],
)
def test_choices_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Rung(**fields)


def test_a_diverged_run_has_no_speed():
    with pytest.raises(ValueError, match="a run ended with a loss of nan"):
        ladder.speedup(Track([(1.0, 2.0)]), Track([(1.0, math.nan)]))


def test_looks_come_ever_later_and_the_last_at_the_end(text, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(ladder.time, "perf_counter", lambda: next(ticks) / 100)  # a step takes a hundredth of a second
    seconds = [at for at, _ in ladder.climb(small(Rung(), text), text, 2.0, 5).points]
    late = [at - due for at, due in zip(seconds, [0.5, 0.5 * 2**0.5, 1.0, 2**0.5, 2.0], strict=True)]
    assert all(-1e-9 <= one <= 0.01 + 1e-9 for one in late), late  # by a step; sums of hundredths are not exact


def test_a_climb_that_cannot_be_is_refused(text):
    with pytest.raises(ValueError, match="seconds=0 and looks=2 must be positive"):
        ladder.climb(Rung(), text, 0, 2)
    with pytest.raises(ValueError, match="too little for one batch"):
        ladder.climb(replace(small(Rung(), text), batch_size=10_000), text, 1.0)
    with pytest.raises(ValueError, match="too little for one batch"):
        ladder.climb(replace(small(ARTICLE, text), batch_size=10_000), text, 1.0)
