"""sslcourse.teaching.glossary: the first mention of a term is a link, in prose and nowhere else."""

import re
from pathlib import Path

import nbformat
import pytest

from sslcourse.teaching import glossary, site
from sslcourse.teaching.glossary import Term

ROOT = Path(__file__).resolve().parents[1]
TERMS = [Term("padding", "00"), Term("loss scaling", "05"), Term("scale", "07"), Term("MLM", "00"), Term("rank", "06")]


def linked(text, *names):
    left = {one.name: one for one in TERMS if not names or one.name in names}
    return glossary.linked(text, left), set(left)


def test_the_first_mention_is_a_link_whatever_its_case_and_number():
    text, left = linked("Padding costs. The padding of **ranks** too; MLM, too.")
    assert text == ("{term}`Padding <padding>` costs. The padding of **{term}`ranks <rank>`** too; {term}`MLM <MLM>`, "
                    "too.")  # fmt: skip
    assert left == {"loss scaling", "scale"}


def test_the_longer_term_is_taken_and_a_part_of_a_word_is_none():
    text, left = linked("Loss scaling, scaled, low-rank, padding-free, mlm.")
    assert text == "{term}`Loss scaling <loss scaling>`, scaled, low-rank, padding-free, mlm."
    assert left == {"padding", "scale", "MLM", "rank"}


@pytest.mark.parametrize("text", [
    "# Padding", "`padding`", "``padding``", "$padding = 1$", "$$\npadding\n$$", "[padding](x.md)", "![padding](x.png)",
    '<img alt="padding">', "```python\npadding = 1\n\npadding\n```", "::::{folded} padding", "https://x.org/padding",
])  # fmt: skip
def test_what_is_no_prose_stays(text):
    assert linked(text)[0] == text
    assert linked(f"{text}\nThen padding.")[0] == f"{text}\nThen {{term}}`padding <padding>`."


def test_everyday_words_are_linked_where_they_are_explained_and_other_terms_later_too():
    assert [Term("scale", "07").belongs_in(lesson) for lesson in ("06", "07", "08")] == [False, True, False]
    assert [Term("loss scaling", "05").belongs_in(lesson) for lesson in ("04", "05", "08")] == [False, True, True]
    assert Term("MLM", "00").belongs_in("09")


def test_an_entry_without_a_lesson_is_named(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "glossary.md").write_text("```{glossary}\nring\n  Ranks in a circle.\n```\n")
    with pytest.raises(ValueError, match="'ring' does not end with its lesson"):
        glossary.terms(tmp_path)


def test_the_lessons_link_most_terms_where_they_are_explained():
    """One in five names a family that its lesson has in other words ("masks drawn anew"); more would be wrong names."""
    every = glossary.terms(ROOT)
    missed = []
    for name in sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        page = site.lesson_page(ROOT, name)
        prose = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
        found = re.findall(r"\{term\}`[^`<]*<([^>`]+)>`", prose)
        assert len(found) == len(set(found)), name
        missed += [one.name for one in every if one.lesson == name[:2] and one.name not in found]
        stored = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        assert "{term}" not in "".join(cell.source for cell in stored.cells)
    assert len(missed) <= len(every) / 5, missed
