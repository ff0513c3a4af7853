"""Answers by somebody who had the exercises and had not seen the graders: five or more wrong, two or more right each.

When they were first tried, 79 of the 85 wrong ones of the first four lessons were caught every time, 177 of the 216 of
fine_tuning, mixed_precision and generalization, 112 of the 117 of distributed_training, 191 of the 205 of
pruning_and_sparsity and 147 of the 176 of efficiency_ladder; the
graders, or an exercise that said too little, were mended until all were. The right ones, in other styles than the
solutions', must go on passing.
"""

import runpy
from pathlib import Path

import pytest

from coursekit import course
from coursekit.checks import grade

ROOT = Path(__file__).resolve().parents[1]
LESSONS = course.lessons(ROOT)
GRADINGS = 5


def answers(kind: str) -> list:
    """Of ``blind.py`` in every lesson's folder."""
    return [pytest.param(exercise, function, id=f"{exercise} {name}")
            for lesson in LESSONS
            for exercise, functions in runpy.run_path(str(course.part(ROOT, lesson, "blind.py")))[kind].items()
            for name, function in functions.items()]  # fmt: skip


@pytest.mark.parametrize(("exercise", "answer"), answers("WRONG"))
def test_a_wrong_answer_is_rejected_every_time(exercise, answer):
    verdicts = [grade(exercise, answer) for _ in range(GRADINGS)]
    assert {verdict.status for verdict in verdicts} == {"wrong"}
    assert all(len(verdict.message) > 10 for verdict in verdicts)  # it says something


@pytest.mark.parametrize(("exercise", "answer"), answers("RIGHT"))
def test_a_right_answer_in_another_style_passes_every_time(exercise, answer):
    assert [verdict for _ in range(GRADINGS) if (verdict := grade(exercise, answer)).status != "passed"] == []
