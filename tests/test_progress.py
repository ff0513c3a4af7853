"""The learner's record and copies: what is theirs is never lost, and a new lesson takes over what still fits."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from coursekit import checks, commands, lab, progress
from coursekit import course as courses

ROOT = Path(__file__).resolve().parents[1]


def cell(source, *tags, kind="code", name=None):
    return {"cell_type": kind, "id": name or sha256(source.encode()).hexdigest()[:12], "metadata": {"tags": list(tags)},
            "source": source, **({"outputs": [], "execution_count": None} if kind == "code" else {})}  # fmt: skip


def lesson(*stubs, edition="first", numbered=False):
    """A notebook with an exercise for each stub; its checks name them, or number them as they once did."""
    cells = [cell(f"# 01 · Tiny, {edition} edition", kind="markdown")]
    for place, stub in enumerate(stubs, start=1):
        word = stub.removeprefix("def ").partition("(")[0]
        check = f'check("{f"1.{place}" if numbered else word}", {word})'
        cells += [cell(stub, "exercise"), cell(check, "check")]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


STUB = "def {name}({args}):\n    return ...  # your code here"
MEAN, SUM = STUB.format(name="mean", args="values"), STUB.format(name="total", args="values, start=0")
ANSWER = "def mean(values):\n    return sum(values) / len(values)"


@pytest.fixture
def course(tmp_path):
    """(notebooks, work) of a course of one lesson, opened by `lab`."""
    notebooks, work = tmp_path / "notebooks", tmp_path / "work"
    notebooks.mkdir()
    write(notebooks / "01_tiny.ipynb", lesson(MEAN, SUM))
    lab.prepare(notebooks, work)
    return notebooks, work


def write(path, notebook):
    path.write_text(json.dumps(notebook))


def read(path):
    return json.loads(path.read_text())


def answered(notebook, place, answer):
    notebook["cells"][place]["source"] = answer
    return notebook


# --- the record


def test_a_check_is_noted_in_a_learners_folder_and_nowhere_else(course, tmp_path, monkeypatch):
    _, work = course
    monkeypatch.chdir(tmp_path)
    progress.record("mean", True)
    assert not (tmp_path / progress.RECORD).exists()
    monkeypatch.chdir(work)
    for passed in (False, True, False):  # who tries on afterwards has passed all the same
        progress.record("mean", passed)
    (entry,) = progress.load(work).values()
    assert entry["tries"] == 3
    assert len(entry["passed"]) == len("2026-11-25")


def test_check_keeps_the_record(course, monkeypatch):
    _, work = course
    monkeypatch.chdir(work)
    monkeypatch.setattr(checks, "find", lambda root, exercise: checks.grader(exercise)(lambda answer, rng: answer(1)))
    checks.check("mean", lambda x: ...)
    assert progress.load(work) == {}  # a stub is no try
    checks.check("mean", lambda x: None)
    checks.check("mean", lambda x: x)
    assert progress.load(work)["mean"]["tries"] == 2
    assert progress.load(work)["mean"]["passed"]


def test_a_damaged_record_is_kept_and_stands_in_nobodys_way(course, capsys):
    _, work = course
    (work / progress.RECORD).write_text("{")
    assert progress.main_progress(ROOT, work) == 1
    assert "is damaged" in capsys.readouterr().err
    progress.record("mean", True, work)
    assert (work / f"{progress.RECORD}.damaged").read_text() == "{"
    assert progress.load(work)["mean"]["tries"] == 1


def test_the_table_says_what_is_done_and_what_comes_next(course):
    _, work = course
    words = {courses.name(one): list(titles) for one, (_, titles) in progress.exercises(ROOT).items()}
    for exercise in (words["start_here"][0], words["mlm_pretraining"][1]):
        progress.record(exercise, True, work)
    lines = progress.table(ROOT, work).splitlines()
    assert lines[0].startswith("00  [x")
    assert "1 of" in lines[0]
    assert lines[3].startswith("03  [.x")
    assert "next: 3.1" in lines[3]
    assert lines[-1].startswith("2 of ")
    every = sum(len(of_lesson) for _, of_lesson in progress.exercises(ROOT).values())
    assert lines[-1] == f"2 of {every} exercises passed"


def test_a_lesson_run_in_the_repository_shows_nobodys_record(capsys, monkeypatch):
    """The first lesson prints the table of its own folder, and ``notebooks/`` holds no record: nobody's is stored."""
    monkeypatch.chdir(ROOT / "notebooks")
    progress.record(next(iter(progress.exercises(ROOT)["00_start_here"][1])), True)
    assert progress.main_progress(ROOT, Path.cwd()) == 0
    said = capsys.readouterr().out
    assert "\n0 of " in said
    assert "no record yet in notebooks/" in said
    assert "progress.main_progress(lesson.root, Path.cwd())" in (
        courses.part(ROOT, "00_start_here", "lesson.py").read_text(encoding="utf-8")
    )


# --- reset


def test_reset_keeps_what_was_there_and_forgets_the_lesson_alone(course):
    notebooks, work = course
    (work / "01_tiny.ipynb").write_text("my work")
    for exercise in ("mean", "drop_heads"):
        progress.record(exercise, True, work)
    progress.reset(notebooks, work, "01_tiny")
    assert (work / "01_tiny.before-reset.ipynb").read_text() == "my work"
    assert (work / "01_tiny.ipynb").read_bytes() == (notebooks / "01_tiny.ipynb").read_bytes()
    assert list(progress.load(work)) == ["drop_heads"]
    progress.reset(notebooks, work, "01_tiny")
    assert (work / "01_tiny.before-reset2.ipynb").exists()
    assert lab.prepare(notebooks, work) == []  # it is the lesson of today


