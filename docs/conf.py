"""Sphinx's settings, each with its reason. ``make site`` calls it; ``coursekit.site`` makes what it reads."""

import importlib.util
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for folded.py and chinese.py
sys.path.insert(0, str(HERE.parent))  # the package that is documented is the one beside this file

from sslcourse.commands.library_warnings import hush  # noqa: E402 the path comes first

hush()  # torchao speaks on import, and what is printed here should be Sphinx's

project = "Efficient self-supervised learning"
author = "The authors of the course"
copyright = "the authors of the course; prose CC BY 4.0, code MIT"
language = "en"  # the Chinese pages are built with -D language=zh_CN

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "folded", "chinese"]
needs_sphinx = "8.2"
highlight_language = "none"  # a block without a name is a command or a message, not Python

# -- notebooks: shown as they were run --
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # the default would fetch scripts; a stored widget is its picture
nb_merge_streams = True  # a cell that prints in a loop is one block
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3  # links between pages may name a heading
# A translated page leads to one that is there in English only; the template is relative to the front page.
myst_url_schemes = {"http": None, "https": None, "mailto": None, "en": {"url": "../{{path}}", "classes": ["english"]}}

# -- the package: signatures as they are written, since shapes are strings that nothing evaluates --
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
suppress_warnings = ["ref.python"]  # two classes may each have a property `bytes`, beside the type of that name
add_module_names = False  # the page's title is the module's name

# -- looks --
html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {
    "use_download_button": False,  # the clone has the notebooks; a page's own file has anchors that a learner needs not
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",  # the default's comments are too pale to pass axe
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}  # light or dark as the reader's system has it
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False  # build/site/source is made from the repository, which is what a reader should look at
html_show_sourcelink = False
html_show_sphinx = False
html_show_search_summary = False  # excerpts are fetched, which browsers refuse for pages from the disk

# -- mathematics without a network: MathJax from a package, copied beside the pages --
_mathjax = importlib.util.find_spec("sphinx-mathjax-offline")
if _mathjax is None:
    raise ImportError("sphinx-mathjax-offline is missing: install the extra 'site', or call `make site`")
html_static_path = [str(HERE / "_static"), str(Path(_mathjax.origin).parent / "static")]
mathjax_path = "mathjax/tex-mml-chtml.js"  # it also writes MathML, which screen readers speak
mathjax3_config = {"options": {"enableMenu": False}}  # the menu makes every formula a stop for the keyboard

# -- translation --
gettext_compact = "site"  # one catalogue
gettext_uuid = False
locale_dirs = ["../locale"]  # written by coursekit.translation


def setup(app):
    """Docstrings may show a block by indenting it, as in plain text; reStructuredText would flow its lines together."""
    app.connect("autodoc-process-docstring", lambda app, what, name, obj, options, lines: _blocks(lines), priority=900)


def _blocks(lines: list[str]) -> None:
    marked, plain = [], ""
    for before, line in zip(["", *lines], lines, strict=False):
        opens = re.match(r" {4}\S", line) and not before.strip()
        if opens and re.match(r"[^\s.:*-]", plain) and not plain.endswith("::"):
            marked += [".. code-block:: text", ""]
        marked.append(line)
        plain = line if line.strip() else plain
    lines[:] = marked
