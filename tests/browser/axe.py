"""axe-core on every page of the built site, in a real browser, light and dark, as on a desktop and as on a phone.

    make a11y                       fetches axe-core from npm and calls this
    python tests/browser/axe.py build/site/html build/axe/node_modules/axe-core/axe.min.js [index.html ...]

It needs the package playwright (extra ``browser``) and a Chromium: the one that $CHROMIUM names, or the first on the
PATH. Without one it says so and ends with status 2; it never passes without having looked. Findings that axe calls
serious or critical are red, the others are counted. Pages come from files, and a request to another machine is a
finding too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import chromium

RED = ("serious", "critical")
VIEWS = (("light", 1280), ("dark", 1280), ("light", 390))  # colour scheme, width in pixels


def main(site: str, axe: str, *only: str) -> int:
    """Look at every page, or at those named; exit status 0 green, 1 red, 2 if nothing could be looked at."""
    if why := chromium.missing():
        return _cannot(why)
    from playwright.sync_api import sync_playwright

    folder = Path(site).resolve()
    every = [page for page in sorted(folder.rglob("*.html")) if "_static" not in page.parts]
    pages = [folder / name for name in only] or every
    if not pages:
        return _cannot(f"{site} holds no page: call `make site` first")
    if not Path(axe).is_file():
        return _cannot(f"{axe} is missing: call `make a11y`, which fetches axe-core from npm")
    red = minor = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.path(), args=chromium.FLAGS)
        for scheme, width in VIEWS:
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            for page in pages:
                for impact, line in _findings(context, page, Path(axe)):
                    red, minor = (red + 1, minor) if impact in RED else (red, minor + 1)
                    if impact in RED:
                        print(f"{page.relative_to(folder)} ({scheme}, {width} px): {line}", flush=True)
        browser.close()
    print(f"a11y: {len(pages)} pages, {len(VIEWS)} views each: {red} serious or critical findings, {minor} lesser ones")
    return int(red > 0)


def _cannot(why: str) -> int:
    print(f"a11y: nothing was looked at: {why}", file=sys.stderr)
    return 2


def _findings(context, page: Path, axe: Path) -> Iterator[tuple[str, str]]:
    """(impact, one line) for each thing that axe finds on a page, everything that unfolds being open."""
    tab = context.new_page()
    tab.set_default_timeout(180_000)  # milliseconds; a busy machine takes its time over the largest pages
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url) if request.url.startswith("http") else None)
    tab.goto(page.as_uri(), wait_until="load")
    tab.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => null) : null")
    tab.evaluate("document.querySelectorAll('article details').forEach(one => { one.open = true })")
    tab.evaluate("window.dispatchEvent(new Event('resize'))")  # formulas that were folded have a width only now
    tab.add_script_tag(path=str(axe))
    result = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
    tab.close()
    yield from (("critical", f"it asks another machine for {url}") for url in asked)
    for found in result["violations"]:
        for node in found["nodes"]:
            yield node["impact"] or found["impact"], f"{found['id']}: {found['help']}: {node['html'][:160]}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
