"""Graders accept the solution, know the stub, and reject every named wrong answer, each time, with the right words.

Solutions and stubs come from the lessons' sources, wrong answers from ``tests/mutants/<lesson>.py``:

    MUTANTS = {"1.1": {"averages over all positions": (function, "fragment of the message"), ...}, ...}
"""

import ast
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import jupytext
import pytest

from sslcourse.teaching import build, checks, claims

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = Path(__file__).parent / "mutants"
LESSONS = claims.lessons(ROOT)
GRADINGS = range(20)  # seeds: inputs differ from grading to grading, and repeat from run to run
AT_LEAST = 3


@cache
def mutants(lesson: str) -> dict[str, dict]:
    path = MUTANTS / f"{lesson[3:]}.py"
    if not path.exists():
        return {}
    spec = importlib.util.spec_from_file_location(f"mutants_{lesson}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MUTANTS


@cache
def answers(lesson: str, kind: str) -> dict:
    """Exercise -> its function, from the lesson's imports and the exercise's own cell, nothing else of the lesson."""
    cells = jupytext.read(build.source_path(ROOT, lesson), fmt="py:percent").cells
    module = ModuleType(f"lesson_{lesson}")
    for cell in build.code_cells(build.new_notebook(cells=cells)):
        imports = [node for node in ast.parse(cell.source).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), lesson, "exec"), module.__dict__)
    found = {}
    exercises = [cell.source for cell in cells if "exercise" in cell.metadata.get("tags", [])]
    for position, source in enumerate(exercises, start=1):
        text = build.to_solution(source) if kind == "teacher" else build.to_stub(source)
        names = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
        exec(compile(text, f"exercise of {lesson}", "exec"), module.__dict__)
        found[f"{int(lesson[:2])}.{position}"] = module.__dict__[names[-1]]
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


EXERCISES = [(lesson, number) for lesson in LESSONS for number in answers(lesson, "learner")]
MUTANT_CASES = [
    pytest.param(number, name, case, id=f"{number} {name}")
    for lesson in LESSONS
    for number, cases in mutants(lesson).items()
    for name, case in cases.items()
]


def test_there_are_lessons():
    assert LESSONS


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_graders_and_mutants_speak_of_the_same_exercises(lesson):
    numbers = sorted(answers(lesson, "learner"))
    assert checks.MODULES.get(str(int(lesson[:2]))) == lesson[3:], f"enter {lesson} in checks.MODULES"
    assert checks.exercises(str(int(lesson[:2]))) == numbers
    assert sorted(mutants(lesson)) == numbers, f"tests/mutants/{lesson[3:]}.py"
    few = {number: len(cases) for number, cases in mutants(lesson).items() if len(cases) < AT_LEAST}
    assert not few, f"at least {AT_LEAST} wrong answers an exercise"


@pytest.mark.parametrize(("lesson", "number"), EXERCISES)
def test_the_solution_passes_every_time(lesson, number):
    function = answers(lesson, "teacher")[number]
    for seed in GRADINGS:
        assert str(checks.grade(number, function, seed=seed)) == f"✓ Exercise {number}: passed", f"seed {seed}"


@pytest.mark.parametrize(("lesson", "number"), EXERCISES)
def test_the_stub_is_never_attempted(lesson, number):
    function = answers(lesson, "learner")[number]
    for seed in GRADINGS:
        assert checks.grade(number, function, seed=seed).status == "not attempted"


@pytest.mark.parametrize(("number", "name", "case"), MUTANT_CASES)
def test_a_wrong_answer_is_rejected_every_time(number, name, case):
    assert let_through(number, {name: case}) == []
