"""One percent script a lesson makes every notebook of it.

    learner   stubs; the solution folded away below the hints; committed under notebooks/, executed, outputs stored
    student   stubs, and no solution anywhere: for a class
    teacher   filled in: for CI, where every check must pass

Here numbers come in: of the lesson and of its exercises, wherever prose names them, and of claims, from the ledger.

What this module does not do: run a lesson (``run``), or judge one (``gate``).
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_notebook

from coursekit import claims, course, quiz, source
from coursekit.stale import canonical

KINDS = ("learner", "student", "teacher")
VERDICTS = {"learner": "not attempted yet", "student": "not attempted yet", "teacher": "passed"}  # of every check
QUIZ = "{{quiz}}"  # stands in a source where the self-test comes
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "pygments_lexer": "ipython3", "file_extension": ".py"}  # no version: machines differ


# -- source -> notebook ------------------------------------------------------------------------------------------------


def build(root: Path, lesson: str, kind: str = "learner") -> NotebookNode:
    """The notebook of a lesson, without outputs. The same source and ledger give the same bytes.

    Raises:
        ValueError: for an unknown kind.
        ClaimError: if the prose prints a claim that nobody makes.
        QuizError: if its self-test is missing or badly written.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: choose one of {', '.join(KINDS)}")
    read = source.read(root, lesson)
    solutions = {one.at: one.solution for one in read.exercises}
    cells, solution, prose = [], None, Prose(root)
    for at, (identifier, cell) in enumerate(zip(_cell_ids(read.cells), read.cells, strict=True)):
        tags, text = source.tags(cell), cell.source
        if "exercise" in tags:
            solution = solutions.get(at)
            text = source.to_solution(text) if kind == "teacher" else source.to_stub(text)
        if cell.cell_type == "markdown":
            if QUIZ in text:
                text = text.replace(QUIZ, quiz.markdown(quiz.load(root, lesson)))
            text = prose.of_lesson(lesson, text) if at == 0 else prose.filled(text)
            if "hints" in tags and kind == "learner" and solution:
                text, solution = f"{text}\n\n{_folded(solution)}", None
        cells.append(NotebookNode(cell, source=text, id=identifier, metadata={"tags": tags} if tags else {}))
    metadata = {
        "kernelspec": KERNEL,
        "language_info": LANGUAGE,
        "coursekit": {"lesson": course.name(lesson), "kind": kind, "budget": read.budget},
    }
    notebook = new_notebook(cells=cells, metadata=metadata, nbformat_minor=5)
    nbformat.validate(notebook)
    return notebook


class Prose:
    """Puts numbers into prose: of claims, of lessons, of exercises. Read once for all the cells of a lesson."""

    def __init__(self, root: Path) -> None:
        self.root, self.claims, self.numbers = root, claims.load_all(root), source.numbers(root)

    def filled(self, text: str) -> str:
        """``{{claim-id}}``, ``@name``, and the word in an exercise's header, each with its number."""
        text = source.HEADER.sub(
            lambda match: match[0].replace(f" {match[1]} ", f" {self.numbers.get(match[1], match[1])} ", 1), text
        )
        return claims.fill(course.numbered(text, self.numbers), self.root, self.claims)

    def of_lesson(self, lesson: str, text: str) -> str:
        """The first cell: its heading gets the lesson's number."""
        return self.filled(text.replace("# ", f"# {course.number(lesson)} · ", 1))


def budgets(notebook: NotebookNode) -> dict[str, dict[str, float]]:
    """{profile: {"minutes": ..., "memory_mb": ...}} as the notebook's lesson declares it."""
    return dict(notebook.metadata.get("coursekit", {}).get("budget", {}))


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

    They are kept if no code cell has changed, as the gate sees it: comments do not count, nor does the module from
    which a name is imported. The return value says whether the notebook has them.
    """
    path = renumbered(root, lesson)
    notebook = build(root, lesson)
    if executed is None and path.exists():
        executed = nbformat.read(path, as_version=4)
    kept = executed is not None and (same_code(executed, notebook) or (
        len(code_cells(executed)) == len(code_cells(notebook)) and claims.cells_as_stored(root, lesson)))
    if kept:
        carry(executed, notebook)
    save(notebook, path)
    return kept


def renumbered(root: Path, lesson: str) -> Path:
    """Where the learner's notebook is committed; one that still has an earlier number of the lesson is renamed."""
    path = course.notebook_path(root, lesson)
    earlier = sorted(path.parent.glob(f"[0-9][0-9]_{course.name(lesson)}.ipynb"))
    if earlier and path not in earlier:
        earlier[-1].rename(path)
    return path


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
