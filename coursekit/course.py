"""Where a course stands, what its lessons are called, and how they are numbered.

    notebooks/source/04_fine_tuning/    one lesson: all that people write of it, and what its stored run leaves beside
    it notebooks/04_fine_tuning.ipynb      what learners open [tool.coursekit] in pyproject.toml  what the course says
    of itself (``Config``)

A lesson's *id* is its folder's name, its *name* the id without the number, and the number stands nowhere else: code
and records speak of ``fine_tuning``, and prose of ``@fine_tuning``, which ``numbered`` turns into 04 whenever something
is made of it. Exercises go the same way: ``@merge`` is 4.5, the fifth of that lesson.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = re.compile(r"\d\d_[a-z][a-z0-9_]*")
REFERENCE = re.compile(r"(?<![\w@.`/])@([a-z][a-z0-9_]*[a-z0-9])\b(?!`)")


@dataclass(frozen=True)
class Config:
    """What a course says of itself; all of it may be left out."""

    title: str = "A course"
    package: str = ""  # the one that answers may not call; its name in capitals begins the variables of learners
    code: tuple[str, ...] = ()  # packages on which a stored run stands
    machine: str = ""  # "module:function" that says what a reader must know about a machine to judge a number
    prepare: str = ""  # "module:function" that is called before a lesson imports anything
    cover: str = ""  # the lesson whose picture stands on the site's front page
    cover_says: str = ""  # and what is written below it
    translated: tuple[str, ...] = ()  # lessons that the site has in Chinese

    def variable(self, name: str) -> str:
        """A learner's variable of the environment, as in ``SSLCOURSE_PROFILE``."""
        return f"{(self.package or 'course').upper()}_{name}"

    def call(self, hook: str) -> Any:
        """What a hook returns; None where the course has none."""
        path: str = getattr(self, hook)
        module, _, function = path.partition(":")
        return getattr(importlib.import_module(module), function)() if path else None


def root() -> Path:
    """The course that this process works for: ``$COURSEKIT_ROOT``, or the clone in which this package lies."""
    return Path(os.environ.get("COURSEKIT_ROOT") or Path(__file__).resolve().parents[1])


@cache
def config(root: Path) -> Config:
    """``[tool.coursekit]`` of the course's pyproject.toml.

    Raises:
        ValueError: for a key that is unknown.
    """
    path = root / "pyproject.toml"
    if not path.is_file():
        return Config()
    given = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("coursekit", {})
    known = {one.name for one in fields(Config)}
    for key in given.keys() - known:
        raise ValueError(f"pyproject.toml: [tool.coursekit] has {key!r}; known are {', '.join(sorted(known))}")
    return Config(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def command(root: Path) -> str:
    """What a person types before the name of a command."""
    return f"python -m {config(root).package or 'coursekit'}"


# --- lessons ----------------------------------------------------------------------------------------------------------


def sources(root: Path) -> Path:
    return root / "notebooks" / "source"


def lessons(root: Path) -> list[str]:
    """Ids of all lessons, in order."""
    return sorted(path.parent.name for path in sources(root).glob("*/lesson.py") if FOLDER.fullmatch(path.parent.name))


def part(root: Path, lesson: str, file: str) -> Path:
    """A file of a lesson's folder: lesson.py, graders.py, claims.toml, quiz.json, ledger.json, ..."""
    return sources(root) / lesson / file


def notebook_path(root: Path, lesson: str) -> Path:
    """Where the learner's notebook is committed."""
    return root / "notebooks" / f"{lesson}.ipynb"


def name(lesson: str) -> str:
    """The id without its number."""
    return lesson[3:]


def number(lesson: str) -> str:
    """The id's number, two digits."""
    return lesson[:2]


def find(root: Path, word: str) -> str:
    """The id of the lesson that somebody means by its id, its name, or its number.

    Raises:
        LookupError: if there is none, naming those that there are.
    """
    known = lessons(root)
    meant = {alias: one for one in known for alias in (one, name(one), number(one), str(int(number(one))))}
    if word not in meant:
        near = difflib.get_close_matches(word, meant, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise LookupError(f"there is no lesson {word!r}{hint} Known: {', '.join(known) or 'none'}")
    return meant[word]


# --- numbers in prose -------------------------------------------------------------------------------------------------


def numbered(text: str, numbers: dict[str, str]) -> str:
    """Prose with the numbers of lessons and exercises in place of ``@name``; what is no name of one stays."""
    return REFERENCE.sub(lambda match: numbers.get(match[1], match[0]), text)


def unknown_references(text: str, numbers: dict[str, str]) -> list[str]:
    """``@names`` that are neither a lesson nor an exercise."""
    return [match[0] for match in REFERENCE.finditer(text) if match[1] not in numbers]
