"""A course of another subject, one lesson of ten lines, goes through build, run, gate and grade: none is known."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coursekit import build, course, gate, grade, grade_box, run, source

ROOT = Path(__file__).resolve().parents[1]
LESSON = '''# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Eggs

# %%
from coursekit import check, start
lesson = start("eggs")

# %% [markdown]
# ### Exercise dozen — How many? · ★☆☆ · 1 minute

# %% tags=["exercise"]
def dozen():
    """Eggs in a dozen."""
    ### BEGIN SOLUTION
    return 12
    ### END SOLUTION

# %% tags=["check"]
check("dozen", dozen)

# %%
lesson.record("eggs", 12)
lesson.claims()
'''
GRADERS = '''"""Graders."""
from coursekit.checks import close, grader


@grader("dozen")
def dozen(answer, rng):
    close(answer(), 12, "the dozen")
'''
CLAIMS = '''[[claim]]
id = "eggs"
statement = "Eggs in a dozen"
unit = "eggs"
value = 12
tolerance = 0
kind = "exact"
profiles = ["quick", "full"]
'''


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kitchen")
    folder = root / "notebooks" / "source" / "00_eggs"
    folder.mkdir(parents=True)
    for name, text in (("lesson.py", LESSON), ("graders.py", GRADERS), ("claims.toml", CLAIMS)):
        (folder / name).write_text(text, encoding="utf-8")
    assert run.store(root, course.lessons(root)) in (0, 1)  # 1: see the gate, three exact claims are asked for
    return root


def test_it_is_built_in_three_kinds(kitchen):
    titles = {kind: build.build(kitchen, "00_eggs", kind).cells[0].source for kind in build.KINDS}
    assert titles == dict.fromkeys(build.KINDS, "# 00 · Eggs")
    exercise = build.build(kitchen, "00_eggs", "learner").cells[2].source
    assert exercise.startswith("### Exercise 0.1 — How many?")


def test_it_runs_and_its_check_passes(kitchen):
    outcome = run.run_one(kitchen, "00_eggs", "quick")
    assert (outcome.problems, outcome.passed, outcome.held) == ([], 1, 1)


def test_the_gate_knows_what_it_lacks_and_when_it_is_stale(kitchen):
    found = gate.drift(kitchen) + [line for line in gate.claims.problems(kitchen) if "exact claims" not in line]
    assert found == []
    path = course.part(kitchen, "00_eggs", "lesson.py")
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace('record("eggs", 12)', 'record("eggs", 6 + 6)'), encoding="utf-8")
    try:
        assert any("the lesson's cells" in line for line in gate.claims.problems(kitchen))
    finally:
        path.write_text(before, encoding="utf-8")


def test_its_class_is_graded(kitchen, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSEKIT_ROOT", str(kitchen))
    for learner, kind in (("ann", "teacher"), ("ben", "learner")):
        (tmp_path / "class" / learner).mkdir(parents=True)
        build.save(build.build(kitchen, "00_eggs", kind), tmp_path / "class" / learner / "00_eggs.ipynb")
    assert grade.main(kitchen, tmp_path / "class", tmp_path / "grades.csv", [], grade_box.Limits()) == 0
    rows = list(csv.DictReader((tmp_path / "grades.csv").open(encoding="utf-8")))
    assert {row["learner"]: row["verdict"] for row in rows} == {"ann": "passed", "ben": "not attempted"}


def test_nothing_of_this_course_was_needed(kitchen, tmp_path):
    """The same where only coursekit can be imported."""
    shutil.copytree(ROOT / "coursekit", tmp_path / "only" / "coursekit", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"""
import sys
sys.modules["sslcourse"] = None  # an import of it raises ImportError
from pathlib import Path
from coursekit import build, checks, gate, run
root = Path({str(kitchen)!r})
assert gate.drift(root) == []
assert str(checks.grade("dozen", lambda: 12)) == "✓ Exercise dozen: passed"
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120,
                          env={"PYTHONPATH": str(tmp_path / "only"), "COURSEKIT_ROOT": str(kitchen), "PATH": "",
                               "HOME": str(tmp_path), "PYTHONUTF8": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_lesson_is_about_ten_lines_of_code(kitchen):
    code = "\n".join(cell.source for cell in build.code_cells(source.read(kitchen, "00_eggs").notebook))
    assert len([line for line in code.splitlines() if line.strip() and "###" not in line]) <= 10
    assert json.loads(course.part(kitchen, "00_eggs", "ledger.json").read_text())["values"] == {"eggs": 12.0}
