"""Graders: ``check("masked_mean", my_function)`` says whether an answer is right, and if not, where it is wrong.

Beside each lesson lies ``graders.py``, which holds the graders of its exercises:

    @grader("masked_mean")
    def masked_mean(answer: Answer, rng: Rng) -> None:
        numbers, mask = ...                         # fresh at every call, from rng
        got = answer(numbers, mask)                 # fails for the learner, in words, whatever goes wrong inside
        close(got, want, "...", mistakes={"did you average over all of them?": numbers.mean()})

A grader raises ``Wrong`` with a message that says what is wrong, or returns. Calling the answer through ``Answer``
notices for every grader alike: a stub that was not touched, an exception, a forgotten ``return``, an argument that
was changed in place, and an answer that calls this package in place of doing the work.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch

from coursekit import course, progress

HERE = Path(__file__).resolve().parent
FRAME = (__file__, str(HERE / "grade_wire.py"))  # how an answer is called, here or there
TODO = ...  # what a stub returns: `return ...  # your code here`

MARK = re.compile(r'^@grader\("(\w+)"', re.MULTILINE)


class Wrong(Exception):
    """The answer is wrong; the message tells the learner where."""


class NotAttempted(Exception):
    """The stub is as it was."""


class CheckFailed(AssertionError):
    """Raised instead of printed where every check must pass (``COURSEKIT_CHECKS=strict``)."""


@dataclass(frozen=True)
class Result:
    """Verdict of one check; it prints as one line."""

    exercise: str
    status: str  # "passed", "wrong" or "not attempted"
    message: str = ""

    def __str__(self) -> str:
        mark = {"passed": "✓", "wrong": "✗", "not attempted": "–"}[self.status]
        text = {"passed": "passed", "wrong": self.message, "not attempted": "not attempted yet"}[self.status]
        return f"{mark} Exercise {self.exercise}: {text}"

    def __repr__(self) -> str:
        return str(self)


class Rng:
    """Fresh inputs: every grading draws others, so that an answer fitted to one example fails.

    ``rng.torch`` is a ``torch.Generator``, ``rng.python`` a ``random.Random``.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.python = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)

    def integer(self, low: int, high: int) -> int:
        """Between ``low`` and ``high``, both included."""
        return self.python.randint(low, high)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=self.torch, dtype=dtype)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """Ids in [low, high), ``high`` excluded."""
        return torch.randint(low, high, shape, generator=self.torch)

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.torch)


class Answer:
    """The learner's function, watched while it is called."""

    def __init__(self, function: Callable[..., Any], forbidden: tuple[str, ...] = ()) -> None:
        self.function, self.forbidden = function, forbidden

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = copy.deepcopy((args, kwargs))
        given = {one.__code__ for one in (*args, *kwargs.values()) if hasattr(one, "__code__")}
        try:
            with _watch(self.forbidden, given) as shortcuts:
                result = self.function(*args, **kwargs)
        except Exception as error:
            if not shortcuts:
                line = _line_in_answer(error)
                raise Wrong(f"your function raised {type(error).__name__}: {error}{line}") from error
        if shortcuts:  # found even if the answer caught the exception that announced it
            raise Wrong(shortcuts[0])
        if result is TODO:
            raise NotAttempted
        if result is None:
            raise Wrong("your function returned None: is the `return` missing?")
        if not same((args, kwargs), before):
            raise Wrong(
                "your function changed one of its arguments in place; work on a copy (`.clone()` of a tensor, "
                "`list(...)` of a list), because the caller still needs the original"
            )
        return result


Grader = Callable[[Answer, Rng], None]


def grader(exercise: str, forbidden: tuple[str, ...] = ()) -> Callable[[Grader], Grader]:
    """Mark a grader. ``forbidden`` names library functions that would answer the exercise in one call."""

    def mark(grade: Grader) -> Grader:
        grade.exercise, grade.forbidden = exercise, forbidden  # type: ignore[attr-defined]
        return grade

    return mark


