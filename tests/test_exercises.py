"""Graders accept the solution, know the stub, and reject every named wrong answer, each time, with the right words.

Solutions and stubs come from the lessons' sources, wrong answers from ``mutants.py`` in the lesson's folder:

    MUTANTS = {"masked_mean_loss": {"averages over all positions": (function, "fragment of the message"), ...}, ...}
"""

import ast
import runpy
import shutil
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from coursekit import build, checks, course, source

ROOT = Path(__file__).resolve().parents[1]
LESSONS = course.lessons(ROOT)
GRADINGS = range(20)  # seeds: inputs differ from grading to grading, and repeat from run to run
AT_LEAST = 3


@cache
def mutants(lesson: str) -> dict[str, dict]:
    path = course.part(ROOT, lesson, "mutants.py")
    return runpy.run_path(str(path))["MUTANTS"] if path.exists() else {}


@cache
def answers(lesson: str, kind: str) -> dict:
    """Exercise -> its function, from the lesson's imports and the exercise's own cell, nothing else of the lesson."""
    read = source.read(ROOT, lesson)
    module = ModuleType(f"lesson_{lesson}")
    for cell in build.code_cells(read.notebook):
        imports = [node for node in ast.parse(cell.source).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), lesson, "exec"), module.__dict__)
    found = {}
    for one in read.exercises:
        text = one.solution if kind == "teacher" else one.stub
        exec(compile(text, f"exercise of {lesson}", "exec"), module.__dict__)
        found[one.word] = module.__dict__[one.function]
    return found


def let_through(exercise: str, wrong_answers: dict) -> list[str]:
    """One line for each grading in which a wrong answer was not rejected in the expected words."""
    found = []
    for name, (function, fragment) in wrong_answers.items():
        for seed in GRADINGS:
            result = checks.grade(exercise, function, seed=seed)
            if result.status != "wrong" or fragment not in result.message:
                found.append(f"exercise {exercise}, mutant {name!r}, seed {seed}: expected {fragment!r}, got: {result}")
                break
    return found


EXERCISES = [(lesson, word) for lesson in LESSONS for word in answers(lesson, "learner")]
MUTANT_CASES = [
    pytest.param(word, name, case, id=f"{word} {name}")
    for lesson in LESSONS
    for word, cases in mutants(lesson).items()
    for name, case in cases.items()
]


def test_there_are_lessons():
    assert LESSONS


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_graders_and_mutants_speak_of_the_same_exercises(lesson):
    tagged = [cell for cell in source.read(ROOT, lesson).cells if "exercise" in source.tags(cell)]
    words = sorted(answers(lesson, "learner"))
    assert len(words) == len(tagged)
    assert sorted(checks.load(ROOT, lesson)) == words
    assert sorted(word for word, of in checks.exercises(ROOT).items() if of == lesson) == words
    assert sorted(mutants(lesson)) == words, f"{lesson}/mutants.py"
    few = {word: len(cases) for word, cases in mutants(lesson).items() if len(cases) < AT_LEAST}
    assert not few, f"at least {AT_LEAST} wrong answers an exercise"


@pytest.mark.parametrize(("lesson", "word"), EXERCISES)
def test_the_solution_passes_every_time(lesson, word):
    function = answers(lesson, "teacher")[word]
    for seed in GRADINGS:
        assert str(checks.grade(word, function, seed=seed)) == f"✓ Exercise {word}: passed", f"seed {seed}"


@pytest.mark.parametrize(("lesson", "word"), EXERCISES)
def test_the_stub_is_never_attempted(lesson, word):
    function = answers(lesson, "learner")[word]
    for seed in GRADINGS:
        assert checks.grade(word, function, seed=seed).status == "not attempted"


@pytest.mark.parametrize(("word", "name", "case"), MUTANT_CASES)
def test_a_wrong_answer_is_rejected_every_time(word, name, case):
    assert let_through(word, {name: case}) == []


# -- where graders come from -------------------------------------------------------------------------------------------


def test_each_course_has_its_own_graders(tiny, monkeypatch):
    """Two courses in one process may have exercises of one name."""
    tiny.plant("def masked_mean_loss(answer: Answer, rng: Rng) -> None:\n",
               "def masked_mean_loss(answer: Answer, rng: Rng) -> None:\n    true(False, 'never right here')\n",
               tiny.graders)  # fmt: skip
    function = answers("01_loss_derivation", "teacher")["masked_mean_loss"]
    assert checks.grade("masked_mean_loss", function).status == "passed"
    monkeypatch.setenv("COURSEKIT_ROOT", str(tiny.root))
    assert checks.grade("masked_mean_loss", function).message == "never right here"
    with pytest.raises(KeyError, match=r"no exercise 'flaws'; known: adamw_update, bits_per_byte"):
        checks.grade("flaws", function)


def test_a_renumbered_lesson_keeps_its_graders(tiny, monkeypatch):
    shutil.move(tiny.folder, tiny.folder.with_name("07_tiny"))
    monkeypatch.setenv("COURSEKIT_ROOT", str(tiny.root))
    function = answers("01_loss_derivation", "teacher")["masked_mean_loss"]
    assert str(checks.grade("masked_mean_loss", function)) == "✓ Exercise masked_mean_loss: passed"


def test_a_lesson_without_graders_is_named(tiny):
    tiny.graders.unlink()
    with pytest.raises(FileNotFoundError, match=r"01_tiny/graders\.py is missing: write it"):
        checks.load(tiny.root, tiny.lesson)


def test_an_answer_that_calls_the_courses_graders_is_told():
    from sslcourse.objectives.masked_lm import mlm_loss

    graded = checks.load(ROOT, "01_loss_derivation")["masked_mean_loss"].__globals__
    for shortcut in (mlm_loss, lambda logits, labels: graded["_mean"](logits.log_softmax(-1), labels)):
        result = checks.grade("masked_mean_loss", lambda logits, labels, call=shortcut: call(logits, labels))
        assert "your function calls sslcourse (" in result.message
