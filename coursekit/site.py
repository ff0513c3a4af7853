"""The site: stored notebooks, pages for learners and teachers, claims, errata and API, built by Sphinx, offline.

    build/site/source      what Sphinx reads: copies and pages that are made here
    build/site/html        the site; its front page is index.html
    build/site/zh_CN       the same for the Chinese pages, which end up in html/zh

``pages`` gives every page as text, so that all of it but the last step is tested where Sphinx is not installed. What
this module does not do: run a lesson, or translate (``translation`` looks sentences up in the catalogue).
"""

from __future__ import annotations

import html
import math
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from coursekit import audit, build, claims, course, glossary, readme, source, translation

FRONT_ENDS = "\n## The lessons\n"  # README up to here is the front page, and after the table comes "Using the course"
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FOLDED = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
_OF_LESSONS = "<!-- a lesson's own checks -->\n\n"  # where docs/stuck.md has room for what lies beside the lessons
# Where README's and the notes' links lead on the site; a file that is not a page is named, not linked.
_LINKS = {
    "data/README.md": "data.md",
    "docs/cheatsheets/": "cheatsheets/index.md",
    **{f"docs/{name}.md": f"{name}.md" for name in ("reproducibility", "stuck", "glossary", "notation")},
    **{f"docs/teaching/{name}.md": f"teaching/{name}.md" for name in ("plans", "grading")},
}

Word = Callable[[str], str]  # a sentence in the language of the pages that are being made


class SiteError(ValueError):
    """The site cannot be made; the message names the file and what to do."""


# -- errata ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Erratum:
    """One correction to the source article, and the cell of a lesson that proves or shows it."""

    number: int
    title: str
    where: str  # in the article
    said: str
    right: str
    lesson: str  # its id; the file has its name
    cell: str  # a text that stands in that cell and in no other
    shown: str  # what the cell does
    test: str = ""  # a test that proves what no lesson shows, as file::name

    @property
    def anchor(self) -> str:
        return f"erratum-{self.number}"


def errata(root: Path) -> list[Erratum]:
    """The corrections, in the order of ``docs/errata.toml``.

    Raises:
        SiteError: for an entry with a missing or unknown field, or of a lesson that there is not.
    """
    rows = tomllib.loads((root / "docs" / "errata.toml").read_text(encoding="utf-8"))["erratum"]
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(Erratum(number=number, **{**row, "lesson": course.find(root, row.get("lesson", ""))}))
        except (TypeError, LookupError) as error:
            raise SiteError(f"docs/errata.toml: entry {number}: {error.args[0]}") from error
    return found


def proof(erratum: Erratum, notebook: NotebookNode) -> int:
    """The index of the cell that proves an erratum.

    Raises:
        SiteError: if no cell of the lesson holds its text, or several do.
    """
    places = [index for index, cell in enumerate(notebook.cells) if erratum.cell in cell.source]
    if len(places) != 1:
        raise SiteError(f"docs/errata.toml: entry {erratum.number}: {len(places)} cells of {erratum.lesson} hold "
                        f"{erratum.cell!r}; quote a line that stands in one cell")
    return places[0]


def errata_page(root: Path) -> str:
    """What is wrong in the source article, each with a link to its proof."""
    parts = [(root / "docs" / "errata.md").read_text(encoding="utf-8").rstrip()]
    for one in errata(root):
        link = f"[lesson {course.number(one.lesson)}: {one.shown}](lessons/{one.lesson}.ipynb#{one.anchor})"
        tested = f" Tested by `{one.test}`." if one.test else ""
        parts.append(f"## {one.number}. {one.title}\n\n**The article** ({one.where}): {one.said}\n\n"
                     f"**Right:** {one.right}\n\n**Proof:** {link}.{tested}")
    return "\n\n".join(parts) + "\n"


# -- claims ------------------------------------------------------------------------------------------------------------


