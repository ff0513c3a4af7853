"""Everything that can be judged without running a lesson: ``gate``.

    lint     a source that lacks a part of a lesson's anatomy, or says a number that is typed by hand or wrong
    drift    a committed notebook that is not what its source and the ledger make now, or stores what it must not
    claims   stored runs that are stale or out of bounds (``claims.problems``)
    seals    a measured figure that was edited (``seals.broken``); one in an output is told with drift
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from coursekit import build, claims, course, quiz, seals, seeds, source, stale
from coursekit.build import code_cells
from coursekit.source import CHECK, HEADER, SOLUTION, Source


def problems(root: Path, only: Iterable[str] | None = None) -> list[str]:
    """All of it; an empty list is green."""
    chosen = None if only is None else list(only)
    try:
        source.numbers(root)
    except ValueError as error:  # nothing can be built while two have one name
        return [str(error)]
    measured = list(seals.broken(root / stale.MEASURED))
    return lint(root, chosen) + drift(root, chosen) + claims.problems(root, chosen) + measured


# -- the gate on committed notebooks -----------------------------------------------------------------------------------

# A folder of somebody's machine. Not part of an address: "example.org/home/" has a letter before the slash.
ABSOLUTE = re.compile(r"(?<![\w.~/:-])/(?:work|tmp|root|home|Users|usr|opt|var|mnt|private)/[\w.]|\b[A-Z]:\\+Users\\")
LIVE = "application/vnd.jupyter.widget-view+json"  # the name of a widget in a kernel that is gone
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")


def drift(root: Path, only: Iterable[str] | None = None) -> list[str]:
    """Where committed notebooks differ from their sources, or hold what must not be stored; an empty list is green."""
    known = course.lessons(root)
    strays = {path.stem for path in (root / "notebooks").glob("*.ipynb")} - set(known)
    found = [f"notebooks/{stray}.ipynb: there is no such source in notebooks/source" for stray in sorted(strays)]
    return found + [line for lesson in (known if only is None else only) for line in _drift(root, lesson)]


def _drift(root: Path, lesson: str) -> list[str]:
    path = course.notebook_path(root, lesson)
    name, remedy = f"notebooks/{path.name}", f"run `{course.command(root)} notebooks {course.name(lesson)}`"
    if not path.exists():
        return [f"{name}: missing: {remedy}"]
    try:
        expected = build.build(root, lesson)
    except (claims.ClaimError, quiz.QuizError) as error:
        return [f"{lesson}: {error}"]
    found = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    differences = list(_differences(found, expected))
    lines = [f"{line}: run `{course.command(root)} build {course.name(lesson)}`" for line in differences]
    lines += stains(found)
    lines += [f"{line}: {remedy}" for line in missing_outputs(found)]
    lines += [f"{line}: restore it, or {remedy}" for line in edited_outputs(found, claims.stored(root, lesson))]
    return [f"{name}: {line}" for line in lines]


def _differences(found: NotebookNode, expected: NotebookNode) -> Iterator[str]:
    if found.metadata != expected.metadata:
        yield "its metadata differ from the source's"
    if found.get("nbformat_minor") != expected.nbformat_minor:
        yield "its format is not 4.5"
    if len(found.cells) != len(expected.cells):
        yield f"it has {len(found.cells)} cells, its source makes {len(expected.cells)}"
        return
    for index, (old, new) in enumerate(zip(found.cells, expected.cells, strict=True)):
        for part in ("cell_type", "source", "metadata", "id"):
            if old.get(part) != new.get(part):
                yield f"cell {index}: its {part} differs from the source's ({_head(new.source)})"
                break


def stains(notebook: NotebookNode) -> list[str]:
    """What must not be stored in a notebook: errors, stderr, paths and addresses of one machine, tools' metadata."""
    found = [f"it holds {key} metadata" for key in ("papermill", "widgets") if key in notebook.metadata]
    for index, cell in enumerate(notebook.cells):
        place = f"cell {index} ({_head(cell.source)})"
        found += [f"{place} holds {key} metadata" for key in ("papermill", "execution") if key in cell.metadata]
        for output in cell.get("outputs", []):
            text = output_text(output)
            if output.output_type == "error":
                found.append(f"{place} stores an error: {output.ename}: {output.evalue[:80]}")
            if LIVE in output.get("data", {}):
                found.append(f"{place} stores a live widget, which is none where nothing runs")
            if output.get("name") == "stderr":
                found.append(f"{place} stores stderr: {text.strip()[:80]!r}")
            for pattern, what in ((ABSOLUTE, "an absolute path"), (ADDRESS, "a memory address")):
                if match := pattern.search(text):
                    found.append(f"{place} stores {what}: {text[match.start() : match.end() + 30]!r}")
    return found


