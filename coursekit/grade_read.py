"""What the command ``grade`` reads: the exercises of the course, and the answers in what was handed in.

It only reads: no line of a submission is run here. Everything is read before anything is run, so what a submission does
to files cannot change what is graded.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import json
import os
import re
import stat
import symtable
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from coursekit import course, source

LARGEST = 20 << 20  # bytes of a notebook
LONGEST = 50_000  # characters of an answer
MOST = 100  # notebooks of one learner
NUMBER = re.compile(r"(?<!\d)(\d\d)_")


# --- what the course asks ---------------------------------------------------------------------------------------------


@dataclass
class Exercise:
    """One exercise of the source: its word, the function's name, the stub, and the lesson's statements before it."""

    word: str
    name: str
    stub: str
    before: list[ast.stmt]

    def setup(self, code: str, earlier: Iterable[str] = ()) -> str:
        """The least that defines the names which ``code`` uses: of the lesson before it, and of ``earlier`` answers."""
        pool = [*self.before, *(statement for text in earlier for statement in parsed(text).body)]
        wanted, chosen = _used(code), []
        for statement in reversed(pool):
            if _defined(statement) & wanted:
                chosen.append(ast.unparse(statement))
                wanted |= _used(chosen[-1])
        return "\n".join(reversed(chosen))

    def untouched(self, code: str) -> bool:
        """Whether that is the stub, comments and blanks aside."""
        return ast.dump(parsed(code)) == ast.dump(parsed(self.stub))


def asked(root: Path, lesson: str) -> list[Exercise]:
    """The exercises of a lesson's source."""
    read = source.read(root, lesson)
    at = {one.at: one for one in read.exercises}
    before: list[ast.stmt] = []
    found = []
    for place, cell in enumerate(read.cells):
        if place in at:
            found.append(Exercise(at[place].word, at[place].function, at[place].stub, list(before)))
        elif cell.cell_type == "code" and not {"exercise", "check"} & set(source.tags(cell)):
            before += parsed(cell.source).body
    return found


def parsed(code: str) -> ast.Module:
    """Its tree, an empty one if it is no Python."""
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
    """What cannot be graded as it is; the message says why."""


@dataclass
class Notebook:
    """A file of a learner: its code cells, or why there are none."""

    path: Path
    lesson: str
    cells: list[str] = field(default_factory=list)
    trouble: str = ""

    def answer(self, exercise: Exercise) -> str:
        """The code of an answer: the last cell above its last check that defines the function; "" without one.

        A cell is known by its looks, so that one which is no Python is found, too, and its error reported.

        Raises:
            Unreadable: if it is too long to be an answer.
        """
        looks = re.compile(rf"^(?:def {exercise.name}\b|{exercise.name}\s*=)", re.MULTILINE)
        checks = [place for place, text in enumerate(self.cells)
                  if any(match[1] == exercise.word for match in source.CHECK.finditer(text))]  # fmt: skip
        above = self.cells[: checks[-1] + 1] if checks else self.cells
        found = next((text for text in reversed(above) if looks.search(text)), "")
        if len(found) > LONGEST:
            raise Unreadable(f"the cell of {exercise.name} is longer than {LONGEST:,} characters")
        if not parsed(found).body:  # lines of Jupyter, not of Python
            found = "\n".join(line for line in found.splitlines() if not line.lstrip().startswith(("%", "!")))
        return found


def handed_in(folder: Path, known: list[str], say: Callable[[str], None]) -> dict[str, dict[str, Notebook]]:
    """Learner -> lesson -> the notebook that counts. A folder, or a notebook, in ``folder`` is a learner's.

    Of several for one lesson that of the lesson's own name counts, else the newest. A notebook of no known lesson
    stands under "". Links and hidden folders are left out.
    """
    found: dict[str, list[Path]] = {}
    for entry in entries(folder):
        of_one = found.setdefault(entry.name if entry.is_dir() else entry.stem, [])
        of_one.extend(itertools.islice(_notebooks(entry), MOST) if entry.is_dir() else [entry])
    return {learner: _choose(paths, known, say) for learner, paths in found.items()}


def entries(folder: Path) -> list[Path]:
    """What stands for a learner in a folder of submissions."""
    return [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".") and not entry.is_symlink()
            and (entry.is_dir() or entry.suffix == ".ipynb")]  # fmt: skip


def _notebooks(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):  # does not follow links
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if name.endswith(".ipynb") and name[0] != ".")


def _choose(paths: list[Path], known: list[str], say: Callable[[str], None]) -> dict[str, Notebook]:
    chosen: dict[str, Notebook] = {}
    for path in sorted(paths, key=lambda path: (path.lstat().st_mtime, path.name)):
        new = read(path, known)
        old = chosen.get(new.lesson)
        if old is not None and old.path.stem == new.lesson:
            old, new = new, old
        if old is not None:
            say(f"left out, because {new.path} counts: {old.path}")
        chosen[new.lesson] = new
    return chosen


def read(path: Path, known: list[str]) -> Notebook:
    """A notebook's code, and its lesson: the one that its metadata name, else the one that its name does."""
    match = NUMBER.search(path.name)
    named = [lesson for lesson in known if course.name(lesson) in path.name]
    lesson = next(iter(named or [lesson for lesson in known if match and lesson.startswith(match[0])]), "")
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise Unreadable("no plain file")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise Unreadable(f"larger than {LARGEST >> 20} MB; clear its outputs")
        notebook = json.loads(data)
        said = notebook["metadata"].get("coursekit", {}).get("lesson")
        cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = str(error) if isinstance(error, Unreadable) else f"no notebook ({type(error).__name__}: {error})"
        return Notebook(path, lesson, trouble=why)
    return Notebook(path, next((one for one in known if course.name(one) == said), lesson), cells)
