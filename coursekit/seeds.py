"""Numbers of seeds, as prose and claims state them ("five seeds"), held to what the lesson and its figures have.

    SEEDS = range(lesson.choose(quick=2, full=5))      the lesson's own: five, to be said somewhere
    for seed in (10, 11)                               two
    data/measured/ladder.json: "seeds": 3              three; so is one with trials of three different "seed"s

A cell of prose that names the command behind a file (`benchmarks.ladder`) is held to that file, not to others. A claim
is held to the lesson's own, or to its files if its statement says "stored". What is an example is written as
mathematics: ``$20$ seeds``.

What this module does not do: count what ran. It reads the source, as a run in the profile ``full`` would.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from coursekit import claims, course, stale
from coursekit.source import Source

WORDS = ("no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
         "seventeen eighteen nineteen twenty").split()  # fmt: skip
NUMBER = rf"(\d+|{'|'.join(WORDS[1:])})"
SAID = re.compile(rf"(?i)(?<![\w-]){NUMBER}\s+(?:(?:other|random|more|different|new)\s+)?seeds\b")
COMMAND = re.compile(r"\bbenchmarks\.\w+")
PAGES = ("teaching.md", "cheatsheet.md")  # not the quiz, which asks about runs that are made up


def problems(root: Path, read: Source, prose: Iterable[str]) -> Iterator[str]:
    """What is said of seeds and is not so; ``prose`` has the lesson's cells without code and mathematics."""
    tree = ast.parse(read.text)
    own, known = _own(tree), _own(tree) | _of_loops(tree)
    measured = _of_files(root, tree)
    stored = set().union(*measured.values())
    everywhere = known | stored
    cells = [cell.source for cell in read.cells if cell.cell_type == "markdown"]
    texts = [(text, _bound(cell, measured, known) or everywhere) for text, cell in zip(prose, cells, strict=True)]
    texts += [(text, everywhere) for text in (*_strings(tree), *_pages(root, read.lesson))]
    texts += [(text, stored if "stored" in text.lower() else known) for text in _statements(root, read.lesson)]
    said = set()
    for text, right in texts:
        for match in SAID.finditer(text):
            said.add(number := _number(match[1]))
            if number not in right:
                yield (f"{' '.join(match[0].split())!r} is said in {_around(text, match)!r}, and in the full profile "
                       f"there are {' or '.join(map(_word, sorted(right))) or 'none'}")  # fmt: skip
    for number in sorted(own - said):
        yield f"it has {_word(number)} seeds in the full profile, and neither prose nor a claim says so"


def _bound(cell: str, measured: dict[str, set[int]], known: set[int]) -> set[int]:
    """What a cell that names a command may say; nothing if it names none that has stored a file."""
    named = set(COMMAND.findall(cell))
    found = [numbers for command, numbers in measured.items() if named & set(COMMAND.findall(command))]
    return known.union(*found) if found else set()


def _own(tree: ast.AST) -> set[int]:
    """Of names such as SEEDS."""
    return {count for node in ast.walk(tree) if isinstance(node, ast.Assign)
            for target in node.targets if isinstance(target, ast.Name) and "seeds" in target.id.lower()
            if (count := _count(node.value)) is not None}  # fmt: skip


def _of_loops(tree: ast.AST) -> set[int]:
    return {count for node in ast.walk(tree) if isinstance(node, ast.For | ast.comprehension)
            if isinstance(node.target, ast.Name) and node.target.id == "seed"
            if (count := _count(node.iter)) is not None}  # fmt: skip


def _count(node: ast.AST) -> int | None:
    """How many a full run has, where the source says it in figures."""
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return len(elements)
        case ast.Call(func=ast.Name(id="range" | "list" | "tuple"), args=[only]):
            return _count(only)
        case ast.Call(func=ast.Attribute(attr="choose"), keywords=profiles):
            return next((_count(one.value) for one in profiles if one.arg == "full"), None)
    return None


def _of_files(root: Path, tree: ast.AST) -> dict[str, set[int]]:
    """Command -> numbers of seeds in the measured files that it wrote, of those that the lesson names."""
    paths = {path.relative_to(root).as_posix(): path for path in (root / stale.MEASURED).glob("*.json")}
    strings = {word for text in _strings(tree) for word in (text, *text.split())}
    found: dict[str, set[int]] = {}
    for name in stale.figures(tree, strings, paths):
        figures = json.loads(paths[name].read_text(encoding="utf-8"))
        found.setdefault(str(figures.get("command")), set()).update(_of_figures(figures))
    return found


def _of_figures(figures: dict[str, Any]) -> set[int]:
    seeds = figures.get("seeds")
    if seeds is not None:
        return {len(seeds) if isinstance(seeds, list) else seeds}
    trials = [rows for rows in figures.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    return {len({one["seed"] for one in rows}) for rows in trials if "seed" in rows[0]}


def _strings(tree: ast.AST) -> list[str]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def _pages(root: Path, lesson: str) -> list[str]:
    paths = [course.part(root, lesson, page) for page in PAGES]
    return [path.read_text(encoding="utf-8") for path in paths if path.is_file()]


def _statements(root: Path, lesson: str) -> list[str]:
    try:
        return [claim.statement for claim in claims.load(root, lesson).values()]
    except (FileNotFoundError, claims.ClaimError):
        return []  # told elsewhere


def _number(said: str) -> int:
    return int(said) if said.isdigit() else WORDS.index(said.lower())


def _word(number: int) -> str:
    return WORDS[number] if number < len(WORDS) else str(number)


def _around(text: str, match: re.Match) -> str:
    return " ".join(text[max(0, match.start() - 40) : match.end() + 10].split())
