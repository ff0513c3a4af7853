"""Slides of a lesson: one page of reveal.js that holds all it needs, so that it opens offline, from the file system.

They are made from the student's notebook, which has no solution in it, and the stored outputs. Structure decides, and
no source needs a mark for it: a heading ``#`` or ``##`` starts a column, everything below it goes down the column; long
prose goes on on the next slide, long code scrolls, a figure gets a slide of its own. An exercise shows its header and
its stub; its hints are in the speaker's notes (press S). Imports, parameters and checks are left out.

reveal.js comes from the package ``sphinx-revealjs``, which carries it (its Python is not used). Mathematics becomes
MathML, which browsers draw by themselves: ``latex2mathml``.
"""

from __future__ import annotations

import ast
import html
import importlib.util
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from coursekit import build, folder, gate

FULL = 1000  # what a slide takes, in characters of prose
LINE = 50  # what a line of code or output weighs
MISSING = {r"\arg\min": r"\text{arg min}", r"\arg\max": r"\text{arg max}"}  # latex2mathml does not know \arg
SIZE = re.compile(r"\\[bB]igg?[lr]?(?![A-Za-z])")  # MathML's brackets grow with what they hold
APPLIED = re.compile(r"\\(log|ln)\s+(?=[A-Za-z\\])")  # "log p" needs its space
ALPHABET = re.compile(r'<mi mathvariant="(double-struck|script)">([A-Z])</mi>')  # browsers want the letter itself

