"""Whatever a run has left is as it left it: outputs of cells, ledgers, measured figures. Each is edited once here."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import benchmarks
from coursekit import build, claims, gate, seals

ROOT = Path(__file__).resolve().parents[1]


def edited(stored, change) -> list[str]:
    """What the gate says after a change of the stored notebook."""
    notebook = nbformat.read(stored.notebook, as_version=nbformat.NO_CONVERT)
    change([cell for cell in notebook.cells if cell.cell_type == "code"])
    build.save(notebook, stored.notebook)
    return stored.gate()


def printing(cells) -> int:
    """The place of the cell that prints, and has no tag."""
    [at] = [at for at, cell in enumerate(cells) if "print(lesson.profile)" in cell.source]
    assert "tags" not in cells[at].metadata
    return at


def change_text(cells):
    cells[printing(cells)].outputs[0].text = "fuller\n"


def add_an_output(cells):
    cells[printing(cells)].outputs.append(nbformat.v4.new_output("display_data", {"image/png": "aGk="}))


def drop_outputs(cells):
    cells[printing(cells)].outputs = []


def change_the_table(cells):
    data = cells[-1].outputs[0].data
    data["text/html"] = data["text/html"].replace("2.25", "2.15")


@pytest.mark.parametrize("change", [change_text, add_an_output, drop_outputs, change_the_table])
def test_an_output_that_was_edited_is_named_with_its_cell(stored, change):
    assert stored.gate() == []
    [line] = edited(stored, change)
    assert line.startswith("notebooks/01_tiny.ipynb: cell ")
    assert ("lesson.claims()" if change is change_the_table else "# planted faults go below") in line
    assert f"its output is not that of the stored run of {claims.stored(stored.root, stored.lesson).date}" in line
    assert line.endswith("run `python -m sslcourse notebooks tiny`")


def test_numbers_of_executions_are_no_output(stored):
    def renumber(cells):
        for cell in cells:
            cell.execution_count += 100
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count += 100

    assert edited(stored, renumber) == []


def test_hashes_survive_prose_and_comments_that_are_built_anew(stored):
    stored.plant("# # Tiny", "# # Tiny indeed\n#\n# And a new sentence.")
    stored.plant("print(lesson.profile)", "print(lesson.profile)  # which one")
    assert build.write_learner(stored.root, stored.lesson)
    assert stored.gate() == []


def test_a_run_without_hashes_is_red(stored):
    ledger = claims.stored(stored.root, stored.lesson)
    ledger.outputs = []
    ledger.write(stored.ledger)
    [line] = stored.gate()
    assert "the stored run has hashes of the outputs of 0" in line


def test_a_ledger_that_was_edited_is_red(stored):
    stored.plant("2.25", "2.15", stored.ledger)
    build.write_learner(stored.root, stored.lesson)
    [line] = stored.gate()
    assert line.startswith("01_tiny: ledger.json was edited since the run of")


# --- measured figures -------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path, monkeypatch) -> Path:
    """A folder in which a command has written two files."""
    folder = tmp_path / "data" / "measured"
    monkeypatch.setattr(benchmarks, "MEASURED", folder)
    for name in ("b", "a"):
        benchmarks.store(name, "python -m benchmarks", {"ratio": 2.5})
    return folder


def test_what_a_command_writes_is_sealed(measured):
    assert list(seals.broken(measured)) == []
    assert [line[64:] for line in (measured / seals.SUMS).read_text().splitlines()] == ["  a.json", "  b.json"]
    benchmarks.store("a", "python -m benchmarks", {"ratio": 3.5})
    assert list(seals.broken(measured)) == []
    path = measured / "a.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # as git leaves it on Windows
    assert list(seals.broken(measured)) == []


def test_what_nobody_asked_to_store_is_not(tmp_path):
    benchmarks.store("a", "python -m benchmarks", {}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_was_edited_or_added_or_lost_is_named_by_the_gate(measured):
    (measured / "a.json").write_text((measured / "a.json").read_text().replace("2.5", "3.5"))
    (measured / "b.json").rename(measured / "c.json")
    assert gate.problems(measured.parents[1]) == [
        "measured/a.json: it was edited since its command wrote it: restore it, or run that",
        "measured/b.json: it is gone, and SHA256SUMS still has its line",
        "measured/c.json: it has no line in SHA256SUMS: run the command that makes it",
    ]


def test_a_figure_of_a_gpu_cannot_be_edited(tmp_path):
    """As it was planted: one number of one file, by hand."""
    for path in benchmarks.MEASURED.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert list(seals.broken(tmp_path)) == []
    path = tmp_path / "accelerator_30m.json"
    figures = json.loads(path.read_text())
    figures["contestants"]["course"]["mfu"][1] += 0.1
    path.write_text(json.dumps(figures, indent=1) + "\n")
    [line] = seals.broken(tmp_path)
    assert line.startswith("measured/accelerator_30m.json: it was edited".replace("measured", tmp_path.name))


def test_a_node_that_only_measures_needs_no_notebooks():
    code = "import sys; sys.modules['nbformat'] = None; import benchmarks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
