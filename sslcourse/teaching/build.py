"""One percent script a lesson makes every notebook of it.

    learner   stubs; the solution folded away below the hints; committed under notebooks/, executed, outputs stored
    student   stubs, and no solution anywhere: for a class
    teacher   filled in: for CI, where every check must pass

``drift`` says where a committed notebook differs from what its source and the ledger make now, ``lint`` where a source
lacks a part of a lesson's anatomy or types a measured number by hand.

What this module does not do: run a lesson. ``run`` does.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from coursekit.stale import CELLS, canonical
from sslcourse.teaching import claims, quiz
from sslcourse.teaching.claims import SOLUTION, to_stub

KINDS = ("learner", "student", "teacher")
VERDICTS = {"learner": "not attempted yet", "student": "not attempted yet", "teacher": "passed"}  # of every check
QUIZ = "{{quiz}}"  # stands in a source where the self-test comes
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "pygments_lexer": "ipython3", "file_extension": ".py"}  # no version: machines differ


# -- source -> notebook ------------------------------------------------------------------------------------------------


def source_path(root: Path, lesson: str) -> Path:
    return root / "notebooks" / "source" / f"{lesson}.py"


def notebook_path(root: Path, lesson: str) -> Path:
    """Where the learner's notebook is committed."""
    return root / "notebooks" / f"{lesson}.ipynb"


