"""The command line: ``python -m sslcourse doctor | pretrain | lab | run | ...``.

Every command imports what it needs when it is called, so that ``pretrain`` and ``doctor`` work where there is no
Jupyter. What is no command of this package is one of the course that it belongs to, and handed on to the module that
makes courses, where that is installed. What this module does not do: any work.
"""

from __future__ import annotations

import argparse
import importlib.util
import runpy
import sys
from types import ModuleType

from sslcourse.commands.library_warnings import hush

COMMANDS = {
    "doctor": "what this machine can do, and what that means for each lesson",
    "pretrain": "pretrain an encoder on your own text",
}
COURSE = "coursekit"


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status: 0 green, 1 red, 2 a command line that makes no sense."""
    hush()
    argv = sys.argv[1:] if argv is None else argv
    asked = argv[0] if argv else ""
    top = argparse.ArgumentParser(prog="python -m sslcourse", description="An executable course on efficient SSL.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, says in COMMANDS.items():
        one = commands.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
        if name == asked:
            _module(name).add_arguments(one)
    if asked not in COMMANDS and importlib.util.find_spec(COURSE):
        if asked in ("-h", "--help"):
            print(top.format_help())
        return _hand_on(argv)
    arguments = top.parse_args(argv)
    return _module(arguments.command).main(arguments)


def _module(command: str) -> ModuleType:
    if command == "doctor":
        from sslcourse.commands import doctor

        return doctor
    from sslcourse.commands import pretrain as pretrain_command

    return pretrain_command


def _hand_on(argv: list[str]) -> int:
    """``python -m`` the course's module with these arguments, in this process; its exit status."""
    before, sys.argv = sys.argv, [COURSE, *argv]
    try:
        runpy.run_module(COURSE, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        sys.argv = before
    return 0