def claims_page(root: Path) -> str:
    """Every claim of every lesson: what it says, what the stored run measured, and the bound."""
    parts = [
        "# The claims ledger",
        "Every number that a lesson states has an entry here, with a bound that a test enforces. The values are those "
        "of the last stored run of each lesson; machine and date stand above each table. *Exact* claims hold on every "
        "machine; *measured* ones depend on it.",
    ]
    for lesson in course.lessons(root):
        ledger = claims.stored(root, lesson)
        where = _escape(ledger.where()) if ledger else "not run yet"
        head = "```{rst-class} claims\n```\n\n| claim | value | bound | kind |\n|---|---|---|---|"
        rows = [_claim_row(claim, ledger) for claim in claims.load(root, lesson).values()]
        parts += [f"## {_title(root, lesson)}", f"[To the lesson](lessons/{lesson}.ipynb). Stored run: {where}.",
                  "\n".join([head, *rows])]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _claim_row(claim: claims.Claim, ledger: claims.Ledger | None) -> str:
    value = ledger.values.get(claim.id) if ledger else None
    shown = "–" if value is None else claim.with_unit(value)
    cells = (f"{_escape(claim.statement)}<br>`{claim.id}`", _escape(shown), _escape(claim.bound()), claim.kind)
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Plain text as markdown that reads the same."""
    return re.sub(r"([\\`*_{}\[\]<>$|~^#])", r"\\\1", " ".join(text.split()))


# -- front page --------------------------------------------------------------------------------------------------------


def front_page(root: Path, word: Word | None = None) -> str:
    """README's front part with the cover's picture and the table of lessons; ``word`` for the translated site."""
    front = _COMMENT.sub("", (root / "README.md").read_text(encoding="utf-8").split(FRONT_ENDS)[0])
    title, intro, commands = _cut(front)
    config = course.config(root)
    cover = course.find(root, config.cover)
    alt = readme.pictures(root)[cover][1]
    other = '<a href="zh/index.html" hreflang="zh-CN" lang="zh-CN">中文</a>'
    if word:
        alt, other = word(alt), '<a href="../index.html" hreflang="en" lang="en">English</a>'
    return "\n\n".join([
        title,
        _language_line(other),
        intro,
        "## From the article's recipe to a fast one",
        f"![{_escape(alt)}](pictures/{cover}.png)",
        build.Prose(root).filled(config.cover_says),
        commands,
        "## Lessons",
        _lesson_table(root, translated=word is not None),
        "" if word else _CONTENTS,
        f"```{{toctree}}\n:hidden:\n:caption: Lessons\n\n{_lesson_entries(root, translated=word is not None)}\n```",
        "" if word else _TREES,
    ]).rstrip() + "\n"  # fmt: skip


_CONTENTS = """## Also here

- For learners: [using the course](use.md), [if you are stuck](stuck.md), [glossary](glossary.md),
  [notation](notation.md), [cheat sheets](cheatsheets/index.md)
- For teachers: [plans and notes](teaching/index.md)
- What the course stands on: [the claims ledger](claims.md), [what is wrong in the source article](errata.md),
  [when two runs agree](reproducibility.md), [the data](data.md), [the package](api/index.md)"""

_TREES = """```{toctree}
:hidden:
:caption: For learners

use
stuck
glossary
notation
cheatsheets/index
```

```{toctree}
:hidden:
:caption: For teachers

teaching/index
```

