"""What `.ci/weekly` runs: the newest version of every package, in a fresh environment, against everything we test.

Two rounds. *within*: the newest versions that the ranges in pyproject.toml allow, which is what somebody gets who
installs without constraints.txt. *beyond*: the newest there are, ranges or not, which says what a range keeps out.
Each round installs into an environment of its own and runs the stages of `make test` on a copy of what is committed.
The report goes to build/drift.md, and is printed.

    python .ci/drift.py             both rounds
    python .ci/drift.py within      one

It needs nothing but Python's own library. `TORCH_INDEX` says where torch comes from, as for make.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("lint", "gate", "unit", "teacher", "learner")
ROUNDS = ("within", "beyond")
# These compare what is installed with the pins, and are meant to be red here.
DESELECT = ("test_installed_versions_equal_the_pins", "test_nothing_that_is_needed_is_unpinned")


@dataclass
class Round:
    """What came of one round: versions that were installed, and stages that passed."""

    name: str
    installed: dict[str, str] = field(default_factory=dict)
    stages: dict[str, bool] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if not self.installed:
            return "could not be installed"
        failed = [stage for stage, passed in self.stages.items() if not passed]
        return f"failed: {', '.join(failed)}" if failed else "passed"


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in ROUNDS]:
        print(f"no round is called {unknown[0]!r}; there are: {', '.join(ROUNDS)}", file=sys.stderr)
        return 2
    rounds = [try_out(name) for name in names or ROUNDS]
    text = report(pins((ROOT / "constraints.txt").read_text(encoding="utf-8")), rounds)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "drift.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if any(one.installed for one in rounds) else 1


# -- the pieces --------------------------------------------------------------------------------------------------------


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(constraints: str) -> dict[str, str]:
    """Package -> version in constraints.txt.

    Raises:
        ValueError: for a line that pins nothing.
    """
    found = {}
    for line in constraints.splitlines():
        if line.strip() and not line.startswith("#"):
            name, equals, version = line.partition("==")
            if not equals:
                raise ValueError(f"constraints.txt: {line!r} is not a pin: write name==version")
            found[canonical(name.strip())] = version.strip()
    return found


def wanted(project: dict, name: str) -> list[str]:
    """What pip is asked for in a round: requirements with their ranges, or without."""
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["lessons"], *extras["test"]]
    return lines if name == "within" else [re.split(r"[<>=!~;\s]", line)[0] for line in lines]


def report(pinned: dict[str, str], rounds: list[Round]) -> str:
    """A verdict a round, and a table of the packages that are not what is pinned."""
    lines = ["# Drift", ""] + [f"- newest versions {one.name} the ranges: **{one.verdict}**" for one in rounds]
    rows = []
    for one in rounds:
        for name, version in sorted(one.installed.items()):
            if name in pinned and version.partition("+")[0] != pinned[name]:
                rows.append(f"| {name} | {pinned[name]} | {version} | {one.name} | {one.verdict} |")
    if rows:
        lines += ["", "| package | pinned | newest | round | with all of them |", "|---|---|---|---|---|", *rows]
    elif any(one.installed for one in rounds):
        lines += ["", "Every package is what constraints.txt pins."]
    return "\n".join(lines) + "\n"


# -- the work ----------------------------------------------------------------------------------------------------------


def try_out(name: str) -> Round:
    """Install and test, in a scratch folder that is gone afterwards."""
    done = Round(name)
    with tempfile.TemporaryDirectory() as scratch:
        copy, venv = Path(scratch) / "course", Path(scratch) / "venv"
        python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--upgrade"]
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        requirements = wanted(project, name)
        torch = [line for line in requirements if re.match(r"torch\b(?!\w)", line)]
        index = ["--index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
        steps = [
            ["git", "clone", "--quiet", str(ROOT), str(copy)],
            [sys.executable, "-m", "venv", str(venv)],
            [*pip, *torch, *index],
            [*pip, *requirements],
            [*pip, "--no-deps", "-e", str(copy)],
        ]
        if any(subprocess.run(step).returncode for step in steps):
            return done
        listed = subprocess.run([str(python), "-m", "pip", "list", "--format", "json"], capture_output=True, text=True)
        done.installed = {canonical(one["name"]): one["version"] for one in json.loads(listed.stdout)}
        deselect = " ".join(f"--deselect tests/test_environment.py::{test}" for test in DESELECT)
        environment = {**os.environ, "PYTEST_ADDOPTS": deselect}
        for stage in STAGES:
            command = [str(python), ".ci/stages.py", stage]
            done.stages[stage] = subprocess.run(command, cwd=copy, env=environment).returncode == 0
    return done


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
