"""The commands of a course: ``python -m coursekit lab | progress | run | gate | ...``, or of the course's package.

Every command imports what it needs when it is called. What this module does not do: any work. Each command is one
function elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from coursekit import course

COMMANDS = {
    "lab": "your own copies of the lessons, and JupyterLab on the first",
    "progress": "which exercises have passed, from the record that the checks keep in your folder",
    "reset": "a fresh copy of a lesson; what you had stays beside it",
    "update": "the lesson as it is now with your answers in it; the difference is shown first",
    "run": "run lessons without a browser; notebooks and HTML under build/, a table of what came of them",
    "notebooks": "run lessons in the full profile and store outputs and ledgers in the repository",
    "build": "make notebooks, slides or assignments from the sources and the stored outputs, without running a lesson",
    "grade": "grade a class's submissions, shut in; a table for you, a summary on the screen",
    "site": "build the site under build/site, or say what its translation lacks; needs the extra 'site'",
    "gate": "compare notebooks with sources and stored claims with their bounds",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status: 0 green, 1 red, 2 a command line that makes no sense."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        program = course.command(course.root())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    top = argparse.ArgumentParser(prog=program, description="Make, prove and teach a course.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, says in COMMANDS.items():
        one = commands.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
        if argv[:1] == [name]:  # the options of the others are not loaded
            _add_arguments(name, one)
    arguments = top.parse_args(argv)
    return globals()[f"_{arguments.command}"](arguments)


def _add_arguments(name: str, one: argparse.ArgumentParser) -> None:
    root = course.root()
    if name == "lab":
        from coursekit import lab

        lab.add_arguments(one)
    elif name in ("progress", "reset", "update"):
        if name != "progress":
            one.add_argument("lessons", nargs="+", metavar="LESSON", help="its name or its number")
        if name == "update":
            one.add_argument("--yes", action="store_true", help="write without asking")
        one.add_argument("--work", type=Path, default=root / "work", metavar="DIR",
                         help="folder of your copies (default: work)")
    elif name == "run":
        _lessons(one)
        one.add_argument("--profile", choices=("quick", "full", "gpu"), default="full", help="default: full")
        one.add_argument("--kind", choices=("learner", "student", "teacher"), default="teacher",
                         help="teacher: every check must pass; else every check must say 'not attempted'")
        one.add_argument("--out", type=Path, default=root / "build", metavar="DIR", help="default: build")
    elif name == "grade":
        from coursekit import grade

        usual = grade.Limits()
        one.add_argument("folder", type=Path, metavar="DIR", help="holds one folder, or one notebook, for each learner")
        one.add_argument("--out", type=Path, default=Path("grades.csv"), metavar="FILE", help="default: grades.csv")
        one.add_argument("--lessons", nargs="+", default=[], metavar="LESSON",
                         help="default: those of which anybody handed one in")
        one.add_argument("--seconds", type=float, default=usual.seconds, metavar="S",
                         help=f"an exercise may take; default: {usual.seconds:g}")
        one.add_argument("--memory", type=int, default=usual.memory_mb, metavar="MB",
                         help=f"of a submission's processes together; default: {usual.memory_mb}")
    elif name == "notebooks":
        _lessons(one)
    elif name == "site":
        one.add_argument("part", nargs="?", choices=("build", "translations"), default="build",
                         help="translations: which sentences are untranslated or stale")
    elif name == "build":
        one.add_argument("words", nargs="*", metavar="[learner|student|teacher|slides|nbgrader|colab] [LESSON ...]",
                         help="what to make (default: learner), of which lessons (default: all)")
        one.add_argument("--out", type=Path, metavar="DIR",
                         help="default: notebooks for the learner's, keeping outputs that still hold; else build/KIND")
        one.add_argument("--repository", metavar="URL", help="colab: the course on GitHub, https://github.com/OWNER/NAME")
        one.add_argument("--execute", action="store_true", help="the same as the command notebooks")


def _lessons(one: argparse.ArgumentParser) -> None:
    one.add_argument("lessons", nargs="*", metavar="LESSON", help="its name or its number; default: all")


def select(root: Path, words: list[str]) -> list[str]:
    """Lesson ids from what a person types, in the order of the course.

    Raises:
        SystemExit: status 2, with one line, for a lesson that does not exist.
    """
    try:
        return sorted({course.find(root, word) for word in words}) or course.lessons(root)
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        raise SystemExit(2) from error


def usable(folder: Path) -> Path:
    """The folder, made if need be.

    Raises:
        SystemExit: status 2, with one line, where that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"--out {folder}: {error.strerror}; choose another folder", file=sys.stderr)
        raise SystemExit(2) from error
    return folder