```{toctree}
:hidden:
:caption: What it stands on

claims
errata
reproducibility
data
api/index
```"""


def _cut(front: str) -> tuple[str, str, str]:
    """Title, introduction, and the section on commands."""
    title, _, rest = front.strip().partition("\n")
    intro, _, commands = rest.partition("\n## ")
    return title, intro.strip(), markdown(f"## {commands.strip()}")


def _language_line(link: str) -> str:
    return f'<p class="language">{link}</p>'


def _lesson_table(root: Path, translated: bool) -> str:
    rows = ["| | Lesson | What you do | Minutes to run |" + ("" if translated else " Picture |"),
            "|---|---|---|---|" + ("" if translated else "---|")]  # fmt: skip
    pictures, numbers = readme.pictures(root), source.numbers(root)
    for lesson in course.lessons(root):
        read = source.read(root, lesson)
        title, promise = read.title, course.numbered(read.promise, numbers)
        ledger = claims.stored(root, lesson)
        minutes = str(math.ceil(ledger.minutes)) if ledger else "–"
        # The scheme "en" leads from the translated pages to those that exist in English only (docs/conf.py).
        here = not translated or lesson in _translated(root)
        target = f"lessons/{lesson}.ipynb" if here else f"en:lessons/{lesson}.html"
        row = f"| {course.number(lesson)} | [{title}]({target}) | {promise} | {minutes} |"
        if not translated:
            row += f" ![{_escape(pictures[lesson][1])}](pictures/{lesson}.png) |" if lesson in pictures else " |"
        rows.append(row)
    return "```{rst-class} lessons\n```\n\n" + "\n".join(rows)


def _lesson_entries(root: Path, translated: bool) -> str:
    return "\n".join(f"lessons/{lesson}" for lesson in (_translated(root) if translated else course.lessons(root)))


def _title(root: Path, lesson: str) -> str:
    return f"{course.number(lesson)} · {source.read(root, lesson).title}"


def _translated(root: Path) -> list[str]:
    """The lessons that are there in Chinese, with the front page."""
    return [course.find(root, name) for name in course.config(root).translated]


# -- markdown and notebooks, as the site wants them --------------------------------------------------------------------


def markdown(text: str) -> str:
    """Markdown of the course as MyST: what unfolds becomes a directive, so that its summary can be translated."""

    def folded(match: re.Match[str]) -> str:
        summary = html.unescape(re.sub(r"</?code>", "`", " ".join(match[1].split())))
        return f"\n::::{{folded}} {summary}\n{match[2].strip()}\n::::\n"

    return _FOLDED.sub(folded, text)


def _relinked(text: str) -> str:
    """README's and the notes' links, as they lead on the site."""

    def link(match: re.Match[str]) -> str:
        if match[2].startswith(("http", "#")):
            return match[0]
        return f"[{match[1]}]({_LINKS[match[2]]})" if match[2] in _LINKS else match[1]

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", link, text)


def lesson_page(root: Path, lesson: str, proofs: Iterable[Erratum] = (), word: Word | None = None) -> NotebookNode:
    """The stored notebook with anchors for what the errata point to, alt texts where Sphinx looks for them.

    In English, the first mention of each of the glossary's terms is a link.

    Raises:
        SiteError: if an erratum's cell is not there.
    """
    notebook = nbformat.read(course.notebook_path(root, lesson), as_version=4)
    anchors: dict[int, list[str]] = {}
    for erratum in proofs:
        anchors.setdefault(proof(erratum, notebook), []).append(erratum.anchor)
    left = {} if word else {one.name: one for one in glossary.terms(root) if one.belongs_in(lesson)}
    cells = []
    for index, cell in enumerate(notebook.cells):
        if index in anchors:
            cells.append(new_markdown_cell("\n".join(f"({name})=" for name in anchors[index])))
        if cell.cell_type == "markdown":
            cell.source = glossary.linked(markdown(cell.source), left)
        cells += [cell] if cell.cell_type == "markdown" else _described(cell, word)
    if lesson in _translated(root):
        other = (f'<a href="../../lessons/{lesson}.html" hreflang="en" lang="en">English</a>' if word else
                 f'<a href="../zh/lessons/{lesson}.html" hreflang="zh-CN" lang="zh-CN">中文</a>')  # fmt: skip
        cells[0].source += f"\n\n{_language_line(other)}"
    notebook.cells = cells
    return notebook


def _described(cell: NotebookNode, word: Word | None) -> list[NotebookNode]:
    """The cell with its figure's alt text. myst-nb takes one a cell, so a second figure gets a cell without code."""
    made, outputs = [cell], cell.outputs
    cell.outputs = []
    for output in outputs:
        if "image/png" in output.get("data", {}):
            alt = " ".join(output.data["text/plain"].split())
            if "mystnb" in made[-1].metadata:
                made.append(new_code_cell(metadata={"tags": ["remove-input"]}))
            made[-1].metadata["mystnb"] = {"image": {"alt": word(alt) if word else alt}}
        made[-1].outputs.append(output)
    return made


