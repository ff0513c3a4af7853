"""What a teacher hands out: ``build KIND [LESSON ...] --out DIR``.

    learner, student, teacher   notebooks, as ``build`` makes them
    slides                      a reveal.js page a lesson, from the stored outputs              (``slides``)
    nbgrader                    a course folder with one assignment a lesson                    (``assignments``)
    colab                       notebooks whose first cell installs the course, with a table    (``colab``)

Everything is made in memory first, and what a class gets is searched for solutions. So a build that fails leaves the
folder as it was.

What this module does not do: run a lesson.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coursekit import assignments, build, claims, colab, course, quiz, slides, source
from coursekit.folder import HandoutError, SourceError, ours, place

KINDS = (*build.KINDS, "slides", "nbgrader", "colab")
WITHOUT_SOLUTIONS = ("student", "slides")


def main(root: Path, kind: str, lessons: list[str], out: Path, repository: str | None = None) -> int:
    """Make a kind in a folder; the exit status: 0 made, 1 a fault of the sources, 2 of the command line."""
    try:
        ours(out, kind)  # before the work, for whoever waits for it
        place(make(root, kind, lessons, repository), kind, out)
    except (quiz.QuizError, claims.ClaimError, SourceError, LeakError) as error:
        print(f"build {kind}: nothing was written: {error}", file=sys.stderr)
        return 1
    except HandoutError as error:
        print(f"build {kind}: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {len(lessons)} {'lesson' if len(lessons) == 1 else 'lessons'}, {kind}")
    return 0


def make(root: Path, kind: str, lessons: list[str], repository: str | None = None) -> dict[str, bytes]:
    """Everything that a kind consists of: path below the folder -> content.

    Raises:
        HandoutError: for an unknown kind, a ``repository`` that is missing or of no use, or a package that is missing.
        LeakError: if a solution would be handed to a class.
    """
    if kind not in KINDS:
        raise HandoutError(f"kind is {kind!r}: choose one of {', '.join(KINDS)}")
    if (repository is not None) != (kind == "colab"):
        raise HandoutError("--repository goes with `build colab`, which needs it: the https address of the course on "
                           "GitHub, from which a learner's machine clones it")  # fmt: skip
    if kind == "slides":
        files = slides.make(root, lessons)
    elif kind == "nbgrader":
        files = assignments.make(root, lessons)
    elif kind == "colab":
        files = colab.make(root, lessons, repository or "")
    else:
        files = {f"{lesson}.ipynb": build.to_bytes(build.build(root, lesson, kind)) for lesson in lessons}
    found = leaks(root, files) if kind in WITHOUT_SOLUTIONS else []
    if found:
        raise LeakError("\n".join(found))
    return files


# -- leaks -------------------------------------------------------------------------------------------------------------

BLOB = re.compile(r"[A-Za-z0-9+/\n]{200,}={0,2}")  # a picture, or anything else in base64
TAG = re.compile(r"<[^>]*>")


class LeakError(RuntimeError):
    """A solution stands where a class would find it. That is a fault of this package, not of the command line."""


def leaks(root: Path, files: dict[str, bytes]) -> list[str]:
    """Where a line of a solution stands in a file: its text, metadata, outputs, attachments; an empty list is green."""
    secret = solutions(root)
    found = []
    for name, content in files.items():
        whole = "\0".join(squeeze(text) for text in _texts(content))
        found += [f"{name}: holds a line of the solution of exercise {exercise}: {line}"
                  for exercise, lines in secret.items() for line in lines if squeeze(line) in whole]  # fmt: skip
    return found


def solutions(root: Path) -> dict[str, list[str]]:
    """Exercise -> the lines of its solution that no lesson shows anyway, in its prose, its hints or its other cells."""
    read = [source.read(root, lesson) for lesson in course.lessons(root)]
    shown = squeeze("\0".join(source.to_stub(one.text) for one in read))
    secret: dict[str, list[str]] = {}
    for one in (exercise for lesson in read for exercise in lesson.exercises):
        lines = [line.strip() for match in source.SOLUTION.finditer(one.text) for line in match[2].splitlines()]
        secret[one.word] = [line for line in lines if line and squeeze(line) not in shown]
    return secret


def squeeze(text: str) -> str:
    """Without white space: a line is the same however it is indented or wrapped."""
    return "".join(text.split())


def _texts(content: bytes) -> Iterator[str]:
    """Every way to read a file: as it is, as a page without its tags, the strings in its JSON, what its base64 says."""
    text = content.decode("utf-8", "replace")
    try:
        readings = list(_strings(json.loads(text)))
    except ValueError:
        readings = [text]
    for reading in readings:
        for blob in BLOB.findall(reading):
            yield _decoded(blob)
        plain = BLOB.sub("", reading)
        yield plain
        yield html.unescape(TAG.sub("", plain))


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from _strings(value)
    elif isinstance(node, list):
        if node and all(isinstance(one, str) for one in node):
            yield "".join(node)  # the lines of a source, which may also be read one by one
        for one in node:
            yield from _strings(one)


def _decoded(blob: str) -> str:
    blob = squeeze(blob).rstrip("=")
    try:
        return base64.b64decode(blob + "=" * (-len(blob) % 4)).decode("latin-1")
    except binascii.Error:
        return blob
