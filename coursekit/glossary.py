"""The glossary's terms, and a lesson's prose with the first mention of each as a link to it (on the site).

A term is linked from the lesson that explains it and from later ones. A short everyday word ("head", "scale", "rank")
means its term only where that is explained, so later lessons do not link it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from coursekit import course

SHORT = 8  # letters of a lower-case word that may be meant as in everyday English

# What is no prose: fenced blocks, formulas, code, links and images, tags, headings, directives and their options.
_NOT_PROSE = re.compile(
    r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)`*$|\$\$.*?\$\$|^#.*?$|^:::.*?$|^:\w.*?$|(?P<code>`+)[^`].*?(?P=code)"
    r"|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|<[^>\n]+>|https?://\S+",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Term:
    """One of the glossary's headings, a name beside others of the same entry, and the lesson that explains it."""

    name: str
    lesson: str  # its id

    def belongs_in(self, lesson: str) -> bool:
        everyday = self.name.isalpha() and self.name.islower() and len(self.name) <= SHORT
        return lesson == self.lesson or (lesson > self.lesson and not everyday)


def terms(root: Path) -> list[Term]:
    """Every name in ``docs/glossary.md``.

    Raises:
        ValueError: for an entry that names no lesson.
    """
    page = (root / "docs" / "glossary.md").read_text(encoding="utf-8")
    found = []
    for entry in page.split("```{glossary}\n")[1].split("\n```")[0].strip().split("\n\n"):
        names = [line for line in entry.split("\n") if not line.startswith(" ")]
        lesson = re.search(r"\(lesson\s+@(\w+)\)$", entry)
        if lesson is None:
            raise ValueError(f"docs/glossary.md: {names[0]!r} does not end with its lesson, as in (lesson @its_name)")
        found += [Term(name, course.find(root, lesson[1])) for name in names]
    return found


def linked(text: str, left: dict[str, Term]) -> str:
    """Markdown whose first mention of each term in ``left`` is a link; those found are taken out of ``left``."""
    pieces, at = [], 0
    for other in _NOT_PROSE.finditer(text):
        pieces += [_prose(text[at : other.start()], left), other[0]]
        at = other.end()
    return "".join([*pieces, _prose(text[at:], left)])


def _prose(text: str, left: dict[str, Term]) -> str:
    if not left:
        return text
    names = sorted(map(re.escape, left), key=len, reverse=True)  # "prime number" before "number"
    pattern = re.compile(rf"(?<![\w−-])({'|'.join(names)})(s?)(?![\w−-])", re.IGNORECASE)

    def link(match: re.Match[str]) -> str:
        name = next((one for one in left if one.lower() == match[1].lower()), None)
        if name is None or (name.isupper() and not match[1].isupper()):  # already linked; or no abbreviation
            return match[0]
        del left[name]
        return f"{{term}}`{match[0]} <{name}>`"

    return pattern.sub(link, text)
