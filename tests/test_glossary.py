"""coursekit.glossary: the first mention of a term is a link, in prose and nowhere else."""

import re
from pathlib import Path

import nbformat
import pytest

from coursekit import course, glossary, site
from coursekit.glossary import Term

ROOT = Path(__file__).resolve().parents[1]
TERMS = [Term("padding", "00_a"), Term("loss scaling", "05_b"), Term("scale", "07_c"), Term("MLM", "00_a"),
         Term("rank", "06_d")]  # fmt: skip


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
    of = {one.name: one for one in TERMS}
    scale, loss_scaling, mlm = of["scale"], of["loss scaling"], of["MLM"]
    assert [scale.belongs_in(lesson) for lesson in ("06_d", "07_c", "08_e")] == [False, True, False]
    assert [loss_scaling.belongs_in(lesson) for lesson in ("04_f", "05_b", "08_e")] == [False, True, True]
    assert mlm.belongs_in("09_g")


ENTRIES = """```{glossary}
ring
  Ranks in a circle. (lesson @tiny)

mean
average
  What all have together, shared out among them, and
  nothing left over. (lesson
  @tiny)
```
"""


def test_an_entry_belongs_to_the_lesson_that_it_names_wherever_the_line_ends(tiny):
    (tiny.root / "docs").mkdir()
    page = tiny.root / "docs" / "glossary.md"
    page.write_text(ENTRIES)
    assert glossary.terms(tiny.root) == [Term(name, "01_tiny") for name in ("ring", "mean", "average")]
    page.write_text(ENTRIES.replace(" (lesson @tiny)", ""))
    with pytest.raises(ValueError, match="'ring' does not end with its lesson"):
        glossary.terms(tiny.root)
    page.write_text(ENTRIES.replace("(lesson @tiny)", "(lesson @gone)"))
    with pytest.raises(LookupError, match="there is no lesson 'gone'"):
        glossary.terms(tiny.root)


def test_the_lessons_link_most_terms_where_they_are_explained():
    """One in five names a family that its lesson has in other words ("masks drawn anew"); more would be wrong names."""
    every = glossary.terms(ROOT)
    missed = []
    for name in course.lessons(ROOT):
        page = site.lesson_page(ROOT, name)
        prose = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
        found = re.findall(r"\{term\}`[^`<]*<([^>`]+)>`", prose)
        assert len(found) == len(set(found)), name
        missed += [one.name for one in every if one.lesson == name and one.name not in found]
        stored = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        assert "{term}" not in "".join(cell.source for cell in stored.cells)
    assert len(missed) <= len(every) / 5, missed