STYLE = """
html, body { background: #fff; }
.reveal { font: 26px/1.4 system-ui, "Segoe UI", "Helvetica Neue", Arial, "Noto Sans", sans-serif; color: #1a1a1a; }
.reveal .slides section { text-align: left; padding: 0; }
.reveal .page { height: 700px; overflow-y: auto; }
.reveal h1, .reveal h2, .reveal h3 { line-height: 1.2; margin: 0 0 .5em; color: #00436b; }
.reveal h1 { font-size: 1.9em; } .reveal h2 { font-size: 1.5em; } .reveal h3 { font-size: 1.2em; }
.reveal .kicker { margin: 0 0 .8em; font-size: .7em; color: #555; border-bottom: 1px solid #ccc; }
.reveal p { margin: 0 0 .7em; } .reveal ul, .reveal ol { margin: 0 0 .7em 1.2em; display: block; }
.reveal li { margin-bottom: .25em; } .reveal strong { font-weight: 650; } .reveal em { font-style: italic; }
.reveal a { color: #005a9c; text-decoration: underline; }
.reveal code, .reveal pre { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.reveal code { font-size: .85em; background: #f2f2f2; }
.reveal pre { font-size: .66em; line-height: 1.4; margin: 0 0 1em; padding: .7em; overflow: auto; background: #f6f8fa; }
.reveal pre code { font-size: 1em; background: none; }
.reveal pre.output { background: #fff; border-left: 4px solid #0072b2; white-space: pre-wrap; }
.reveal img { display: block; max-width: 100%; max-height: 610px; margin: 0 auto; min-width: 60%; object-fit: contain; }
.reveal table { font-size: .75em; border-collapse: collapse; margin: 0 0 1em; }
.reveal th, .reveal td { border-bottom: 1px solid #bbb; padding: .2em .6em; text-align: left; }
.reveal details { margin: 0 0 .5em; } .reveal summary { cursor: pointer; } .reveal details p { display: inline; }
.reveal math, .reveal math * { font-family: math, "Cambria Math", "STIX Two Math", "Latin Modern Math", serif; }
.reveal math { font-size: 1.1em; } .reveal math[display=block] { margin: .3em 0 .9em; }
.reveal menclose { border: 1px solid; padding: .3em; }
.reveal .slide-number { font-size: 14px; right: auto; left: 8px; }
"""
OPENS = re.compile(r"#{1,3} |\*\*\d+\.\*\* ")  # a slide: a heading, a question of the self-test
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style></head>
<body><div class="reveal"><div class="slides">
{columns}
</div></div>
<script>{script}</script>
<script>Reveal.initialize({{width: 1280, height: 720, margin: 0.03, center: false, hash: true, transition: "none",
slideNumber: "c/t", pdfMaxPagesPerSlide: 1, plugins: [RevealNotes]}});</script>
</body></html>
"""


@dataclass
class Slide:
    """One slide: what it shows, as HTML, and what only the speaker sees."""

    body: str
    weight: int
    under: str = ""  # the heading that it goes on under
    starts: int = 0  # 1: a column, 2: a slide, 0: neither
    notes: str = ""


def make(root: Path, lessons: list[str]) -> dict[str, bytes]:
    """The lessons' pages, and an index of them.

    Raises:
        HandoutError: where reveal.js or latex2mathml is not installed.
        SourceError: for a formula that latex2mathml cannot read.
    """
    vendored = reveal()
    files = {}
    rows = []
    for lesson in lessons:
        notebook = folder.with_stored_outputs(root, build.build(root, lesson, "student"))
        title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        files[f"{lesson}.html"] = page(title, slides(notebook), **vendored).encode()
        rows.append(f'<li><a href="{lesson}.html">{html.escape(title)}</a></li>')
    index = ('<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>Slides</title><h1>Slides</h1>\n<ul>\n'
             + "\n".join(rows) + "\n</ul>\n<p>Arrow keys turn the pages, Esc shows all of them, S opens the speaker's "
             "notes. To print, add <code>?print-pdf</code> to a page's address.</p></html>\n")  # fmt: skip
    return {**files, "index.html": index.encode()}


def reveal() -> dict[str, str]:
    """Style and script of reveal.js, from the package that carries them.

    Raises:
        HandoutError: if it is not installed.
    """
    found = [importlib.util.find_spec(name) for name in ("sphinx_revealjs", "latex2mathml")]
    if None in found:
        raise folder.HandoutError("`build slides` needs the packages sphinx-revealjs and latex2mathml: "
                                   "python -m pip install -c constraints.txt -e '.[test]'")  # fmt: skip
    static = Path(found[0].origin).parent / "_static" / "revealjs"
    style, script = ("dist/reset.css", "dist/reveal.css"), ("dist/reveal.js", "plugin/notes/notes.js")
    return {name: "\n".join((static / part).read_text(encoding="utf-8") for part in parts)
            for name, parts in (("style", style), ("script", script))}  # fmt: skip


def page(title: str, shown: list[Slide], *, style: str, script: str) -> str:
    columns: list[list[str]] = []
    for slide in shown:
        notes = f'<aside class="notes">{slide.notes}</aside>' if slide.notes else ""
        if slide.starts == 1 or not columns:
            columns.append([])
        columns[-1].append(f'<section><div class="page">{slide.body}</div>{notes}</section>')
    style = f"{style}\n{HtmlFormatter(style='friendly').get_style_defs('.highlight')}\n{STYLE}"
    return PAGE.format(title=html.escape(title), style=style, script=script,
                       columns="\n".join(f"<section>{''.join(column)}</section>" for column in columns))  # fmt: skip


# -- cells to slides ---------------------------------------------------------------------------------------------------


def slides(notebook: NotebookNode) -> list[Slide]:
    """The slides of a student's notebook, in its order."""
    shown: list[Slide] = []
    heading = ""
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "hints" in tags:
            shown[-1].notes = markdown(cell.source)
        elif cell.cell_type == "markdown":
            for text in pages(cell.source):
                headings = re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE)
                starts = 1 if text.startswith(("# ", "## ")) else 2 if OPENS.match(text) else 0
                weight = sum(map(weigh, blocks(text)))
                _add(shown, Slide(markdown(text), weight, "" if text.startswith("#") else heading, starts))
                heading = headings[-1] if headings else heading
        elif not {"parameters", "check"} & set(tags) and not _only_prepares(cell.source):
            for body, weight in _code(cell):
                _add(shown, Slide(body, weight, heading))
    return shown


def _add(shown: list[Slide], new: Slide) -> None:
    """Put what comes next below the last slide, if it may stand there and there is room, else on one of its own."""
    if shown and not new.starts and shown[-1].weight + new.weight <= FULL:
        shown[-1].body += new.body
        shown[-1].weight += new.weight
    else:
        above = f'<p class="kicker">{inline(new.under)}</p>' if new.under else ""
        shown.append(replace(new, body=above + new.body))


def pages(text: str) -> Iterator[str]:
    """Prose cut at headings, at questions of the self-test, and where a slide is full."""
    held: list[str] = []
    weight = 0
    for block in blocks(text):
        adds = weigh(block)
        full = weight + adds > FULL and not (len(held) == 1 and held[0].startswith("#"))
        if held and (full or OPENS.match(block)):
            yield "\n\n".join(held)
            held, weight = [], 0
        held.append(block)
        weight += adds
    if held:
        yield "\n\n".join(held)


