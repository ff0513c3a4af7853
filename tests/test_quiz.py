"""Self-tests: every lesson has one, each answer says something, and a badly written file is named."""

import copy
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from coursekit import build, course, gate, quiz

ROOT = Path(__file__).resolve().parents[1]
LESSONS = course.lessons(ROOT)
GOOD = [
    {"question": f"What is ${n} + 1$?", "type": "multiple_choice", "answers": [
        {"answer": f"`{n + 1}`", "correct": True, "feedback": "One more."},
        {"answer": f"{n} < 3", "correct": False, "feedback": "That is no number."},
        {"answer": f"{n - 1}", "correct": False, "feedback": "One less."},
    ]} for n in range(5)
]  # fmt: skip


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_lesson_has_a_quiz_of_which_each_answer_is_explained(lesson):
    questions = quiz.load(ROOT, lesson)
    text = quiz.markdown(questions)
    answers = [answer for question in questions for answer in question.answers]
    assert text.count("<details>") == text.count("</details>") == len(answers)
    assert all(len(answer.feedback) > 40 for answer in answers)  # a sentence, not "wrong"


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_right_answer_is_not_given_away_by_its_place_or_length(lesson):
    single = [question for question in quiz.load(ROOT, lesson) if question.kind == "multiple_choice"]
    places = Counter(next(n for n, one in enumerate(question.answers) if one.correct) for question in single)
    assert max(places.values()) <= (len(single) + 1) // 2
    longest = sum(max(question.answers, key=lambda one: len(one.text)).correct for question in single)
    assert longest <= (len(single) + 1) // 2


def write(root, lesson, questions):
    path = course.part(root, lesson, "quiz.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(questions if isinstance(questions, str) else json.dumps(questions))


def test_a_quiz_is_shown_folded_with_code_and_mathematics(tmp_path):
    write(tmp_path, "01_tiny", GOOD)
    text = quiz.markdown(quiz.load(tmp_path, "01_tiny"))
    assert text.startswith("**1.** What is $0 + 1$?\n\n<details><summary>a) <code>1</code></summary>\n\n**Right.** One")
    assert "<summary>b) 0 &lt; 3</summary>\n\n**Not so.** That is no number.\n\n</details>" in text


def change(path, value):
    def apply(questions):
        place = questions
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (change((1, "type"), "essay"), "question 2: type 'essay' is unknown"),
        (change((2, "answers", 1, "correct"), True), "question 3: exactly one answer"),
        (change((2, "answers", 0, "correct"), False), "question 3: some answers must be right and some wrong"),
        (change((2, "answers", 0, "correct"), "yes"), "question 3: some answers must be right and some wrong"),
        (change((0, "answers", 2, "feedback"), " "), "question 1: each answer needs words and feedback of its own"),
        (change((0, "answers", 2, "answer"), "`1`"), "question 1: each answer needs words and feedback of its own"),
        (change((0, "hint"), "none"), "question 1: must have answers, question, type"),
        (lambda questions: questions[0]["answers"][0].pop("feedback"), "question 1, answer 1: must have answer"),
        (lambda questions: questions[0]["answers"].__delitem__(slice(1, 3)), "question 1: needs three to five answers"),
        (lambda questions: questions.pop(), "a list of 5 to 8 questions"),
    ],
)  # fmt: skip
def test_a_badly_written_quiz_is_named(tmp_path, fault, message):
    questions = copy.deepcopy(GOOD)
    fault(questions)
    write(tmp_path, "01_tiny", questions)
    with pytest.raises(quiz.QuizError, match=rf"^01_tiny/quiz\.json.*{re.escape(message)}"):
        quiz.load(tmp_path, "01_tiny")


def test_a_quiz_that_is_missing_or_no_json_is_named(tmp_path):
    with pytest.raises(quiz.QuizError, match=r"^01_tiny/quiz\.json: .*No such file"):
        quiz.load(tmp_path, "01_tiny")
    write(tmp_path, "01_tiny", "[")
    with pytest.raises(quiz.QuizError, match=r"^01_tiny/quiz\.json: "):
        quiz.load(tmp_path, "01_tiny")


def test_a_source_that_asks_for_its_quiz_gets_it_in_every_notebook(tiny):
    tiny.plant("# In the stored run", "# {{quiz}}\n#\n# In the stored run")
    write(tiny.root, tiny.lesson, GOOD)
    for kind in build.KINDS:
        (cell, *_) = build.build(tiny.root, tiny.lesson, kind).cells
        assert "{{quiz}}" not in cell.source
        assert cell.source.count("**Right.**") == 5


def test_the_gate_names_a_quiz_that_is_missing(stored):
    stored.plant("# In the stored run", "# {{quiz}}\n#\n# In the stored run")
    assert any("01_tiny/quiz.json: " in line for line in gate.drift(stored.root))
