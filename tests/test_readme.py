"""README's made parts: the table, the pictures, the numbers; and the gate that keeps them."""

import shutil
from pathlib import Path

import pytest

from coursekit import claims, course, readme

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def copy(tmp_path):
    """What README is made from, in a scratch folder."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    for file in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def test_readme_is_up_to_date_and_lists_every_lesson():
    assert readme.problems(ROOT) == []
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for lesson in course.lessons(ROOT):
        assert f"(notebooks/{lesson}.ipynb)" in text
        assert f"notebooks/source/{lesson}/picture.png" in text


def test_an_edited_row_a_number_or_a_picture_is_noticed_and_mended(copy):
    assert readme.problems(copy) == []
    page = copy / "README.md"
    page.write_text(page.read_text(encoding="utf-8").replace("| 00 |", "| 99 |"), encoding="utf-8")
    picture = next(course.sources(copy).glob("*/picture.png"))
    picture.write_bytes(picture.read_bytes()[:-1])
    assert len(readme.problems(copy)) == 2
    readme.update(copy)
    assert readme.problems(copy) == []


def test_a_stale_number_in_prose_is_noticed(copy):
    page = copy / "README.md"
    text = page.read_text(encoding="utf-8")
    start = text.index("-->", text.index("<!-- claim:pretrained-loss")) + 3
    page.write_text(text[:start] + "0.01" + text[text.index("<!-- /claim", start) :], encoding="utf-8")
    assert readme.problems(copy) == ["README.md is out of date: run `python -m sslcourse build`"]


def test_a_number_that_no_lesson_claims_is_refused(copy):
    page = copy / "README.md"
    page.write_text(page.read_text(encoding="utf-8") + "<!-- claim:made-up -->1<!-- /claim -->", encoding="utf-8")
    with pytest.raises(claims.ClaimError, match="made-up"):
        readme.problems(copy)


def test_numbers_of_lessons_and_exercises_follow_their_folders(copy):
    old, new = course.find(copy, "mlm_pretraining"), "33_mlm_pretraining"
    course.part(copy, old, "").rename(course.part(copy, new, ""))
    course.notebook_path(copy, old).rename(course.notebook_path(copy, new))
    assert readme.problems(copy) == ["README.md is out of date: run `python -m sslcourse build`"]
    readme.update(copy)
    text = (copy / "README.md").read_text(encoding="utf-8")
    assert "<!-- @mlm_pretraining -->33<!-- /@ -->" in text
    assert "(notebooks/33_mlm_pretraining.ipynb)" in text
    assert old not in text
    assert readme.problems(copy) == []


def test_a_name_of_no_lesson_and_no_exercise_is_refused(copy):
    page = copy / "README.md"
    page.write_text(page.read_text(encoding="utf-8") + "<!-- @made_up -->1<!-- /@ -->", encoding="utf-8")
    with pytest.raises(ValueError, match="@made_up is the name of no lesson and no exercise"):
        readme.problems(copy)
