"""A class's submissions, graded: ``python -m sslcourse grade DIR --out grades.csv``.

Three processes. This one reads notebooks, watches time and memory, and writes the table; it runs nothing of a submission.
``grade_worker`` runs the answers, shut in as far as the system allows. ``grade_referee`` runs the checks of this course
and asks the worker what the functions return. A verdict is what the referee computed: what a submission prints, stores
in its notebook or changes in its own process is never read. ``docs/teaching/grading.md`` says what that does not cover.

Of a submission only the cells of its answers are run, each in the surroundings that the *course's* lesson gives it: the
statements that define the names which the answer uses, and what those need.
"""

from __future__ import annotations

import ast
import builtins
import csv
import io
import json
import os
import queue
import re
import stat
import subprocess
import symtable
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import jupytext
import psutil

from sslcourse.teaching import build, lab

VERDICTS = ("passed", "not passed", "not attempted", "error", "timeout", "memory", "by hand")
LARGEST = 50 << 20  # bytes of a notebook
LONGEST = 50_000  # characters of an answer
START = 120.0  # seconds in which a process must be ready that only imports
TICK = 0.1  # seconds between two looks at time and memory
REFEREE = 3000 << 20  # bytes that the referee itself may take; it needs a tenth
MARK = "SSLCOURSE_GRADE"  # in the environment of every process of a submission: by this they are found
NUMBER = re.compile(r"(?<!\d)(\d\d)_")
DIGITS = re.compile(r"-?\d[\d.,]*(?:e[-+]?\d+)?")


# --- what the course asks ---------------------------------------------------------------------------------------------


@dataclass
class Exercise:
    """One exercise of the source: its number, the function's name, the stub, and the lesson's statements before it."""

    number: str
    name: str
    stub: str
    before: list[ast.stmt]

    def setup(self, code: str, earlier: Iterable[str] = ()) -> str:
        """The least that defines the names which ``code`` uses: of the lesson before it, and of ``earlier`` answers."""
        pool = [*self.before, *(statement for text in earlier for statement in _parsed(text).body)]
        wanted, chosen = _used(code), []
        for statement in reversed(pool):
            if _defined(statement) & wanted:
                chosen.append(ast.unparse(statement))
                wanted |= _used(chosen[-1])
        return "\n".join(reversed(chosen))


def course(root: Path, lessons: Iterable[str]) -> dict[str, list[Exercise]]:
    """Lesson -> its exercises, from the sources."""
    return {lesson: list(_exercises(build.source_path(root, lesson))) for lesson in lessons}


def _exercises(path: Path) -> Iterator[Exercise]:
    before: list[ast.stmt] = []
    stub = ""
    for cell in build.code_cells(jupytext.read(path, fmt="py:percent")):
        tags = cell.metadata.get("tags", [])
        if "exercise" in tags:
            stub = build.to_stub(cell.source)
        elif "check" in tags and (match := build.CHECK.search(cell.source)):
            yield Exercise(match[1], match[2], stub, list(before))
        elif tree := _parsed(cell.source):
            before += tree.body


def _parsed(code: str) -> ast.Module:
    with suppress(SyntaxError, ValueError):
        return ast.parse(code)
    return ast.Module([], [])


def _used(code: str) -> set[str]:
    """Names that must be there before ``code`` runs, or while its functions do; no arguments, no local names."""

    def of(table: symtable.SymbolTable) -> Iterator[str]:
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global()):
                yield symbol.get_name()
        for inner in table.get_children():
            yield from of(inner)

    with suppress(SyntaxError, ValueError):
        return set(of(symtable.symtable(code, "answer", "exec"))) - set(dir(builtins))
    return set()


def _defined(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    found = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(statement):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return found


# --- what was handed in -----------------------------------------------------------------------------------------------


class Unreadable(ValueError):
    """A file that is no notebook; the message says why."""


def submissions(folder: Path) -> dict[str, list[Path]]:
    """Learner -> files: a folder (or a notebook) in ``folder`` is a learner. Links and hidden folders are left out."""
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir():
            found[entry.name] = sorted(_notebooks(entry))
        elif entry.suffix == ".ipynb":
            found.setdefault(entry.stem, []).append(entry)
    return found


def _notebooks(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):  # does not follow links
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in files if name.endswith(".ipynb") and not name.startswith("."))