def missing_outputs(notebook: NotebookNode) -> list[str]:
    """Cells that were not run, and those that promise an output and have none."""
    found = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        place, tags = f"cell {index} ({_head(cell.source)})", cell.metadata.get("tags", [])
        text = "".join(output_text(output) for output in cell.outputs)
        if cell.source.strip() and cell.execution_count is None:
            found.append(f"{place} was not run")
        elif "check" in tags and build.VERDICTS["learner"] not in text:
            found.append(f"{place} stores no verdict 'not attempted'")
        elif not text and ("nbval-check-output" in tags or cell.source.rstrip().endswith("lesson.claims()")):
            found.append(f"{place} stores no output")
    return found


def edited_outputs(notebook: NotebookNode, ledger: claims.Ledger | None) -> list[str]:
    """Cells whose outputs are not those that the stored run has left; without a stored run there is nothing to tell."""
    cells = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    if ledger is None:
        return []
    if len(ledger.outputs) != len(cells):
        return [f"it has {len(cells)} code cells, the stored run has hashes of the outputs of {len(ledger.outputs)}"]
    return [f"cell {index} ({_head(cell.source)}): its output is not that of the stored run of {ledger.date}"
            for (index, cell), kept in zip(cells, ledger.outputs, strict=True)
            if cell.execution_count is not None and seals.of_outputs(cell) != kept]  # fmt: skip


def output_text(output: NotebookNode) -> str:
    """Everything in an output that a person reads."""
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return "\n".join(output.traceback)
    return "\n".join(text for kind, text in output.get("data", {}).items() if kind.startswith("text/"))


def _head(source: str) -> str:
    line = next((line.strip() for line in source.splitlines() if line.strip()), "")
    return line if len(line) <= 60 else line[:57] + "..."


# -- lint of sources ---------------------------------------------------------------------------------------------------

START = re.compile(r'from coursekit import start\s+lesson = start\("([^"]+)", profile\)')

# A number that somebody measured has one of these behind it. "4×256" is a shape, "×" before a number is a product.
MEASURED = re.compile(
    r"(?<![\w.])\d[\d,.]*(?:\s?[kM])?\s*(?:nats?\b|bits? per byte\b|ms\b|GFLOP/s|tokens?/s\b|tokens (?:a|per) second\b"
    r"|[MG]B\b|(?:x|times)(?=\s+(?:faster|slower|smaller|larger|less|more|as)\b)|×(?=\s+[a-z]{2}|\s*[.,;:)]|\s*$))"
)
NOT_PROSE = re.compile(
    r"(?s)```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|<code>.*?</code>|<pre>.*?</pre>|\]\([^)]*\)|https?://\S+|\{\{.*?\}\}"
)


# A number of a lesson or of an exercise that somebody typed: it is wrong as soon as a lesson is put in between.
TYPED = re.compile(r"\b[Ll]essons?\s+\d{1,2}\b(?!\.\d)|\b[Ee]xercises?\s+\d{1,2}\.\d\b|\b\d\d_[a-z]+[a-z_]*\.ipynb")


def lint(root: Path, only: Iterable[str] | None = None) -> list[str]:
    """What is wrong with the sources themselves; an empty list is green."""
    numbers = source.numbers(root)
    chosen = course.lessons(root) if only is None else list(only)
    found = strays(root) if only is None else []
    for lesson in chosen:
        read = source.read(root, lesson)
        prose = [NOT_PROSE.sub("□", cell.source) for cell in read.cells if cell.cell_type == "markdown"]
        found += [f"{lesson}: {line}" for line in (*anatomy(read), *prose_numbers(read), *references(read, numbers),
                                                   *seeds.problems(root, read, prose))]  # fmt: skip
    return found


def strays(root: Path) -> list[str]:
    """What lies among the lessons and is none, for lack of a source or of a right name: it would be passed over."""
    known = course.lessons(root)
    left = [path for path in sorted(course.sources(root).glob("[!._]*")) if path.name not in known]
    return [f"notebooks/source/{path.name}: no lesson, which is a folder NN_name that holds lesson.py"
            for path in left if path.is_file() or any(path.glob("[!._]*"))]  # a renamed one leaves a __pycache__


def references(read: Source, numbers: dict[str, str]) -> Iterator[str]:
    """Where prose names a lesson or an exercise by a number, or by a name that there is not."""
    for index, cell in enumerate(read.cells):
        if cell.cell_type != "markdown":
            continue
        prose = NOT_PROSE.sub("□", cell.source)
        for typed in TYPED.findall(prose):
            yield f"cell {index}: {' '.join(typed.split())!r} is typed by hand: write @its_name, numbered when built"
        for unknown in course.unknown_references(prose, numbers):
            yield f"cell {index}: {unknown} is the name of no lesson and no exercise"


