"""The command line: ``python -m sslcourse doctor | lab | progress | reset | update | run | ...``.

Every command imports what it needs when it is called, so that ``pretrain`` and ``doctor`` work where there is no
Jupyter. What this module does not do: any work. Each command is one function elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sslcourse.quiet import hush

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "doctor": "what this machine can do, and what that means for each lesson",
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
    "pretrain": "pretrain an encoder on your own text",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status: 0 green, 1 red, 2 a command line that makes no sense."""
    hush()
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser(argv[0] if argv else None).parse_args(argv)
    return globals()[f"_{arguments.command}"](arguments)


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The whole command line; the options of ``command`` are loaded, those of others are not."""
    top = argparse.ArgumentParser(prog="python -m sslcourse", description="An executable course on efficient SSL.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, says in COMMANDS.items():
        one = commands.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
        if name == command:
            _add_arguments(name, one)
    return top


def _add_arguments(name: str, one: argparse.ArgumentParser) -> None:
    if name == "doctor":
        from sslcourse import doctor

        doctor.add_arguments(one)
    elif name == "lab":
        from sslcourse.teaching import lab

        lab.add_arguments(one)
    elif name == "pretrain":
        from sslcourse import pretrain_cli

        pretrain_cli.add_arguments(one)
    elif name in ("progress", "reset", "update"):
        if name != "progress":
            one.add_argument("lessons", nargs="+", metavar="NN", help="01, 1 or 01_loss_derivation")
        if name == "update":
            one.add_argument("--yes", action="store_true", help="write without asking")
        one.add_argument("--work", type=Path, default=ROOT / "work", metavar="DIR",
                         help="folder of your copies (default: work)")
    elif name == "run":
        _lessons(one)
        one.add_argument("--profile", choices=("quick", "full", "gpu"), default="full", help="default: full")
        one.add_argument("--kind", choices=("learner", "student", "teacher"), default="teacher",
                         help="teacher: every check must pass; else every check must say 'not attempted'")
        one.add_argument("--out", type=Path, default=ROOT / "build", metavar="DIR", help="default: build")
    elif name == "grade":
        from sslcourse.teaching import grade

        usual = grade.Limits()
        one.add_argument("folder", type=Path, metavar="DIR", help="holds one folder, or one notebook, for each learner")
        one.add_argument("--out", type=Path, default=Path("grades.csv"), metavar="FILE", help="default: grades.csv")
        one.add_argument("--lessons", nargs="+", default=[], metavar="NN",
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
        one.add_argument("words", nargs="*", metavar="[learner|student|teacher|slides|nbgrader|colab] [NN ...]",
                         help="what to make (default: learner), of which lessons (default: all)")
        one.add_argument("--out", type=Path, metavar="DIR",
                         help="default: notebooks for the learner's, keeping outputs that still hold; else build/KIND")
        one.add_argument("--repository", metavar="URL", help="colab: the course on GitHub, https://github.com/OWNER/NAME")
        one.add_argument("--execute", action="store_true", help="the same as the command notebooks")


def _lessons(one: argparse.ArgumentParser) -> None:
    one.add_argument("lessons", nargs="*", metavar="NN", help="01, 1 or 01_loss_derivation; default: all")


def select(root: Path, words: list[str]) -> list[str]:
    """Lesson ids from what a person types, in the order of the course.

    Raises:
        SystemExit: status 2, with one line, for a lesson that does not exist.
    """
    from sslcourse.teaching import claims

    known = claims.lessons(root)
    names = {alias: lesson for lesson in known for alias in (lesson, lesson[:2], str(int(lesson[:2])))}
    for word in words:
        if word not in names:
            print(f"there is no lesson {word!r}; known: {', '.join(known) or 'none'}", file=sys.stderr)
            raise SystemExit(2)
    return sorted({names[word] for word in words}) or known


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


def _doctor(arguments: argparse.Namespace) -> int:
    from sslcourse import doctor

    return doctor.main(arguments)


def _lab(arguments: argparse.Namespace) -> int:
    from sslcourse.teaching import lab

    return lab.main(arguments)


def _progress(arguments: argparse.Namespace) -> int:
    from sslcourse.teaching import progress

    return progress.main_progress(ROOT, arguments.work)


def _reset(arguments: argparse.Namespace) -> int:
    from sslcourse.teaching import progress

    return progress.main_reset(ROOT, arguments.work, select(ROOT, arguments.lessons))


def _update(arguments: argparse.Namespace) -> int:
    from sslcourse.teaching import progress

    return progress.main_update(ROOT, arguments.work, select(ROOT, arguments.lessons), arguments.yes)


def _pretrain(arguments: argparse.Namespace) -> int:
    from sslcourse import pretrain_cli

    return pretrain_cli.main(arguments)


def _run(arguments: argparse.Namespace) -> int:
    lessons = select(ROOT, arguments.lessons)
    from sslcourse.teaching import run

    return run.run(ROOT, lessons, arguments.profile, arguments.kind, usable(arguments.out))


def _notebooks(arguments: argparse.Namespace) -> int:
    lessons = select(ROOT, arguments.lessons)
    from sslcourse.teaching import run

    status = run.store(ROOT, lessons)
    _refresh_readme()
    return status


def _build(arguments: argparse.Namespace) -> int:
    from sslcourse.teaching import build, handout

    words = list(arguments.words)
    kind = words.pop(0) if words and words[0] in handout.KINDS else "learner"
    if words and words[0].isalpha():
        print(f"there is no kind {words[0]!r}; choose one of {', '.join(handout.KINDS)}", file=sys.stderr)
        return 2
    lessons = select(ROOT, words)
    if arguments.execute:
        return _notebooks(argparse.Namespace(lessons=lessons))
    if kind != "learner" or arguments.out or arguments.repository:
        return handout.main(ROOT, kind, lessons, arguments.out or ROOT / "build" / kind, arguments.repository)
    for lesson in lessons:
        kept = build.write_learner(ROOT, lesson)
        print(f"notebooks/{lesson}.ipynb" + ("" if kept else ": its code has no outputs yet"))
    _refresh_readme()
    return 0


def _refresh_readme() -> None:
    from sslcourse.teaching import readme

    if (ROOT / "README.md").exists():
        readme.update(ROOT)


def _grade(arguments: argparse.Namespace) -> int:
    lessons = select(ROOT, arguments.lessons) if arguments.lessons else []
    from sslcourse.teaching import grade

    limits = grade.Limits(arguments.seconds, arguments.memory)
    return grade.main(ROOT, arguments.folder, arguments.out, lessons, limits)


def _site(arguments: argparse.Namespace) -> int:
    from sslcourse.teaching import site, translation

    if arguments.part == "build":
        return site.main(ROOT, ROOT / "build" / "site")
    found = translation.problems(ROOT)
    print("\n".join([*found, f"translations: {len(found)} problems"]))
    return int(bool(found))


def _gate(arguments: argparse.Namespace) -> int:
    from sslcourse.teaching import build, readme

    found = build.gate(ROOT)
    if (ROOT / "README.md").exists():
        found += readme.problems(ROOT)
    for line in found:
        print(line, file=sys.stderr)
    lessons = len(build.claims.lessons(ROOT))
    print(f"gate: {len(found)} problems" if found else f"gate: {lessons} lessons, nothing to say")
    return int(bool(found))
