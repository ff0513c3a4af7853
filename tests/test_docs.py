"""What the pages for learners and teachers quote is still there: messages, mutants, lessons, exercises."""

import importlib
import json
import re
from pathlib import Path

import pytest
from test_exercises import mutants

from coursekit import checks, course, gate, site, source

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LESSONS = course.lessons(ROOT)
STUCK = {lesson: course.part(ROOT, lesson, "stuck.md") for lesson in LESSONS}
GRADERS = {lesson: course.part(ROOT, lesson, "graders.py") for lesson in LESSONS}


def joined(path: Path) -> str:
    """Its text, in which a message that stands on two lines is one."""
    return re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))


def quoted(page: str) -> list[str]:
    return re.findall(r"^- `([^`]+)`:", page, re.MULTILINE)


def test_every_message_that_the_stuck_page_quotes_is_in_the_code():
    messages = quoted(site.pages(ROOT)["stuck.md"])
    assert len(messages) > 60
    files = [path for package in ("coursekit", "sslcourse") for path in sorted((ROOT / package).rglob("*.py"))]
    code = "\n".join(map(joined, [*files, *GRADERS.values()]))
    assert [message for message in messages if message not in code] == []


def test_the_stuck_page_has_a_word_for_every_exercise_below_its_lesson():
    below = {lesson: quoted(path.read_text(encoding="utf-8")) for lesson, path in STUCK.items()}
    seen, missed = [], []
    for lesson, path in GRADERS.items():
        words, bodies = (re.split(checks.MARK, joined(path))[start::2] for start in (1, 2))
        seen += words
        missed += [word for word, body in zip(words, bodies, strict=True)
                   if not any(message in body for message in below[lesson])]  # fmt: skip
    assert sorted(seen) == sorted(checks.exercises(ROOT))
    assert len(seen) > 40
    assert missed == []


PROSE = [*sorted(DOCS.rglob("*.md")), *sorted(course.sources(ROOT).glob("*/*.md")), ROOT / "data" / "README.md",
         ROOT / "README.md"]  # fmt: skip


@pytest.mark.parametrize("path", PROSE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_prose_names_lessons_and_exercises_that_there_are_and_types_no_number(path):
    numbers = source.numbers(ROOT)
    text = gate.NOT_PROSE.sub("", path.read_text(encoding="utf-8"))
    assert course.unknown_references(text, numbers) == []
    text = re.sub(r"<!-- @\w+ -->.*?<!-- /@ -->|(?s:<!-- lessons:begin -->.*?<!-- lessons:end -->)", "", text)
    assert gate.TYPED.findall(text) == []


def test_the_plan_has_a_class_graded_as_the_course_grades():
    page = (DOCS / "teaching" / "plans.md").read_text(encoding="utf-8")
    assert "python -m sslcourse grade" in page
    assert "nbconvert" not in page  # which would run what was handed in with nothing shut


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_lesson_has_a_page_for_teachers_whose_mutants_exist(lesson):
    page = course.part(ROOT, lesson, "teaching.md").read_text(encoding="utf-8")
    for heading in ("Timing", "Misconceptions", "Board sketches", "Questions for discussion", "Exercises",
                    "If the machines are weak"):  # fmt: skip
        assert re.search(rf"^## {heading}", page, re.MULTILINE), heading
    assert ("**Live picture.**" in page) == ("\nlive_picture(" in source.read(ROOT, lesson).text)
    rows = [row.split("|")[3] for row in page.splitlines() if re.match(r"^\|[^|]+\|[^|]+\|[^|]*@\w+ [^|]*\|", row)]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    known = mutants(lesson)
    assert len(named) >= 5
    assert [name for name in named if not any(name in cases for cases in known.values())] == []
    for row in rows:  # and each belongs to the exercise that it stands behind
        for words, names in re.findall(r"((?:@\w+(?: and )?)+) ((?:`[^`]+`(?:, )?)+)", row):
            for word in re.findall(r"@(\w+)", words):
                assert [name for name in re.findall(r"`([^`]+)`", names) if name not in known[word]] == [], word


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_page_for_teachers_has_a_word_on_every_exercise(lesson):
    page = course.part(ROOT, lesson, "teaching.md").read_text(encoding="utf-8").partition("\n## Exercises")[2]
    missed = [one.word for one in source.read(ROOT, lesson).exercises if not re.search(rf"@{one.word}\b", page)]
    assert missed == []


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_lesson_has_a_cheat_sheet_whose_code_is_spelled_as_the_package_is(lesson):
    page = course.part(ROOT, lesson, "cheatsheet.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    for module, names in re.findall(r"^from ((?:sslcourse|coursekit)[\w.]*) import (.+)$", "\n".join(blocks), re.M):
        loaded = importlib.import_module(module)
        for name in names.partition("#")[0].strip().strip("()").split(","):
            name = name.split(" as ")[0].strip()
            if not hasattr(loaded, name):
                importlib.import_module(f"{module}.{name}")
    for block in blocks:
        compile(block, "cheat sheet", "exec")


def test_every_term_of_the_glossary_names_a_lesson():
    page = (DOCS / "glossary.md").read_text(encoding="utf-8")
    lessons = re.findall(r"\(lesson\s+@(\w+)\)", page)
    assert len(lessons) > 100
    assert set(lessons) <= {course.name(lesson) for lesson in LESSONS}


def test_the_data_card_lists_every_measured_file_with_the_command_that_it_names_itself():
    page = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+\.json)` \|[^|]*\| `([^`]+)` \|$", page, re.MULTILINE))
    paths = (ROOT / "data" / "measured").glob("*.json")
    stored = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    assert set(listed) == set(stored)
    for name, figures in stored.items():
        module = re.compile(r"python -m (benchmarks[.\w]*( (?:sweep|race|run))?)")
        assert module.match(figures["command"])[1] == module.match(listed[name])[1], name
        assert {"date", "machine", "torch", "transformers"} <= set(figures), name
