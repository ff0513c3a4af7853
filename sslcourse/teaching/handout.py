"""What a teacher hands out, and how it comes into a folder: ``python -m sslcourse build KIND [NN ...] --out DIR``.

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
import hashlib
import html
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

from sslcourse.teaching import build, claims

KINDS = (*build.KINDS, "slides", "nbgrader", "colab")
WITHOUT_SOLUTIONS = ("student", "slides")
MADE = ".made-by-sslcourse.json"  # which files are ours, so that nobody else's is ever overwritten


class HandoutError(ValueError):
    """The command line asks for what cannot be done; the message names the argument, its value and the remedy."""


class SourceError(ValueError):
    """A lesson holds what this kind cannot show; the message says what and where."""


def main(root: Path, kind: str, lessons: list[str], out: Path, repository: str | None = None) -> int:
    """Make a kind in a folder; the exit status: 0 made, 1 a fault of the sources, 2 of the command line."""
    try:
        ours(out, kind)  # before the work, for whoever waits for it
        place(make(root, kind, lessons, repository), kind, out)
    except (build.quiz.QuizError, claims.ClaimError, SourceError, LeakError) as error:
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
        from sslcourse.teaching import slides

        files = slides.make(root, lessons)
    elif kind == "nbgrader":
        from sslcourse.teaching import assignments

        files = assignments.make(root, lessons)
    elif kind == "colab":
        from sslcourse.teaching import colab

        files = colab.make(root, lessons, repository or "")
    else:
        files = {f"{lesson}.ipynb": build.to_bytes(build.build(root, lesson, kind)) for lesson in lessons}
    found = leaks(root, files) if kind in WITHOUT_SOLUTIONS else []
    if found:
        raise LeakError("\n".join(found))
    return files


def with_stored_outputs(root: Path, notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the outputs of the committed learner's one; without, said on stderr, where the code differs."""
    lesson = notebook.metadata.sslcourse.lesson
    path = build.notebook_path(root, lesson)
    stored = nbformat.read(path, as_version=4) if path.exists() else None
    if stored is not None and build.same_code(stored, notebook):
        build.carry(stored, notebook)
    else:
        print(f"{lesson}: no outputs are shown: run `python -m sslcourse notebooks {lesson[:2]}`", file=sys.stderr)
    return notebook


# -- the folder --------------------------------------------------------------------------------------------------------


def place(files: dict[str, bytes], kind: str, out: Path) -> None:
    """Write all files below ``out``, or none.

    Raises:
        HandoutError: if ``out`` is a file, cannot be made, or holds something that this kind's build did not make.
    """
    made = {**ours(out, kind), **{name: _digest(content) for name, content in files.items()}}
    scratch = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        scratch.mkdir(parents=True)
        written = {**files, MADE: (json.dumps({"kind": kind, "files": made}, indent=1) + "\n").encode()}
        for name, content in written.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(content)
        if not out.exists():
            scratch.rename(out)
            return
        for name in written:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).replace(out / name)
    except OSError as error:
        raise HandoutError(f"--out {out}: {error.strerror}; choose another folder") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def ours(out: Path, kind: str) -> dict[str, str]:
    """Name -> hash of what an earlier build of this kind left in ``out``; empty for a folder that is new or empty.

    Raises:
        HandoutError: if ``out`` is a file, or holds anything else. Such a folder is never written to: it may be
            somebody's work, or a teacher's copies, among which a class would find the solutions.
    """
    if out.exists() and not out.is_dir():
        raise HandoutError(f"--out {out}: it is a file; choose a folder")
    present = sorted(out.iterdir()) if out.exists() else []
    if not present:
        return {}
    remedy = "choose a new or an empty folder"
    try:
        record = json.loads((out / MADE).read_text(encoding="utf-8"))
        known, before = dict(record["files"]), record["kind"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise HandoutError(f"--out {out}: it holds {present[0].name}, which this command did not make; "
                           f"{remedy}") from error  # fmt: skip
    if before != kind:
        raise HandoutError(f"--out {out}: it holds what `build {before}` made; {remedy}")
    files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if not path.is_dir()}
    del files[MADE]
    for name, path in files.items():
        if known.get(name) != _digest(path.read_bytes()):
            what = "was changed since it was made" if name in known else "this command did not make"
            raise HandoutError(f"--out {out}: it holds {name}, which {what}; {remedy}")
    return {name: digest for name, digest in known.items() if name in files}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- leaks -------------------------------------------------------------------------------------------------------------

BLOB = re.compile(r"[A-Za-z0-9+/\n]{200,}={0,2}")  # a picture, or anything else in base64
TAG = re.compile(r"<[^>]*>")
ANSWER = re.compile(r'check\("(\d+\.\d+)"')


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
    sources = [build.source_path(root, lesson).read_text(encoding="utf-8") for lesson in claims.lessons(root)]
    shown = squeeze("\0".join(claims.to_stub(text) for text in sources))
    secret: dict[str, list[str]] = {}
    for text in sources:
        for match in claims.SOLUTION.finditer(text):
            after = ANSWER.search(text, match.end())
            lines = [line.strip() for line in match[2].splitlines()]
            secret[after[1] if after else "?"] = [line for line in lines if line and squeeze(line) not in shown]
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
