"""What real users do to a run: each fault is planted, and what stands afterwards is looked at."""

import json
import os
import random
import shutil
import signal
import threading
import time
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pretraining import HELD_OUT, RECIPE, TEXTS, PowerCut, cut_at
from tqdm import tqdm

from sslcourse.data import tokenizer as wordpiece
from sslcourse.data import whole_files
from sslcourse.data.ignored import IGNORE
from sslcourse.models import encoder
from sslcourse.train import checkpoint, loop, optimizers
from sslcourse.train.checkpoint import Store
from sslcourse.train.loop import Diverged, Interrupted, pretrain
from sslcourse.train.recipe import Recipe
from sslcourse.train.state import State
from sslcourse.train.step import train_step

OPTIONS = {"steps": 40, "evaluations": 5, "progress": False}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """A forked child may use no other; and bits are compared, which depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece.train(TEXTS, vocab_size=120)


@pytest.fixture(scope="module")
def undisturbed(tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    pretrain(TEXTS, HELD_OUT, RECIPE, tokenizer=tokenizer, out=out, **OPTIONS)
    return out


def go(tokenizer, out, **options):
    return pretrain(TEXTS, HELD_OUT, RECIPE, tokenizer=tokenizer, out=out, **OPTIONS | options)


def weights(out):
    return (out / "model.safetensors").read_bytes()


def losses(out, names=("step", "loss", "train_loss")):
    return [[row[name] for name in names] for row in json.loads((out / "history.json").read_text())]


def as_undisturbed(out, undisturbed):
    """The same bits and history, the same files, and nothing else left."""
    return (
        weights(out) == weights(undisturbed)
        and losses(out) == losses(undisturbed)
        and {path.name for path in out.iterdir()} == {path.name for path in undisturbed.iterdir()}
        and not out.with_name(out.name + ".partial").exists()
    )


# --- killed ----------------------------------------------------------------------------------------------------------


def forked():
    """``os.fork``, with a lock for progress bars of the child's own.

    tqdm's lies in memory that forks share: a child that is killed while it holds it would keep it for ever, and this
    process would wait for it at its next bar (seen once in CI). What another thread held at the fork is gone, too.
    """
    child = os.fork()
    if not child:
        tqdm.set_lock(threading.RLock())
    return child


def in_a_child(act):
    """Run ``act`` in a forked process; how it ended: 0, or the signal that killed it."""
    child = forked()
    if not child:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


class Death:
    """Kills this process at its n-th call that touches the disk."""

    def __init__(self, at):
        self.left = at

    def wrapped(self, function):
        def call(*given, **named):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **named)

        return call

    def plant(self):
        from pathlib import Path

        for name in ("rename", "replace", "write_text", "mkdir", "rmdir", "unlink"):
            setattr(Path, name, self.wrapped(getattr(Path, name)))
        checkpoint.shutil.rmtree = self.wrapped(checkpoint.shutil.rmtree)
        checkpoint.save_file = self.wrapped(checkpoint.save_file)
        checkpoint.os.fsync = self.wrapped(checkpoint.os.fsync)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork, with which this kills cheaply")


@needs_fork
def test_a_death_at_any_call_that_touches_the_disk_leaves_no_trace(tokenizer, undisturbed, tmp_path):
    """Every such call of a run in turn, the last ones after the result has its name."""

    def run(out, at=None):
        def act():
            if at:
                Death(at).plant()
            go(tokenizer, out, resume=True)

        return in_a_child(act)

    deaths = 0
    for at in range(1, 500):
        out = tmp_path / f"run-{at}"
        ended = run(out, at)
        if ended == 0:  # it has no more calls than that
            break
        assert ended == -signal.SIGKILL
        deaths += 1
        if at % 3 == 0 or at > 100:  # each third in the middle, where saves repeat
            assert run(out) == 0, f"after a death at call {at}"
            assert as_undisturbed(out, undisturbed), f"after a death at call {at}"
    assert deaths > 60  # or the calls are not those of a run


@needs_fork
def test_kills_at_random_moments_leave_no_trace(tokenizer, undisturbed, tmp_path):
    draw, kills = random.Random(0), 0
    for number in range(20):
        out = tmp_path / f"run-{number}"
        for _ in range(100):
            child = forked()
            if not child:
                code = 1
                try:
                    go(tokenizer, out, resume=True)
                    code = 0
                finally:
                    os._exit(code)
            time.sleep(draw.uniform(0.01, 0.2))
            os.kill(child, signal.SIGKILL)
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert ended in (0, -signal.SIGKILL)
            kills += ended == -signal.SIGKILL
            if out.exists():
                break
        go(tokenizer, out, resume=True)  # it may have been killed after the folder got its name: then it tidies up
        assert as_undisturbed(out, undisturbed)
    assert kills > 8


def test_a_death_while_it_tidies_up_leaves_nothing(tokenizer, undisturbed, tmp_path, monkeypatch):
    """A checkpoint of which the half is deleted looks damaged, and what looks damaged is kept."""
    deleted, out = shutil.rmtree, tmp_path / "run"

    def half(path, **how):
        if out.exists() and path.exists():
            (path / "state.json").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        deleted(path, **how)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", half)
    assert in_a_child(lambda: go(tokenizer, out)) == -signal.SIGKILL
    monkeypatch.undo()
    assert (tmp_path / "run.partial").exists()  # or this test would show nothing
    go(tokenizer, out, resume=True)
    assert as_undisturbed(out, undisturbed)


# --- asked to stop ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C raises in these tests; a shell that started them with ``&`` had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def at_batch(monkeypatch, number, act):
    """Do something right after the update of a run's so-many-th batch, counted by what it reads."""
    step, seen = train_step, [0]

    def patched(model, optimizer, inputs, labels, recipe):
        loss = step(model, optimizer, inputs, labels, recipe)
        seen[0] += 1
        return act(model, loss) if seen[0] == number else loss

    monkeypatch.setattr(loop, "train_step", patched)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_where_it_is(tokenizer, undisturbed, tmp_path, monkeypatch, number):
    def ask(model, loss):
        signal.raise_signal(number)
        return loss

    before = signal.getsignal(number)
    at_batch(monkeypatch, 13, ask)  # between two evaluations, and within a window of losses
    with pytest.raises(Interrupted, match=r"step 13, which is saved in .*run\.partial.*resume=True"):
        go(tokenizer, tmp_path / "run")
    assert signal.getsignal(number) == before
    state = json.loads((tmp_path / "run.partial" / "checkpoint" / "state.json").read_text())["state"]
    assert (state["step"], state["loss_count"]) == (13, 5)
    go(tokenizer, tmp_path / "run", resume=True)
    assert as_undisturbed(tmp_path / "run", undisturbed)


