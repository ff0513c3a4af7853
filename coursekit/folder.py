"""What all handouts share: their errors, the stored outputs, and how files come into a folder, all or none."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import nbformat

from coursekit import build, course

MADE = ".made-by-coursekit.json"  # which files are ours, so that nobody else's is ever overwritten


class HandoutError(ValueError):
    """The command line asks for what cannot be done; the message names the argument, its value and the remedy."""


class SourceError(ValueError):
    """A lesson holds what this kind cannot show; the message says what and where."""


def with_stored_outputs(root: Path, notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the outputs of the committed learner's one; without, said on stderr, where the code differs."""
    lesson = course.find(root, notebook.metadata.coursekit.lesson)
    path = course.notebook_path(root, lesson)
    stored = nbformat.read(path, as_version=4) if path.exists() else None
    if stored is not None and build.same_code(stored, notebook):
        build.carry(stored, notebook)
    else:
        remedy = f"run `{course.command(root)} notebooks {course.name(lesson)}`"
        print(f"{lesson}: no outputs are shown: {remedy}", file=sys.stderr)
    return notebook


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
