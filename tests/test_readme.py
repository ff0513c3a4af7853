"""README's made parts: the table, the pictures, the numbers; and the gate that keeps them."""

import shutil
from pathlib import Path

import pytest

from sslcourse.teaching import claims, readme

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def copy(tmp_path):
    """What README is made from, in a scratch folder."""
    for folder in ("data", "notebooks", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    return tmp_path


def test_readme_is_up_to_date_and_lists_every_lesson():
    assert readme.problems(ROOT) == []
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for lesson in claims.lessons(ROOT):
        assert f"(notebooks/{lesson}.ipynb)" in text
        assert f"docs/pictures/{lesson}.png" in text


def test_an_edited_row_a_number_or_a_picture_is_noticed_and_mended(copy):
    assert readme.problems(copy) == []
    page = copy / "README.md"
    page.write_text(page.read_text(encoding="utf-8").replace("| 00 |", "| 99 |"), encoding="utf-8")
    picture = next((copy / "docs" / "pictures").glob("*.png"))
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