def test_what_muon_remembers_is_saved_as_well(tokenizer, tmp_path, monkeypatch):
    muon = replace(RECIPE, optimizer="muon")
    options = {"tokenizer": tokenizer, "steps": 40, "evaluations": 5, "progress": False}
    whole = pretrain(TEXTS, HELD_OUT, muon, **options)
    at_batch(monkeypatch, 13, lambda model, loss: signal.raise_signal(signal.SIGINT) or loss)
    with pytest.raises(Interrupted):
        pretrain(TEXTS, HELD_OUT, muon, out=tmp_path / "run", **options)
    resumed = pretrain(TEXTS, HELD_OUT, muon, out=tmp_path / "run", resume=True, **options)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    adamw = pretrain(TEXTS, HELD_OUT, RECIPE, **options)  # or the name alone would do
    assert not torch.equal(next(whole.model.parameters()), next(adamw.model.parameters()))


def test_asked_twice_a_run_stops_at_once(tokenizer, tmp_path, monkeypatch):
    def ask(model, loss):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return loss

    at_batch(monkeypatch, 13, ask)
    with pytest.raises(KeyboardInterrupt) as stopped:
        go(tokenizer, tmp_path / "run")
    assert not isinstance(stopped.value, Interrupted)
    state = json.loads((tmp_path / "run.partial" / "checkpoint" / "state.json").read_text())["state"]
    assert state["step"] == 8  # the last evaluation's


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="the limit on a file's size, which stands for a full disk, is Unix's")
@pytest.mark.parametrize("step", [16, 40])
def test_a_full_disk_leaves_the_last_good_checkpoint(tokenizer, undisturbed, tmp_path, step):
    """At a checkpoint, and at the final save: after the last evaluation's."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(row):
        if row["step"] == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    partial = tmp_path / "run.partial"
    try:
        with pytest.raises(OSError, match=r"could not be written .*; the last checkpoint is whole"):
            go(tokenizer, tmp_path / "run", on_evaluation=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "run").exists()
    assert sorted(path.name.partition("-")[0] for path in partial.iterdir()) == ["checkpoint", "tokens"]
    assert json.loads((partial / "checkpoint" / "state.json").read_text())["state"]["step"] == step
    go(tokenizer, tmp_path / "run", resume=True)
    assert as_undisturbed(tmp_path / "run", undisturbed)


# --- damaged, or somebody else's -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def left(tokenizer, tmp_path_factory):
    """What a run leaves that lost its power after 16 of 40 steps."""
    out = tmp_path_factory.mktemp("left") / "run"
    with pytest.raises(PowerCut):
        go(tokenizer, out, on_evaluation=cut_at(16))
    return {path.name: path.read_bytes() for path in (out.with_name("run.partial") / "checkpoint").iterdir()}


def laid_out(left, tmp_path):
    folder = tmp_path / "run.partial" / "checkpoint"
    folder.mkdir(parents=True)
    for name, data in left.items():
        (folder / name).write_bytes(data)
    return folder


FILES = ("model.safetensors", "best.safetensors", "optimizer.safetensors", "state.json")


def flipped(data, draw):
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["a bit", "half", "empty", "gone"])
def test_a_damaged_checkpoint_is_refused_and_kept(tokenizer, left, tmp_path, name, how):
    for trial in range(20 if how == "a bit" else 1):
        folder = laid_out(left, tmp_path / str(trial))
        data = left[name]
        if how == "gone":
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(
                {"a bit": flipped(data, random.Random(trial)), "half": data[: len(data) // 2], "empty": b""}[how]
            )
        with pytest.raises(ValueError, match=r"is damaged.*move it away"):
            go(tokenizer, tmp_path / str(trial) / "run", resume=True)
        assert folder.is_dir()


def test_a_full_disk_at_the_tokenizers_file_is_an_error_like_others(tokenizer, undisturbed, tmp_path, monkeypatch):
    """There the library raises a bare Exception."""

    def full(*_, **__):
        raise Exception("No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "save_pretrained", full)
        with pytest.raises(OSError, match=r"could not be written .*No space left.*the last checkpoint is whole"):
            go(tokenizer, tmp_path / "run")
    assert not (tmp_path / "run.partial" / "whole").exists()
    go(tokenizer, tmp_path / "run", resume=True)
    assert as_undisturbed(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("how", ["another shape", "one more", "one less"])
def test_a_whole_checkpoint_of_another_model_is_refused(tokenizer, left, tmp_path, how):
    """Its digests are right, and its identity is this run's, but the weights have other shapes or names."""
    folder = laid_out(left, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    if how == "one less":
        del tensors["head.norm.weight"]
    else:  # a single number would be broadcast in silence
        tensors["head.norm.weight" if how == "another shape" else "extra"] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors")
    record = whole_files.unsealed((folder / "state.json").read_text())
    record["files"]["model.safetensors"] = whole_files.digest(folder / "model.safetensors")
    (folder / "state.json").write_text(whole_files.sealed(record))
    with pytest.raises(ValueError, match=r"is damaged.*another model"):
        go(tokenizer, tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", ["thesis.txt", "checkpoint-500", "checkpoint.pt", "wholesale.csv", "tokens-mine.txt"])
@pytest.mark.parametrize("resume", [False, True])
def test_somebody_elses_folder_is_refused_and_kept(tokenizer, tmp_path, name, resume):
    theirs = tmp_path / "run.partial"
    theirs.mkdir()
    (theirs / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds '{name}', which no run has written"):
        go(tokenizer, tmp_path / "run", resume=resume)
    assert [(path.name, path.read_text()) for path in theirs.iterdir()] == [(name, "mine")]


def test_a_checkpoint_of_another_program_is_refused_and_kept(tokenizer, tmp_path):
    theirs = tmp_path / "run.partial" / "checkpoint"
    theirs.mkdir(parents=True)
    (theirs / "state.json").write_text(json.dumps({"epoch": 3}))
    with pytest.raises(ValueError, match="not one of this course"):
        go(tokenizer, tmp_path / "run", resume=True)
    assert (theirs / "state.json").is_file()


def test_a_checkpoint_of_several_ranks_is_told_apart(tokenizer, left, tmp_path):
    folder = laid_out(left, tmp_path)
    record = whole_files.unsealed((folder / "state.json").read_text())
    (folder / "state.json").write_text(whole_files.sealed(record | {"kind": "ranks under torchrun"}))
    with pytest.raises(ValueError, match="was written by ranks under torchrun; resume it so"):
        go(tokenizer, tmp_path / "run", resume=True)


def test_another_tokenizer_of_the_same_size_is_another_run(tokenizer, left, tmp_path):
    laid_out(left, tmp_path)
    other = wordpiece.train([text.replace("r", "q") for text in TEXTS], vocab_size=len(tokenizer))
    assert len(other) == len(tokenizer)
    with pytest.raises(ValueError, match="has another tokenizer than this run"):
        go(other, tmp_path / "run", resume=True)


def test_litter_of_a_desktop_is_no_reason_to_refuse(tokenizer, left, undisturbed, tmp_path):
    (laid_out(left, tmp_path).parent / ".DS_Store").write_text("looked at")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".DS_Store").write_text("looked at")
    go(tokenizer, tmp_path / "run", resume=True)
    assert as_undisturbed(tmp_path / "run", undisturbed)


def test_a_complete_run_does_not_tidy_up_after_another(tokenizer, undisturbed, left, tmp_path):
    import shutil

    shutil.copytree(undisturbed, tmp_path / "run")
    folder = laid_out(left, tmp_path)
    record = whole_files.unsealed((folder / "state.json").read_text())
    record["identity"]["texts"] = "those of another run"
    (folder / "state.json").write_text(whole_files.sealed(record))
    assert go(tokenizer, tmp_path / "run", resume=True).stopped == "steps"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_two_at_once_do_not_meet(tokenizer, undisturbed, tmp_path):
    refused = []

    def start_another(row):
        for resume in (False, True):
            with pytest.raises(checkpoint.InUse, match="another process is writing"):
                go(tokenizer, tmp_path / "run", resume=resume)
            refused.append(row["step"])

    go(tokenizer, tmp_path / "run", on_evaluation=start_another)
    assert len(refused) == 10
    assert as_undisturbed(tmp_path / "run", undisturbed)


def test_tensorboard_may_not_lie_where_a_run_tidies_up(tokenizer, tmp_path):
    for place in ("run", "run.partial"):
        with pytest.raises(ValueError, match="lies in out"):
            go(tokenizer, tmp_path / "run", tensorboard=tmp_path / place / "log")
    assert not list(tmp_path.iterdir())


def test_nothing_is_unpickled(tokenizer, left, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    laid_out(left, tmp_path)
    for module, name in ((torch, "load"), (__import__("pickle"), "load"), (__import__("pickle"), "loads")):
        monkeypatch.setattr(module, name, refuse)
    assert go(tokenizer, tmp_path / "run", resume=True).stopped == "steps"


# --- a loss that is no number, or jumps ------------------------------------------------------------------------------


def becomes_nan(model, loss):
    for weight in model.parameters():
        weight.data.fill_(float("nan"))
    return loss * float("nan")


def only_the_weights(model, loss):
    becomes_nan(model, loss)
    return loss


def jumps(model, loss):
    for weight in model.parameters():
        weight.data.mul_(-6)
    return loss


@pytest.mark.parametrize(
    ("number", "act", "step", "back", "why"),
    [
        (21, becomes_nan, 24, 16, "the training loss is no finite number"),
        (21, only_the_weights, 24, 16, "the training loss is no finite number"),  # seen in the next step's loss
        (40, only_the_weights, 40, 32, "the loss at an evaluation is no finite number"),  # there is no next step
        (3, becomes_nan, 8, 0, "the training loss is no finite number"),  # before the first evaluation
    ],
)
def test_a_loss_that_is_no_number_is_undone_and_reported(
    tokenizer, tmp_path, monkeypatch, number, act, step, back, why
):
    at_batch(monkeypatch, number, act)
    with pytest.warns(RuntimeWarning, match=f"at step {step} {why}; went back to step {back}"):
        run = go(tokenizer, tmp_path / "run")
    (event,) = run.restores
    assert (event["step"], event["back_to"], event["why"]) == (step, back, why)
    assert [row["step"] for row in run.history] == [8, 16, 24, 32, 40]  # no step of the budget is missing
    assert all(torch.isfinite(weight).all() for weight in run.model.parameters())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["restores"] == [event]


@pytest.mark.parametrize("number", [85, 90])
def test_a_spike_is_undone_and_told_to_who_asked(tokenizer, monkeypatch, number):
    """At step 90 an evaluation comes right after it: that state must not pass for a good one."""
    learns = replace(RECIPE, learning_rate=1e-2)
    at_batch(monkeypatch, number, jumps)
    told = []
    run = pretrain(TEXTS, HELD_OUT, learns, tokenizer=tokenizer, steps=120, evaluations=4, progress=False,
                   on_restore=told.append)  # fmt: skip
    assert told == run.restores
    assert (told[0]["back_to"], len(told)) == (60, 1)
    assert told[0]["why"].startswith("the training loss rose from")
    losses = [row["loss"] for row in run.history]
    assert max(losses) < 4  # of the spike, more than a hundred nats, nothing is left


def judged(losses, **start):
    """What a state says to these losses, one a step; None if nothing."""
    state = State({"steps": len(losses) + 1, "evaluations": 1, "minutes": None, "patience": None}, **start)
    for loss in losses:
        state.after_step(torch.tensor(loss), 1, 0.0)
        if trouble := state.trouble():
            return state.step, trouble
    return None


@pytest.mark.parametrize(("share", "strange", "usual"), [(0.005, 10.0, 0.05), (0.01, 9.0, 0.3), (0.02, 10.0, 1.0)])
def test_a_strange_row_now_and_then_is_no_alarm(share, strange, usual):
    """Batches of one row, of a text that is nearly learnt by heart, with a few rows that are not."""
    for seed in range(10):
        draw = random.Random(seed)
        losses = [strange if draw.random() < share else usual * draw.uniform(0.5, 1.5) for _ in range(2000)]
        assert judged(losses, lowest=9.3) is None


def test_a_run_that_goes_wrong_in_its_first_steps_is_seen():
    assert judged([8.3, 8.5, 20.0, 40.0, 60.0, 60.0, 60.0, 60.0], lowest=9.3) == (
        8, "the training loss rose from 9.30 to 50.00 nats")  # fmt: skip
    assert judged([8.3, 8.2, 8.1, 8.0, 7.8, 7.5, 7.4, 7.3], lowest=9.3) is None


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_healthy_run_raises_no_alarm(tokenizer, batch_size):
    """A batch of one row of 32 tokens, nine of them masked, is as noisy as it gets."""
    noisy = replace(RECIPE, learning_rate=1e-2, batch_size=batch_size)
    for seed in range(3):
        run = pretrain(TEXTS, HELD_OUT, replace(noisy, seed=seed), tokenizer=tokenizer, steps=300, evaluations=2,
                       progress=False)  # fmt: skip
        assert run.restores == []


def always_from(monkeypatch, number, act):
    step, seen = train_step, [0]

    def patched(model, optimizer, inputs, labels, recipe):
        loss = step(model, optimizer, inputs, labels, recipe)
        seen[0] += 1
        return act(model, loss) if seen[0] >= number else loss

    monkeypatch.setattr(loop, "train_step", patched)


@pytest.mark.filterwarnings("ignore:at step")
def test_a_loss_that_stays_wrong_ends_the_run_and_keeps_the_last_good_state(tokenizer, tmp_path, monkeypatch):
    always_from(monkeypatch, 21, becomes_nan)
    with pytest.raises(Diverged, match=r"the last of 3 times.*lower it\. The best held-out loss was .* kept in"):
        go(tokenizer, tmp_path / "run")
    record = json.loads((tmp_path / "run.partial" / "checkpoint" / "state.json").read_text())
    assert record["state"]["step"] == 16
    best = load_file(tmp_path / "run.partial" / "checkpoint" / "best.safetensors")
    assert all(torch.isfinite(weight).all() for weight in best.values())
    always_from(monkeypatch, 1, becomes_nan)
    with pytest.raises(Diverged, match="Nothing was written"):
        go(tokenizer, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.partial"]


@pytest.mark.filterwarnings("ignore:at step")
def test_a_restored_run_that_is_interrupted_goes_on_to_the_same_bits(tokenizer, tmp_path, monkeypatch):
    """The fault comes with one batch, as a damaged row would bring it, however often that is read."""
    step, poison = train_step, []

    def patched(model, optimizer, inputs, labels, recipe):
        loss = step(model, optimizer, inputs, labels, recipe)
        return becomes_nan(model, loss) if poison and torch.equal(inputs, poison[0]) else loss

    def remember(model, optimizer, inputs, labels, recipe):
        seen.append(inputs)
        return step(model, optimizer, inputs, labels, recipe)

    seen: list = []
    monkeypatch.setattr(loop, "train_step", remember)
    go(tokenizer, tmp_path / "looked-at")
    poison.append(seen[20])
    monkeypatch.setattr(loop, "train_step", patched)
    whole = go(tokenizer, tmp_path / "whole")
    assert [event["back_to"] for event in whole.restores] == [16]
    for stop in (16, 24, 32):
        with pytest.raises(PowerCut):
            go(tokenizer, tmp_path / f"cut-{stop}", on_evaluation=cut_at(stop))
        go(tokenizer, tmp_path / f"cut-{stop}", resume=True)
        assert as_undisturbed(tmp_path / f"cut-{stop}", tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:at step")
@pytest.mark.parametrize("stop", [18, 22, 23])
def test_a_stop_between_a_fault_and_its_discovery_changes_nothing(tokenizer, tmp_path, monkeypatch, stop):
    """Batch 21 is bad, step 24 is where losses are judged: what is saved in between must not pass for a good state."""
    step, seen, poison = train_step, [], []

    def patched(model, optimizer, inputs, labels, recipe):
        loss = step(model, optimizer, inputs, labels, recipe)
        seen.append(inputs)
        if len(seen) == stop and poison == ["ask"]:
            signal.raise_signal(signal.SIGTERM)
        return becomes_nan(model, loss) if bad and torch.equal(inputs, bad[0]) else loss

    bad: list = []
    monkeypatch.setattr(loop, "train_step", patched)
    go(tokenizer, tmp_path / "looked-at")
    bad.append(seen[20])
    whole = go(tokenizer, tmp_path / "whole")
    assert [(event["step"], event["back_to"]) for event in whole.restores] == [(24, 16)]
    seen.clear()
    poison.append("ask")
    with pytest.raises(Interrupted):
        go(tokenizer, tmp_path / "run")
    poison.clear()
    go(tokenizer, tmp_path / "run", resume=True)
    assert as_undisturbed(tmp_path / "run", tmp_path / "whole")


# --- long runs -------------------------------------------------------------------------------------------------------


def test_memory_stays_flat_over_ten_thousand_steps(tokenizer, tmp_path):
    import psutil

    tiny = replace(RECIPE, hidden_size=16, intermediate_size=16, sequence_length=16, batch_size=1)
    sizes = []

    def look(_):
        sizes.append(psutil.Process().memory_info().rss)

    pretrain(TEXTS, HELD_OUT, tiny, tokenizer=tokenizer, steps=10_000, evaluations=10, progress=False,
             out=tmp_path / "run", on_evaluation=look)  # fmt: skip
    assert sizes[-1] - sizes[1] < 2**20  # a megabyte; a kept loss a step, with its graph, would be 60 of them


def test_a_complete_run_is_given_back_and_another_refused(tokenizer, undisturbed):
    again = go(tokenizer, undisturbed, resume=True)
    assert (again.stopped, [row["step"] for row in again.history]) == ("steps", [8, 16, 24, 32, 40])
    assert all(torch.equal(weight, load_file(undisturbed / "model.safetensors")[name])
               for name, weight in again.model.named_parameters())  # fmt: skip
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        go(tokenizer, undisturbed)
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        go(tokenizer, undisturbed, resume=True, steps=41)


def test_resuming_what_never_began_begins(tokenizer, undisturbed, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(tokenizer, tmp_path / "run", resume=True)
    assert as_undisturbed(tmp_path / "run", undisturbed)


def test_a_store_never_deletes_what_it_did_not_write(tmp_path):
    (tmp_path / "run.partial").write_text("a file of this name")
    with pytest.raises(ValueError, match="is a file where the run's folder would be"):
        Store(tmp_path / "run").check(resume=True)
    assert (tmp_path / "run.partial").read_text() == "a file of this name"


def test_memory_stays_flat_with_logits_as_large_as_in_earnest():
    """Each step masks another number of tokens; were its shapes others each time, memory could not be used again."""
    import psutil

    recipe = replace(Recipe(), batch_size=8)
    torch.manual_seed(0)
    model = encoder.EncoderForMaskedLM(recipe.config())
    optimizer, sizes = optimizers.make_optimizer(model, recipe), []
    for step in range(161):
        inputs = torch.randint(5, recipe.vocab_size, (recipe.batch_size, recipe.sequence_length))
        labels = torch.where(torch.rand(inputs.shape) < recipe.mask_rate, inputs, IGNORE)
        train_step(model, optimizer, inputs, labels, recipe)
        if step in (60, 160):
            sizes.append(psutil.Process().memory_info().rss)
    assert sizes[1] - sizes[0] < 40 * 2**20, [size // 2**20 for size in sizes]
