"""One source makes the learner's, the student's and the teacher's notebook; lint finds what a source lacks."""

import nbformat
import pytest

from coursekit import build, course, gate, source

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
    assert set(metadata) == {"kernelspec", "language_info", "coursekit"}
    assert metadata.kernelspec.name == "python3"
    assert metadata.coursekit == {"lesson": "tiny", "kind": "learner", "budget": {
        profile: {"minutes": 1.0, "memory_mb": 1500} for profile in ("quick", "full")}}  # fmt: skip


def test_prose_has_the_ledgers_values(stored):
    assert "the sum was 6, and the loss 2.25 nats" in text(build.build(stored.root, stored.lesson))
    stored.ledger.unlink()
    assert "the sum was (not measured yet)" in text(build.build(stored.root, stored.lesson))


def outputs(path) -> list:
    return [cell.outputs for cell in build.code_cells(nbformat.read(path, as_version=4))]


def test_outputs_are_kept_while_the_code_is_the_same(stored):
    before = outputs(stored.notebook)
    stored.plant("# # Tiny", "# # Tiny indeed")
    stored.plant("# planted faults go below this line", "# another comment")
    assert build.write_learner(stored.root, stored.lesson)
    assert outputs(stored.notebook) == before
    assert gate.drift(stored.root) == []


def test_outputs_are_kept_when_a_cell_only_imports_otherwise(stored):
    before = outputs(stored.notebook)
    stored.plant("from coursekit import check\n", "from coursekit import checks\n")
    stored.plant('check("', 'checks.check("')
    assert build.write_learner(stored.root, stored.lesson)
    assert outputs(stored.notebook) == before
    assert stored.gate() == []


def test_outputs_are_dropped_when_code_changes(stored):
    stored.plant("numbers = [1, 2, 3]", "numbers = [1, 2, 3, 4]")
    assert not build.write_learner(stored.root, stored.lesson)
    assert not any(outputs(stored.notebook))
    assert any("was not run" in line for line in gate.drift(stored.root))


def test_a_notebook_without_a_source_is_drift(stored):
    (stored.notebook.parent / "09_gone.ipynb").write_text(stored.notebook.read_text())
    assert gate.drift(stored.root) == ["notebooks/09_gone.ipynb: there is no such source in notebooks/source"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/work/main/x.txt", True), ("'/tmp/abc'", True), ("/home/me/x", True), ("/root/.cache", True),
        ("C:\\Users\\me", True), ("https://example.org/home/page", False), ("3 /4", False), ("notebooks/tmp/x", False),
        ("tokens/s", False),
    ],
)  # fmt: skip
def test_absolute_paths_are_told_from_addresses(path, found):
    assert bool(gate.ABSOLUTE.search(f"saved to {path} now")) == found


# -- lint --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prose",
    ["a loss of 2.41 nats", "1.05 bits per byte", "it is 3× faster", "2.5 times as fast", "took 12 ms",
     "26.4 k tokens/s", "used 575 MB", "about 240 GFLOP/s", "26× the speed"],
)  # fmt: skip
def test_a_measured_number_in_prose_is_found(tiny, prose):
    tiny.plant("# # Tiny", f"# # Tiny\n#\n# {prose}")
    [line] = gate.prose_numbers(source.read(tiny.root, tiny.lesson))
    assert "typed by hand" in line


@pytest.mark.parametrize(
    "prose",
    ["{{tiny-loss}} nats", "$8.3$ nats", "`2.4 nats`", "15 % masks, 80/10/10, vocabulary 4096", "a 4×256 encoder",
     "lesson 01", "10 minutes", "4 × $d$ numbers", "two times", "layers 3 × 128"],
)  # fmt: skip
def test_definitions_mathematics_and_code_are_left_alone(tiny, prose):
    tiny.plant("# # Tiny", f"# # Tiny\n#\n# {prose}")
    assert gate.prose_numbers(source.read(tiny.root, tiny.lesson)) == []


def test_what_the_tiny_lesson_lacks_is_listed(tiny):
    found = "\n".join(gate.anatomy(source.read(tiny.root, tiny.lesson)))
    for part in ("it has 1 exercises, 3 to 5", "self-test", "What we measured", "Where it comes from", "misconception",
                 "no link", "exercise masked_mean_loss: the cell after the check must be tagged hints and hold at"):
        assert part in found
    assert len(found.splitlines()) == 7


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('profile = "auto"', 'profile = "quick"', 'profile = "auto"'),
        ('start("tiny"', 'start("01_tiny"', "start cell"),
        ("full: {minutes: 1.0, memory_mb: 1500}", "full: {minutes: 1.0}", "budget"),
        ("★☆☆ · 5 minutes", "easy", "needs the header"),
        ("### Exercise masked", "### Exercise 1.1 masked", "needs the header"),
        ("### Exercise masked_mean_loss", "### Exercise mean_loss", "needs the header"),
        ('check("masked_mean_loss", masked', 'check("masked_mean_loss", other_masked', "must end with check"),
        ('check("masked_mean_loss", masked', 'check("1.1", masked', "must end with check"),
        ('tags=["check", "nbval-check-output"]', 'tags=["check"]', "needs the tags"),
        ("### END SOLUTION", "### END", "one block between"),
        ("\nlesson.claims()\n", "\nlesson.claims()\nprint()\n", "does not end with lesson.claims()"),
        ("# # Tiny", "# Tiny", "begin with its title"),
        ("# # Tiny", "# # 01 · Tiny", "its title has a number"),
        ("# # Tiny", "# # 1. Tiny", "its title has a number"),
    ],
)
def test_anatomy_is_linted(tiny, old, new, said):
    before = gate.anatomy(source.read(tiny.root, tiny.lesson))
    assert not any(said in line for line in before)
    tiny.plant(old, new)
    assert any(said in line for line in gate.anatomy(source.read(tiny.root, tiny.lesson)))


