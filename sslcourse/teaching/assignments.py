"""The lessons as assignments for nbgrader: ``source/NN_name/NN_name.ipynb`` and ``nbgrader_config.py``.

An exercise is a solution cell, its markers left in for ``nbgrader generate_assignment`` to take out; the check behind
it is a locked test cell worth a point a star. nbgrader counts a test as failed when its cell raises, so there the check
asserts its verdict. What this folder holds is for the teacher: it has every solution in it.

The format is nbgrader's own, version 3 (https://nbgrader.readthedocs.io, "Notebook metadata"). nbgrader itself is not
needed to make it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jupytext

from sslcourse.teaching import build, claims

SCHEMA = 3
STARS = re.compile(r"^### Exercise (\d+\.\d+) — .* · (★+)☆* · ", re.MULTILINE)
CONFIG = f'''"""nbgrader's settings for this course; it holds the solutions, so it stays with the teacher.

    nbgrader generate_assignment 00_start_here --create     # release/: stubs, no solution
    nbgrader autograde 00_start_here                        # from submitted/STUDENT/00_start_here/

The kernel that grades needs the package sslcourse.
"""

import os

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "sslcourse"
c.ClearSolutions.code_stub = {{"python": "{claims.STUB}"}}
c.Execute.timeout = 900  # seconds a cell
os.environ.setdefault("SSLCOURSE_PROFILE", "quick")  # a submission runs the whole lesson
'''


def make(root: Path, lessons: list[str]) -> dict[str, bytes]:
    """The course folder."""
    files = {f"source/{lesson}/{lesson}.ipynb": build.to_bytes(assignment(root, lesson)) for lesson in lessons}
    return {"nbgrader_config.py": CONFIG.encode(), **files}


def assignment(root: Path, lesson: str) -> Any:
    """One lesson as nbgrader's source notebook."""
    notebook = build.build(root, lesson, "student")
    notebook.metadata.sslcourse.kind = "nbgrader"
    written = jupytext.read(build.source_path(root, lesson), fmt="py:percent").cells
    stars = dict(STARS.findall("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")))
    for cell, source, after in zip(notebook.cells, written, [*notebook.cells[1:], None], strict=True):
        tags = cell.metadata.get("tags", [])
        if "exercise" in tags:
            cell.source = source.source
            cell.metadata["nbgrader"] = _role("exercise", build.CHECK.search(after.source)[1], solution=True)
        elif "check" in tags:
            match = build.CHECK.search(cell.source)
            points = len(stars[match[1]])
            cell.metadata["nbgrader"] = _role("check", match[1], grade=True, locked=True, points=points)
            cell.source = build.CHECK.sub(
                r'verdict = \g<0>\nprint(verdict)\nassert verdict.status == "passed", verdict', cell.source)
    return notebook


def _role(kind: str, exercise: str, **given: Any) -> dict[str, Any]:
    fixed = {"grade_id": f"{kind}-{exercise.replace('.', '-')}", "schema_version": SCHEMA, "task": False}
    return {"grade": False, "solution": False, "locked": False, **fixed, **given}
