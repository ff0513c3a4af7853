"""benchmarks.__main__: who is measured against whom, at toy size."""

from dataclasses import replace

import pytest

from benchmarks import __main__ as blocks
from benchmarks.pretraining import peers
from sslcourse.data import tokenizer as wordpiece
from sslcourse.train.recipe import Recipe
from sslcourse.train.token_rows import Tape


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece.train([f"the river {at} is {100 + at} km long and ends in the sea" for at in range(60)], 300)


def test_a_step_is_measured_against_the_stock_models_and_its_use_of_the_machine_is_a_share(tokenizer, monkeypatch):
    monkeypatch.setattr(blocks, "ROUNDS", 2)
    recipe = replace(Recipe(), vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, heads=1, batch_size=4)
    texts = [f"the river {at} is {100 + at} km long and ends in the sea" for at in range(400)]
    batch = next(Tape(wordpiece.encode(tokenizer, texts), tokenizer, peers.LENGTH).batches(recipe))
    assert blocks._head(recipe, *batch)["ratio"] > 0
    row = blocks._step(recipe, tokenizer, *batch)
    for who in ("ours", "theirs"):
        assert row[f"{who}_ms"] > 0
        assert 0 < row[f"{who}_mfu"] < 1
    narrow, whole = (peers.useful_flops(name, peers.Knobs(hidden=64, inner=128, layers=3, mask_rate=0.3),
                                        recipe.vocab_size) for name in ("course", "started"))  # fmt: skip
    ratio = row["theirs_mfu"] / row["ours_mfu"] * row["theirs_ms"] / row["ours_ms"]
    assert ratio == pytest.approx(whole / narrow)  # the same peak, the same tokens; other useful work


def test_a_contest_says_how_many_times_as_long_theirs_takes(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(blocks.time, "perf_counter", lambda: next(clock))
    row = blocks.contest(lambda: None, lambda: (next(clock), next(clock)), repeats=1)
    assert row["ratio"] == row["theirs_ms"] / row["ours_ms"] == 3.0  # two ticks more than the clock's own one
