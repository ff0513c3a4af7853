"""The cached encoder: made once, found again, kept apart by what made it."""

from pathlib import Path

import pytest
import torch

from sslcourse.studies import lesson_encoder
from sslcourse.train import loop
from sslcourse.train.recipe import Recipe

TEXTS = [f"the old mill number {i} grinds grain for the town on river {i * j}" for i in range(9) for j in range(1, 9)]
TINY = Recipe(vocab_size=120, hidden_size=16, intermediate_size=16, layers=1, heads=2, sequence_length=32, batch_size=4)
GIVEN = {"steps": 3, "recipe": TINY, "texts": TEXTS[:60], "held_out": TEXTS[60:]}


def test_the_second_call_opens_what_the_first_made(tmp_path, monkeypatch):
    first = lesson_encoder.load(cache=tmp_path, **GIVEN)
    monkeypatch.setattr(lesson_encoder, "pretrain", lambda *_, **__: pytest.fail("trained again"))
    second = lesson_encoder.load(cache=tmp_path, **GIVEN)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert second.loss == first.loss


@pytest.mark.parametrize(
    "change", [{"steps": 4}, {"recipe": Recipe(**{**TINY.__dict__, "seed": 1})}, {"texts": TEXTS[:59]}, {"every": 2}]
)
def test_what_decides_the_weights_decides_the_name(tmp_path, change):
    names = []

    def note(*_, out, **__):
        names.append(out.name)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesson_encoder, "pretrain", note)
        for given in (GIVEN, {**GIVEN, **change}):
            with pytest.raises(KeyboardInterrupt):
                lesson_encoder.load(cache=tmp_path, **given)
    assert names[0] != names[1]


def test_an_unfinished_one_is_gone_on_with(tmp_path, monkeypatch):
    whole = lesson_encoder.load(cache=tmp_path / "whole", **GIVEN)

    class Cut(Exception):
        pass

    def cut(*given, **options):
        def stop(row):
            if row["step"] == 2:
                raise Cut

        return kept(*given, **{**options, "on_evaluation": stop})

    kept = loop.pretrain
    monkeypatch.setattr(lesson_encoder, "pretrain", cut)
    with pytest.raises(Cut):
        lesson_encoder.load(cache=tmp_path, **GIVEN)
    monkeypatch.setattr(lesson_encoder, "pretrain", kept)
    resumed = lesson_encoder.load(cache=tmp_path, **GIVEN)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_a_damaged_one_says_so(tmp_path):
    lesson_encoder.load(cache=tmp_path, **GIVEN)
    [folder] = tmp_path.iterdir()
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"is damaged .* delete the folder"):
        lesson_encoder.load(cache=tmp_path, **GIVEN)


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLCOURSE_CACHE", str(tmp_path))
    assert lesson_encoder.cache_folder() == tmp_path
    monkeypatch.delenv("SSLCOURSE_CACHE")
    assert lesson_encoder.cache_folder() == Path(__file__).resolve().parents[1] / "data" / "cache"  # in a checkout


@pytest.mark.parametrize(
    ("given", "message"),
    [({"texts": TEXTS}, "texts and held_out together"), ({**GIVEN, "every": 0}, "every=0 must be at least 1")],
)
def test_arguments_that_cannot_be_are_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        lesson_encoder.load(cache=tmp_path, **given)
