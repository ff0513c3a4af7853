"""Chinese for the site, by gettext: ``docs/locale/zh_CN/LC_MESSAGES/site.po`` is the one place where it stands.

An entry has the English sentence as Sphinx extracts it (``build/site/zh_CN/gettext/site.pot``) and the Chinese one, in
markdown. A measured number is written ``{{claim-id}}`` in both, so that a new run makes no entry stale. ``merge`` fills
the numbers in and writes the catalogue that Sphinx reads; ``site.untranslated`` needs no Sphinx and says which
sentences are untranslated and which entries no page holds any more.

What this module does not do: translate outputs and comments in code, which stay as they were run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po
from markdown_it import MarkdownIt

from coursekit import claims, course, source

LANGUAGE = "zh_CN"
PO = Path("docs") / "locale" / LANGUAGE / "LC_MESSAGES" / "site.po"
_LINK = re.compile(r"(\[)(.+)(\]\([^()]+\))")  # a sentence that is nothing but a link
_PICTURE = re.compile(r"!\[.*\]\([^()]+\)")  # its alt text was translated when the page was made


class Sentences:
    """English -> Chinese, with measured numbers filled in. It remembers what it was asked for."""

    def __init__(self, pairs: dict[str, str]) -> None:
        self.pairs = pairs
        self.missing: dict[str, None] = {}  # in the order asked
        self.used: set[str] = set()

    def word(self, sentence: str) -> str:
        """The Chinese of a sentence; itself, remembered as missing, where there is none."""
        if sentence in self.pairs:
            self.used.add(sentence)
            return self.pairs[sentence]
        if link := _LINK.fullmatch(sentence):
            return f"{link[1]}{self.word(link[2])}{link[3]}"
        if re.search(r"[A-Za-z]{2}", sentence) and not _PICTURE.fullmatch(sentence):
            self.missing[sentence] = None
        return sentence

    def problems(self) -> list[str]:
        """What is untranslated, and which entries nobody has asked for."""
        stale = [sentence for sentence in self.pairs if sentence not in self.used]
        return [*(f"{PO}: untranslated: {sentence}" for sentence in self.missing),
                *(f"{PO}: stale, no page says it: {sentence}" for sentence in stale)]  # fmt: skip


def load(root: Path) -> Sentences:
    """The catalogue with the values of the stored runs in it."""
    with (root / PO).open("rb") as file:
        entries = [entry for entry in read_po(file, locale=LANGUAGE) if entry.id and entry.string]
    numbers, known = source.numbers(root), claims.load_all(root)

    def filled(text: str) -> str:
        return claims.fill(course.numbered(text, numbers), root, known)

    return Sentences({filled(entry.id): filled(entry.string) for entry in entries})


def merge(sentences: Sentences, template: Path, out: Path) -> list[str]:
    """Write the catalogue for the sentences that Sphinx has extracted; what is untranslated or stale."""
    with template.open("rb") as file:
        extracted = [entry.id for entry in read_po(file) if entry.id]
    catalogue = Catalog(locale=LANGUAGE)
    for sentence in extracted:
        catalogue.add(sentence, sentences.word(sentence))
    path = out / LANGUAGE / "LC_MESSAGES" / "site.po"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_po(file, catalogue)
    return sentences.problems()


def extract(texts: Iterable[str]) -> Iterator[str]:
    """The sentences of markdown texts that gettext sees: headings, paragraphs, items, cells of tables, summaries."""
    parser = MarkdownIt().enable("table")
    for text in texts:
        # What unfolds is a fence of colons, and to plain markdown no more than lines of text.
        text = re.sub(r"(?m)^::::\{folded\} (.*)$", r"\n\1\n", text)
        text = re.sub(r"(?m)^::::$", "", text)
        yield from re.findall(r"(?m)^:caption: (.*)$", text)
        yield from (" ".join(token.content.split()) for token in parser.parse(text) if token.type == "inline")
