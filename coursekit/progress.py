"""Which exercises are done, and a lesson that begins again or takes over the answers of an older copy.

    progress       # from the record that `check` keeps
    reset 03       # a fresh copy; the old one stays beside it
    update 03      # the lesson as it is now, with your answers; the difference is shown first

The record is ``work/.progress.json``: for each exercise how often it was tried and the day it passed. It is written by
``check`` in a notebook of the ``work`` folder, it is read by nobody else, and nothing leaves the machine.
"""

from __future__ import annotations

import ast
import datetime
import difflib
import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coursekit import course, lab, source

RECORD = lab.RECORD
OF_A_LESSON = re.compile(r"[0-9a-f]{12}(-\d+)?")  # the id that `build` gives a cell; Jupyter gives others


# --- the record ------------------------------------------------------------------------------------------------------


def record(exercise: str, passed: bool, folder: Path | None = None) -> None:
    """Note one try, if this runs in a learner's folder; an exercise that has passed once stays passed."""
    folder = folder or Path.cwd()
    if not (folder / ".origins.json").is_file():  # `lab` makes that; elsewhere nobody keeps a record
        return
    try:
        known = load(folder)
    except ValueError:  # an answer must be graded all the same; what was there stays, for whoever can mend it
        (folder / RECORD).replace(folder / f"{RECORD}.damaged")
        known = {}
    entry = known.setdefault(exercise, {"tries": 0, "passed": None})
    entry["tries"] += 1
    if passed and not entry["passed"]:
        entry["passed"] = datetime.date.today().isoformat()
    lab.write(folder / RECORD, json.dumps(known, indent=1, sort_keys=True) + "\n")


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The record of a folder; empty where there is none.

    Raises:
        ValueError: if it is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"tries": int(one["tries"]), "passed": one["passed"]} for name, one in found.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder.name}/{RECORD} is damaged ({error}); delete it and check again") from error


