"""What a built site must hold, looked at page by page: links lead somewhere, nothing is fetched, everybody can read it.

    python -m coursekit.audit build/site/html      the checks that ``make site`` ends with

What this module does not do: open a browser. ``tests/browser/axe.py`` does, and runs axe-core on every page.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# An element that fetches something when the page is opened, and the attribute that says from where.
FETCHING = {"link": "href", "object": "data"} | dict.fromkeys(
    ("script", "img", "iframe", "source", "video", "audio", "embed"), "src")  # fmt: skip
_NOT_FETCHED = {"canonical", "next", "prev", "search", "index", "author", "alternate", "help"}  # rel of <link>
_URL = re.compile(r"""url\(\s*['"]?(?:https?:)?//|@import\s+(?:url\()?['"]?(?:https?:)?//""")


@dataclass
class Page:
    """What matters of one page."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)  # (source, alt)
    headings: list[tuple[int, str]] = field(default_factory=list)  # of the article; the frame repeats them for print
    language: str = ""
    article: bool = False  # the page for searching has none


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self._heading: int | None = None
        self._in_article = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        page = self.page
        if "id" in values:
            page.ids.add(values["id"])
        if tag == "html":
            page.language = values.get("lang", "")
        if tag == "a" and "href" in values:
            page.links.append(values["href"])
        if tag == "img":
            page.pictures.append((values.get("src", ""), values.get("alt", "")))
        unfetched = tag == "link" and set(values.get("rel", "").split()) & _NOT_FETCHED
        if (source := values.get(FETCHING.get(tag, ""))) and not unfetched:
            page.fetched.append(source)
        if tag == "article":
            page.article = self._in_article = True
        if self._in_article and re.fullmatch(r"h[1-6]", tag):
            self._heading = int(tag[1])
            page.headings.append((self._heading, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if re.fullmatch(r"h[1-6]", tag):
            self._heading = None
        self._in_article &= tag != "article"

    def handle_data(self, data: str) -> None:
        if self._heading:
            level, text = self.page.headings[-1]
            self.page.headings[-1] = level, text + data


def read(html: str) -> Page:
    """One page's links, pictures, headings and what it fetches."""
    reader = _Reader()
    reader.feed(html)
    return reader.page


def problems(folder: Path) -> list[str]:
    """What is wrong with a built site, one line each; an empty list is green."""
    read_in = {path: read(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))
               if "_static" not in path.parts}  # fmt: skip
    if not read_in:
        return [f"{folder} holds no page: run `make site`"]
    found = []
    for path, page in read_in.items():
        name = path.relative_to(folder).as_posix()
        lines = [*_broken(path, page, read_in), *_elsewhere(page), *_unseen(page), *_headings(page)]
        found += [f"{name}: {line}" for line in lines]
    return found + [f"{path.relative_to(folder).as_posix()}: fetches from elsewhere: {match[0]}"
                    for path in sorted(folder.rglob("*.css"))
                    for match in _URL.finditer(path.read_text(encoding="utf-8"))]  # fmt: skip


def _broken(path: Path, page: Page, pages: dict[Path, Page]) -> list[str]:
    """Links within the site whose page or anchor does not exist."""
    found = []
    for link in dict.fromkeys([*page.links, *page.fetched]):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        anchor = unquote(parts.fragment)
        if not target.is_file():
            found.append(f"the link {link!r} leads to no file")
        elif anchor and target in pages and anchor not in pages[target].ids:
            found.append(f"the link {link!r} leads to no such place")
    return found


def _elsewhere(page: Page) -> list[str]:
    """What the browser would fetch from another machine."""
    return [f"fetches from elsewhere: {source}" for source in page.fetched if re.match(r"(?:https?:)?//", source)]


def _unseen(page: Page) -> list[str]:
    """Pictures that say nothing to whoever cannot see them, and a page whose language a reader's voice cannot know."""
    found = [f"a picture has no alt text: {source[:60]}" for source, alt in page.pictures if not alt.strip()]
    return found if page.language else [*found, "the page does not say its language"]


def _headings(page: Page) -> list[str]:
    """One h1 that comes first, and no level that is left out on the way down."""
    levels = [level for level, _ in page.headings]
    first = levels.count(1)
    found = [f"it has {first} headings of the first level"] if page.article and first != 1 else []
    pairs = zip([0, *levels], page.headings, strict=False)
    return found + [f"after level {above} comes level {below}: {' '.join(text.split())}"
                    for above, (below, text) in pairs if below > above + 1]  # fmt: skip


def main(folder: str = "build/site/html") -> int:
    """Print what is wrong; exit status 0 or 1."""
    found = problems(Path(folder))
    print("\n".join([*found, f"audit: {len(found)} problems"]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
