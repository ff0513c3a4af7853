"""benchmarks.starts: every start with every seed, in turns."""

import json
from types import SimpleNamespace

import pytest

import benchmarks
from benchmarks import starts
from sslcourse.train.recipe import Recipe


def test_every_start_has_every_seed_and_nobody_always_begins(monkeypatch, tmp_path):
    asked = []

    def stand_in(recipe, minutes, evaluations, **_):
        asked.append((recipe.start, recipe.seed, minutes * 60, evaluations))
        return SimpleNamespace(history=[{"seconds": 1.0, "loss": 3.0, "step": 7, "tokens": 90}])

    monkeypatch.setattr(starts, "pretrain", stand_in)
    monkeypatch.setattr(benchmarks, "MEASURED", tmp_path)
    assert starts.main(["--seconds", "3", "--seeds", "2", "--looks", "5"]) == 0
    assert sorted(asked) == sorted((start, seed, 3.0, 5) for start in Recipe.STARTS for seed in (0, 1))
    assert asked[0][0] != asked[len(Recipe.STARTS)][0]
    stored = json.loads((tmp_path / "starts.json").read_text(encoding="utf-8"))
    assert len(stored["runs"]) == 8
    assert stored["runs"][0] == {"start": "width", "seed": 0, "points": [[1.0, 3.0, 90]], "steps": 7}
    assert stored["command"] == "python -m benchmarks.starts --seconds 3 --seeds 2 --looks 5"


@pytest.mark.parametrize("wrong", [["--seconds", "0"], ["--looks", "0"], ["--seeds", "0"]])
def test_what_cannot_be_is_refused_before_anything_runs(wrong, capsys):
    assert starts.main(wrong) == 2
    assert "error: " in capsys.readouterr().err
