"""The lessons as assignments for nbgrader: ``source/NN_name/NN_name.ipynb`` and ``nbgrader_config.py``.

An exercise is a solution cell, its markers left in for ``nbgrader generate_assignment`` to take out; the check behind
it is a locked test cell worth a point a star. nbgrader counts a test as failed when its cell raises, so there the check
asserts its verdict. What this folder holds is for the teacher: it has every solution in it.

The format is nbgrader's own, version 3 (https://nbgrader.readthedocs.io, "Notebook metadata"). nbgrader itself is not
needed to make it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coursekit import build, course, source

SCHEMA = 3
CONFIG = '''"""nbgrader's settings for this course; it holds the solutions, so it stays with the teacher.

    nbgrader generate_assignment {first} --create     # release/: stubs, no solution
    nbgrader autograde {first}                        # from submitted/STUDENT/{first}/

The kernel that grades needs the package {package}.
"""

import os

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "{package}"
c.ClearSolutions.code_stub = {{"python": "{stub}"}}
c.Execute.timeout = 900  # seconds a cell
os.environ.setdefault("{variable}", "quick")  # a submission runs the whole lesson
'''


def make(root: Path, lessons: list[str]) -> dict[str, bytes]:
    """The course folder."""
    files = {f"source/{lesson}/{lesson}.ipynb": build.to_bytes(assignment(root, lesson)) for lesson in lessons}
    config = course.config(root)
    text = CONFIG.format(first=course.lessons(root)[0], package=config.package, stub=source.STUB,
                         variable=config.variable("PROFILE"))
    return {"nbgrader_config.py": text.encode(), **files}


def assignment(root: Path, lesson: str) -> Any:
    """One lesson as nbgrader's source notebook."""
    notebook = build.build(root, lesson, "student")
    notebook.metadata.coursekit.kind = "nbgrader"
    for exercise in source.read(root, lesson).exercises:
        answer, check = notebook.cells[exercise.at : exercise.at + 2]
        answer.source = exercise.text
        answer.metadata["nbgrader"] = _role("exercise", exercise.word, solution=True)
        check.metadata["nbgrader"] = _role("check", exercise.word, grade=True, locked=True, points=exercise.stars)
        check.source = source.CHECK.sub(
            r'verdict = \g<0>\nprint(verdict)\nassert verdict.status == "passed", verdict', check.source)
    return notebook


def _role(kind: str, exercise: str, **given: Any) -> dict[str, Any]:
    fixed = {"grade_id": f"{kind}-{exercise}", "schema_version": SCHEMA, "task": False}
    return {"grade": False, "solution": False, "locked": False, **fixed, **given}
