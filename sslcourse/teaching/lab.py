"""``python -m sslcourse lab``: the learner's own copies of the lessons, and JupyterLab on the first of them.

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
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIRST = "00_start_here.ipynb"
ARROWS = {"ArrowUp": "notebook:move-cursor-up", "ArrowDown": "notebook:move-cursor-down"}
COMMAND_MODE = ".jp-Notebook.jp-mod-commandMode:not(.jp-mod-readWrite) :focus"  # where JupyterLab 4 obeys them


def prepare(notebooks: Path, work: Path) -> list[str]:
    """Copy lessons that are missing in ``work``; the lines to show, one for each thing that was done.

    A copy is never overwritten. Where the lesson has changed since its copy was made, the new one is laid beside it
    once; a learner who deletes or edits it is not asked again until the lesson changes once more.

    Raises:
        FileNotFoundError: if there is no lesson in ``notebooks``.
    """
    lessons = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not lessons:
        raise FileNotFoundError(f"no lesson NN_name.ipynb in {notebooks.name}/: run `python -m sslcourse build` first")
    work.mkdir(parents=True, exist_ok=True)
    record = work / ".origins.json"
    origins: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    said = []
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
    """The options of ``python -m sslcourse lab``."""
    parser.add_argument("--work", type=Path, default=ROOT / "work", metavar="DIR",
                        help="folder of your copies (default: work)")
    parser.add_argument("--port", type=int, help="default: the first free one from 8888")
    parser.add_argument("--no-browser", action="store_true", help="print the address in place of opening it")
    parser.add_argument("--prepare-only", action="store_true", help="make the copies and stop")


def main(arguments: argparse.Namespace) -> int:
    """Make the copies, then become JupyterLab; returns only with ``--prepare-only`` or when something is missing."""
    try:
        for line in prepare(ROOT / "notebooks", arguments.work):
            print(line)
    except OSError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except json.JSONDecodeError:
        print(f"lab: {arguments.work.name}/.origins.json is damaged; delete it and call again", file=sys.stderr)
        return 1
    if arguments.prepare_only:
        return 0
    line = command(arguments.work / FIRST, arguments.port, has_browser() and not arguments.no_browser)
    sys.stdout.flush()
    if os.name == "nt":  # Windows has no exec that keeps the console
        import subprocess

        return subprocess.run(line, env=environment(arguments.work)).returncode
    os.execve(line[0], line, environment(arguments.work))
