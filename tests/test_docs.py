"""What the pages for learners and teachers quote is still there: messages, mutants, lessons."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CODE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "sslcourse").rglob("*.py")))
LESSONS = {path.stem[:2]: path for path in sorted((ROOT / "notebooks" / "source").glob("*.py"))}


def test_every_message_that_the_stuck_page_quotes_is_in_the_code():
    page = (DOCS / "stuck.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^- `([^`]+)`:", page, re.MULTILINE)
    assert len(quoted) > 60
    joined = re.sub(r'"\s*\n\s*f?"', "", CODE)  # a message may stand on two lines
    assert [message for message in quoted if message not in joined] == []


def test_the_stuck_page_has_a_word_for_every_exercise():
    page = (DOCS / "stuck.md").read_text(encoding="utf-8").partition("\n## Lesson ")[2]
    quoted = re.findall(r"^- `([^`]+)`:", page, re.MULTILINE)
    graders = [path for path in sorted((ROOT / "sslcourse/teaching/checks").glob("*.py")) if path.stem != "__init__"]
    missed, seen = [], 0
    for path in graders:
        text = re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
        parts = re.split(r'@grader\("(\d+\.\d+)"', text)
        seen += len(parts) // 2
        missed += [exercise for exercise, body in zip(parts[1::2], parts[2::2], strict=True)
                   if not any(message in body for message in quoted)]  # fmt: skip
    assert seen > 40
    assert missed == []


def test_the_plan_has_a_class_graded_as_the_course_grades():
    page = (DOCS / "teaching" / "plans.md").read_text(encoding="utf-8")
    assert "python -m sslcourse grade" in page
    assert "nbconvert" not in page  # which would run what was handed in with nothing shut


@pytest.mark.parametrize("number", LESSONS)
def test_every_lesson_has_a_page_for_teachers_whose_mutants_exist(number):
    page = (DOCS / "teaching" / f"{number}.md").read_text(encoding="utf-8")
    for heading in ("Timing", "Misconceptions", "Board sketches", "Questions for discussion", "Exercises",
                    "If the machines are weak"):  # fmt: skip
        assert re.search(rf"^## {heading}", page, re.MULTILINE), heading
    assert ("**Live picture.**" in page) == ("\nlive_picture(" in LESSONS[number].read_text(encoding="utf-8"))
    mutants = (ROOT / "tests" / "mutants" / f"{LESSONS[number].stem[3:]}.py").read_text(encoding="utf-8")
    rows = [row.split("|")[3] for row in page.splitlines() if re.match(r"^\|[^|]+\|[^|]+\|[^|]*\d+\.\d [^|]*\|", row)]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(named) >= 5
    assert [name for name in named if name not in mutants] == []
    for row in rows:  # and each belongs to the exercise that it stands behind
        for exercises, names in re.findall(r"((?:\d+\.\d+(?: and )?)+) ((?:`[^`]+`(?:, )?)+)", row):
            for exercise in re.findall(r"\d+\.\d+", exercises):
                of_exercise = mutants.partition(f'"{exercise}": {{')[2].partition("\n    },")[0]
                assert [name for name in re.findall(r"`([^`]+)`", names) if name not in of_exercise] == [], exercise


@pytest.mark.parametrize("number", LESSONS)
def test_every_lesson_has_a_cheat_sheet_whose_code_is_spelled_as_the_package_is(number):
    page = (DOCS / "cheatsheets" / f"{number}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    for module, names in re.findall(r"^from (sslcourse[\w.]*) import (.+)$", "\n".join(blocks), re.MULTILINE):
        loaded = importlib.import_module(module)
        for name in names.partition("#")[0].strip().strip("()").split(","):
            name = name.split(" as ")[0].strip()
            if not hasattr(loaded, name):
                importlib.import_module(f"{module}.{name}")
    for block in blocks:
        compile(block, "cheat sheet", "exec")


def test_every_term_of_the_glossary_names_a_lesson():
    page = (DOCS / "glossary.md").read_text(encoding="utf-8")
    lessons = re.findall(r"\(lesson (\d\d)\)", page)
    assert len(lessons) > 100
    assert set(lessons) <= set(LESSONS)


def test_the_data_card_lists_every_measured_file_with_the_command_that_it_names_itself():
    page = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+\.json)` \|[^|]*\| `([^`]+)` \|$", page, re.MULTILINE))
    stored = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "data/measured").iterdir()}
    assert set(listed) == set(stored)
    for name, figures in stored.items():
        module = re.compile(r"python -m (benchmarks[.\w]*( (?:sweep|race|run))?)")
        assert module.match(figures["command"])[1] == module.match(listed[name])[1], name
        assert {"date", "machine", "torch", "transformers"} <= set(figures), name
