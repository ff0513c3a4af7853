"""A directive for what unfolds, ``{folded} Summary``: in raw HTML a summary is neither translated nor searched."""

from __future__ import annotations

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


class details(nodes.General, nodes.Element):  # noqa: N801 docutils names nodes like this
    """What is folded, its summary first."""


class summary(nodes.General, nodes.TextElement):  # noqa: N801
    """The line that is always seen; a ``TextElement``, so that gettext extracts it."""


class Folded(Directive):
    """``::::{folded} Summary`` … ``::::``."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        text, messages = self.state.inline_text(self.arguments[0], self.lineno)
        head = summary(self.arguments[0], "", *text)
        head.source, head.line = self.state_machine.get_source_and_line(self.lineno)
        node = details("", head)
        self.state.nested_parse(self.content, self.content_offset, node)
        return [node, *messages]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    for node in (details, summary):
        name = node.__name__
        app.add_node(node, html=(_opens(name), _closes(name)))
    app.add_directive("folded", Folded)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _opens(name: str):
    return lambda writer, node: writer.body.append(f"<{name}>")


def _closes(name: str):
    return lambda writer, node: writer.body.append(f"</{name}>\n")
