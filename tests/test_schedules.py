"""benchmarks.schedules: every combination once, and a run that diverges keeps the looks that it had."""

import argparse

import pytest

from benchmarks import schedules
from sslcourse.train.loop import Diverged
from sslcourse.train.recipe import Recipe


def test_every_combination_stands_once_in_an_order_that_does_not_change():
    given = argparse.Namespace(rates=[1e-3, 2e-3], schedules=["linear", "cosine"], warmups=[0.0, 0.1], seeds=2)
    recipes = schedules.settings(given)
    assert len(set(recipes)) == len(recipes) == 16
    assert recipes == schedules.settings(given)
    assert recipes != sorted(recipes, key=lambda one: one.learning_rate)


def test_a_run_that_diverges_keeps_its_looks(monkeypatch):
    def stand_in(on_evaluation, on_restore, **_):
        on_evaluation({"seconds": 1.0, "loss": 7.0, "step": 4})
        on_restore({"step": 5})
        raise Diverged("the third time")

    monkeypatch.setattr(schedules, "pretrain", stand_in)
    found = schedules.trial({}, Recipe(learning_rate=24e-3), seconds=2.0, looks=2)
    assert found["diverged"]
    assert (found["points"], found["steps"], found["restores"]) == ([[1.0, 7.0]], 4, 1)


@pytest.mark.parametrize("wrong", [["--seconds", "0"], ["--looks", "0"], ["--seeds", "0"], ["--warmups", "1.5"]])
def test_what_cannot_be_is_refused_before_anything_runs(wrong, capsys):
    assert schedules.main(wrong) == 2
    assert "error: " in capsys.readouterr().err