def read(path: Path) -> dict[str, Any]:
    """A notebook as JSON.

    Raises:
        Unreadable: if it is none, or too large, or no plain file.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise Unreadable("no plain file")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise Unreadable(f"larger than {LARGEST >> 20} MB; clear its outputs")
        notebook = json.loads(data)
        cells = [cell for cell in notebook["cells"] if cell.get("cell_type") == "code"]
        for cell in cells:
            cell["text"] = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        metadata = notebook.get("metadata", {})
        return {"cells": cells, "metadata": metadata if isinstance(metadata, dict) else {}}
    except Unreadable:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(f"not a notebook ({type(error).__name__}: {error})") from error


def lesson_of(path: Path, notebook: dict[str, Any], known: Iterable[str]) -> str:
    """The lesson that a notebook says it is, else the one that its name begins with; "" if neither."""
    own = notebook.get("metadata", {}).get("sslcourse")
    said = own.get("lesson") if isinstance(own, dict) else None
    if said in list(known):
        return str(said)
    match = NUMBER.search(path.name)
    return next((lesson for lesson in known if match and lesson.startswith(match[0])), "")


def answer(notebook: dict[str, Any], exercise: Exercise) -> str:
    """The code of an answer: the last cell above its last check that defines the function; "" without one.

    A cell is known by its looks, so that one which is no Python is found, too, and its error reported.
    """
    looks = re.compile(rf"^(?:def {exercise.name}\b|{exercise.name}\s*=)", re.MULTILINE)
    checks = [place for place, cell in enumerate(notebook["cells"])
              if any(match[1] == exercise.number for match in build.CHECK.finditer(cell["text"]))]  # fmt: skip
    above = notebook["cells"][: checks[-1] + 1] if checks else notebook["cells"]
    found = next((cell["text"] for cell in reversed(above) if looks.search(cell["text"])), "")
    if len(found) > LONGEST:
        raise Unreadable(f"the cell of {exercise.name} is longer than {LONGEST:,} characters")
    if not _parsed(found).body:  # lines of Jupyter, not of Python
        found = "\n".join(line for line in found.splitlines() if not line.lstrip().startswith(("%", "!")))
    return found


# --- the processes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """For one exercise."""

    seconds: float = 30.0
    memory_mb: int = 2000


UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--mount", "--ipc", "--fork", "--kill-child"]
LEVELS = {
    "sealed": "Linux namespaces: no network, no sight of other processes, files read-only except a scratch folder in "
              "memory, submissions out of sight",
    "cut": "Linux namespaces: no network, no sight of other processes. NOT enforced: files can be written (this kernel "
           "cannot make them read-only)",
    "guarded": "NOT enforced on this system: network (only Python's own sockets are refused), files (a submission can "
               "write and delete what you can), other processes (it can end yours). Grade on Linux, or in a virtual "
               "machine, what you do not trust",
}  # fmt: skip


class Box:
    """How a worker is started here: shut in as far as this system allows."""

    def __init__(self, hidden: Iterable[Path] = ()) -> None:
        package = Path(build.__file__).resolve().parents[2]
        needed = [Path(one).resolve() for one in (package, sys.prefix, sys.base_prefix, tempfile.gettempdir())]
        hidden = [one.resolve() for one in (*hidden, Path("/run")) if one.is_dir()]  # in /run are other programs' doors
        self.hidden = [str(one) for one in hidden if not any(need.is_relative_to(one) for need in needed)]
        self.package = package
        self.level = next(level for level in LEVELS if level == "guarded" or self._works(level))

    def command(self, scratch: str, **more: Any) -> list[str]:
        orders = json.dumps({"level": self.level, "scratch": scratch, "hidden": self.hidden, **more})
        inside = [sys.executable, "-P", "-m", "sslcourse.teaching.grade_worker", orders]
        return inside if self.level == "guarded" else [*UNSHARE, *inside]

    def environment(self, scratch: str, mark: str) -> dict[str, str]:
        """Little of ours: no token of anybody's, one thread, a home that is empty."""
        kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "LANG")
                if name in os.environ}  # fmt: skip
        own = {"HOME": scratch, "USERPROFILE": scratch, "TMPDIR": scratch, "TEMP": scratch, "TMP": scratch}
        return kept | own | {"PYTHONPATH": str(self.package), "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg",
                             "OMP_NUM_THREADS": "1", "SSLCOURSE_PROFILE": "quick", MARK: mark}  # fmt: skip

    def _works(self, level: str) -> bool:
        self.level = level
        with tempfile.TemporaryDirectory() as scratch, suppress(OSError, subprocess.TimeoutExpired):
            return subprocess.run(self.command(scratch, probe=True), env=self.environment(scratch, "probe"), cwd=scratch,
                                  capture_output=True, stdin=subprocess.DEVNULL, timeout=START).stdout == b"shut in"  # fmt: skip
        return False


