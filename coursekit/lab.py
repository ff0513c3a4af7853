"""The learner's own copies of the lessons, and JupyterLab on the first of them: ``lab``.

    work/NN_name.ipynb       the learner's; made when it is missing, never touched again
    work/NN_name.new.ipynb   the lesson as it is now, beside a copy that was made from an older one
    work/.origins.json       hash of the lesson that each copy was made from
    work/.jupyter/           JupyterLab's settings and traces, so that nothing is written to the home folder

What this module does not do: merge a new lesson into the learner's copy. Both open side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path

from coursekit import course

RECORD = ".progress.json"
CHECK = re.compile(r"""check\(["'](?P<word>[\w.]+)["'], (?P<function>\w+)""")
ARROWS = {"ArrowUp": "notebook:move-cursor-up", "ArrowDown": "notebook:move-cursor-down"}
COMMAND_MODE = ".jp-Notebook.jp-mod-commandMode:not(.jp-mod-readWrite) :focus"  # where JupyterLab 4 obeys them


def prepare(notebooks: Path, work: Path) -> list[str]:
    """Copy lessons that are missing in ``work``; the lines to show, one for each thing that was done.

    A copy is never overwritten. Where the lesson has changed since its copy was made, the new one is laid beside it
    once; a learner who deletes or edits it is not asked again until the lesson changes once more.

    Raises:
        FileNotFoundError: if there is no lesson in ``notebooks``.
    """
    lessons = committed(notebooks)
    work.mkdir(parents=True, exist_ok=True)
    record = work / ".origins.json"
    origins: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    said = follow(lessons, work, origins)
    name_exercises(work)
    for lesson in lessons:
        own, now = work / lesson.name, digest(lesson)
        if not own.exists():
            copy(lesson, own)
            said.append(f"{work.name}/{own.name}: your copy of the lesson")
        elif origins.get(lesson.name, digest(own)) != now:
            beside = place_beside(own, origins)
            copy(lesson, beside)
            origins[beside.name] = now
            said.append(f"{work.name}/{beside.name}: the lesson was updated; your {own.name} stays as it is")
        origins[lesson.name] = now
    write(record, json.dumps(origins, indent=2) + "\n")
    leave_arrows_to_lists(work)
    return said


def committed(notebooks: Path) -> list[Path]:
    """The lessons to copy, in order.

    Raises:
        FileNotFoundError: if there is none.
    """
    lessons = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not lessons:
        raise FileNotFoundError(f"no lesson NN_name.ipynb in {notebooks.name}/: run `build` first")
    return lessons


def follow(lessons: list[Path], work: Path, origins: dict[str, str]) -> list[str]:
    """Give copies of lessons whose number has changed their new one; the lines to show. ``origins`` is kept in step."""
    now = {course.name(lesson.stem): course.number(lesson.stem) for lesson in lessons}
    said = []
    for own in sorted(work.glob("[0-9][0-9]_*.ipynb")):
        name, _, rest = own.name[3:].partition(".")
        renamed = own.with_name(f"{now.get(name, own.name[:2])}_{name}.{rest}")
        if renamed == own:
            continue
        if renamed.exists():
            said.append(f"{work.name}/{own.name}: that lesson is number {now[name]} now; {renamed.name} is there, too")
            continue
        own.rename(renamed)
        if own.name in origins:
            origins[renamed.name] = origins.pop(own.name)
        said.append(f"{work.name}/{renamed.name}: your {own.name}; the lesson has a new number")
    return said


def name_exercises(work: Path) -> None:
    """A record of exercises by number, as it once was kept, becomes one by name; the copies know which is which."""
    record = work / RECORD
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        known = {key: {"tries": int(one["tries"]), "passed": one["passed"]} for key, one in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none, or damaged: `progress` speaks of that
        return
    numbers = [key for key in known if re.fullmatch(r"\d+\.\d+", key)]
    if not numbers:
        return
    text = "".join(path.read_text(encoding="utf-8").replace('\\"', '"') for path in sorted(work.glob("*.ipynb")))
    meant = {match["word"]: match["function"] for match in CHECK.finditer(text)}
    for key in numbers:
        if key in meant:
            old, entry = known.pop(key), known.setdefault(meant[key], {"tries": 0, "passed": None})
            entry.update(tries=entry["tries"] + old["tries"], passed=old["passed"] or entry["passed"])
    write(record, json.dumps(known, indent=1, sort_keys=True) + "\n")


def leave_arrows_to_lists(work: Path) -> None:
    """JupyterLab moves from cell to cell by arrow keys, also where they are pressed in a list of choices, which then
    cannot be moved by keys. Here the list gets them. Settings that are there already are the learner's, and stay.
    """
    settings = work / ".jupyter" / "settings" / "@jupyterlab" / "shortcuts-extension" / "shortcuts.jupyterlab-settings"
    if settings.exists():
        return
    shortcuts = []
    for key, what in ARROWS.items():
        shortcuts.append({"command": what, "keys": [key], "selector": COMMAND_MODE, "disabled": True})
        shortcuts.append({"command": what, "keys": [key], "selector": f"{COMMAND_MODE}:not(select)"})
    settings.parent.mkdir(parents=True, exist_ok=True)
    write(settings, json.dumps({"shortcuts": shortcuts}, indent=2) + "\n")


def place_beside(own: Path, origins: dict[str, str]) -> Path:
    """``NN_name.new.ipynb``, or a numbered one while the learner has put answers into that."""
    for number in itertools.count(1):
        beside = own.with_suffix(f".new{number if number > 1 else ''}.ipynb")
        if not beside.exists() or origins.get(beside.name) == digest(beside):
            return beside
    raise AssertionError("unreachable: itertools.count does not end")


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def copy(source: Path, target: Path) -> None:
    """A whole copy or none: a call that is interrupted leaves no half notebook under the final name."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.copyfile(source, partial)  # contents only: a read-only checkout must not give a read-only copy
    partial.replace(target)


def write(target: Path, text: str) -> None:
    partial = target.with_name(f"{target.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)


def command(first: Path, port: int | None, browser: bool) -> list[str]:
    """JupyterLab, reachable from this machine only and with its token, which it makes anew at every start."""
    line = [sys.executable, "-m", "jupyterlab", str(first), "--ServerApp.ip=localhost"]
    line += [f"--ServerApp.port={port}"] if port else []
    line += [] if browser else ["--no-browser"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        line += ["--allow-root"]  # in a container the learner is often root, and Jupyter would refuse to start
    return line


def environment(work: Path) -> dict[str, str]:
    """Jupyter takes its kernel from this Python's environment and keeps its files in ``work/.jupyter``."""
    own = work.resolve() / ".jupyter"
    places = {
        "JUPYTER_CONFIG_DIR": own / "config",
        "JUPYTER_DATA_DIR": own / "data",
        "JUPYTER_RUNTIME_DIR": own / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": own / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": own / "workspaces",
        "IPYTHONDIR": own / "ipython",
    }
    return {**os.environ, **{name: str(path) for name, path in places.items()}, "JUPYTER_PREFER_ENV_PATH": "1"}


def has_browser() -> bool:
    """False in CI and on a Linux machine without a display, where a browser could only open in a terminal."""
    if os.environ.get("CI"):
        return False
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``lab``."""
    parser.add_argument("--work", type=Path, default=course.root() / "work", metavar="DIR",
                        help="folder of your copies (default: work)")
    parser.add_argument("--port", type=int, help="default: the first free one from 8888")
    parser.add_argument("--no-browser", action="store_true", help="print the address in place of opening it")
    parser.add_argument("--prepare-only", action="store_true", help="make the copies and stop")


def main(arguments: argparse.Namespace) -> int:
    """Make the copies, then become JupyterLab; returns only with ``--prepare-only`` or when something is missing."""
    try:
        for line in prepare(course.root() / "notebooks", arguments.work):
            print(line)
    except OSError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except json.JSONDecodeError:
        print(f"lab: {arguments.work.name}/.origins.json is damaged; delete it and call again", file=sys.stderr)
        return 1
    if arguments.prepare_only:
        return 0
    first = committed(course.root() / "notebooks")[0]
    line = command(arguments.work / first.name, arguments.port, has_browser() and not arguments.no_browser)
    sys.stdout.flush()
    if os.name == "nt":  # Windows has no exec that keeps the console
        import subprocess

        return subprocess.run(line, env=environment(arguments.work)).returncode
    os.execve(line[0], line, environment(arguments.work))