@pytest.mark.parametrize("prose", ["Lesson 03 says why", "see lesson 4.", "(Exercise 4.5)", "in lessons\n# 3 and 4"])
def test_a_number_of_a_lesson_or_an_exercise_that_was_typed_is_found(tiny, prose):
    tiny.plant("# # Tiny", f"# # Tiny\n#\n# {prose}")
    [line] = lint_references(tiny)
    assert "is typed by hand: write @its_name" in line


@pytest.mark.parametrize("prose", ["lesson @tine says why", "exercise @masked_mean", "(@gone)"])
def test_a_name_of_no_lesson_and_no_exercise_is_found(tiny, prose):
    tiny.plant("# # Tiny", f"# # Tiny\n#\n# {prose}")
    [line] = lint_references(tiny)
    assert line.endswith("is the name of no lesson and no exercise")


@pytest.mark.parametrize(
    "prose",
    ["lesson @tiny", "exercise @masked_mean_loss, @tiny", "`@torch.no_grad()`", "me@example.org", "lesson 3.5 nights",
     "lessons are short", "`lesson 03`", "two exercises"],
)  # fmt: skip
def test_names_and_code_are_no_typed_numbers(tiny, prose):
    tiny.plant("# # Tiny", f"# # Tiny\n#\n# {prose}")
    assert lint_references(tiny) == []


def lint_references(tiny) -> list[str]:
    return list(gate.references(source.read(tiny.root, tiny.lesson), source.numbers(tiny.root)))


def test_what_lies_among_the_lessons_and_is_none_is_named(tiny):
    assert gate.strays(tiny.root) == []
    for name in ("07_gone", "7_seven", "01_old"):
        (tiny.folder.parent / name / "__pycache__").mkdir(parents=True)
    (tiny.folder.parent / "07_gone" / "ledger.json").write_text("{}")
    (tiny.folder.parent / "7_seven" / "lesson.py").write_text("")
    (tiny.folder.parent / "08_flat.py").write_text("")
    found = gate.lint(tiny.root)[:3]
    assert [line.partition(":")[0] for line in found] == [
        "notebooks/source/07_gone", "notebooks/source/08_flat.py", "notebooks/source/7_seven"]  # fmt: skip
    assert course.lessons(tiny.root) == ["01_tiny"]


def test_two_of_one_name_are_all_that_the_gate_says(tiny):
    (tiny.add("02_other") / "lesson.py").write_text(tiny.source.read_text())
    assert gate.problems(tiny.root) == [
        "02_other: 'masked_mean_loss' is already 1.1; names of lessons and exercises are unique"]


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_numbers_come_in_when_a_notebook_is_built(tiny):
    tiny.add("12_other")
    tiny.plant("# In the stored", "# Lesson @other, exercise @other_loss (or `@tiny`, me@tiny.org). In the stored")
    built = text(build.build(tiny.root, tiny.lesson), "markdown")
    assert built.startswith("# 01 · Tiny\n")
    assert "Lesson 12, exercise 12.1 (or `@tiny`, me@tiny.org). In" in built
    assert "### Exercise 1.1 — The masked mean · ★☆☆ · 5 minutes" in built
    assert text(build.build(tiny.root, "12_other"), "markdown").startswith("# 12 · Tiny\n")


def test_a_header_has_the_number_in_place_of_the_word_alone(tiny):
    """A short word may stand in "Exercise" and in the title as well."""
    tiny.plant("masked_mean_loss", "is")
    tiny.plant("The masked mean", "This is it")
    assert "### Exercise 1.1 — This is it · ★" in text(build.build(tiny.root, tiny.lesson))


def test_a_lesson_whose_number_has_changed_keeps_its_stored_run(stored):
    before = outputs(stored.notebook)
    stored.folder.rename(stored.folder.with_name("05_tiny"))
    assert build.write_learner(stored.root, "05_tiny")
    assert not stored.notebook.exists()
    assert outputs(course.notebook_path(stored.root, "05_tiny")) == before
    assert stored.gate() == []


def test_outputs_of_a_run_are_taken_and_those_of_other_code_are_not(stored):
    run = nbformat.read(stored.notebook, as_version=4)
    stored.notebook.unlink()
    assert not build.write_learner(stored.root, stored.lesson)
    assert not any(outputs(stored.notebook))
    assert build.write_learner(stored.root, stored.lesson, run)
    assert any(outputs(stored.notebook))
    stored.plant("numbers = [1, 2, 3]", "numbers = [3, 2, 1]")
    assert not build.write_learner(stored.root, stored.lesson, run)
    assert not any(outputs(stored.notebook))


def test_outputs_stay_when_a_name_is_imported_from_elsewhere(stored):
    """The gate says that nothing needs to run anew, so nothing must be thrown away."""
    before = outputs(stored.notebook)
    stored.plant("from coursekit import check\n", "from coursekit.checks import check\n")
    assert build.write_learner(stored.root, stored.lesson)
    assert outputs(stored.notebook) == before
    assert stored.gate() == []