class Referee:
    """The process that judges, kept until it has to be replaced."""

    def __init__(self, box: Box, limits: Limits) -> None:
        self.box, self.limits, self.mark = box, limits, f"{os.getpid()}-{time.time_ns()}"
        self.process: subprocess.Popen | None = None
        self.alive = False  # the worker
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def begin(self, scratch: str) -> str:
        """A fresh worker, in a folder of its own. -> What went wrong, or nothing."""
        if self.process is None or self.process.poll() is not None:
            environment = os.environ | {"PYTHONPATH": str(self.box.package), "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sslcourse.teaching.grade_referee"], env=environment, text=True,
                encoding="utf-8", stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            self._lines = queue.SimpleQueue()
            threading.Thread(target=self._read, args=(self.process, self._lines), daemon=True).start()
        reply, why = self._ask({"do": "start", "command": self.box.command(scratch), "folder": scratch,
                                "environment": self.box.environment(scratch, self.mark)}, START)  # fmt: skip
        trouble = why or reply.get("trouble", "")
        self.alive = not trouble
        return trouble

    def judge(self, exercise: Exercise, setup: str, code: str) -> tuple[str, str]:
        """(verdict, message) of one answer; whatever it does, this comes back in time."""
        what = [exercise.number, exercise.name, setup, code]
        reply, why = self._ask({"do": "judge", "what": what}, self.limits.seconds)
        self.alive = bool(reply.get("alive")) and not why
        if why:
            return why, {"timeout": f"no end within {self.limits.seconds:g} s",
                         "memory": f"more than {self.limits.memory_mb} MB",
                         "error": "the submission ended the process that judges it"}[why]  # fmt: skip
        return reply["verdict"], reply["message"]

    def end(self) -> None:
        """End the worker and everything that came from it."""
        self.alive = False
        self._sweep()
        if self.process is not None and self.process.poll() is None:
            self._ask({"do": "end"}, 10.0)

    def close(self) -> None:
        self._sweep()
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _ask(self, order: dict[str, Any], seconds: float) -> tuple[dict[str, Any], str]:
        """(reply, "") or what stopped it: "timeout", "memory", or "error" if the referee is gone."""
        assert self.process is not None
        assert self.process.stdin is not None
        until, why = time.monotonic() + seconds, ""
        with suppress(OSError):  # it is gone: its end is read below
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        while True:
            with suppress(queue.Empty):
                if line := self._lines.get(timeout=TICK):
                    return json.loads(line), why
                self.process.wait()
                return {}, why or "error"
            late = time.monotonic() > until
            if why and late:  # the worker was ended, and still no reply: the check itself hangs
                self.process.kill()
                self.process.wait()
                return {}, why
            if late or (self._too_large() and not why):
                why = "timeout" if late else "memory"
                until = time.monotonic() + 5.0
                self._sweep()

    @staticmethod
    def _read(process: subprocess.Popen, lines: queue.SimpleQueue) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def _too_large(self) -> bool:
        assert self.process is not None
        with suppress(psutil.Error):
            referee = psutil.Process(self.process.pid)
            if referee.memory_info().rss > REFEREE:
                self.process.kill()
                return True
            total = 0
            for one in referee.children(recursive=True):
                with suppress(psutil.Error):  # it ended between the two lines
                    total += one.memory_info().rss
            return total > self.limits.memory_mb << 20
        return False

    def _sweep(self) -> None:
        """Kill the worker, its children, and those that left it and still bear its mark."""
        below: list[psutil.Process] = []
        if self.process is not None:
            with suppress(psutil.Error):
                below = psutil.Process(self.process.pid).children(recursive=True)
        for one in [*below, *psutil.process_iter()]:
            with suppress(psutil.Error, OSError):
                if one in below or one.environ().get(MARK) == self.mark:
                    one.kill()


