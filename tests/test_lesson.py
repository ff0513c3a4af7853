"""What a lesson starts with (profile, seeds, offline, quiet) and what it records."""

import os
import random
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from coursekit import claims, lesson, offline, plots
from coursekit.claims import ClaimError, Ledger, UnsupportedClaimError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def begin(tiny, monkeypatch):
    monkeypatch.setenv("COURSEKIT_ROOT", str(tiny.root))
    for name in ("SSLCOURSE_PROFILE", "COURSEKIT_LEDGER", "SSLCOURSE_ONLINE", "COURSEKIT_STORING"):
        monkeypatch.delenv(name, raising=False)
    for name in (*lesson.OFFLINE, *lesson.QUIET):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that what start sets is undone
    return lambda profile="auto": lesson.start("tiny", profile)


def record_all(found: lesson.Lesson) -> None:
    for name, value in {"tiny-sum": 6, "tiny-count": 3, "tiny-error": 0.0, "tiny-loss": 9.0}.items():
        found.record(name, value)


@pytest.mark.parametrize(
    ("parameter", "variable", "profile"),
    [("auto", None, "full"), ("auto", "quick", "quick"), ("full", "quick", "full"), ("gpu", None, "gpu"),
     ("auto", "", "full")],
)
def test_the_profile(begin, monkeypatch, parameter, variable, profile):
    if variable is not None:
        monkeypatch.setenv("SSLCOURSE_PROFILE", variable)
    assert begin(parameter).profile == profile


@pytest.mark.parametrize(("parameter", "variable"), [("fast", None), ("auto", "fast"), ("", None)])
def test_an_unknown_profile_names_the_choices(begin, monkeypatch, parameter, variable):
    if variable:
        monkeypatch.setenv("SSLCOURSE_PROFILE", variable)
    with pytest.raises(ValueError, match="'quick', 'full', 'gpu'"):
        begin(parameter)


def test_choose(begin):
    assert begin("quick").choose(quick=1, full=2) == 1
    assert begin("gpu").choose(quick=1, full=2) == 2
    assert begin("gpu").choose(quick=1, full=2, gpu=None) is None


def test_start_fixes_every_seed(begin):
    drawn = []
    for _ in range(2):
        begin()
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_start_goes_offline_unless_it_is_told_not_to(begin, monkeypatch):
    begin()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(offline.OfflineError):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    offline.release()
    try:
        monkeypatch.setenv("SSLCOURSE_ONLINE", "1")
        begin()
        assert socket.socket.connect is offline._original["connect"]
    finally:
        offline.guard()


def test_record_returns_what_it_was_given(begin):
    found = begin()
    value = torch.tensor(6.0)
    assert found.record("tiny-sum", value) is value
    assert found.values == {"tiny-sum": 6.0}


def test_record_refuses_what_nobody_claims_and_what_is_no_number(begin):
    found = begin()
    with pytest.raises(ClaimError, match="did you mean 'tiny-sum'"):
        found.record("tiny-summ", 6)
    for value in (torch.zeros(2), "six", None):
        with pytest.raises(ClaimError, match="is not one number"):
            found.record("tiny-sum", value)


def test_a_second_other_value_is_refused(begin):
    found = begin()
    found.record("tiny-sum", 6)
    found.record("tiny-sum", 6.0)
    with pytest.raises(ClaimError, match=r"recorded as 6\.0 and now as 7\.0"):
        found.record("tiny-sum", 7)


def test_a_person_may_run_a_cell_again(begin, monkeypatch):
    found = begin()
    monkeypatch.setattr(lesson, "_in_notebook", lambda: True)
    found.record("tiny-loss", 2.0)
    found.record("tiny-loss", 2.1)
    assert found.values["tiny-loss"] == 2.1
    monkeypatch.setenv("COURSEKIT_LEDGER", "somewhere")
    with pytest.raises(ClaimError):
        found.record("tiny-loss", 2.2)