def _lab(arguments: argparse.Namespace) -> int:
    from coursekit import lab

    return lab.main(arguments)


def _progress(arguments: argparse.Namespace) -> int:
    from coursekit import progress

    return progress.main_progress(course.root(), arguments.work)


def _reset(arguments: argparse.Namespace) -> int:
    from coursekit import progress

    root = course.root()
    return progress.main_reset(root, arguments.work, select(root, arguments.lessons))


def _update(arguments: argparse.Namespace) -> int:
    from coursekit import progress

    root = course.root()
    return progress.main_update(root, arguments.work, select(root, arguments.lessons), arguments.yes)


def _run(arguments: argparse.Namespace) -> int:
    root = course.root()
    lessons = select(root, arguments.lessons)
    from coursekit import run

    return run.run(root, lessons, arguments.profile, arguments.kind, usable(arguments.out))


def _notebooks(arguments: argparse.Namespace) -> int:
    root = course.root()
    lessons = select(root, arguments.lessons)
    from coursekit import run

    status = run.store(root, lessons)
    _refresh_readme(root)
    return status


def _build(arguments: argparse.Namespace) -> int:
    from coursekit import build, handout

    root, words = course.root(), list(arguments.words)
    kind = words.pop(0) if words and words[0] in handout.KINDS else "learner"
    lessons = select(root, words)
    if arguments.execute:
        return _notebooks(argparse.Namespace(lessons=lessons))
    if kind != "learner" or arguments.out or arguments.repository:
        return handout.main(root, kind, lessons, arguments.out or root / "build" / kind, arguments.repository)
    for lesson in lessons:
        kept = build.write_learner(root, lesson)
        print(f"notebooks/{lesson}.ipynb" + ("" if kept else ": its code has no outputs yet"))
    _refresh_readme(root)
    return 0


def _refresh_readme(root: Path) -> None:
    from coursekit import readme

    if (root / "README.md").exists():
        readme.update(root)


def _grade(arguments: argparse.Namespace) -> int:
    root = course.root()
    lessons = select(root, arguments.lessons) if arguments.lessons else []
    from coursekit import grade

    limits = grade.Limits(arguments.seconds, arguments.memory)
    return grade.main(root, arguments.folder, arguments.out, lessons, limits)


def _site(arguments: argparse.Namespace) -> int:
    from coursekit import site

    root = course.root()
    if arguments.part == "build":
        return site.main(root, root / "build" / "site")
    found = site.untranslated(root)
    print("\n".join([*found, f"translations: {len(found)} problems"]))
    return int(bool(found))


def _gate(arguments: argparse.Namespace) -> int:
    from coursekit import gate, readme

    root = course.root()
    found = gate.problems(root)
    try:
        found += readme.problems(root) if (root / "README.md").exists() else []
    except ValueError as error:  # README is made from the lessons: what is wrong with them may stop it
        found = found or [str(error)]
    for line in found:
        print(line, file=sys.stderr)
    lessons = len(course.lessons(root))
    print(f"gate: {len(found)} problems" if found else f"gate: {lessons} lessons, nothing to say")
    return int(bool(found))