def build(root: Path, lesson: str, kind: str = "learner") -> NotebookNode:
    """The notebook of a lesson, without outputs. The same source and ledger give the same bytes.

    Raises:
        ValueError: for an unknown kind.
        ClaimError: if the prose prints a claim that nobody makes.
        QuizError: if its self-test is missing or badly written.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: choose one of {', '.join(KINDS)}")
    source = jupytext.read(source_path(root, lesson), fmt="py:percent")
    cells, solution, known = [], None, claims.load_all(root)
    for identifier, cell in zip(_cell_ids(source.cells), source.cells, strict=True):
        tags = list(cell.metadata.get("tags", []))
        text = cell.source
        if "exercise" in tags:
            solution = to_solution(text)
            text = solution if kind == "teacher" else to_stub(text)
        if cell.cell_type == "markdown":
            if QUIZ in text:
                text = text.replace(QUIZ, quiz.markdown(quiz.load(root, lesson)))
            text = claims.fill(text, root, known)
            if "hints" in tags and kind == "learner" and solution:
                text, solution = f"{text}\n\n{_folded(solution)}", None
        cell = NotebookNode(cell, source=text, id=identifier, metadata={"tags": tags} if tags else {})
        cells.append(cell)
    metadata = {
        "kernelspec": KERNEL,
        "language_info": LANGUAGE,
        "sslcourse": {"lesson": lesson, "kind": kind, "budget": budgets(source)},
    }
    notebook = new_notebook(cells=cells, metadata=metadata, nbformat_minor=5)
    nbformat.validate(notebook)
    return notebook


def budgets(notebook: NotebookNode) -> dict[str, dict[str, float]]:
    """{profile: {"minutes": ..., "memory_mb": ...}} as the lesson declares it."""
    return dict(notebook.metadata.get("sslcourse", {}).get("budget", {}))


def to_solution(text: str) -> str:
    """An exercise filled in: the lines of the solution stay, its markers go."""
    return SOLUTION.sub(lambda match: match[2].removesuffix("\n"), text)


def _folded(solution: str) -> str:
    return f"<details><summary>Solution</summary>\n\n```python\n{solution}\n```\n\n</details>"


def _cell_ids(cells: Iterable[NotebookNode]) -> Iterator[str]:
    """Ids made from what a cell says, so that they survive cells being moved or put in between."""
    seen: dict[str, int] = {}
    for cell in cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        yield digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def save(notebook: NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_bytes(notebook))


def to_bytes(notebook: NotebookNode) -> bytes:
    """A notebook as git likes it: indent 1, sorted keys, a newline at the end."""
    text = nbformat.writes(notebook, version=nbformat.NO_CONVERT, indent=1)
    return (text.rstrip("\n") + "\n").encode()


def write_learner(root: Path, lesson: str, executed: NotebookNode | None = None) -> bool:
    """Write the committed notebook; outputs come from ``executed``, else from the one that is there.

    They are kept if no code cell has changed (comments aside), or none but in how it imports: then the cells are to
    the ledger what they were. The return value says whether the notebook has them.
    """
    path = notebook_path(root, lesson)
    notebook = build(root, lesson)
    if executed is None and path.exists():
        executed = nbformat.read(path, as_version=4)
    kept = executed is not None and (same_code(executed, notebook) or _same_to_the_ledger(root, lesson, executed))
    if kept:
        carry(executed, notebook)
    save(notebook, path)
    return kept


def _same_to_the_ledger(root: Path, lesson: str, executed: NotebookNode) -> bool:
    ledger, now = claims.stored(root, lesson), claims.definitions(root, lesson)
    runs = len(code_cells(executed)) == len(code_cells(build(root, lesson)))
    return runs and ledger is not None and ledger.definitions.get(CELLS) == now[CELLS].hash


def carry(executed: NotebookNode, notebook: NotebookNode) -> None:
    """Put the outputs of one notebook into another of the same code cells."""
    for old, new in zip(code_cells(executed), code_cells(notebook), strict=True):
        new.outputs, new.execution_count = old.outputs, old.execution_count


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def same_code(one: NotebookNode, other: NotebookNode) -> bool:
    """Whether two notebooks run the same code, comments aside."""
    return _code(one) == _code(other)


def _code(notebook: NotebookNode) -> list[str]:
    return [_meaning(cell.source) for cell in code_cells(notebook)]


def _meaning(source: str) -> str:
    try:
        return canonical(ast.parse(source))
    except SyntaxError:  # a magic, or a mistake: then every character counts
        return source


# -- the gate on committed notebooks -----------------------------------------------------------------------------------

# A folder of somebody's machine. Not part of an address: "example.org/home/" has a letter before the slash.
ABSOLUTE = re.compile(r"(?<![\w.~/:-])/(?:work|tmp|root|home|Users|usr|opt|var|mnt|private)/[\w.]|\b[A-Z]:\\+Users\\")
LIVE = "application/vnd.jupyter.widget-view+json"  # the name of a widget in a kernel that is gone
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")


def drift(root: Path, only: Iterable[str] | None = None) -> list[str]:
    """Where committed notebooks differ from their sources, or hold what must not be stored; an empty list is green."""
    known = claims.lessons(root)
    strays = {path.stem for path in (root / "notebooks").glob("*.ipynb")} - set(known)
    found = [f"notebooks/{stray}.ipynb: there is no such source in notebooks/source" for stray in sorted(strays)]
    return found + [line for lesson in (known if only is None else only) for line in _drift(root, lesson)]


def _drift(root: Path, lesson: str) -> list[str]:
    path = notebook_path(root, lesson)
    name, remedy = f"notebooks/{path.name}", f"run `python -m sslcourse notebooks {lesson[:2]}`"
    if not path.exists():
        return [f"{name}: missing: {remedy}"]
    try:
        expected = build(root, lesson)
    except (claims.ClaimError, quiz.QuizError) as error:
        return [f"{lesson}: {error}"]
    found = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    differences = list(_differences(found, expected))
    lines = [f"{line}: run `python -m sslcourse build {lesson[:2]}`" for line in differences]
    lines += stains(found)
    lines += [f"{line}: {remedy}" for line in missing_outputs(found)]
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
        elif "check" in tags and VERDICTS["learner"] not in text:
            found.append(f"{place} stores no verdict 'not attempted'")
        elif not text and ("nbval-check-output" in tags or cell.source.rstrip().endswith("lesson.claims()")):
            found.append(f"{place} stores no output")
    return found


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

HEADER = re.compile(r"^### Exercise (\d+\.\d+) — \S.* · (?:★☆☆|★★☆|★★★) · \d+ minutes?\s*$", re.MULTILINE)
START = re.compile(r'from sslcourse\.teaching\.lesson import start\s+lesson = start\("([^"]+)", profile\)')
CHECK = re.compile(r'check\("(\d+\.\d+)", (\w+)\)')

# A number that somebody measured has one of these behind it. "4×256" is a shape, "×" before a number is a product.
MEASURED = re.compile(
    r"(?<![\w.])\d[\d,.]*(?:\s?[kM])?\s*(?:nats?\b|bits? per byte\b|ms\b|GFLOP/s|tokens?/s\b|tokens (?:a|per) second\b"
    r"|[MG]B\b|(?:x|times)(?=\s+(?:faster|slower|smaller|larger|less|more|as)\b)|×(?=\s+[a-z]{2}|\s*[.,;:)]|\s*$))"
)
NOT_PROSE = re.compile(
    r"(?s)```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|<code>.*?</code>|<pre>.*?</pre>|\]\([^)]*\)|https?://\S+|\{\{.*?\}\}"
)


def lint(root: Path, only: Iterable[str] | None = None) -> list[str]:
    """What is wrong with the sources themselves; an empty list is green."""
    chosen = claims.lessons(root) if only is None else list(only)
    return [f"{lesson}: {line}" for lesson in chosen for line in (*anatomy(root, lesson), *prose_numbers(root, lesson))]


def prose_numbers(root: Path, lesson: str) -> list[str]:
    """Measured numbers that were typed into the prose by hand; they would be wrong after the next run.

    The rule is small: a number followed by nats, bits per byte, ms, tokens/s, GFLOP/s, MB, GB, or by × as in
    "3× faster". Code, links and mathematics are left out, so what is an example or a definition is written as
    mathematics: ``$8.3$ nats``.
    """
    notebook = jupytext.read(source_path(root, lesson), fmt="py:percent")
    found = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            prose = NOT_PROSE.sub("□", cell.source)  # a mark, so that "4 × $d$" stays a product
            found += [f"cell {index}: {' '.join(match[0].split())!r} is typed by hand: record it as a claim and print "
                      "{{its-id}}, or, if nothing was measured, write the number as $mathematics$"
                      for match in MEASURED.finditer(prose)]  # fmt: skip
    return found


def anatomy(root: Path, lesson: str) -> list[str]:
    """The parts of a lesson that are missing or not as the machine needs them."""
    notebook = jupytext.read(source_path(root, lesson), fmt="py:percent")
    cells, code = notebook.cells, code_cells(notebook)
    prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    exercises = [index for index, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", [])]
    starts = [match[1] for cell in code if (match := START.search(cell.source))]
    parameters = [cell.source.strip() for cell in code if "parameters" in cell.metadata.get("tags", [])]
    budget = budgets(notebook)
    wrong = {
        "it does not begin with its title in markdown": not cells or not cells[0].source.startswith("# "),
        'it needs one cell tagged "parameters" that says: profile = "auto"': parameters != ['profile = "auto"'],
        f'it needs one start cell: lesson = start("{lesson}", profile)': starts != [lesson],
        "its last code cell does not end with lesson.claims()":
            not code or not code[-1].source.rstrip().endswith("lesson.claims()"),
        'it has no section "What we measured"': not re.search(r"^## .*What we measured", prose, re.MULTILINE),
        'it has no section "Where it comes from"': not re.search(r"^## .*Where it comes from", prose, re.MULTILINE),
        f"it has no self-test: write {QUIZ} under a heading of its own": QUIZ not in prose,
        "its sources have no link": not re.search(r"\]\(https?://", prose.partition("Where it comes from")[2]),
        "it has no misconception box": "misconception" not in prose.lower(),
        f"it has {len(exercises)} exercises, 3 to 5 are needed": not 3 <= len(exercises) <= 5,
        "its budget needs minutes and memory_mb for quick and full":
            any(not {"minutes", "memory_mb"} <= set(budget.get(profile, {})) for profile in ("quick", "full")),
    }  # fmt: skip
    found = [message for message, is_wrong in wrong.items() if is_wrong]
    numbers = [f"{int(lesson[:2])}.{k + 1}" for k in range(len(exercises))]
    for number, index in zip(numbers, exercises, strict=True):
        found += [f"exercise {number}: {message}" for message in _exercise(cells, index, number)]
    return found


def _exercise(cells: list[NotebookNode], index: int, number: str) -> Iterator[str]:
    cell, *after = cells[index : index + 3]
    prose = "\n\n".join(earlier.source for earlier in cells[:index] if earlier.cell_type == "markdown")
    if number not in HEADER.findall(prose)[-1:]:
        yield f"the markdown before it needs the header '### Exercise {number} — title · ★★☆ · 5 minutes'"
    if len(SOLUTION.findall(cell.source)) != 1:
        yield "it needs one block between ### BEGIN SOLUTION and ### END SOLUTION"
    functions = [node.name for node in ast.parse(to_stub(cell.source)).body if isinstance(node, ast.FunctionDef)]
    if len(functions) != 1:
        yield f"it needs one function, it has {len(functions)}"
    check = CHECK.fullmatch(_last_line(after[0])) if after else None
    if check is None or check.groups() != (number, functions[-1] if functions else None):
        yield f'the cell after it must end with check("{number}", its function)'
    elif not {"check", "nbval-check-output"} <= set(after[0].metadata.get("tags", [])):
        yield "the check's cell needs the tags check and nbval-check-output"
    hints = after[1] if len(after) > 1 else new_markdown_cell()
    if "hints" not in hints.metadata.get("tags", []) or hints.source.count("<details>") < 2:
        yield "the cell after the check must be tagged hints and hold at least two hints in <details>"


def _last_line(cell: NotebookNode) -> str:
    return cell.source.rstrip().rpartition("\n")[2]


def outputs_of_checks(notebook: NotebookNode) -> dict[str, str]:
    """Exercise -> what its check said, in an executed notebook."""
    said: dict[str, str] = {}
    for cell in code_cells(notebook):
        if "check" in cell.metadata.get("tags", []):
            match = re.search(r'check\("(\d+\.\d+)"', cell.source)
            said[match[1] if match else _head(cell.source)] = "".join(output_text(output) for output in cell.outputs)
    return said


def gate(root: Path, only: Iterable[str] | None = None) -> list[str]:
    """Everything that can be judged without running a lesson; an empty list is green."""
    chosen: Any = None if only is None else list(only)
    return lint(root, chosen) + drift(root, chosen) + claims.problems(root, chosen)
