"""One source makes the learner's, the student's and the teacher's notebook; lint finds what a source lacks."""

import nbformat
import pytest

from sslcourse.teaching import build, claims

SOLUTION = "rows.logsumexp"


def text(notebook, kind: str | None = None) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if kind in (None, cell.cell_type))


def test_the_learners_notebook_has_stubs_and_folded_solutions(tiny):
    notebook = build.build(tiny.root, tiny.lesson, "learner")
    assert SOLUTION not in text(notebook, "code")
    assert '    return ...  # your code here' in text(notebook, "code")
    [hints] = [cell.source for cell in notebook.cells if "hints" in cell.metadata.get("tags", [])]
    assert hints.index("Hint 1") < hints.index("<summary>Solution</summary>") < hints.index(SOLUTION)
    assert "def masked_mean_loss" in hints


def test_the_students_notebook_has_no_solution_anywhere(tiny):
    notebook = build.build(tiny.root, tiny.lesson, "student")
    whole = nbformat.writes(notebook)
    assert SOLUTION not in whole
    assert "<summary>Solution" not in whole
    assert "Hint 1" in whole


def test_the_teachers_notebook_is_filled_in(tiny):
    whole = text(build.build(tiny.root, tiny.lesson, "teacher"))
    assert SOLUTION in whole
    assert "your code here" not in whole
    assert "<summary>Solution" not in whole


@pytest.mark.parametrize("kind", build.KINDS)
def test_no_marker_is_left_and_the_code_compiles(tiny, kind):
    notebook = build.build(tiny.root, tiny.lesson, kind)
    assert "### BEGIN" not in nbformat.writes(notebook)
    assert "### END" not in nbformat.writes(notebook)
    for cell in build.code_cells(notebook):
        compile(cell.source, "cell", "exec")
    nbformat.validate(notebook)


def test_an_unknown_kind_is_refused(tiny):
    with pytest.raises(ValueError, match="learner, student, teacher"):
        build.build(tiny.root, tiny.lesson, "slides")


def test_the_same_source_gives_the_same_bytes(tiny, tmp_path):
    for name in ("one", "two"):
        build.save(build.build(tiny.root, tiny.lesson), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").read_text().endswith("}\n")
    assert (tmp_path / "one").read_text().startswith('{\n "cells"')


def test_cell_ids_survive_a_new_cell(tiny):
    before = [cell.id for cell in build.build(tiny.root, tiny.lesson).cells]
    tiny.plant("# %% [markdown]\n# ### Exercise", "# %%\n'new'\n\n# %% [markdown]\n# ### Exercise")
    after = [cell.id for cell in build.build(tiny.root, tiny.lesson).cells]
    assert len(set(after)) == len(after) == len(before) + 1
    assert set(before) < set(after)


def test_metadata_say_what_is_promised_and_nothing_of_the_machine(tiny):
    metadata = build.build(tiny.root, tiny.lesson).metadata
    assert set(metadata) == {"kernelspec", "language_info", "sslcourse"}
    assert metadata.kernelspec.name == "python3"
    assert metadata.sslcourse.lesson == tiny.lesson
    assert metadata.sslcourse.budget["quick"] == {"minutes": 1.0, "memory_mb": 1500}


def test_prose_has_the_ledgers_values(stored):
    assert "the sum was 6, and the loss 2.25 nats" in text(build.build(stored.root, stored.lesson))
    stored.ledger.unlink()
    assert "the sum was (not measured yet)" in text(build.build(stored.root, stored.lesson))


def outputs(path) -> list:
    return [cell.outputs for cell in build.code_cells(nbformat.read(path, as_version=4))]


def test_outputs_are_kept_while_the_code_is_the_same(stored):
    before = outputs(stored.notebook)
    stored.plant("# # 01 · Tiny", "# # 01 · Tiny indeed")
    stored.plant("# planted faults go below this line", "# another comment")
    assert build.write_learner(stored.root, stored.lesson)
    assert outputs(stored.notebook) == before
    assert build.drift(stored.root) == []


def test_outputs_are_kept_when_a_cell_only_imports_otherwise(stored):
    before = outputs(stored.notebook)
    stored.plant("from sslcourse.teaching.checks import check\n", "from sslcourse.teaching import checks\n")
    stored.plant('check("1.1"', 'checks.check("1.1"')
    assert build.write_learner(stored.root, stored.lesson)
    assert outputs(stored.notebook) == before
    assert stored.gate() == []


