"""A class's submissions, graded: ``grade DIR --out grades.csv``.

    grade_read      finds the answers in what was handed in
    grade_box       starts the other two processes, and watches time and memory
    grade_worker    runs the answers, shut in as far as the system allows                (not trusted)
    grade_referee   runs the course's checks on what the worker's functions return
    grade_wire      what goes between these two: data, never code

A verdict is what the referee computed: what a submission prints, stores in its notebook or changes in its own process
is never read. Of a submission only the cells of its answers are run, each in the surroundings that the *course's*
lesson gives it. ``docs/teaching/grading.md`` says what all this does not cover.
"""

from __future__ import annotations

import csv
import io
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from coursekit import course, grade_read, lab
from coursekit.grade_box import LEVELS, Box, Limits, Referee
from coursekit.grade_read import Exercise, Notebook

VERDICTS = ("passed", "not passed", "not attempted", "error", "timeout", "memory", "by hand")
DIGITS = re.compile(r"-?\d[\d.,]*(?:e[-+]?\d+)?")


@dataclass
class Row:
    """One line of the table."""

    learner: str
    lesson: str
    exercise: str
    verdict: str
    message: str = ""
    seconds: float = 0.0


@dataclass
class Gradebook:
    """Everything that is known so far."""

    rows: list[Row] = field(default_factory=list)

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(one.name for one in fields(Row))
        for row in self.rows:
            *words, seconds = astuple(row)
            writer.writerow([*(_harmless(word) for word in words), f"{seconds:.1f}"])
        return text.getvalue()

    def summary(self) -> str:
        """A line an exercise: how many passed, and what most of the others were told."""
        lines = [f"{'exercise':>22s}  {'passed':>14s}  not yet because"]
        for word in dict.fromkeys(row.exercise for row in self.rows if row.exercise):
            of_it = [row for row in self.rows if row.exercise == word]
            passed = sum(row.verdict == "passed" for row in of_it)
            others = [row for row in of_it if row.verdict != "passed"]
            alike = Counter(_alike(row) for row in others).most_common(1)
            why = ""
            if alike:
                first = next(row for row in others if _alike(row) == alike[0][0])
                why = f"{alike[0][1]} × {first.verdict}" + (f": {first.message[:90]}" if first.message else "")
            lines.append(f"{word:>22s}  {passed:3d} of {len(of_it):3d} {passed / len(of_it):4.0%}  {why}")
        counts = Counter(row.verdict for row in self.rows)
        lines.append("in all: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]))
        return "\n".join(line.rstrip() for line in lines)


def _alike(row: Row) -> tuple[str, str]:
    return row.verdict, DIGITS.sub("#", row.message)  # inputs are drawn afresh, so the numbers of a message differ


def _harmless(cell: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell


def _line(text: str) -> str:
    """The first line of what may come from a submission: printable, and not long."""
    first = next(iter(text.splitlines()), "")[:300]
    return "".join(one if one.isprintable() else " " for one in first).strip()


def grade(
    root: Path, folder: Path, lessons: list[str], limits: Limits, box: Box, book: Gradebook,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Grade every learner's notebooks of ``lessons`` (none: those of which anybody handed one in) into ``book``.

    What was graded is in the book when an exception, Ctrl-C too, ends this early.
    """  # fmt: skip
    known = course.lessons(root)
    everything = grade_read.handed_in(folder, known, lambda line: say(_line(line)))
    asked = lessons or sorted({lesson for of_one in everything.values() for lesson in of_one} - {""})
    exercises = {lesson: grade_read.asked(root, lesson) for lesson in asked}
    referee = Referee(box, limits)
    try:
        for learner, of_one in everything.items():
            before = len(book.rows)
            name = _line(learner)
            if "" in of_one and not lessons:
                book.rows.append(Row(name, "", "", "error", _line(f"of which lesson is {of_one[''].path.name}?")))
            for lesson in asked:
                book.rows.extend(_grade_one(name, lesson, of_one.get(lesson), exercises[lesson], referee))
            passed = sum(row.verdict == "passed" for row in book.rows[before:])
            say(f"{name}: {passed} of {len(book.rows) - before} passed")
    finally:
        referee.close()


def _grade_one(
    learner: str, lesson: str, notebook: Notebook | None, exercises: list[Exercise], referee: Referee
) -> Iterator[Row]:
    """The rows of one notebook, each as soon as it is known."""
    if notebook is None or notebook.trouble:
        verdict = "error" if notebook else "not attempted"
        why = f"{notebook.path.name}: {notebook.trouble}" if notebook else "no notebook of this lesson"
        yield from (Row(learner, lesson, exercise.word, verdict, _line(why)) for exercise in exercises)
        return
    earlier: list[str] = []
    with tempfile.TemporaryDirectory(prefix="coursekit-grade-", ignore_cleanup_errors=True) as scratch:
        for exercise in exercises:
            verdict, message, seconds = _verdict(notebook, exercise, earlier, referee, scratch)
            yield Row(learner, lesson, exercise.word, verdict, _line(message), seconds)
        referee.end()


def _verdict(
    notebook: Notebook, exercise: Exercise, earlier: list[str], referee: Referee, scratch: str
) -> tuple[str, str, float]:
    """(verdict, message, seconds) of one answer; it joins the ``earlier`` ones, which later answers may use."""
    try:
        code = notebook.answer(exercise)
        if not code or exercise.untouched(code):
            return "not attempted", "" if code else f"no cell defines {exercise.name}", 0.0
        setup = exercise.setup(code, earlier)
    except (grade_read.Unreadable, RecursionError, MemoryError) as error:
        return "error", f"its cell cannot be read: {error}", 0.0
    earlier.append(code)
    if not referee.alive and (trouble := referee.begin(scratch)):
        return "error", trouble, 0.0
    began = time.monotonic()
    return *referee.judge(exercise, setup, code), time.monotonic() - began


# --- the command ------------------------------------------------------------------------------------------------------


def main(root: Path, folder: Path, out: Path, lessons: list[str], limits: Limits) -> int:
    """Grade, write the table, print the summary. 2 for a call that makes no sense, 130 after Ctrl-C."""
    if trouble := _trouble(folder, out, limits):
        print(f"grade: {trouble}", file=sys.stderr)
        return 2
    book, status = Gradebook(), 0
    box = Box([folder])
    print(f"{box.level}: {LEVELS[box.level]}.")
    print(f"On every system: {limits.seconds:g} s and {limits.memory_mb} MB an exercise, what is printed is dropped, "
          "verdicts are computed outside the submission's process.", flush=True)  # fmt: skip
    try:
        grade(root, folder, lessons, limits, box, book, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        status = 130
        print("\ngrade: stopped; what follows is what was graded until then", file=sys.stderr)
    lab.write(out, book.csv())
    print(f"\n{book.summary()}\n{out}: {len(book.rows)} rows" + (", not all" if status else ""))
    return status


def _trouble(folder: Path, out: Path, limits: Limits) -> str:
    """What is wrong with the arguments, and the remedy."""
    if not folder.is_dir():
        return f"{folder} is no folder; name the one that holds a folder (or a notebook) for each learner"
    if not grade_read.entries(folder):
        return f"{folder} holds no submission: one folder, or one .ipynb, for each learner"
    if out.is_dir() or not out.parent.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        return f"--out {out} cannot be written; name a file in a folder that exists"
    if not 1 <= limits.seconds <= 3600:
        return f"--seconds {limits.seconds:g}: from 1 to 3600"
    if limits.memory_mb < 600:
        return f"--memory {limits.memory_mb}: at least 600 MB, since torch alone takes half of that"
    return ""
