"""Exit status 0 if what was installed beside this clone works: all that lessons import, and `doctor`.

.ci/run calls it in an environment made with another Python, where the tests themselves would take too long.
"""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def imported_by(source: str) -> set[str]:
    """Modules that a script imports at its top level; what it imports inside a function may be missing by choice."""
    found = {"torch", "transformers", "coursekit", "sslcourse"}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            found.add(statement.module)
    return found


def main() -> int:
    lessons = sorted(ROOT.glob("notebooks/source/*/lesson.py"))
    names = set().union(*(imported_by(lesson.read_text(encoding="utf-8")) for lesson in lessons))
    importlib.import_module("sslcourse.commands.library_warnings").hush()  # as lessons do: torchao says much
    for name in sorted(names):
        importlib.import_module(name)
    for name in ("coursekit", "sslcourse"):
        where = Path(sys.modules[name].__file__)
        assert where.is_relative_to(ROOT), f"{name} came from {where}, not from this clone"
    python = sys.version.split()[0]
    print(f"Python {python}: all {len(names)} modules that {len(lessons)} lessons name can be imported", flush=True)
    return subprocess.run([sys.executable, "-m", "sslcourse", "doctor"], cwd=ROOT, timeout=300).returncode


if __name__ == "__main__":
    sys.exit(main())