def test_outputs_are_dropped_when_code_changes(stored):
    stored.plant("numbers = [1, 2, 3]", "numbers = [1, 2, 3, 4]")
    assert not build.write_learner(stored.root, stored.lesson)
    assert not any(outputs(stored.notebook))
    assert any("was not run" in line for line in build.drift(stored.root))


def test_a_notebook_without_a_source_is_drift(stored):
    (stored.notebook.parent / "09_gone.ipynb").write_text(stored.notebook.read_text())
    assert build.drift(stored.root) == ["notebooks/09_gone.ipynb: there is no such source in notebooks/source"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/work/main/x.txt", True), ("'/tmp/abc'", True), ("/home/me/x", True), ("/root/.cache", True),
        ("C:\\Users\\me", True), ("https://example.org/home/page", False), ("3 /4", False), ("notebooks/tmp/x", False),
        ("tokens/s", False),
    ],
)  # fmt: skip
def test_absolute_paths_are_told_from_addresses(path, found):
    assert bool(build.ABSOLUTE.search(f"saved to {path} now")) == found


# -- lint --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prose",
    ["a loss of 2.41 nats", "1.05 bits per byte", "it is 3× faster", "2.5 times as fast", "took 12 ms",
     "26.4 k tokens/s", "used 575 MB", "about 240 GFLOP/s", "26× the speed"],
)  # fmt: skip
def test_a_measured_number_in_prose_is_found(tiny, prose):
    tiny.plant("# # 01 · Tiny", f"# # 01 · Tiny\n#\n# {prose}")
    [line] = build.prose_numbers(tiny.root, tiny.lesson)
    assert "typed by hand" in line


@pytest.mark.parametrize(
    "prose",
    ["{{tiny-loss}} nats", "$8.3$ nats", "`2.4 nats`", "15 % masks, 80/10/10, vocabulary 4096", "a 4×256 encoder",
     "lesson 01", "10 minutes", "4 × $d$ numbers", "two times", "layers 3 × 128"],
)  # fmt: skip
def test_definitions_mathematics_and_code_are_left_alone(tiny, prose):
    tiny.plant("# # 01 · Tiny", f"# # 01 · Tiny\n#\n# {prose}")
    assert build.prose_numbers(tiny.root, tiny.lesson) == []


def test_what_the_tiny_lesson_lacks_is_listed(tiny):
    found = "\n".join(build.anatomy(tiny.root, tiny.lesson))
    for part in ("it has 1 exercises, 3 to 5", "self-test", "What we measured", "Where it comes from", "misconception",
                 "no link",
                 "exercise 1.1: the cell after the check must be tagged hints and hold at least two"):  # fmt: skip
        assert part in found
    assert len(found.splitlines()) == 7


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('profile = "auto"', 'profile = "quick"', 'profile = "auto"'),
        ('start("01_tiny"', 'start("02_tiny"', "start cell"),
        ("full: {minutes: 1.0, memory_mb: 1500}", "full: {minutes: 1.0}", "budget"),
        ("★☆☆ · 5 minutes", "easy", "needs the header"),
        ("### Exercise 1.1", "### Exercise 1.2", "needs the header"),
        ('check("1.1", masked', 'check("1.1", other_masked', "must end with check"),
        ('tags=["check", "nbval-check-output"]', 'tags=["check"]', "needs the tags"),
        ("### END SOLUTION", "### END", "one block between"),
        ("\nlesson.claims()\n", "\nlesson.claims()\nprint()\n", "does not end with lesson.claims()"),
        ("# # 01 · Tiny", "# 01 · Tiny", "begin with its title"),
    ],
)
def test_anatomy_is_linted(tiny, old, new, said):
    before = build.anatomy(tiny.root, tiny.lesson)
    assert not any(said in line for line in before)
    tiny.plant(old, new)
    assert any(said in line for line in build.anatomy(tiny.root, tiny.lesson))


def test_lessons_are_found_in_order(tiny):
    (tiny.source.parent / "00_first.py").write_text("")
    (tiny.source.parent / "notes.py").write_text("")
    assert claims.lessons(tiny.root) == ["00_first", "01_tiny"]
