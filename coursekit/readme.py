"""The parts of README.md that are made, not written: the lesson table, its pictures, and the numbers.

Between ``<!-- lessons:begin -->`` and ``<!-- lessons:end -->`` stands a table made from the sources (title, promise),
the ledgers (minutes measured) and the stored notebooks (a picture: the figure of the cell tagged ``cover``, or the
first). ``<!-- claim:ID -->...<!-- /claim -->`` holds the ledger's value of a claim, so that README cannot drift from
the runs, and ``<!-- @NAME -->...<!-- /@ -->`` the number of a lesson or an exercise.
"""

from __future__ import annotations

import base64
import math
import re
from pathlib import Path

import nbformat

from coursekit import claims, course, source

PICTURE = "picture.png"  # in the lesson's folder
_TABLE = re.compile(r"(<!-- lessons:begin -->\n).*?(<!-- lessons:end -->)", re.DOTALL)
_CLAIM = re.compile(r"(<!-- claim:([a-z0-9-]+) -->).*?(<!-- /claim -->)", re.DOTALL)
_NUMBER = re.compile(r"(<!-- (@[a-z0-9_]+) -->).*?(<!-- /@ -->)", re.DOTALL)


def update(root: Path) -> None:
    """Write README.md and its pictures anew."""
    for lesson, (picture, _) in pictures(root).items():
        course.part(root, lesson, PICTURE).write_bytes(picture)
    (root / "README.md").write_text(text(root), encoding="utf-8")


def problems(root: Path) -> list[str]:
    """What is out of date, one line each."""
    remedy = f"run `{course.command(root)} build`"
    current = (root / "README.md").read_text(encoding="utf-8") == text(root)
    found = [] if current else [f"README.md is out of date: {remedy}"]
    for lesson, (picture, _) in pictures(root).items():
        path = course.part(root, lesson, PICTURE)
        if not path.is_file() or path.read_bytes() != picture:
            found.append(f"{lesson}/{PICTURE} is not the figure that the notebook stores: {remedy}")
    return found


def text(root: Path) -> str:
    """README.md as it should be."""
    known, numbers = claims.load_all(root), source.numbers(root)

    def number(match: re.Match[str]) -> str:
        if match[2] not in known:
            raise claims.ClaimError(f"README.md: {claims.unknown(match[2], known)}")
        return match[1] + claims.fill(f"{{{{{match[2]}}}}}", root) + match[3]

    readme = (root / "README.md").read_text(encoding="utf-8")
    for _, reference, _ in _NUMBER.findall(readme):
        if course.unknown_references(reference, numbers):
            raise ValueError(f"README.md: {reference} is the name of no lesson and no exercise")
    readme = _NUMBER.sub(lambda match: match[1] + course.numbered(match[2], numbers) + match[3], readme)
    return _CLAIM.sub(number, _TABLE.sub(lambda match: f"{match[1]}{table(root)}\n{match[2]}", readme))


def table(root: Path) -> str:
    """One row a lesson."""
    rows = ["| | Lesson | Minutes to run | |", "|---|---|---|---|"]
    shown = pictures(root)
    numbers = source.numbers(root)
    for lesson in course.lessons(root):
        read = source.read(root, lesson)
        title, promise = read.title, course.numbered(read.promise, numbers)
        ledger = claims.stored(root, lesson)
        minutes = str(math.ceil(ledger.minutes)) if ledger else "–"
        place, alt = f"notebooks/source/{lesson}/{PICTURE}", shown.get(lesson, (b"", ""))[1]
        picture = f'<img src="{place}" alt="{alt}" width="260">' if lesson in shown else ""
        link = f"[**{title}**](notebooks/{lesson}.ipynb)"
        rows.append(f"| {course.number(lesson)} | {link}<br>{promise} | {minutes} | {picture} |")
    return "\n".join(rows)


def pictures(root: Path) -> dict[str, tuple[bytes, str]]:
    """(PNG, alt text) of each lesson that stores a figure."""
    found = {}
    for lesson in course.lessons(root):
        path = course.notebook_path(root, lesson)
        if not path.is_file():
            continue
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        cells.sort(key=lambda cell: "cover" not in cell.metadata.get("tags", []))  # stable: the cover first, if any
        outputs = [output.data for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
        if outputs:
            alt = " ".join(outputs[0]["text/plain"].split()).replace('"', "'").replace("|", "/")
            found[lesson] = base64.b64decode(outputs[0]["image/png"]), alt
    return found