def prose_numbers(read: Source) -> list[str]:
    """Measured numbers that were typed into the prose by hand; they would be wrong after the next run.

    The rule is small: a number followed by nats, bits per byte, ms, tokens/s, GFLOP/s, MB, GB, or by × as in
    "3× faster". Code, links and mathematics are left out, so what is an example or a definition is written as
    mathematics: ``$8.3$ nats``.
    """
    found = []
    for index, cell in enumerate(read.cells):
        if cell.cell_type == "markdown":
            prose = NOT_PROSE.sub("□", cell.source)  # a mark, so that "4 × $d$" stays a product
            found += [f"cell {index}: {' '.join(match[0].split())!r} is typed by hand: record it as a claim and print "
                      "{{its-id}}, or, if nothing was measured, write the number as $mathematics$"
                      for match in MEASURED.finditer(prose)]  # fmt: skip
    return found


def anatomy(read: Source) -> list[str]:
    """The parts of a lesson that are missing or not as the machine needs them."""
    cells, code, name = read.cells, code_cells(read.notebook), course.name(read.lesson)
    prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    exercises = [index for index, cell in enumerate(cells) if "exercise" in source.tags(cell)]
    starts = [match[1] for cell in code if (match := START.search(cell.source))]
    parameters = [cell.source.strip() for cell in code if "parameters" in source.tags(cell)]
    wrong = {
        "it does not begin with its title in markdown": not cells or not cells[0].source.startswith("# "),
        "its title has a number, which stands in its folder's name alone":
            re.match(r"# \d", cells[0].source if cells else ""),
        'it needs one cell tagged "parameters" that says: profile = "auto"': parameters != ['profile = "auto"'],
        f'it needs one start cell: lesson = start("{name}", profile)': starts != [name],
        "its last code cell does not end with lesson.claims()":
            not code or not code[-1].source.rstrip().endswith("lesson.claims()"),
        'it has no section "What we measured"': not re.search(r"^## .*What we measured", prose, re.MULTILINE),
        'it has no section "Where it comes from"': not re.search(r"^## .*Where it comes from", prose, re.MULTILINE),
        f"it has no self-test: write {build.QUIZ} under a heading of its own": build.QUIZ not in prose,
        "its sources have no link": not re.search(r"\]\(https?://", prose.partition("Where it comes from")[2]),
        "it has no misconception box": "misconception" not in prose.lower(),
        f"it has {len(exercises)} exercises, 3 to 5 are needed": not 3 <= len(exercises) <= 5,
        "its budget needs minutes and memory_mb for quick and full":
            any(not {"minutes", "memory_mb"} <= set(read.budget.get(profile, {})) for profile in ("quick", "full")),
    }  # fmt: skip
    found = [message for message, is_wrong in wrong.items() if is_wrong]
    return found + [line for index in exercises for line in _exercise(cells, index)]


def _exercise(cells: list[NotebookNode], index: int) -> Iterator[str]:
    cell, *after = cells[index : index + 3]
    functions = [node.name for node in ast.parse(source.to_stub(cell.source)).body if isinstance(node, ast.FunctionDef)]
    function = functions[-1] if functions else f"the one in cell {index}"
    who = f"exercise {function}"
    prose = "\n\n".join(earlier.source for earlier in cells[:index] if earlier.cell_type == "markdown")
    check = CHECK.fullmatch(_last_line(after[0])) if after else None
    word = check[1] if check else function
    if len(functions) != 1:
        yield f"{who}: it needs one function, it has {len(functions)}"
    if [header[1] for header in HEADER.finditer(prose)][-1:] != [word]:
        yield f"{who}: the markdown before it needs the header '### Exercise {word} — title · ★★☆ · 5 minutes'"
    if len(SOLUTION.findall(cell.source)) != 1:
        yield f"{who}: it needs one block between ### BEGIN SOLUTION and ### END SOLUTION"
    if check is None or check[2] != function:
        yield f'{who}: the cell after it must end with check("{word}", {function})'
    elif not {"check", "nbval-check-output"} <= set(source.tags(after[0])):
        yield f"{who}: the check's cell needs the tags check and nbval-check-output"
    hints = after[1] if len(after) > 1 else new_markdown_cell()
    if "hints" not in source.tags(hints) or hints.source.count("<details>") < 2:
        yield f"{who}: the cell after the check must be tagged hints and hold at least two hints in <details>"


def _last_line(cell: NotebookNode) -> str:
    return cell.source.rstrip().rpartition("\n")[2]


def outputs_of_checks(notebook: NotebookNode) -> dict[str, str]:
    """Exercise -> what its check said, in an executed notebook."""
    said: dict[str, str] = {}
    for cell in code_cells(notebook):
        if "check" in source.tags(cell):
            match = CHECK.search(cell.source)
            said[match[1] if match else _head(cell.source)] = "".join(output_text(output) for output in cell.outputs)
    return said
