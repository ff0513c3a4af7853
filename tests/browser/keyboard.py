"""Every control of the lessons, moved by keyboard in a real JupyterLab in a real browser.

    make keyboard                                 all lessons, quick profile; about a minute each
    python tests/browser/keyboard.py tiny 02      only these, by name or by number

A learner's copy is opened. Before anything has run, each place of controls must show its stored picture. Then all cells
run, and each control is reached and moved with keys alone: the picture beside it must become another one, and nothing
may say that there is none. It needs the package playwright (extra ``browser``) and a Chromium; without one it says so
and ends with status 2, and never passes without having looked.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import chromium

from coursekit import commands, course, lab, source

ROOT = Path(__file__).resolve().parents[2]
CALLS = "live_picture("  # in a source: a place of controls
RUN = 600  # seconds that a lesson may take in the quick profile on a busy machine
TRIES = 5  # a kernel that is said to be idle and still starts is given nothing to run
START = 180  # seconds until JupyterLab answers
MOVE = 30  # seconds until a picture has followed its control; it takes one or less on a quiet machine
BOX = ".jp-OutputArea-output .widget-vbox:has(img.widget-image)"
IDLE = ".jp-Notebook-ExecutionIndicator[data-status=idle]"
CONTROLS = "[role=slider], select, input[type=text]"


def main(*words: str) -> int:
    """Drive these lessons, or all that have controls; 0 green, 1 red, 2 if nothing could be tried."""
    lessons = commands.select(ROOT, list(words))
    counted = {lesson: source.read(ROOT, lesson).text.count(f"\n{CALLS}") for lesson in lessons}
    chosen = {lesson: count for lesson, count in counted.items() if count}
    why = chromium.missing() or ("" if chosen else f"no lesson of {' '.join(lessons)} has a control")
    if why:
        print(f"keyboard: nothing was tried: {why}", file=sys.stderr)
        return 2
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    with jupyter() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.path(), args=chromium.FLAGS)
        for name, places in chosen.items():
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            found = [f"{name}: {line}" for line in faults(page, address.format(name=name), places)]
            print("\n".join(found) or f"{name}: {places} pictures follow their controls", flush=True)
            wrong += found
            page.close()
        browser.close()
    return int(bool(wrong))


@contextmanager
def jupyter() -> Iterator[str]:
    """A JupyterLab on copies of the lessons; the address of one, with {name} for the lesson's."""
    with tempfile.TemporaryDirectory(prefix="coursekit-keyboard-") as folder:
        work = Path(folder) / "work"
        lab.prepare(ROOT / "notebooks", work)
        settings = work / ".jupyter" / "settings" / "@jupyterlab" / "notebook-extension"
        settings.mkdir(parents=True)  # every cell is drawn, also those out of sight
        (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
        token, port = secrets.token_hex(16), free_port()
        command = [*lab.command(work, port, browser=False), "--LabApp.expose_app_in_browser=True"]
        quick = {"JUPYTER_TOKEN": token, course.config(ROOT).variable("PROFILE"): "quick", "PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(command, env=lab.environment(work) | quick, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            until(lambda: answers(f"http://localhost:{port}/api?token={token}"), START, "JupyterLab does not answer")
            # a workspace for each lesson, or the lab would open those before it again
            yield f"http://localhost:{port}/lab/workspaces/{{name}}/tree/{{name}}.ipynb?token={token}"
        finally:
            server.kill()  # asked to end, it would first wait for kernels; they end with it
            server.wait()


def faults(page: Any, address: str, places: int) -> list[str]:
    """What is wrong with a lesson's controls, one line each; an empty list is green."""
    page.set_default_timeout(1000 * MOVE)
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    shown = page.locator(".jp-RenderedImage img")
    with suppress(TimeoutError):
        until(lambda: shown.count() >= places, MOVE, "no picture")
    if (stored := shown.count()) < places:
        return [f"{stored} pictures before the first run, and there are {places} places of controls"]
    page.wait_for_selector(IDLE, timeout=1000 * START)
    boxes = page.locator(BOX)
    page.set_default_timeout(1000 * RUN)
    for _ in range(TRIES):
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        if boxes.count():
            break
        time.sleep(3)
    page.set_default_timeout(1000 * MOVE)
    if boxes.count() != places:
        return [f"{boxes.count()} pictures with controls after the run in place of {places}"]
    return [line for at in range(places) for line in box_faults(page, boxes.nth(at))]


def box_faults(page: Any, box: Any) -> Iterator[str]:
    """Move each control of a box by keys, and look at its picture before and after."""
    controls = box.locator(CONTROLS)
    if not controls.count():
        yield "a picture without a control"
    for at in range(controls.count()):
        control = controls.nth(at)
        label = control.evaluate("one => one.closest('.jupyter-widgets').querySelector('label')?.textContent")
        before = picture(box)
        control.focus()
        if not control.evaluate("one => one === document.activeElement"):
            yield f"{label}: it cannot have the focus"
        for key in keys(control):
            page.keyboard.press(key)
            if follows(box, before):
                break
        else:
            yield f"{label}: no key changes the picture"
        if box.get_by_text("No picture").count():
            yield f"{label}: {box.get_by_text('No picture').first.text_content()}"


def keys(control: Any) -> list[str]:
    """What a reader would press, and what else if that shows nothing (a slider may stand at its end)."""
    kind = control.evaluate("one => one.tagName")
    if kind == "INPUT":
        control.fill("the capital of the country is a large city")
        return ["Enter"]
    return ["ArrowDown", "ArrowUp"] if kind == "SELECT" else ["ArrowRight", "ArrowLeft", "End", "Home"]


def picture(box: Any) -> str:
    """What the picture shows, as text."""
    return box.locator("img.widget-image").evaluate(
        "async one => { const blob = await (await fetch(one.src)).blob();"
        " return Array.from(new Uint8Array(await blob.arrayBuffer())).join() }"
    )


def follows(box: Any, before: str) -> bool:
    """Whether the picture becomes another one, in a while."""
    end = time.monotonic() + MOVE / 4
    while time.monotonic() < end:
        if picture(box) != before:
            return True
        time.sleep(0.2)
    return False


def until(there: Any, seconds: float, what: str) -> None:
    """Wait for something.

    Raises:
        TimeoutError: if it does not come.
    """
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} after {seconds} s")
        time.sleep(0.5)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(*sys.argv[1:]))
