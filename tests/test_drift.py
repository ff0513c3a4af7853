""".ci/weekly: its pieces. The job itself takes hours and a network, and is not run here."""

import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("drift", ROOT / ".ci" / "drift.py")
drift = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drift)

PROJECT = {
    "dependencies": ["torch>=2.11", "transformers>=5.17,<6"],
    "optional-dependencies": {"lessons": ["peft >=1.2.2"], "test": ["pytest~=8.4"], "minilm": ["large>=1"]},
}


def round_(name, installed, **stages):
    return drift.Round(name, installed, stages)


def test_the_lock_of_this_course_is_read():
    pins = drift.pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert {"torch", "typing-extensions", "jupyterlab"} <= set(pins)
    assert all(version[0].isdigit() for version in pins.values())
    assert drift.pins("# a comment\n\nTyping_Extensions==4.16.0\n") == {"typing-extensions": "4.16.0"}
    with pytest.raises(ValueError, match=r"'torch>=2' is not a pin: write name==version"):
        drift.pins("torch>=2\n")


def test_a_round_asks_for_ranges_or_for_the_newest():
    assert drift.wanted(PROJECT, "within") == ["torch>=2.11", "transformers>=5.17,<6", "peft >=1.2.2", "pytest~=8.4"]
    assert drift.wanted(PROJECT, "beyond") == ["torch", "transformers", "peft", "pytest"]


def test_the_report_names_what_moved_and_what_came_of_it():
    pinned = {"torch": "2.13.0", "numpy": "2.4.6"}
    text = drift.report(pinned, [
        round_("within", {"torch": "2.13.0+cpu", "numpy": "2.5.0", "pip": "30"}, lint=True, unit=True),
        round_("beyond", {"torch": "3.0.0", "numpy": "2.5.0"}, lint=True, unit=False, teacher=False),
    ])  # fmt: skip
    assert "within the ranges: **passed**" in text
    assert "beyond the ranges: **failed: unit, teacher**" in text
    assert [line for line in text.splitlines() if line.startswith("| ")][1:] == [
        "| numpy | 2.4.6 | 2.5.0 | within | passed |",
        "| numpy | 2.4.6 | 2.5.0 | beyond | failed: unit, teacher |",
        "| torch | 2.13.0 | 3.0.0 | beyond | failed: unit, teacher |",
    ]
    same = drift.report(pinned, [round_("within", {"torch": "2.13.0"})])
    assert "Every package is what constraints.txt pins." in same


@pytest.mark.parametrize(
    ("installed", "status"),
    [({"within": {"torch": "3"}, "beyond": {"torch": "3"}}, 0), ({"within": {}, "beyond": {"torch": "3"}}, 0),
     ({"within": {}, "beyond": {}}, 1)],
)  # fmt: skip
def test_drift_blocks_nothing_and_only_no_installation_at_all_is_red(tmp_path, monkeypatch, capsys, installed, status):
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    monkeypatch.setattr(drift, "ROOT", tmp_path)
    monkeypatch.setattr(drift, "try_out", lambda name: round_(name, installed[name], unit=False))
    assert drift.main([]) == status
    assert (tmp_path / "build" / "drift.md").read_text() == capsys.readouterr().out.removesuffix("\n")
    assert drift.main(["sideways"]) == 2


def test_the_job_knows_every_stage_and_the_tests_that_it_leaves_out():
    stages = importlib.util.spec_from_file_location("stages", ROOT / ".ci" / "stages.py")
    module = importlib.util.module_from_spec(stages)
    stages.loader.exec_module(module)
    assert list(drift.STAGES) == list(module.STAGES)
    tests = (ROOT / "tests" / "test_environment.py").read_text(encoding="utf-8")
    assert all(f"\ndef {name}(" in tests for name in drift.DESELECT)
    weekly = ROOT / ".ci" / "weekly"
    assert ".ci/drift.py" in weekly.read_text(encoding="utf-8")
    assert os.access(weekly, os.X_OK)
