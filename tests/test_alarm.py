"""The alarm works: each fault is planted in a scratch copy that is green without it, and must turn it red."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from test_exercises import let_through

from coursekit import checks
from coursekit.checks import Wrong, grade, grader

ROOT = Path(__file__).resolve().parents[1]
MARK = "# planted faults go below this line"


@pytest.fixture(scope="module")
def green_run(stored_course):
    """The unplanted lesson, run once: the teacher's notebook in quick."""
    outcome = stored_course.run()
    assert outcome.problems == []
    assert (outcome.held, outcome.claimed, outcome.passed, outcome.checks) == (3, 4, 1, 1)
    return outcome


# -- faults that a run must find ---------------------------------------------------------------------------------------


WRONG_SUM = ("numbers = [1, 2, 3]", "numbers = [1, 2, 4]")
NO_COUNT = ('lesson.record("tiny-count", len(numbers))\n', "")
SWALLOW = "try:\n    {}\nexcept {}:\n    pass"
FAULTS = {
    # what is planted: replacements in the source, what the run must say
    "a cell raises": ([(MARK, "1 / 0")], ["ZeroDivisionError", "1 / 0"]),
    "claims out of bounds, and never recorded": (
        [WRONG_SUM, NO_COUNT],
        ["UnsupportedClaimError", "'tiny-sum': ✗ missed", "'tiny-count': ✗ unrecorded"]),
    "the same, swallowed": (
        [WRONG_SUM, NO_COUNT, ("lesson.claims()", SWALLOW.format("lesson.claims()", "AssertionError"))],
        ["'tiny-sum': ✗ missed", "'tiny-count': ✗ unrecorded"]),
    "claims never shown": ([("lesson.claims()", "pass")], ["did not come to lesson.claims()"]),
    "over its memory, and far over its minutes": (
        [("memory_mb: 1500", "memory_mb: 50"), ("minutes: 1.0", "minutes: 0.001")],
        ["over its memory budget", "over 2 times its minutes"]),
    "connects to another machine": (
        [(MARK, "import socket; socket.create_connection(('192.0.2.1', 80), timeout=3)")],
        ["connection to 192.0.2.1 refused"]),
    "downloads from the hub": (
        [(MARK, "import huggingface_hub as hub; hub.hf_hub_download('bert-base-uncased', 'a')")],
        ["a cell raised LocalEntryNotFoundError"]),
    "a download that is swallowed": (
        [(MARK, "from urllib.request import urlopen\n" + SWALLOW.format("urlopen('https://example.org/')", "OSError"))],
        ["it tried the network: example.org"]),
    "an unattempted exercise": (
        [("return (rows.logsumexp(-1) - right).mean()", "return ...")],
        ["a cell raised CheckFailed", "Exercise masked_mean_loss: not attempted yet"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_is_red(green_run, tiny, fault):
    replacements, said = FAULTS[fault]
    for old, new in replacements:
        tiny.plant(old, new)
    outcome = tiny.run()
    assert outcome.red
    assert all(fragment in "\n".join(outcome.problems) for fragment in said), outcome.problems


def test_a_learners_run_is_green_without_answers_and_red_with_one(tiny):
    assert tiny.run(kind="learner").problems == []
    tiny.plant('check("masked_mean_loss", masked_mean_loss)',
               "print('passed')\ncheck(\"masked_mean_loss\", lambda logits, labels: 0.0)")
    assert "should say 'not attempted yet'" in "\n".join(tiny.run(kind="learner").problems)


# -- faults that the gate must find ------------------------------------------------------------------------------------


def test_the_gate_is_green_on_what_was_stored(stored):
    assert stored.gate() == []


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        pytest.param("numbers = [1, 2, 3]", "numbers = [2, 2, 2]", "stale", id="code changed"),
        pytest.param("the sum was", "the grand sum was", "source differs", id="prose changed"),
        pytest.param('tags=["check", "nbval-check-output"]', 'tags=["check"]', "metadata differs", id="tag changed"),
        pytest.param("minutes: 1.0", "minutes: 2.0", "metadata differ", id="budget changed"),
        pytest.param("{{tiny-sum}}", "{{tiny-some}}", "did you mean 'tiny-sum'", id="prose prints an unknown claim"),
        pytest.param("# %%\nlesson.claims()", "# %%\n'one more'\n\n# %%\nlesson.claims()", "cells", id="cell added"),
    ],
)
def test_the_gate_is_red_when_the_source_moves_on(stored, old, new, fragment):
    assert stored.gate() == []
    stored.plant(old, new)
    assert any(fragment in line for line in stored.gate()), stored.gate()


def test_comments_and_docstrings_are_not_code(stored):
    stored.plant(MARK, "# another comment")
    stored.plant("Mean loss over", "The mean loss over")
    assert not any("stale" in line for line in stored.gate())


@pytest.mark.parametrize(
    ("path", "old", "new", "fragment"),
    [
        ("claims", "value = 6", "value = 7", "'tiny-sum' is out of bounds: 6"),
        ("claims", "max = 2.5", "max = 2.0", "'tiny-loss' is out of bounds: 2.25"),
        ("claims", 'id = "tiny-count"', 'id = "tiny-number"', "'tiny-number' was never recorded"),
        ("claims", 'kind = "measured"', 'kind = "mesured"', "claim 'tiny-loss': field 'kind'"),
        ("ledger", '"profile": "full"', '"profile": "quick"', "not full"),
        ("ledger", '"tiny-sum": 6.0', '"tiny-sum": NaN', "out of bounds"),
        ("ledger", '"start": "', '"start": "0', "`start` (coursekit/lesson.py) has changed"),
        ("notebook", "The masked mean", "The mean", "source differs"),
        ("notebook", '"cells": [', '"cells": [{"cell_type": "raw", "id": "x", "metadata": {}, "source": []},', "cells"),
    ],
)
def test_the_gate_is_red_when_a_file_is_changed(stored, path, old, new, fragment):
    assert stored.gate() == []
    stored.plant(old, new, getattr(stored, path))
    assert any(fragment in line for line in stored.gate()), stored.gate()


@pytest.mark.parametrize("path", ["ledger", "notebook", "claims"])
def test_the_gate_is_red_when_a_file_is_absent(stored, path):
    getattr(stored, path).unlink()
    assert stored.gate()


ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": ["no"]}
STREAM = {"output_type": "stream", "name": "stdout"}


@pytest.mark.parametrize(
    ("output", "fragment"),
    [
        (ERROR, "stores an error: ValueError"),
        ({**STREAM, "name": "stderr", "text": "a warning"}, "stores stderr"),
        ({**STREAM, "text": "saved in /home/me/model"}, "stores an absolute path"),
        ({**STREAM, "text": "<object at 0x7f1234567890>"}, "stores a memory address"),
    ],
)
def test_the_gate_is_red_for_what_must_not_be_stored(stored, output, fragment):
    notebook = nbformat.read(stored.notebook, as_version=4)
    notebook.cells[3].outputs.append(nbformat.from_dict(output))
    nbformat.write(notebook, stored.notebook)
    assert any(fragment in line for line in stored.gate()), stored.gate()


@pytest.mark.parametrize("fault", ["papermill", "widgets", "not run", "no verdict"])
def test_the_gate_is_red_for_other_traces(stored, fault):
    notebook = json.loads(stored.notebook.read_text())
    check = next(cell for cell in notebook["cells"] if "check" in cell["metadata"].get("tags", []))
    if fault == "not run":
        check["execution_count"] = None
    elif fault == "no verdict":
        check["outputs"] = []
    else:
        notebook["metadata"][fault] = {}
    stored.notebook.write_text(json.dumps(notebook))
    assert stored.gate()


def test_a_changed_definition_makes_the_ledger_stale(stored):
    """A lesson's numbers come from the package too; its docstrings do not count."""
    shutil.copytree(ROOT / "coursekit", stored.root / "coursekit", ignore=shutil.ignore_patterns("__pycache__"))
    lesson = stored.root / "coursekit" / "lesson.py"
    stored.plant('"""Python\'s, NumPy\'s and torch\'s', '"""Other words: torch\'s', lesson)
    assert stored.gate() == []
    stored.plant("SEED = 0", "SEED = 1", lesson)
    [line] = stored.gate()
    assert "stale: `SEED` (coursekit/lesson.py) has changed since" in line


# -- a grader that lets a mutant through -------------------------------------------------------------------------------


def test_a_grader_that_lets_a_mutant_through_is_found(monkeypatch):
    def doubles(x):
        return x + x

    def strict(answer, rng):
        number = rng.integer(3, 9)
        if answer(number) != number**2:
            raise Wrong("that is not the square")

    def sleepy(answer, rng):
        number = rng.integer(2, 9)
        if number > 2 and answer(number) != number**2:  # says nothing about 2, where both agree
            raise Wrong("that is not the square")

    monkeypatch.setattr(checks, "find", lambda root, exercise: grader(exercise)(graders[exercise]))
    graders = {"square": strict}
    mutants = {"doubles": (doubles, "not the square")}
    assert grade("square", lambda x: x * x).status == "passed"
    assert let_through("square", mutants) == []
    assert let_through("square", {"doubles": (doubles, "another message")}) != []
    graders["square"] = sleepy
    assert let_through("square", mutants) != []
