"""The learner's copies are made once and never overwritten; JupyterLab answers this machine only, with its token."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from argparse import ArgumentParser
from pathlib import Path

import psutil
import pytest

from coursekit import lab


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    notebooks, work = tmp_path / "notebooks", tmp_path / "work"
    notebooks.mkdir()
    for name in ("00_start_here", "01_loss_derivation"):
        (notebooks / f"{name}.ipynb").write_text(f'{{"lesson": "{name}", "edition": 1}}')
    return notebooks, work


def names(work: Path) -> list[str]:
    return sorted(file.name for file in work.glob("*.ipynb"))


def test_first_call_copies_every_lesson(folders):
    notebooks, work = folders
    said = lab.prepare(notebooks, work)
    assert names(work) == ["00_start_here.ipynb", "01_loss_derivation.ipynb"]
    assert len(said) == 2
    assert (work / "00_start_here.ipynb").read_bytes() == (notebooks / "00_start_here.ipynb").read_bytes()


def test_second_call_does_and_says_nothing(folders):
    notebooks, work = folders
    lab.prepare(notebooks, work)
    assert lab.prepare(notebooks, work) == []
    assert names(work) == ["00_start_here.ipynb", "01_loss_derivation.ipynb"]


def test_answers_and_foreign_files_survive(folders):
    notebooks, work = folders
    lab.prepare(notebooks, work)
    (work / "00_start_here.ipynb").write_text("my answer")
    (work / "my notes.txt").write_text("mine")
    assert lab.prepare(notebooks, work) == []
    assert (work / "00_start_here.ipynb").read_text() == "my answer"
    assert (work / "my notes.txt").read_text() == "mine"


def test_an_update_is_laid_beside_once(folders):
    notebooks, work = folders
    lab.prepare(notebooks, work)
    (work / "00_start_here.ipynb").write_text("my answer")
    (notebooks / "00_start_here.ipynb").write_text('{"edition": 2}')
    [line] = lab.prepare(notebooks, work)
    assert "00_start_here.new.ipynb" in line
    assert (work / "00_start_here.ipynb").read_text() == "my answer"
    assert (work / "00_start_here.new.ipynb").read_text() == '{"edition": 2}'
    (work / "00_start_here.new.ipynb").unlink()
    assert lab.prepare(notebooks, work) == []  # deleted by the learner: not laid again
    (notebooks / "00_start_here.ipynb").write_text('{"edition": 3}')
    assert len(lab.prepare(notebooks, work)) == 1


def test_a_later_update_does_not_overwrite_answers_in_the_new_copy(folders):
    notebooks, work = folders
    lab.prepare(notebooks, work)
    (notebooks / "00_start_here.ipynb").write_text('{"edition": 2}')
    lab.prepare(notebooks, work)
    (work / "00_start_here.new.ipynb").write_text("answers in the new copy")
    (notebooks / "00_start_here.ipynb").write_text('{"edition": 3}')
    lab.prepare(notebooks, work)
    kept = [file.read_text() for file in work.glob("00_start_here*.ipynb")]
    assert "answers in the new copy" in kept
    assert '{"edition": 3}' in kept


def test_a_deleted_copy_comes_back_and_a_new_lesson_arrives(folders):
    notebooks, work = folders
    lab.prepare(notebooks, work)
    (work / "01_loss_derivation.ipynb").unlink()
    (notebooks / "02_masking_dataset.ipynb").write_text("{}")
    assert len(lab.prepare(notebooks, work)) == 2
    assert "01_loss_derivation.ipynb" in names(work)
    assert "02_masking_dataset.ipynb" in names(work)


def test_a_copy_without_a_record_is_the_learners(folders):
    notebooks, work = folders
    work.mkdir()
    (work / "00_start_here.ipynb").write_text("older than the record")
    lab.prepare(notebooks, work)
    assert (work / "00_start_here.ipynb").read_text() == "older than the record"
    assert (work / "00_start_here.new.ipynb").exists()


# -- a lesson has another number now -----------------------------------------------------------------------------------


def renumber(notebooks: Path, old: str, new: str) -> None:
    """What an insertion does to a later lesson: another name, and its prose says another number."""
    text = (notebooks / f"{old}.ipynb").read_text()
    (notebooks / f"{old}.ipynb").unlink()
    (notebooks / f"{new}.ipynb").write_text(text.replace(old, new))


def test_copies_follow_a_lesson_whose_number_has_changed(folders):
    notebooks, work = folders
    lab.prepare(notebooks, work)
    for name in ("01_loss_derivation", "01_loss_derivation.new", "01_loss_derivation.before-reset2"):
        (work / f"{name}.ipynb").write_text(f"mine: {name}")
    (work / "01_my_notes.ipynb").write_text("my notes")
    renumber(notebooks, "01_loss_derivation", "02_loss_derivation")
    (notebooks / "01_inserted.ipynb").write_text("{}")
    said = lab.prepare(notebooks, work)
    assert "work/02_loss_derivation.ipynb: your 01_loss_derivation.ipynb; the lesson has a new number" in said
    assert names(work) == [
        "00_start_here.ipynb", "01_inserted.ipynb", "01_my_notes.ipynb", "02_loss_derivation.before-reset2.ipynb",
        "02_loss_derivation.ipynb", "02_loss_derivation.new.ipynb", "02_loss_derivation.new2.ipynb",
    ]  # fmt: skip
    for name in ("", ".new", ".before-reset2"):
        kept = (work / f"02_loss_derivation{name}.ipynb").read_text()
        assert kept == f"mine: 01_loss_derivation{name}"
    assert (work / "01_my_notes.ipynb").read_text() == "my notes"
    assert lab.prepare(notebooks, work) == []


def test_the_record_of_origins_follows_too(folders):
    """A copy of a lesson that has changed in nothing but its number is not taken for one of an older edition."""
    notebooks, work = folders
    lab.prepare(notebooks, work)
    before = json.loads((work / ".origins.json").read_text())
    (notebooks / "01_loss_derivation.ipynb").rename(notebooks / "05_loss_derivation.ipynb")
    [line] = lab.prepare(notebooks, work)
    assert "the lesson has a new number" in line
    after = json.loads((work / ".origins.json").read_text())
    assert after == {name.replace("01_", "05_"): origin for name, origin in before.items()}


def test_an_untouched_new_copy_is_still_known_after_it_was_renamed(folders):
    notebooks, work = folders
    lab.prepare(notebooks, work)
    (notebooks / "01_loss_derivation.ipynb").write_text('{"edition": 2}')
    lab.prepare(notebooks, work)
    (notebooks / "01_loss_derivation.ipynb").unlink()
    (notebooks / "03_loss_derivation.ipynb").write_text('{"edition": 3}')
    lab.prepare(notebooks, work)
    assert (work / "03_loss_derivation.new.ipynb").read_text() == '{"edition": 3}'  # nobody had put answers into it
    assert not list(work.glob("*.new2.ipynb"))


def test_two_lessons_that_change_places_keep_their_copies(folders):
    notebooks, work = folders
    lab.prepare(notebooks, work)
    (work / "00_start_here.ipynb").write_text("answers of the start")
    (work / "01_loss_derivation.ipynb").write_text("answers of the loss")
    renumber(notebooks, "00_start_here", "01_start_here")
    renumber(notebooks, "01_loss_derivation", "00_loss_derivation")
    lab.prepare(notebooks, work)
    assert (work / "01_start_here.ipynb").read_text() == "answers of the start"
    assert (work / "00_loss_derivation.ipynb").read_text() == "answers of the loss"


def test_where_both_are_there_it_is_said_and_neither_is_lost(folders):
    notebooks, work = folders
    lab.prepare(notebooks, work)
    (work / "01_loss_derivation.ipynb").write_text("of old")
    (work / "02_loss_derivation.ipynb").write_text("of new")
    renumber(notebooks, "01_loss_derivation", "02_loss_derivation")
    said = lab.prepare(notebooks, work)
    there = "work/01_loss_derivation.ipynb: that lesson is number 02 now; 02_loss_derivation.ipynb is there, too"
    assert said[0] == there
    assert (work / "01_loss_derivation.ipynb").read_text() == "of old"
    assert (work / "02_loss_derivation.ipynb").read_text() == "of new"


# -- a record that was kept by numbers ---------------------------------------------------------------------------------

DONE, TRIED = {"tries": 2, "passed": "2026-11-02"}, {"tries": 3, "passed": None}


def keep(work: Path, record: object, **copies: str) -> None:
    """A record, and copies that hold one check each."""
    work.mkdir()
    (work / lab.RECORD).write_text(record if isinstance(record, str) else json.dumps(record))
    for name, check in copies.items():
        (work / f"{name}.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "source": [check]}]}))


def test_a_record_by_numbers_becomes_one_by_names(folders):
    notebooks, work = folders
    keep(work, {"4.1": DONE, "4.2": TRIED, "7.3": DONE, "merge": TRIED},
         **{"04_fine_tuning": 'check("4.1", masked_mean)', "04_fine_tuning.before-update": "check('4.2', mean)"})
    lab.prepare(notebooks, work)
    now = {"masked_mean": DONE, "mean": TRIED, "merge": TRIED, "7.3": DONE}  # of 7.3 no copy is left to ask
    assert json.loads((work / lab.RECORD).read_text()) == now
    lab.prepare(notebooks, work)
    assert json.loads((work / lab.RECORD).read_text()) == now


@pytest.mark.parametrize(
    ("old", "new", "both"),
    [(DONE, TRIED, {"tries": 5, "passed": "2026-11-02"}), (TRIED, DONE, {"tries": 5, "passed": "2026-11-02"}),
     (DONE, {"tries": 1, "passed": "2026-11-30"}, {"tries": 3, "passed": "2026-11-02"})],
)  # fmt: skip
def test_what_has_passed_stays_passed_where_both_are_there(folders, old, new, both):
    _, work = folders
    keep(work, {"4.1": old, "merge": new}, **{"04_fine_tuning": 'check("4.1", merge)'})
    lab.name_exercises(work)
    assert json.loads((work / lab.RECORD).read_text()) == {"merge": both}


@pytest.mark.parametrize("record", ["{", '["4.1"]', '{"4.1": 3}', '{"4.1": {"tries": "many", "passed": null}}', "7"])
def test_a_damaged_record_is_left_alone(folders, record):
    notebooks, work = folders
    keep(work, record, **{"04_fine_tuning": 'check("4.1", merge)'})
    lab.prepare(notebooks, work)
    assert (work / lab.RECORD).read_text() == record


# -- JupyterLab --------------------------------------------------------------------------------------------------------


def test_arrow_keys_belong_to_a_list_of_choices_and_settings_of_the_learner_stay(folders):
    lessons, work = folders
    lab.prepare(lessons, work)
    [settings] = (work / ".jupyter" / "settings").rglob("*.jupyterlab-settings")
    rules = json.loads(settings.read_text())["shortcuts"]
    places = Path(sys.prefix) / "share/jupyter/lab/schemas/@jupyterlab/notebook-extension/tracker.json"
    theirs = [rule for rule in json.loads(places.read_text(encoding="utf-8"))["jupyter.lab.shortcuts"]
              if rule["keys"] in (["ArrowUp"], ["ArrowDown"])]  # fmt: skip
    switched_off = [rule for rule in rules if rule.get("disabled")]
    assert [rule | {"disabled": True} for rule in theirs] == sorted(switched_off, key=lambda rule: rule["command"])
    assert [rule["selector"] for rule in rules if "disabled" not in rule] == [lab.COMMAND_MODE + ":not(select)"] * 2
    settings.write_text("{}")
    lab.prepare(lessons, work)
    assert settings.read_text() == "{}"


def test_no_lessons_is_one_clear_line(folders, monkeypatch, capsys):
    _, work = folders
    monkeypatch.setenv("COURSEKIT_ROOT", str(work.parent / "elsewhere"))
    parser = ArgumentParser()
    lab.add_arguments(parser)
    assert lab.main(parser.parse_args(["--work", str(work), "--prepare-only"])) == 1
    assert "lab: no lesson NN_name.ipynb in notebooks/: run `build` first" in capsys.readouterr().err


def test_no_browser_where_there_is_no_display(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not lab.has_browser()
    monkeypatch.setenv("DISPLAY", ":0")
    assert lab.has_browser()
    monkeypatch.setenv("CI", "true")
    assert not lab.has_browser()


def status_code(url: str, token: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"} if token else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_jupyterlab_starts_on_loopback_with_its_token(tmp_path):
    """The command behind `make lab`, for real: 403 without the token that Jupyter made, 200 with it."""
    work = tmp_path / "work"
    work.mkdir()
    empty = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    first = work / "00_start_here.ipynb"
    first.write_text(json.dumps(empty))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {name: value for name, value in lab.environment(work).items() if name != "JUPYTER_TOKEN"}
    environment["HOME"] = str(tmp_path / "home")
    (tmp_path / "home").mkdir()
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(lab.command(first, port, browser=False), env=environment, stdout=log,
                                  stderr=log, stdin=subprocess.DEVNULL, cwd=tmp_path)  # fmt: skip
        try:
            found = wait_for_server(server, work, tmp_path / "log")
            url = f"http://127.0.0.1:{port}/api/status"
            assert found["port"] == port
            assert found["token"]
            assert status_code(url) == 403
            assert status_code(url, found["token"]) == 200
            listening = {c.laddr for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"}
            addresses = {address.ip for address in listening if address.port == port}
            assert addresses
            assert addresses <= {"127.0.0.1", "::1"}
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=10)
    assert not list((tmp_path / "home").rglob("*kernel*")), "a kernel was registered in the home folder"


def wait_for_server(server: subprocess.Popen, work: Path, log: Path, seconds: float = 40) -> dict:
    """What Jupyter wrote about itself, once it answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        for file in (work / ".jupyter" / "runtime").glob("jpserver-*.json"):
            try:
                found = json.loads(file.read_text())
                status_code(f"http://127.0.0.1:{found['port']}/api/status")
                return found
            except (json.JSONDecodeError, urllib.error.URLError):
                continue  # half written, or not listening yet
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()}")


@pytest.mark.skipif(os.name == "nt", reason="no exec on Windows")
def test_main_becomes_jupyterlab(folders, monkeypatch):
    notebooks, work = folders
    called = {}
    monkeypatch.setenv("COURSEKIT_ROOT", str(notebooks.parent))
    monkeypatch.setattr(os, "execve", lambda *line: called.update(line=line))
    parser = ArgumentParser()
    lab.add_arguments(parser)
    lab.main(parser.parse_args(["--work", str(work), "--no-browser", "--port", "9001"]))
    program, line, environment = called["line"]
    assert program == sys.executable
    assert str(work / "00_start_here.ipynb") in line
    assert "--ServerApp.ip=localhost" in line
    assert "--no-browser" in line
    assert not any("token" in part or "password" in part for part in line)
    assert environment["JUPYTER_PREFER_ENV_PATH"] == "1"