# -- the package -------------------------------------------------------------------------------------------------------

_API_SAYS = (
    "Read it from the ground up. Shapes stand in the signatures: "
    '`Float[Tensor, "rows columns"]` is a tensor of floats with two axes of these names.'
)
# A package as a whole, and what only a command line calls: nobody imports those.
_NO_API = re.compile(r"\w+(\.__main__)?|coursekit\.commands")


def api_pages(root: Path) -> dict[str, str]:
    """One page a module, in reStructuredText because docstrings are, and an index of them."""
    folders = [Path(__file__).resolve().parent]  # lessons import from this package, too
    if package := course.config(root).package:
        folders.append(root / package)
    files = [path.relative_to(folder.parent).with_suffix("").parts for folder in folders
             for path in folder.rglob("*.py")]  # fmt: skip
    modules = sorted(".".join(parts).removesuffix(".__init__") for parts in files)
    names = [name for name in modules if not _NO_API.fullmatch(name)]
    made = {f"api/{name}.rst": f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n" for name in names}
    return made | {"api/index.md": _index("The package", _API_SAYS, names)}


# -- all pages ---------------------------------------------------------------------------------------------------------


def pages(root: Path) -> dict[str, str]:
    """Path -> text of every page of the English site."""
    docs, numbers = root / "docs", source.numbers(root)

    def page(path: Path) -> str:
        return markdown(course.numbered(path.read_text(encoding="utf-8"), numbers))

    made = {
        "index.md": front_page(root),
        "use.md": _use_page(root),
        "claims.md": claims_page(root),
        "errata.md": errata_page(root),
        "data.md": _relinked(page(root / "data" / "README.md")),
        **api_pages(root),
    }
    for name in ("glossary.md", "notation.md", "reproducibility.md"):
        made[name] = page(docs / name)
    made["stuck.md"] = markdown(course.numbered(_stuck(root), numbers))
    for file, folder, title, says in (
        ("cheatsheet.md", "cheatsheets", "Cheat sheets", "One page a lesson: its formulas, its code, its traps."),
        ("teaching.md", "teaching", "For teachers", "Plans for a term and for a day; for each lesson its timing, the "
                                                    "misconceptions to expect, board sketches and questions."),
    ):  # fmt: skip
        general = {path.stem: path for path in sorted((docs / folder).glob("*.md"))}
        of_lessons = {lesson: course.part(root, lesson, file) for lesson in course.lessons(root)}
        made |= {f"{folder}/{name}.md": page(path) for name, path in (general | of_lessons).items()}
        made[f"{folder}/index.md"] = _index(title, says, general | of_lessons)
    proofs = errata(root)
    for lesson in course.lessons(root):
        shown = lesson_page(root, lesson, [one for one in proofs if one.lesson == lesson])
        made[f"lessons/{lesson}.ipynb"] = nbformat.writes(shown)
    return made


def _stuck(root: Path) -> str:
    """The page for who is stuck, with what each lesson's own checks say in the place for it."""
    general = (root / "docs" / "stuck.md").read_text(encoding="utf-8")
    of_lessons = ""
    for lesson in course.lessons(root):
        path = course.part(root, lesson, "stuck.md")
        if path.is_file():
            said = path.read_text(encoding="utf-8").partition("\n")[2].strip()
            of_lessons += f"## Lesson @{course.name(lesson)}\n\n{said}\n\n"
    return general.replace(_OF_LESSONS, of_lessons)


def _index(title: str, says: str, names: Iterable[str]) -> str:
    entries = "\n".join(names)
    return f"# {title}\n\n{says}\n\n```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"


def translated_pages(root: Path, word: Word) -> dict[str, str]:
    """The pages that are there in Chinese, still with English prose: Sphinx puts the translation in."""
    word(course.config(root).title)  # stands above the menu, on no page; `make` hands its translation to Sphinx
    made = {"index.md": front_page(root, word)}
    lessons = {lesson: lesson_page(root, lesson, word=word) for lesson in _translated(root)}
    return made | {f"lessons/{lesson}.ipynb": nbformat.writes(page) for lesson, page in lessons.items()}


def untranslated(root: Path) -> list[str]:
    """What ``make`` would say of the translation, without Sphinx, from the markdown of the pages."""
    sentences = translation.load(root)
    for name, text in translated_pages(root, sentences.word).items():
        cells = nbformat.reads(text, as_version=4).cells if name.endswith(".ipynb") else []
        prose = [cell.source for cell in cells if cell.cell_type == "markdown"] or [text]
        for sentence in translation.extract(prose):
            sentences.word(sentence)
    return sentences.problems()


def _use_page(root: Path) -> str:
    text = (root / "README.md").read_text(encoding="utf-8").split("<!-- lessons:end -->")[1]
    return f"# Using the course\n\n{_relinked(markdown(text.strip()))}\n"


def write(made: dict[str, str], root: Path, out: Path) -> None:
    """Lay the pages and the pictures they show into an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    for name, text in made.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for lesson, (picture, _) in readme.pictures(root).items():
        if f"pictures/{lesson}.png" in made["index.md"]:
            (out / "pictures").mkdir(exist_ok=True)
            (out / "pictures" / f"{lesson}.png").write_bytes(picture)


# -- Sphinx ------------------------------------------------------------------------------------------------------------


def make(root: Path, out: Path) -> list[str]:
    """Build the site in two languages under ``out``; what is wrong with it, one line each.

    Raises:
        SiteError: if Sphinx ends with a warning, which it has printed.
    """
    catalogue = translation.load(root)
    write(pages(root), root, out / "source")
    sphinx(root, "html", out / "source", out / "html")
    chinese = out / translation.LANGUAGE
    write(translated_pages(root, catalogue.word), root, chinese / "source")
    sphinx(root, "gettext", chinese / "source", chinese / "gettext")
    found = translation.merge(catalogue, chinese / "gettext" / "site.pot", chinese / "locale")
    sphinx(root, "html", chinese / "source", out / "html" / "zh", "-D", f"language={translation.LANGUAGE}",
           "-D", f"html_title={catalogue.word(course.config(root).title)}")  # fmt: skip
    return found + audit.problems(out / "html")


def sphinx(root: Path, builder: str, source: Path, out: Path, *more: str) -> None:
    """Run Sphinx once; warnings are errors, and all of them are shown."""
    doctrees = out.parent / f"doctrees-{out.name}-{builder}"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", builder, "-c", str(root / "docs"),
               "-d", str(doctrees), *more, str(source), str(out)]  # fmt: skip
    if subprocess.run(command, cwd=root).returncode:
        raise SiteError(f"sphinx -b {builder} ended with warnings, see above: mend what they name")


def main(root: Path, out: Path) -> int:
    """Build and say what came of it; exit status 0 or 1."""
    try:
        found = make(root, out)
    except SiteError as error:
        found = [str(error)]
    for line in found:
        print(line, file=sys.stderr)
    print(f"site: {len(found)} problems" if found else f"site: open {out / 'html' / 'index.html'}")
    return int(bool(found))
