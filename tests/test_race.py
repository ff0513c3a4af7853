"""benchmarks.pretraining: what it makes of curves, and that every contestant runs as it says."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch

import benchmarks
from benchmarks import MEASURED
from benchmarks.pretraining import __main__ as command
from benchmarks.pretraining import peers, report
from benchmarks.pretraining.peers import Knobs
from sslcourse.data import tokenizer
from sslcourse.data.ignored import IGNORE
from sslcourse.measure import operation_counts
from sslcourse.models.encoder import EncoderForMaskedLM
from sslcourse.train import step_costs

CURVE = [[10.0, 6.0, 100], [20.0, 4.0, 200], [30.0, 5.0, 300]]


def test_loss_at_a_time_lies_on_the_line_between_two_looks():
    assert [report.loss_at(CURVE, at) for at in (10, 15, 25, 99)] == [6.0, 5.0, 4.5, 5.0]
    assert math.isnan(report.loss_at(CURVE, 9.9))


def test_a_speedup_is_the_ratio_of_times_to_what_the_peer_ends_with():
    mine = [[1.0, 8.0, 1], [5.0, 4.0, 5]]
    found = report.speedups({"theirs": [CURVE], "course": [mine]})
    assert found == {"theirs": {"loss": [4.0] * 3, "times_as_fast": [20 / 5] * 3}}
    slower = report.speedups({"theirs": [CURVE], "course": [[[35.0, 5.0, 1]]]})
    assert slower["theirs"]["times_as_fast"] == [15 / 35] * 3  # theirs was there after 15 s


def test_a_shorter_budget_counts_where_it_ends_no_worse():
    goals = {"theirs": [4.0, 3.0], "better": [1.0, 1.0]}
    shorter = {120.0: [2.0, 2.5], 60.0: [3.0, 3.0], 20.0: [4.5, 3.5]}
    assert report.by_budget(goals, shorter, 120.0) == {"theirs": [2.0, 2.0], "better": [0.0, 0.0]}


def test_a_summary_counts_real_tokens_and_useful_operations():
    trial = {"peer": "course", "seed": 0, "seconds": 30.0, "points": CURVE, "flops_per_token": 6.0, "peak_flops": 120.0,
             "memory_mb": 7.0, "parameters": 5}  # fmt: skip
    (row,) = report.summary([trial])["peers"].values()
    assert row["tokens_per_second"] == [10.0] * 3
    assert row["mfu"] == [0.5] * 3
    assert report.times([trial]) == [3.8, 7.5, 15.0, 29.9]  # round() takes the even digit
    assert row["loss_at"]["15.0"] == [5.0] * 3
    assert row["time_to"]["5.0"] == [15.0] * 3
    assert row["time_to"]["3.5"] == [None] * 3
    theirs = trial | {"peer": "theirs", "points": [[30.0, 5.0, 300]]}
    sixth = trial | {"seconds": 5.0, "points": [[5.0, 4.9, 50]]}
    found = report.summary([trial, theirs, sixth])
    assert found["speedups"]["theirs"]["by_budget"] == [6.0] * 3
    assert found["peers"]["course"]["loss_at"] == row["loss_at"]  # the short trial does not shorten what is looked at
    assert found["peers"]["course"]["loss"] == [4.0] * 3  # the short trial is not one of its row
    assert "at least 6.0" in report.table(found)


def test_the_stored_race_ran_with_the_settings_that_the_stored_sweep_found():
    stored = {name: json.loads((MEASURED / f"pretraining_{name}.json").read_text()) for name in ("race", "sweep")}
    best = {peer: Knobs.of(**one["best"]) for peer, one in stored["sweep"]["peers"].items()}
    ran = [(one["peer"], Knobs.of(**one["knobs"])) for one in stored["race"]["trials"] if one["peer"] in best]
    assert {peer for peer, _ in ran} == set(best) == set(peers.TUNED)
    assert [(peer, knobs) for peer, knobs in ran if knobs != best[peer]] == []


def test_a_long_trial_of_a_slow_peer_is_held_against_our_curves_of_the_race():
    slow = {"peer": "article", "points": [[300.0, 7.0, 1], [600.0, 6.0, 2], [700.0, 6.5, 2]], "seconds": 700.0}
    curves = (CURVE, [[5.0, 5.9, 1]], [[9.0, 7.0, 1]])
    course = [{"peer": "course", "seconds": 30.0, "points": points} for points in curves]
    course.append({"peer": "course", "seconds": 5.0, "points": [[5.0, 1.0, 1]]})  # of a shorter budget: not in question
    others = [{"peer": "theirs", "seconds": 30.0, "points": [[30.0, loss, 1]]} for loss in (4.0, 5.95, 5.99)]
    found = report.against_long(slow, [*course, *others])
    assert (found["seconds"], found["loss"]) == (600.0, 6.0)
    assert found["times_as_fast"] == [0.0, 60.0, 120.0]
    assert found["not_by"] == {"loss": 5.95, "times_as_fast": pytest.approx([0.0, 700 / 10.25, 140.0])}
    assert "times_as_fast" not in report.against_long(slow, [slow])
    others[1]["points"] = [[30.0, 6.5, 1]]
    others[0]["points"] = [[30.0, 6.5, 1]]
    assert "not_by" not in report.against_long(slow, [*course, *others])  # it was there


def test_a_move_changes_its_knobs_and_no_other():
    before = Knobs(rate=1e-3, batch=32, mask_rate=0.15)
    assert command.moved(before, {"rate": 2.0}) == Knobs(rate=2e-3, batch=32, mask_rate=0.15)
    assert command.moved(before, {"batch": 0.5}).batch == 16
    there = command.moved(before, {"mask_rate": [0.15, 0.3]})
    assert (there.mask_rate, command.moved(there, {"mask_rate": [0.15, 0.3]}).mask_rate) == (0.3, 0.15)
    with pytest.raises(ValueError, match="'speed' is no knob"):
        Knobs.of(speed=3)


def test_a_sweep_goes_on_from_what_is_best_so_far(monkeypatch):
    def trial(given):
        loss = 2.0 + abs(given["knobs"]["rate"] - 0.5 * command.BEGIN.rate) + given["knobs"]["warmup"]
        return given | {"points": [[1.0, loss, 1]]}

    monkeypatch.setattr(command, "in_a_process", trial)
    found = command.sweep(["modernbert"], 1.0, None)["modernbert"]
    moves = [one["move"] for one in found["trials"]]
    assert moves == [{}, *command.MOVES]
    assert Knobs.of(**found["best"]) == replace(command.BEGIN, rate=0.5 * command.BEGIN.rate)
    assert found["trials"][2]["knobs"]["rate"] == command.BEGIN.rate  # twice what half the rate was
    other = command.sweep(["course"], 1.0, None)["course"]["trials"]
    assert len(other) == len(moves)
    assert not any(knob in one["move"] for one in other for knob in ("start", "windows"))


@pytest.fixture(scope="module")
def text():
    lines = [f"the river {name} is {100 + at} km long and ends in the sea of {name}" for at in range(60)
             for name in ("alba", "borma", "cella")]  # fmt: skip
    return peers.Text.of(lines[:160], lines[160:], vocab_size=300)


@pytest.mark.parametrize("name", peers.PEERS)
def test_every_contestant_learns_and_is_looked_at_in_time(text, name):
    knobs = Knobs(hidden=32, inner=64, layers=1, heads=1, rate=1e-3, batch=4)
    found = peers.run(name, text, knobs, 1.5, 3, 0)
    seconds, losses, tokens = zip(*found["points"], strict=True)
    assert len(seconds) <= 3
    assert seconds[-1] >= 1.5
    assert list(seconds) == sorted(seconds)
    assert list(tokens) == sorted(tokens)
    limit = math.log(len(text.tokenizer))  # of knowing nothing; the other two have rates for fine-tuning
    assert losses[-1] < (limit if name in peers.TUNED else limit + 0.5)
    assert found["steps"] >= 1


def test_a_contestant_that_does_not_exist_is_named(text):
    with pytest.raises(ValueError, match="peer 'roberta' is unknown; choose from article"):
        peers.run("roberta", text, Knobs(), 1.0, 1, 0)


def test_started_is_the_stock_model_with_this_courses_weights(text):
    """So that what is left between the two is the code."""
    knobs = Knobs(hidden=32, inner=64, layers=2, heads=1)
    config = peers.modernbert_config(text, knobs)
    stock = peers.ModernBertForMaskedLM(config)
    torch.manual_seed(0)
    ours = peers.EncoderForMaskedLM(peers.course_recipe(text, knobs, 0).config())
    assert {name: one.shape for name, one in stock.state_dict().items()} == {
        name: one.shape for name, one in ours.state_dict().items()
    }


def test_what_the_start_of_started_costs_is_on_its_clock(text, monkeypatch):
    asked = []
    monkeypatch.setattr(peers.loop, "started", lambda model, tokens, recipe: asked.append(recipe.start) or 99.9)
    small = Knobs(hidden=32, inner=64, layers=1, heads=1, batch=2)
    counted = peers.PEERS["started"](text, replace(small, counted=True), 100.0, 1, 0)
    assert asked == ["neighbours"]
    assert counted.points[-1][0] >= 100
    assert counted.steps < 100  # a tenth of a second was left
    peers.PEERS["started"](text, small, 0.1, 1, 0)
    assert len(asked) == 1  # who does not ask for it does not pay for it


def test_useful_operations_are_those_of_lesson_05(text):
    knobs = Knobs(hidden=64, inner=96, layers=2, heads=1, mask_rate=0.25)
    config = peers.course_recipe(text, knobs, 0).config()
    vocab = len(text.tokenizer)
    theirs = peers.useful_flops("started", knobs, vocab) * 4 * peers.LENGTH
    assert theirs == step_costs.flops(config, 4, peers.LENGTH, masked=peers.LENGTH)
    ids = torch.full((4, peers.LENGTH), 9)
    labels = torch.full_like(ids, IGNORE)
    labels[0] = 9  # a quarter
    model = EncoderForMaskedLM(config)
    counted = operation_counts.counted_flops(lambda: model.masked_loss(ids, labels, narrow=True)[0].backward())
    assert peers.useful_flops("course", knobs, vocab) * 4 * peers.LENGTH == counted


def test_all_read_the_same_held_out_positions(text):
    again = peers.Text.of(*text.raw, vocab_size=300)
    assert torch.equal(again.held_out.labels, text.held_out.labels)
    assert tokenizer.encode(text.tokenizer, text.raw[0])[0] == text.train[0]


@pytest.mark.parametrize(("given", "where"), [
    ([], "build/pretraining_race.json"),
    (["--store"], "measured/pretraining_race.json"),
    (["--store", "long"], "measured/pretraining_long.json"),
])  # fmt: skip
def test_a_race_is_kept_where_it_is_told_and_nowhere_else(given, where, tmp_path, monkeypatch):
    def trial(given):
        points = [[given["seconds"] * part, 3.0 - part, 100 * part] for part in (0.5, 1.0)]
        return given | {"points": points, "flops_per_token": 1, "peak_flops": 1, "memory_mb": 1, "parameters": 1}

    monkeypatch.setattr(command, "in_a_process", trial)
    monkeypatch.setattr(command, "busy_cores", lambda: 0.0)
    monkeypatch.setattr(command.report, "plot", lambda *_: False)
    monkeypatch.setattr(command, "BUILD", tmp_path / "build")
    monkeypatch.setattr(benchmarks, "MEASURED", tmp_path / "measured")
    assert command.main(["race", "--peers", "article", "course", "--seconds", "8", "--seeds", "1", *given]) == 0
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")] == [where]
    written = json.loads((tmp_path / where).read_text())
    assert written["command"].endswith(" ".join(["--seeds 1", *given]))
    assert {float(at) for at in written["shorter"]} == {8.0, *(8 / part for part in command.SHORTER)}


def test_a_race_runs_in_processes_and_writes_what_it_found(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for at in range(300):
        (folder / f"{at}.txt").write_text(f"file {at}: the river is {at} km long and ends in the sea. " * 30)
    given = {"peer": "course", "knobs": asdict(Knobs(hidden=32, inner=64, layers=1, heads=1, batch=4)), "seconds": 0.5,
             "looks": 1, "seed": 0, "text": str(folder)}  # fmt: skip
    assert command.in_a_process(given)["points"][0][0] >= 0.5
    with pytest.raises(RuntimeError, match="roberta failed"):
        command.in_a_process(given | {"peer": "roberta"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "in_a_process", command.trial)
    monkeypatch.setattr(command, "SHORTER", (2,))  # enough for a start from counts on a busy machine
    assert command.main(["race", "--peers", "course", "--seconds", "1.5", "--seeds", "1", "--text", str(folder),
                         "--long", "2"]) == 0  # fmt: skip
    assert "course" in capsys.readouterr().out
    written = json.loads((tmp_path / "build/bench/pretraining_race.json").read_text())
    assert written["trials"][0]["threads"] == torch.get_num_threads()
    assert (tmp_path / "build/bench/pretraining_race.png").read_bytes()[1:4] == b"PNG"
    assert {"machine", "torch", "transformers", "date", "command"} <= set(written)  # stored or not
    long = written["long"]
    assert (long["peer"], long["points"][-1][0] >= 2) == ("article", True)
    assert command.main(["race", "--seconds", "-1"]) == 2
    assert command.main(["race", "--seconds", "3", "--long", "3"]) == 2
    assert "--long 3.0 must be more than --seconds 3.0" in capsys.readouterr().err