def test_claims_are_shown_and_written_even_when_they_fail(begin, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COURSEKIT_LEDGER", str(tmp_path / "new" / "ledger.json"))
    found = begin("quick")
    found.record("tiny-sum", 7)
    with pytest.raises(UnsupportedClaimError, match="tiny-count: unrecorded") as error:
        found.claims()
    assert "tiny-sum: missed, outside 6, it is 7.0" in str(error.value)
    assert "✗ missed: outside 6" in capsys.readouterr().out
    assert Ledger.read(tmp_path / "new" / "ledger.json").values == {"tiny-sum": 7.0}


def test_a_loss_that_is_not_reached_is_said_and_not_raised(begin, capsys):
    found = begin("full")
    record_all(found)
    found.claims()
    assert "not reached on this machine, because" in capsys.readouterr().out


def test_live_is_for_people(begin, monkeypatch):
    found = begin()
    assert found.live
    monkeypatch.setenv("COURSEKIT_LEDGER", "somewhere")
    assert not found.live


def test_a_lesson_without_claims_cannot_start(begin, tiny):
    tiny.claims.unlink()
    with pytest.raises(FileNotFoundError, match=r"01_tiny/claims\.toml is missing"):
        begin()


def test_a_lesson_is_begun_by_its_name_whatever_its_number_is(begin, tiny):
    tiny.folder.rename(tiny.folder.with_name("07_tiny"))
    assert begin().id == "07_tiny"
    with pytest.raises(LookupError, match="'tine'; did you mean 'tiny'"):
        lesson.start("tine")


def test_what_the_course_prepares_and_knows_of_a_machine_is_asked_for(begin, tiny, monkeypatch):
    called = []
    monkeypatch.setattr(claims, "prepared", lambda: called.append("prepare"), raising=False)
    monkeypatch.setattr(claims, "looked", lambda: {"oven": "hot"}, raising=False)
    with (tiny.root / "pyproject.toml").open("a") as file:
        file.write('prepare = "coursekit.claims:prepared"\nmachine = "coursekit.claims:looked"\n')
    assert begin().machine["oven"] == "hot"
    assert called == ["prepare"]


def test_the_machine_names_what_a_reader_needs_and_no_path(tiny):
    every_course = {"cpu", "threads", "platform", "python", "torch"}
    assert set(lesson.machine(tiny.root)) == every_course
    found = lesson.machine(ROOT)
    assert set(found) == every_course | {"cores", "bf16", "gpu"}
    assert found["threads"] == torch.get_num_threads()
    assert not any(str(value).startswith("/") for value in found.values())
    assert found["cpu"] in claims.describe(found)


# -- offline -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1", "", None, b"localhost"])
def test_this_machine_is_here(host):
    assert offline.is_here(host)


@pytest.mark.parametrize("host", ["192.0.2.1", "10.0.0.1", "example.org", "localhost.example.org", "2001:db8::1"])
def test_other_machines_are_not(host):
    assert not offline.is_here(host)


def test_the_guard_refuses_each_way_out_and_remembers(begin):
    begin()  # a lesson says which variable would let it out
    offline.guard()  # twice is once
    before = len(offline.attempts)
    with socket.socket() as tcp:
        with pytest.raises(offline.OfflineError, match=r"connection to 192\.0\.2\.1 refused; set SSLCOURSE_ONLINE=1"):
            tcp.connect(("192.0.2.1", 80))
        with pytest.raises(offline.OfflineError):
            tcp.connect_ex(("192.0.2.1", 80))
    with pytest.raises(offline.OfflineError):
        socket.getaddrinfo("example.org", 80)
    assert offline.attempts[before:] == ["192.0.2.1", "192.0.2.1", "example.org"]


def test_the_guard_lets_loopback_through():
    offline.guard()
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


# -- plots -------------------------------------------------------------------------------------------------------------


def test_a_figure_needs_alt_text_and_labels(monkeypatch):
    import IPython.display
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda bundle, **options: shown.append((bundle, options)))
    plots.use_style()
    figure, axis = plt.subplots()
    axis.plot([1, 2])
    with pytest.raises(ValueError, match="no axis label"):
        plots.show(figure, alt="A line that rises.")
    axis.set(xlabel="step", ylabel="loss (nats)")
    with pytest.raises(ValueError, match="alt is empty"):
        plots.show(figure, alt=" ")
    plots.show(figure, alt="A line that rises.")
    [(bundle, options)] = shown
    assert bundle["text/plain"] == "A line that rises."
    assert options["metadata"]["image/png"]["alt"] == "A line that rises."
    assert not plt.get_fignums()
    assert plots.png(figure) == plots.png(figure)
