"""The parts of README.md that are made, not written: the lesson table, its pictures, and the numbers.

Between ``<!-- lessons:begin -->`` and ``<!-- lessons:end -->`` stands a table made from the sources (title, promise),
the ledgers (minutes measured) and the stored notebooks (a picture: the figure of the cell tagged ``cover``, or the
first). ``<!-- claim:ID -->...<!-- /claim -->`` holds the ledger's value of a claim, so that README cannot drift from
the runs.
"""

from __future__ import annotations

import base64
import math
import re
from pathlib import Path

import jupytext
import nbformat

from sslcourse.teaching import build, claims

PICTURES = Path("docs") / "pictures"
_TABLE = re.compile(r"(<!-- lessons:begin -->\n).*?(<!-- lessons:end -->)", re.DOTALL)
_CLAIM = re.compile(r"(<!-- claim:([a-z0-9-]+) -->).*?(<!-- /claim -->)", re.DOTALL)


def update(root: Path) -> None:
    """Write README.md and its pictures anew."""
    for lesson, (picture, _) in pictures(root).items():
        path = root / PICTURES / f"{lesson}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    (root / "README.md").write_text(text(root), encoding="utf-8")


def problems(root: Path) -> list[str]:
    """What is out of date, one line each."""
    remedy = "run `python -m sslcourse build`"
    current = (root / "README.md").read_text(encoding="utf-8") == text(root)
    found = [] if current else [f"README.md is out of date: {remedy}"]
    for lesson, (picture, _) in pictures(root).items():
        path = root / PICTURES / f"{lesson}.png"
        if not path.is_file() or path.read_bytes() != picture:
            found.append(f"{PICTURES / path.name} is not the figure that the notebook stores: {remedy}")
    return found


def text(root: Path) -> str:
    """README.md as it should be."""
    known = claims.load_all(root)

    def number(match: re.Match[str]) -> str:
        if match[2] not in known:
            raise claims.ClaimError(f"README.md: {claims.unknown(match[2], known)}")
        return match[1] + claims.fill(f"{{{{{match[2]}}}}}", root) + match[3]

    readme = (root / "README.md").read_text(encoding="utf-8")
    return _CLAIM.sub(number, _TABLE.sub(lambda match: f"{match[1]}{table(root)}\n{match[2]}", readme))


def table(root: Path) -> str:
    """One row a lesson."""
    rows = ["| | Lesson | Minutes to run | |", "|---|---|---|---|"]
    shown = pictures(root)
    for lesson in claims.lessons(root):
        title, promise = title_and_promise(root, lesson)
        ledger = claims.stored(root, lesson)
        minutes = str(math.ceil(ledger.minutes)) if ledger else "–"
        source, alt = f"{(PICTURES / lesson).as_posix()}.png", shown.get(lesson, (b"", ""))[1]
        picture = f'<img src="{source}" alt="{alt}" width="260">' if lesson in shown else ""
        rows.append(f"| {lesson[:2]} | [**{title}**](notebooks/{lesson}.ipynb)<br>{promise} | {minutes} | {picture} |")
    return "\n".join(rows)


def pictures(root: Path) -> dict[str, tuple[bytes, str]]:
    """(PNG, alt text) of each lesson that stores a figure."""
    found = {}
    for lesson in claims.lessons(root):
        path = root / "notebooks" / f"{lesson}.ipynb"
        if not path.is_file():
            continue
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        cells.sort(key=lambda cell: "cover" not in cell.metadata.get("tags", []))  # stable: the cover first, if any
        outputs = [output.data for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
        if outputs:
            alt = " ".join(outputs[0]["text/plain"].split()).replace('"', "'").replace("|", "/")
            found[lesson] = base64.b64decode(outputs[0]["image/png"]), alt
    return found


def title_and_promise(root: Path, lesson: str) -> tuple[str, str]:
    """The heading without its number, and the promise: the first bold paragraph."""
    cell = jupytext.read(build.source_path(root, lesson), fmt="py:percent").cells[0].source
    title = re.search(r"^# (?:\d+\s*·\s*)?(.*)$", cell, re.MULTILINE)
    promise = re.search(r"\*\*(.+?)\*\*", cell, re.DOTALL)
    return (title[1] if title else "?"), (" ".join(promise[1].split()) if promise else "")
