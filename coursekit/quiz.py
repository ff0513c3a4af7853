"""Self-test questions of a lesson, from its ``quiz.json`` to markdown that needs neither code nor JavaScript.

A question has three or four answers, and every answer says what thought leads to it. Each is folded (``<details>``), so
the reader chooses first and reads afterwards; that works in JupyterLab, on GitHub, in offline HTML and on the site. The
files have the format of ``jupyterquiz``, which can show them as well.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coursekit import course

KINDS = {"multiple_choice": "", "many_choice": " *(more than one may be right)*"}
FEWEST, MOST = 5, 8  # questions a lesson


class QuizError(ValueError):
    """A quiz is badly written; the message names the file, the question and what is wrong."""


@dataclass(frozen=True)
class Answer:
    text: str
    correct: bool
    feedback: str


@dataclass(frozen=True)
class Question:
    text: str
    kind: str
    answers: tuple[Answer, ...]


def load(root: Path, lesson: str) -> list[Question]:
    """The questions of a lesson.

    Raises:
        QuizError: for a file that is missing or breaks a rule.
    """
    file = course.part(root, lesson, "quiz.json")
    name = f"{lesson}/{file.name}"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QuizError(f"{name}: {error}") from error
    if not isinstance(raw, list) or not FEWEST <= len(raw) <= MOST:
        raise QuizError(f"{name}: must be a list of {FEWEST} to {MOST} questions")
    return [_question(one, f"{name}, question {number}") for number, one in enumerate(raw, start=1)]


def _question(raw: Any, where: str) -> Question:
    _keys(raw, {"question", "type", "answers"}, where)
    if raw["type"] not in KINDS:
        raise QuizError(f"{where}: type {raw['type']!r} is unknown; choose {' or '.join(KINDS)}")
    if not isinstance(raw["answers"], list) or not 3 <= len(raw["answers"]) <= 5:
        raise QuizError(f"{where}: needs three to five answers")
    answers = []
    for number, one in enumerate(raw["answers"], start=1):
        _keys(one, {"answer", "correct", "feedback"}, f"{where}, answer {number}")
        answers.append(Answer(one["answer"], one["correct"], one["feedback"]))
    right = sum(answer.correct is True for answer in answers)
    if any(not isinstance(answer.correct, bool) for answer in answers) or right in (0, len(answers)):
        raise QuizError(f"{where}: some answers must be right and some wrong")
    if raw["type"] == "multiple_choice" and right != 1:
        raise QuizError(f"{where}: exactly one answer of a multiple_choice is right, here {right}")
    for name in ("text", "feedback"):
        said = [getattr(answer, name).strip() for answer in answers]
        if "" in said or len(set(said)) < len(said):
            raise QuizError(f"{where}: each answer needs words and feedback of its own")
    return Question(raw["question"], raw["type"], tuple(answers))


def _keys(raw: Any, names: set[str], where: str) -> None:
    if not isinstance(raw, dict) or set(raw) != names:
        raise QuizError(f"{where}: must have {', '.join(sorted(names))}, and nothing else")


def markdown(questions: list[Question]) -> str:
    """All questions, answers folded. Right and wrong are said in words."""
    return "\n\n".join(_shown(number, question) for number, question in enumerate(questions, start=1))


def _shown(number: int, question: Question) -> str:
    lines = [f"**{number}.** {question.text}{KINDS[question.kind]}"]
    for letter, answer in zip("abcde", question.answers, strict=False):
        verdict = "Right." if answer.correct else "Not so."
        lines.append(f"<details><summary>{letter}) {_inline(answer.text)}</summary>\n\n**{verdict}** {answer.feedback}"
                     "\n\n</details>")  # fmt: skip
    return "\n\n".join(lines)


def _inline(text: str) -> str:
    """Markdown's code as HTML, since a summary is HTML; formulas stay as they are."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
