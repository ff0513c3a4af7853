"""What `make test` runs, stage after stage: every stage runs even if an earlier one failed, and any failure is red.

    python .ci/stages.py            all of them (Windows has no make: call this)
    python .ci/stages.py lint unit  only these

It uses the Python that it is run with, so run it with the one of the course's environment. What pytest ran is counted
from its own report: a setting somewhere that leaves tests out is red, wherever it stands.
"""

import ast
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "build" / "tests"
STAGES = {
    # name: arguments to python
    "lint": ["-m", "ruff", "check", "--output-format", "concise", "."],
    "gate": ["-m", "sslcourse", "gate"],  # notebooks equal their sources; stored claims are fresh and in bounds
    "unit": [  # with the graders and their mutants, and the planted faults; two files at a time
        "-m", "pytest", "-n", "2", "--dist", "loadfile", "--durations", "20", "tests",
    ],
    "teacher": ["-m", "sslcourse", "run", "--profile", "quick"],  # solutions filled in: every check must pass
    "learner": [  # the committed notebooks: every check says "not attempted", promised outputs match
        "-m", "pytest", "--nbval-lax", "--nbval-sanitize-with", "tests/nbval_sanitise.cfg", "notebooks",
    ],
}  # fmt: skip
ENVIRONMENT = {"SSLCOURSE_PROFILE": "quick", "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONUNBUFFERED": "1"}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        print(f"no stage is called {unknown[0]!r}; there are: {', '.join(STAGES)}", file=sys.stderr)
        return 2
    results = [(name, *run(STAGES[name], name)) for name in names or STAGES]
    print("\nstage      result  seconds")
    for name, ok, seconds in results:
        print(f"{name:<10} {'passed' if ok else 'FAILED':<7} {seconds:7.0f}")
    return 0 if all(ok for _, ok, _ in results) else 1


def run(arguments: list[str], name: str) -> tuple[bool, float]:
    """One stage in a process of its own; (exit status 0, and nothing left out?, seconds)."""
    report = REPORT / f"{name}.xml"
    expected = EXPECTED.get(name)
    if expected:
        report.unlink(missing_ok=True)
        arguments = [*arguments, "--junit-xml", str(report)]
    print(f"\n== {name}: python {' '.join(arguments)}", flush=True)
    start = time.monotonic()
    status = subprocess.run([sys.executable, *arguments], cwd=ROOT, env={**os.environ, **ENVIRONMENT}).returncode
    seconds = time.monotonic() - start
    missing = left_out(Counter(expected(ROOT)), Counter(reported(report))) if expected else []
    for line in missing:
        print(f"== {name}: {line}", flush=True)
    verdict = f"FAILED with exit status {status}" if status else "FAILED, tests were left out" if missing else "passed"
    print(f"== {name}: {verdict} in {seconds:.0f} s", flush=True)
    return verdict == "passed", seconds


# --- what must have run -----------------------------------------------------------------------------------------------


def unit_tests(root: Path) -> Iterator[tuple[str, str]]:
    """(file, function) of every test that stands in ``tests/``, read from the files themselves."""
    for path in sorted((root / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield path.stem, node.name


def code_cells(root: Path) -> Iterator[tuple[str, str]]:
    """A (notebook, "cell") for every code cell of the committed notebooks."""
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code" and "".join(cell["source"]).strip():
                yield path.stem, "cell"


EXPECTED = {"unit": unit_tests, "learner": code_cells}


def reported(report: Path) -> Iterator[tuple[str, str]]:
    """The same of what pytest says that it ran, whatever came of it; a test with parameters once for each."""
    if not report.is_file():
        return
    for case in ElementTree.parse(report).iter("testcase"):
        place, name = case.get("classname", ""), case.get("name", "").partition("[")[0]
        notebook = next((part for part in place.split(".") if part[:2].isdigit()), "")
        if notebook:
            yield notebook, "cell"
        else:
            yield next((part for part in place.split(".") if part.startswith("test_")), place), name


def left_out(expected: Counter, ran: Counter) -> list[str]:
    """What should have run and did not, a line each."""
    lines = []
    for (file, name), count in sorted((expected - ran).items()):
        lines.append(f"{file}: {count} cells did not run" if name == "cell" else f"{file}::{name} did not run")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