# --- update


def test_an_answer_moves_into_the_new_lesson(course):
    notebooks, work = course
    write(work / "01_tiny.ipynb", answered(read(work / "01_tiny.ipynb"), 1, ANSWER))
    write(notebooks / "01_tiny.ipynb", lesson(MEAN, SUM, edition="second"))
    lab.prepare(notebooks, work)
    shown, merged = progress.update(notebooks, work, "01_tiny")
    assert "-# 01 · Tiny, first edition" in shown
    assert "+# 01 · Tiny, second edition" in shown
    assert "return sum(values)" not in shown  # it stays as it was
    said = progress.write_update(notebooks, work, "01_tiny", merged)
    assert "with your answers to mean" in said[1]
    now = [one["source"] for one in read(work / "01_tiny.ipynb")["cells"]]
    assert now[0].endswith("second edition")
    assert now[1] == ANSWER
    assert now[3] == SUM
    assert (work / "01_tiny.before-update.ipynb").exists()
    assert lab.prepare(notebooks, work) == []


@pytest.mark.parametrize("first", ["mean", "total"])
def test_an_answer_of_a_copy_that_numbers_its_exercises_finds_its_place(course, first):
    """Checks once named a number; the exercises may since have changed places, and the lesson its number."""
    notebooks, work = course
    old = answered(lesson(MEAN, SUM, numbered=True), 1, ANSWER)
    write(work / "01_tiny.ipynb", old)
    write(notebooks / "01_tiny.ipynb", lesson(*((MEAN, SUM) if first == "mean" else (SUM, MEAN)), edition="second"))
    shown, merged = progress.update(notebooks, work, "01_tiny")
    assert (merged.taken, merged.changed, merged.own_cells) == (["mean"], [], 0)
    sources = [one["source"] for one in merged.notebook["cells"]]
    assert sources[sources.index(ANSWER) + 1] == 'check("mean", mean)'
    assert sources[sources.index(SUM) + 1] == 'check("total", total)'
    assert '-check("1.1", mean)' in shown
    assert '+check("mean", mean)' in shown


def test_an_answer_to_a_changed_exercise_is_laid_below_as_text(course):
    notebooks, work = course
    write(work / "01_tiny.ipynb", answered(read(work / "01_tiny.ipynb"), 1, ANSWER))
    other = STUB.format(name="mean", args="values, weights")
    write(notebooks / "01_tiny.ipynb", lesson(other, SUM))
    _, merged = progress.update(notebooks, work, "01_tiny")
    assert (merged.taken, merged.changed) == ([], ["mean"])
    sources = [one["source"] for one in merged.notebook["cells"]]
    assert sources[1] == other
    assert f"```python\n{ANSWER}\n```" in sources[2]


@pytest.mark.parametrize("answer", ["def mean(values:\n    return 1", "mean = sum"])
def test_an_answer_that_does_not_fit_is_not_lost(course, answer):
    notebooks, work = course
    write(work / "01_tiny.ipynb", answered(read(work / "01_tiny.ipynb"), 1, answer))
    _, merged = progress.update(notebooks, work, "01_tiny")
    assert merged.changed == ["mean"]
    assert answer in merged.notebook["cells"][2]["source"]


def test_cells_of_ones_own_are_counted_and_stay_in_the_old_copy(course):
    notebooks, work = course
    mine = read(work / "01_tiny.ipynb")
    mine["cells"].append(cell("print('my experiment')", name="0b7a3c1e-5d0e-4a43-9f5e-2f8a52e9ac11"))
    write(work / "01_tiny.ipynb", mine)
    write(notebooks / "01_tiny.ipynb", lesson(MEAN, edition="second"))
    _, merged = progress.update(notebooks, work, "01_tiny")
    assert merged.own_cells == 1
    progress.write_update(notebooks, work, "01_tiny", merged)
    assert "my experiment" in (work / "01_tiny.before-update.ipynb").read_text()


def test_nothing_is_written_unasked(course, capsys, monkeypatch):
    notebooks, work = course
    write(notebooks / "01_tiny.ipynb", lesson(MEAN, edition="second"))
    before = (work / "01_tiny.ipynb").read_bytes()
    monkeypatch.setattr("sys.stdin", None)
    assert progress.main_update(notebooks.parent, work, ["01_tiny"], yes=False) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert (work / "01_tiny.ipynb").read_bytes() == before
    assert progress.main_update(notebooks.parent, work, ["01_tiny"], yes=True) == 0
    assert progress.main_update(notebooks.parent, work, ["01_tiny"], yes=True) == 0
    assert "is up to date" in capsys.readouterr().out


def test_what_cannot_be_updated_is_named(course, capsys):
    notebooks, work = course
    (work / "01_tiny.ipynb").write_text("no notebook")
    assert progress.main_update(notebooks.parent, work, ["01_tiny"], yes=True) == 1
    assert "is no notebook" in capsys.readouterr().err
    (work / "01_tiny.ipynb").unlink()
    assert progress.main_update(notebooks.parent, work, ["01_tiny"], yes=True) == 1
    assert "work/01_tiny.ipynb is not there; `lab` makes one" in capsys.readouterr().err


def test_the_commands_know_lessons_by_number(tmp_path, capsys):
    assert commands.main(["progress", "--work", str(tmp_path / "work")]) == 0
    assert "no record yet" in capsys.readouterr().out
    assert commands.main(["reset", "1", "--work", str(tmp_path / "work")]) == 0
    assert (tmp_path / "work" / "01_loss_derivation.ipynb").is_file()
    assert commands.main(["update", "01", "--work", str(tmp_path / "work")]) == 0
    assert "is up to date" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        commands.main(["reset", "77", "--work", str(tmp_path / "work")])
