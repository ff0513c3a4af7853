"""A lesson's source, read: the one place where a percent script becomes cells, exercises, a title and a budget.

    ### Exercise merge — Merge the two · ★★☆ · 10 minutes      the header; the builder writes the number for the word
    a cell tagged "exercise"                                   one function, its solution between two markers
    a cell tagged "check", ending with check("merge", merge)   the word is what graders, answers and records go by

What this module does not do: judge (``lint``), or make a notebook (``build``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jupytext
from nbformat import NotebookNode

from coursekit import course

SOLUTION = re.compile(r"(?ms)^([ \t]*)### BEGIN SOLUTION[ \t]*\n(.*?)^[ \t]*### END SOLUTION[ \t]*$")
STUB = "return ...  # your code here"
HEADER = re.compile(r"^### Exercise (\w+) — (\S.*?) · (★☆☆|★★☆|★★★) · (\d+) minutes?[ \t]*$", re.MULTILINE)
CHECK = re.compile(r'check\("(\w+)", (\w+)\)')
PROMISE = re.compile(r"\*\*(.+?)\*\*", re.DOTALL)


@dataclass(frozen=True)
class Exercise:
    """One exercise as its lesson writes it."""

    word: str  # stable: what graders, answers and records go by
    function: str
    text: str  # the cell, with the solution and its markers
    at: int  # index of the cell
    title: str = ""
    stars: int = 0
    minutes: int = 0

    @property
    def stub(self) -> str:
        return to_stub(self.text)

    @property
    def solution(self) -> str:
        return to_solution(self.text)


@dataclass(frozen=True)
class Source:
    """A lesson's cells and what can be read off them."""

    lesson: str  # id
    text: str
    notebook: NotebookNode
    exercises: tuple[Exercise, ...] = field(default=())

    @property
    def cells(self) -> list[NotebookNode]:
        return self.notebook.cells

    @property
    def title(self) -> str:
        """The heading, which has no number."""
        found = re.search(r"^# (.*)$", self.cells[0].source if self.cells else "", re.MULTILINE)
        return found[1] if found else "?"

    @property
    def promise(self) -> str:
        """The first bold paragraph."""
        found = PROMISE.search(self.cells[0].source if self.cells else "")
        return " ".join(found[1].split()) if found else ""

    @property
    def budget(self) -> dict[str, dict[str, float]]:
        """{profile: {"minutes": ..., "memory_mb": ...}} as the lesson declares it."""
        return dict(self.notebook.metadata.get("coursekit", {}).get("budget", {}))


def read(root: Path, lesson: str) -> Source:
    """A lesson's source; read anew when the file has changed.

    Raises:
        FileNotFoundError: if there is no such lesson.
    """
    path = course.part(root, lesson, "lesson.py")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.relative_to(root).as_posix()}")
    return _read(path, lesson, path.stat().st_mtime_ns)


@cache
def _read(path: Path, lesson: str, _changed: int) -> Source:
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent")
    return Source(lesson, text, notebook, tuple(_exercises(notebook.cells)))


def _exercises(cells: list[NotebookNode]) -> Iterable[Exercise]:
    """Every cell tagged "exercise" that a check follows."""
    for at, cell in enumerate(cells):
        if "exercise" not in tags(cell):
            continue
        after = cells[at + 1].source if at + 1 < len(cells) else ""
        if check := CHECK.search(after):
            above = "\n".join(one.source for one in cells[:at] if one.cell_type == "markdown")
            header = next((one for one in HEADER.finditer(above) if one[1] == check[1]), None)
            said = (header[2], header[3].count("★"), int(header[4])) if header else ()
            yield Exercise(check[1], check[2], cell.source, at, *said)


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def numbers(root: Path) -> dict[str, str]:
    """Name of a lesson -> "04", word of an exercise -> "4.5", of the whole course.

    Raises:
        ValueError: if two of them have the same name.
    """
    found: dict[str, str] = {}
    for lesson in course.lessons(root):
        given = [(course.name(lesson), course.number(lesson))]
        given += [(one.word, f"{int(course.number(lesson))}.{place}")
                  for place, one in enumerate(read(root, lesson).exercises, start=1)]  # fmt: skip
        for name, number in given:
            if name in found:
                raise ValueError(f"{lesson}: {name!r} is already {found[name]}; names of lessons and exercises are "
                                 "unique")
            found[name] = number
    return found


def to_stub(text: str) -> str:
    """Source with every solution replaced by what the learner starts from."""
    return SOLUTION.sub(lambda match: match[1] + STUB, text)


def to_solution(text: str) -> str:
    """An exercise filled in: the lines of the solution stay, its markers go."""
    return SOLUTION.sub(lambda match: match[2].removesuffix("\n"), text)