@cache
def load(root: Path, lesson: str) -> dict[str, Grader]:
    """The graders of a lesson, by the words of its exercises.

    Raises:
        FileNotFoundError: if it has none.
    """
    path = course.part(root, lesson, "graders.py")
    if not path.is_file():
        raise FileNotFoundError(f"{lesson}/graders.py is missing: write it")
    spec = importlib.util.spec_from_file_location(f"graders_of_{course.name(lesson)}", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return {one.exercise: one for one in vars(module).values() if hasattr(one, "exercise")}


@cache
def exercises(root: Path) -> dict[str, str]:
    """Word of an exercise -> its lesson, read off the graders' files, none of which is run for it."""
    files = {lesson: course.part(root, lesson, "graders.py") for lesson in course.lessons(root)}
    return {word: lesson for lesson, path in files.items() if path.is_file()
            for word in MARK.findall(path.read_text(encoding="utf-8"))}  # fmt: skip


def find(root: Path, exercise: str) -> Grader:
    """The grader of an exercise; those of other lessons are not loaded for it.

    Raises:
        KeyError: if there is no such exercise.
    """
    known = exercises(root)
    if exercise not in known:
        raise KeyError(f"there is no exercise {exercise!r}; known: {', '.join(sorted(known)) or 'none'}")
    return load(root, known[exercise])[exercise]


@cache
def not_the_learners(root: Path) -> tuple[str, ...]:
    """Where code is no learner's, as paths begin: in the course's package, in this one, and in the lessons' graders."""
    package = course.config(root).package
    spec = importlib.util.find_spec(package) if package else None
    places = (spec.submodule_search_locations if spec else None) or ()
    folders = [HERE, *map(Path, places)]
    graders = [course.part(root, lesson, "graders.py") for lesson in course.lessons(root)]
    return (*(f"{folder.resolve()}{os.sep}" for folder in folders), *map(str, graders))


def check(exercise: str, answer: Callable[..., Any]) -> Result:
    """Grade one answer and return the verdict; as the last line of a cell it is shown below it.

    Raises:
        KeyError: if there is no such exercise.
        CheckFailed: with ``COURSEKIT_CHECKS=strict``, unless the answer passes; CI runs the filled-in lessons so.
    """
    result = grade(exercise, answer)
    if result.status != "not attempted":
        progress.record(exercise, result.status == "passed")
    if os.environ.get("COURSEKIT_CHECKS") == "strict" and result.status != "passed":
        raise CheckFailed(str(result))
    return result


def grade(
    exercise: str, answer: Callable[..., Any], seed: int | None = None, *, wrap: type[Answer] = Answer
) -> Result:
    """What ``check`` does, never raising for a wrong answer; ``seed`` repeats one grading.

    ``wrap`` is how the answer is called: here and watched, or in another process, as the command ``grade`` does.
    """
    watched = find(course.root(), exercise)
    if not callable(answer):
        return Result(
            exercise,
            "wrong",
            f"check takes your function itself, not its result ({type(answer).__name__}); "
            "leave out the brackets after its name",
        )
    rng = Rng(random.SystemRandom().getrandbits(32) if seed is None else seed)
    with _kept_random_state():
        try:
            watched(wrap(answer, watched.forbidden), rng)  # type: ignore[attr-defined]
        except NotAttempted:
            return Result(exercise, "not attempted")
        except Wrong as wrong:
            return Result(exercise, "wrong", str(wrong))
    return Result(exercise, "passed")


def close(
    got: Any,
    want: torch.Tensor | float,
    what: str = "the result",
    *,
    rtol: float = 1e-4,
    atol: float = 1e-6,
    mistakes: Mapping[str, torch.Tensor | float] | None = None,
) -> None:
    """``got`` equals ``want``, or ``Wrong`` says how it differs.

    ``mistakes`` maps a hint to the value that a known mistake gives; if ``got`` is that value, the hint is the message.
    """
    want = torch.as_tensor(want)
    try:
        value = torch.as_tensor(got)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Wrong(f"{what} should be a tensor or a number, got {type(got).__name__}") from error
    right = value.shape == want.shape and _near(value, want, rtol, atol)  # a mistake may happen to give nearly the same
    for hint, wrong_value in (mistakes or {}).items():
        wrong_value = torch.as_tensor(wrong_value)
        if not right and value.shape == wrong_value.shape and _near(value, wrong_value, rtol, atol):
            raise Wrong(hint)
    if value.shape != want.shape:
        raise Wrong(f"{what} has shape {tuple(value.shape)}, expected {tuple(want.shape)}")
    if not bool(torch.isfinite(value.double()).all()) and bool(torch.isfinite(want.double()).all()):
        raise Wrong(f"{what} holds nan or inf where finite numbers are expected")
    if not _near(value, want, rtol, atol):
        gap = (value.double() - want.double()).abs()
        if value.ndim == 0:
            raise Wrong(f"{what} is {float(value):.6g}, expected {float(want):.6g}")
        where = np.unravel_index(int(gap.argmax()), gap.shape)
        place = ", ".join(str(int(i)) for i in where)
        raise Wrong(
            f"{what} has the right shape but wrong values: at [{place}] it is {float(value[where]):.6g}, "
            f"expected {float(want[where]):.6g}"
        )


def true(condition: Any, message: str) -> None:
    """``Wrong(message)`` unless the condition holds."""
    if not bool(condition):
        raise Wrong(message)


def same(left: Any, right: Any) -> bool:
    """Equal in structure and value, tensors and arrays included; nan equals nan."""
    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        return (
            isinstance(left, torch.Tensor)
            and isinstance(right, torch.Tensor)
            and left.dtype == right.dtype
            and left.shape == right.shape
            and torch.equal(left.nan_to_num(), right.nan_to_num())
        )
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.array_equal(left, right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, (torch.Generator, torch.nn.Module)) or callable(left):
        return True  # a generator is meant to move on, and what a function is cannot be compared
    return bool(left == right)


def _near(value: torch.Tensor, want: torch.Tensor, rtol: float, atol: float) -> bool:
    return torch.allclose(value.double(), want.double(), rtol=rtol, atol=atol, equal_nan=True)


@contextmanager
def _watch(forbidden: tuple[str, ...], given: set[CodeType]) -> Iterator[list[str]]:
    """Notice, while the answer runs, a call into the course's code or to a forbidden library function.

    What the grader itself hands to the answer, to be called, is ``given``, and allowed.
    """
    found: list[str] = []
    before, folders = sys.getprofile(), not_the_learners(course.root())
    package = course.config(course.root()).package or "the course"

    def notice(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        ours = code.co_filename.startswith(folders) and code.co_filename not in FRAME
        if event == "call" and ours and code not in given:
            found.append(f"your function calls {package} ({code.co_name}); the exercise is to write it yourself")
        name = code.co_name if event == "call" else getattr(argument, "__name__", "") if event == "c_call" else ""
        if name in forbidden:
            found.append(f"your function calls {name}, which does the work for you; write it out")
        if found:
            raise Wrong(found[0])  # stops the answer at once, unless it catches everything

    sys.setprofile(notice)
    try:
        yield found
    finally:
        sys.setprofile(before)


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """Grading draws random numbers; the lesson's own sequence goes on as if it had not."""
    python, numpy, state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(state)


def _line_in_answer(error: BaseException) -> str:
    """Where in the learner's own code it happened, if anywhere."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        ours = frame.filename.startswith(not_the_learners(course.root())) or "site-packages" in frame.filename
        if not ours and frame.line:
            return f" (at `{frame.line.strip()}`)"
    return ""