def blocks(text: str) -> Iterator[str]:
    """Paragraphs, lists, tables; what is fenced, folded or displayed mathematics stays whole."""
    held: list[str] = []
    whole = True
    for line in text.split("\n"):
        if held and whole and (not line.strip() or line.startswith("#") or held[0].startswith("#")):
            yield "\n".join(held)
            held = []
        if held or line.strip():
            held.append(line)
        block = "\n".join(held)
        whole = (block.count("```") % 2 == 0 and block.count("$$") % 2 == 0
                 and block.count("<details>") == block.count("</details>"))  # fmt: skip
    if held:
        yield "\n".join(held)


def weigh(block: str) -> int:
    """About how many characters of plain prose take as much room."""
    if block.startswith("$$"):
        return 200
    if block.startswith("<details>"):
        return 60  # only its summary shows
    return max(len(block), 70 * (block.count("\n") + 1) if block.startswith(("|", "```")) else 0)


def _only_prepares(source: str) -> bool:
    """Whether a cell only imports, or starts the lesson."""
    tree = ast.parse(source)
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) or ast.unparse(node).startswith("lesson = start(")
               for node in tree.body)  # fmt: skip


def _code(cell: NotebookNode) -> Iterator[tuple[str, int]]:
    """What a code cell shows, in parts that should each stay whole, with their weights; a figure fills a slide."""
    printed = [text for output in cell.outputs if not _is_picture(output) for text in [_shown(output)] if text]
    if cell.source.strip() != "lesson.claims()":
        printed.insert(0, highlight(cell.source, PythonLexer(), HtmlFormatter()))
    weights = [LINE * (text.count("\n") + 2) for text in printed]
    if sum(weights) <= FULL:
        printed, weights = ["".join(printed)], [sum(weights)]
    yield from zip(printed, weights, strict=True)
    yield from ((_picture(output), FULL) for output in cell.outputs if _is_picture(output))


def _is_picture(output: NotebookNode) -> bool:
    return "image/png" in output.get("data", {})


def _picture(output: NotebookNode) -> str:
    alt = html.escape(" ".join(output.data["text/plain"].split()))
    return f'<img alt="{alt}" src="data:image/png;base64,{"".join(output.data["image/png"].split())}">'


def _shown(output: NotebookNode) -> str:
    if "text/html" in output.get("data", {}):
        return output.data["text/html"]
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", gate.output_text(output)).strip("\n")
    return f'<pre class="output">{html.escape(text)}</pre>' if text else ""


# -- markdown and mathematics ------------------------------------------------------------------------------------------


class _Renderer(IPythonRenderer):
    """Jupyter's own rendering of markdown, with formulas as MathML in place of a call for MathJax."""

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def block_html(self, html: str) -> str:  # a summary of the self-test: HTML, so its formulas are still as typed
        return super().block_html(re.sub(r"(?<!\\)\$([^$]+)\$", _mathml_in_html, html))


def _mathml_in_html(match: re.Match[str]) -> str:
    return mathml(html.unescape(match[1]), "inline")


def markdown(text: str) -> str:
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(text)


def inline(text: str) -> str:
    return markdown(text).strip().removeprefix("<p>").removesuffix("</p>")


def mathml(formula: str, display: str) -> str:
    """A formula as MathML.

    Raises:
        SourceError: if something in it was not understood, which would be shown as it is typed.
    """
    from latex2mathml.converter import convert

    for command, known in MISSING.items():
        formula = formula.replace(command, known)
    formula = SIZE.sub("", APPLIED.sub(r"\\\1\\,", formula))
    try:
        made = convert(formula.strip(), display=display)
    except Exception as error:  # it has a dozen kinds of its own
        raise folder.SourceError(f"latex2mathml cannot read ${formula}$: {type(error).__name__} {error}") from error
    if left := re.findall(r"\\[A-Za-z]+", made):
        raise folder.SourceError(f"latex2mathml does not know {left[0]} in ${formula}$: "
                                   "say it otherwise, or add it to slides.MISSING")  # fmt: skip
    return ALPHABET.sub(lambda match: f"<mi>{_letter(*match.groups())}</mi>", made)


def _letter(alphabet: str, letter: str) -> str:
    name = f"{alphabet} CAPITAL {letter}".upper()  # ℝ and ℒ are older than the alphabets, so they have other names
    try:
        return unicodedata.lookup(name)
    except KeyError:
        return unicodedata.lookup(f"MATHEMATICAL {name}")