# --- the table --------------------------------------------------------------------------------------------------------


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
        lines = [f"{'exercise':>8s}  {'passed':>14s}  not yet because"]
        for number in dict.fromkeys(row.exercise for row in self.rows if row.exercise):
            of_it = [row for row in self.rows if row.exercise == number]
            passed = sum(row.verdict == "passed" for row in of_it)
            others = [row for row in of_it if row.verdict != "passed"]
            alike = Counter(_alike(row) for row in others).most_common(1)
            why = ""
            if alike:
                first = next(row for row in others if _alike(row) == alike[0][0])
                why = f"{alike[0][1]} × {first.verdict}" + (f": {first.message[:90]}" if first.message else "")
            lines.append(f"{number:>8s}  {passed:3d} of {len(of_it):3d} {passed / len(of_it):4.0%}  {why}")
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
    root: Path, handed_in: dict[str, list[Path]], lessons: list[str], limits: Limits, box: Box, book: Gradebook,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Grade every learner's notebooks of ``lessons`` (none: those of which anybody handed one in) into ``book``.

    What was graded is in the book when an exception, Ctrl-C too, ends this early.
    """  # fmt: skip
    known = [path.stem for path in sorted((root / "notebooks" / "source").glob("[0-9][0-9]_*.py"))]
    chosen = {learner: _choose(paths, known, say) for learner, paths in handed_in.items()}
    asked = lessons or sorted({lesson for of_one in chosen.values() for lesson in of_one} & set(known))
    exercises = course(root, asked)
    referee = Referee(box, limits)
    try:
        for learner, of_one in chosen.items():
            before = len(book.rows)
            if "" in of_one and not lessons:
                book.rows.append(Row(_line(learner), "", "", "error", "which lesson is this? " + of_one[""].name))
            for lesson in asked:
                book.rows.extend(_grade_one(learner, lesson, of_one.get(lesson), exercises[lesson], referee))
            passed = sum(row.verdict == "passed" for row in book.rows[before:])
            say(f"{_line(learner)}: {passed} of {len(book.rows) - before} passed")
    finally:
        referee.close()


def _choose(paths: list[Path], known: list[str], say: Callable[[str], None]) -> dict[str, Path]:
    """Lesson -> the notebook that counts: the one of the lesson's own name, else the newest."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        try:
            notebook = read(path)
        except Unreadable:
            notebook = {}
        found.setdefault(lesson_of(path, notebook, known), []).append(path)
    chosen = {}
    for lesson, several in found.items():
        chosen[lesson] = max(several, key=lambda path: (path.stem == lesson, path.lstat().st_mtime, path.name))
        for path in several:
            if path != chosen[lesson]:
                say(f"left out, because {chosen[lesson].name} counts: {_line(str(path))}")
    return chosen


def _grade_one(
    learner: str, lesson: str, path: Path | None, exercises: list[Exercise], referee: Referee
) -> Iterator[Row]:
    """The rows of one notebook, each as soon as it is known."""

    def row(exercise: Exercise, verdict: str, message: str = "", seconds: float = 0.0) -> Row:
        return Row(_line(learner), lesson, exercise.number, verdict, _line(message), seconds)

    if path is None:
        yield from (row(exercise, "not attempted", "no notebook of this lesson") for exercise in exercises)
        return
    try:
        notebook = read(path)
    except Unreadable as error:
        yield from (row(exercise, "error", f"{path.name}: {error}") for exercise in exercises)
        return
    with tempfile.TemporaryDirectory(prefix="sslcourse-grade-", ignore_cleanup_errors=True) as scratch:
        earlier: list[str] = []
        for exercise in exercises:
            try:
                code = answer(notebook, exercise)
                untouched = not code or ast.dump(_parsed(code)) == ast.dump(_parsed(exercise.stub))
                setup = "" if untouched else exercise.setup(code, earlier)
            except (Unreadable, RecursionError, MemoryError) as error:
                yield row(exercise, "error", f"its cell cannot be read: {error}")
                continue
            if untouched:
                yield row(exercise, "not attempted", "" if code else f"no cell defines {exercise.name}")
                continue
            earlier.append(code)
            trouble = "" if referee.alive else referee.begin(scratch)
            if trouble:
                yield row(exercise, "error", trouble)
                continue
            began = time.monotonic()
            verdict, message = referee.judge(exercise, setup, code)
            yield row(exercise, verdict, message, time.monotonic() - began)
            if not referee.alive:
                referee.end()
        referee.end()


# --- the command ------------------------------------------------------------------------------------------------------


def main(root: Path, folder: Path, out: Path, lessons: list[str], limits: Limits) -> int:
    """Grade, write the table, print the summary. 2 for a call that makes no sense, 130 after Ctrl-C."""
    if trouble := _trouble(folder, out, limits):
        print(f"grade: {trouble}", file=sys.stderr)
        return 2
    book, status = Gradebook(), 0
    box = Box([folder])
    print(f"{box.level}: {LEVELS[box.level]}.\nEverywhere: {limits.seconds:g} s and {limits.memory_mb} MB an exercise, "
          "what is printed is dropped, verdicts are computed outside the submission's process.", flush=True)  # fmt: skip
    try:
        grade(root, submissions(folder), lessons, limits, box, book, lambda line: print(line, flush=True))
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
    if not submissions(folder):
        return f"{folder} holds no submission: one folder, or one .ipynb, for each learner"
    if out.is_dir() or not out.parent.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        return f"--out {out} cannot be written; name a file in a folder that exists"
    if not 1 <= limits.seconds <= 3600:
        return f"--seconds {limits.seconds:g}: from 1 to 3600"
    if limits.memory_mb < 600:
        return f"--memory {limits.memory_mb}: at least 600 MB, since torch alone takes half of that"
    return ""