def exercises(root: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Lesson -> (title, {exercise: its title}), from the sources."""
    read = (source.read(root, lesson) for lesson in course.lessons(root))
    return {one.lesson: (one.title, {exercise.word: exercise.title for exercise in one.exercises}) for one in read}


def table(root: Path, work: Path) -> str:
    """A line a lesson: how many of its exercises have passed, and what comes next."""
    done, lines, total, passed_in_all, numbers = load(work), [], 0, 0, source.numbers(root)
    for lesson, (title, all_of_it) in exercises(root).items():
        passed = [exercise for exercise in all_of_it if done.get(exercise, {}).get("passed")]
        left = [exercise for exercise in all_of_it if exercise not in passed]
        total, passed_in_all = total + len(all_of_it), passed_in_all + len(passed)
        marks = "".join("x" if exercise in passed else "." for exercise in all_of_it)
        following = f"next: {numbers[left[0]]} {all_of_it[left[0]]}" if left else "all done"
        share = f"[{marks:5s}]  {len(passed)} of {len(all_of_it)}"
        lines.append(f"{course.number(lesson)}  {share}  {title[:44]:44s}  {following}")
    return "\n".join([*lines, f"{passed_in_all} of {total} exercises passed"])


# --- a lesson anew ---------------------------------------------------------------------------------------------------


def reset(notebooks: Path, work: Path, lesson: str) -> list[str]:
    """Lay a fresh copy in place of the learner's, which is kept beside it, and forget the lesson's record.

    Raises:
        FileNotFoundError: if there is no such lesson.
    """
    fresh, own = notebooks / f"{lesson}.ipynb", work / f"{lesson}.ipynb"
    if not fresh.is_file():
        raise FileNotFoundError(f"there is no lesson {fresh.name}; run `build` first")
    said = [_set_aside(own, "before-reset")] if own.exists() else []
    work.mkdir(parents=True, exist_ok=True)
    _lay(fresh.read_bytes(), own, work, lab.digest(fresh))
    gone = {word for word, _ in _exercises(json.loads(fresh.read_text(encoding="utf-8")))}
    known = {word: entry for word, entry in load(work).items() if word not in gone}
    lab.write(work / RECORD, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return [*said, f"{work.name}/{own.name}: a fresh copy"]


@dataclass
class Merged:
    """A new lesson with the answers of an old copy."""

    notebook: dict[str, Any]
    taken: list[str] = field(default_factory=list)  # exercises whose answers are in it
    changed: list[str] = field(default_factory=list)  # whose signature changed: the answer stands below, as text
    own_cells: int = 0  # cells that the learner added; they stay in the old copy


def merge(own: dict[str, Any], new: dict[str, Any]) -> Merged:
    """Put the answers of ``own`` into the exercises of ``new``.

    An answer is taken as it is if the exercise still asks for a function of the same name and arguments. If not, it is
    laid below the new stub as text, since it may break what follows.
    """
    answers = {word: _text(cell) for word, cell in _exercises(own)}
    merged = Merged(json.loads(json.dumps(new)))
    words = {id(cell): word for word, cell in _exercises(merged.notebook)}
    cells: list[dict[str, Any]] = []
    for cell in merged.notebook["cells"]:
        cells.append(cell)
        word = words.get(id(cell), "")
        answer = answers.get(word, _text(cell))
        if answer == _text(cell):
            continue
        if "your code here" in answer and _shape(answer) == _shape(_text(cell)):
            continue  # never begun
        if _shape(answer) is not None and _shape(answer) == _shape(_text(cell)):
            cell["source"] = answer
            merged.taken.append(word)
        else:
            cells.append({"cell_type": "markdown", "id": f"earlier-{word}", "metadata": {},
                          "source": f"*Your earlier answer. The exercise has changed, so look before you paste:*\n\n"
                                    f"```python\n{answer}\n```"})  # fmt: skip
            merged.changed.append(word)
    merged.own_cells = sum(
        bool(_text(cell).strip()) and not OF_A_LESSON.fullmatch(cell.get("id", "")) for cell in own["cells"]
    )
    merged.notebook["cells"] = cells
    return merged


def _exercises(notebook: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(word, cell) of each exercise. Checks once named a number; the function's name is the word since."""
    cells = notebook["cells"]
    for place, cell in enumerate(cells):
        if "exercise" in cell.get("metadata", {}).get("tags", []):
            checks = (lab.CHECK.search(_text(after)) for after in cells[place + 1 :] if after["cell_type"] == "code")
            if match := next((match for match in checks if match), None):
                yield match["function"] if "." in match["word"] else match["word"], cell


def _text(cell: dict[str, Any]) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def _shape(code: str) -> list[tuple[str, str]] | None:
    """Names and arguments of the functions of a cell; None if it cannot be read."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    return [(node.name, ast.unparse(node.args)) for node in tree.body if isinstance(node, ast.FunctionDef)][-1:]


def difference(own: dict[str, Any], merged: dict[str, Any], name: str) -> str:
    """What would change in the learner's copy, exercise by exercise, as a unified difference of cells' text."""
    old, new = ([line for cell in notebook["cells"] for line in [*_text(cell).splitlines(), ""]]
                for notebook in (own, merged))  # fmt: skip
    return "\n".join(difflib.unified_diff(old, new, f"your {name}", f"{name} as it would be", lineterm="", n=2))


def update(notebooks: Path, work: Path, lesson: str) -> tuple[str, Merged]:
    """(difference, merged notebook) of a learner's copy and the lesson as it is now; nothing is written.

    Raises:
        FileNotFoundError: if there is no such lesson, or the learner has no copy of it.
        ValueError: if the copy cannot be read.
    """
    fresh, own = notebooks / f"{lesson}.ipynb", work / f"{lesson}.ipynb"
    for path, remedy in ((fresh, "run `build`"), (own, "`lab` makes one")):
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent.name}/{path.name} is not there; {remedy}")
    try:
        mine = json.loads(own.read_text(encoding="utf-8"))
        merged = merge(mine, json.loads(fresh.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{work.name}/{own.name} is no notebook ({error}); `reset {course.name(lesson)}` lays a fresh "
                         "one") from error
    return difference(mine, merged.notebook, own.name), merged


def write_update(notebooks: Path, work: Path, lesson: str, merged: Merged) -> list[str]:
    """Lay the merged notebook in place of the learner's copy, which is kept beside it."""
    own, fresh = work / f"{lesson}.ipynb", notebooks / f"{lesson}.ipynb"
    said = [_set_aside(own, "before-update")]
    _lay((json.dumps(merged.notebook, indent=1, ensure_ascii=False) + "\n").encode(), own, work, lab.digest(fresh))
    taken = f"with your answers to {', '.join(merged.taken)}" if merged.taken else "no answer was there to take over"
    said.append(f"{work.name}/{own.name}: the lesson as it is now, {taken}")
    if merged.changed:
        said.append(f"changed exercises: {', '.join(merged.changed)}; your answers stand below them as text")
    if merged.own_cells:
        said.append(f"{merged.own_cells} cells that you added stay in the old copy")
    return said


def _set_aside(own: Path, why: str) -> str:
    for number in itertools.count(1):
        aside = own.with_suffix(f".{why}{number if number > 1 else ''}.ipynb")
        if not aside.exists():
            own.rename(aside)
            return f"{own.parent.name}/{aside.name}: what you had"
    raise AssertionError("unreachable: itertools.count does not end")


def _lay(data: bytes, own: Path, work: Path, origin: str) -> None:
    partial = own.with_name(f".{own.name}.partial")
    partial.write_bytes(data)
    partial.replace(own)
    path = work / ".origins.json"
    origins = json.loads(path.read_text()) if path.exists() else {}
    lab.write(path, json.dumps(origins | {own.name: origin}, indent=2) + "\n")


# --- the commands ----------------------------------------------------------------------------------------------------


def main_progress(root: Path, work: Path) -> int:
    """Print the table."""
    try:
        print(table(root, work))
    except ValueError as error:
        print(f"progress: {error}", file=sys.stderr)
        return 1
    if not (work / RECORD).exists():
        print(f"(no record yet in {work.name}/: it begins with the first check in a lesson that `lab` opened)")
    return 0


def main_reset(root: Path, work: Path, lessons: list[str]) -> int:
    """Reset lessons; 1 if one could not be."""
    for lesson in lessons:
        try:
            print("\n".join(reset(root / "notebooks", work, lesson)))
        except (OSError, ValueError) as error:
            print(f"reset: {error}", file=sys.stderr)
            return 1
    return 0


def main_update(root: Path, work: Path, lessons: list[str], yes: bool) -> int:
    """Show what would change, and write it if the learner says so; 1 if a copy could not be read."""
    for lesson in lessons:
        try:
            shown, merged = update(root / "notebooks", work, lesson)
        except (OSError, ValueError) as error:
            print(f"update: {error}", file=sys.stderr)
            return 1
        if not shown:
            print(f"{work.name}/{lesson}.ipynb is up to date")
            continue
        print(shown)
        if not yes and not _agreed(f"Write {work.name}/{lesson}.ipynb? Your copy stays beside it. [y/N] "):
            print("nothing was written; --yes writes without asking")
            continue
        print("\n".join(write_update(root / "notebooks", work, lesson, merged)))
    return 0


def _agreed(question: str) -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and input(question).strip().lower() in ("y", "yes")
