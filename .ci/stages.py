"""What `make test` runs, stage after stage: every stage runs even if an earlier one failed, and any failure is red.

    python .ci/stages.py            all of them (Windows has no make: call this)
    python .ci/stages.py lint unit  only these

It uses the Python that it is run with, so run it with the one of the course's environment.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = {
    # name: arguments to python
    "lint": ["-m", "ruff", "check", "--output-format", "concise", "."],
    "gate": ["-m", "sslcourse", "gate"],  # notebooks equal their sources; stored claims are fresh and in bounds
    "unit": [  # with the graders and their mutants, and the planted faults; two files at a time
        "-m", "pytest", "-n", "2", "--dist", "loadfile", "--durations", "20",
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
    """One stage in a process of its own; (exit status 0?, seconds)."""
    print(f"\n== {name}: python {' '.join(arguments)}", flush=True)
    start = time.monotonic()
    status = subprocess.run([sys.executable, *arguments], cwd=ROOT, env={**os.environ, **ENVIRONMENT}).returncode
    seconds = time.monotonic() - start
    verdict = "passed" if status == 0 else f"FAILED with exit status {status}"
    print(f"== {name}: {verdict} in {seconds:.0f} s", flush=True)
    return status == 0, seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
