"""The Colab door: notebooks whose first cell fetches the course and installs what Colab lacks.

Colab brings a torch that fits its GPU, and a kernel that is running already. Both must stay as they are: ``install``
holds the installed versions of what the kernel is made of, pins from ``constraints.txt`` what is not there yet, and
leaves the rest to pip, which replaces a package only when a range asks for it.

The upper half runs on Colab before anything is installed, so it imports only the standard library.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAY = ("torch", "torchvision", "torchaudio", "numpy", "ipykernel", "ipython", "jupyter-client", "jupyter-core",
        "pyzmq", "tornado", "traitlets", "google-colab")  # fmt: skip


def install() -> None:
    """Install the course's packages into the Python that calls this, which runs a notebook.

    Raises:
        CalledProcessError: if pip fails; its own words are above it.
    """
    found = importlib.metadata.distributions()
    installed = {_name(one.metadata["Name"]): one.version for one in found if one.metadata["Name"]}
    with tempfile.TemporaryDirectory() as scratch:
        held = Path(scratch) / "constraints.txt"
        held.write_text(constraints((ROOT / "constraints.txt").read_text(encoding="utf-8"), installed))
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-c", str(held), "-e", f"{ROOT}[lessons]"],
                       check=True)  # fmt: skip


def constraints(pins: str, installed: dict[str, str]) -> str:
    """What pip must keep to: versions of what stays, and our pins of what is not there."""
    stays = [f"{name}=={installed[name]}" for name in STAY if name in installed]
    lines = [line for line in pins.splitlines() if "==" in line and not line.startswith("#")]
    return "\n".join(stays + [line for line in lines if _name(line.partition("==")[0]) not in installed]) + "\n"


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -- made here, from the repository ------------------------------------------------------------------------------------

REPOSITORY = re.compile(r"https://github\.com/([\w.-]+)/([\w-][\w.-]*?)(?:\.git)?/?")
BRANCH = "colab"  # where the made notebooks are put, for Colab to open
FIRST = '''# On Colab: fetch the course, and install what Colab lacks. It takes some minutes, once a session.
import subprocess, sys
from pathlib import Path

course = Path("/content/{package}")
if not course.exists():
    subprocess.run(["git", "clone", "--quiet", "{repository}", str(course)], check=True)
    subprocess.run(["git", "-C", str(course), "checkout", "--quiet", "{commit}"], check=True)
sys.path.insert(0, str(course))  # a running kernel does not see what is installed as editable
from coursekit import colab
colab.install()'''
PAGE = """# The lessons on Colab

These notebooks were made by `{command} build colab`. Put them on the branch `{branch}` of
{repository}, and each line opens one. Its first cell installs the course; then run from the top.

| lesson | |
|---|---|
{rows}
"""


def make(root: Path, lessons: list[str], repository: str, commit: str | None = None) -> dict[str, bytes]:
    """Learners' notebooks with the cell in front, and README.md with a line for each.

    ``commit`` is what they install; default: the one that is checked out here.

    Raises:
        HandoutError: if ``repository`` is no address of GitHub, which is where Colab opens notebooks from, or if there
            is no commit to name.
    """
    from nbformat.v4 import new_code_cell

    from coursekit import build, course, folder

    place = REPOSITORY.fullmatch(repository)
    if place is None:
        raise folder.HandoutError(f"--repository {repository!r}: Colab opens notebooks from GitHub; give "
                                   "https://github.com/OWNER/NAME, without a password in it")  # fmt: skip
    owner, name = place.groups()
    repository, commit = f"https://github.com/{owner}/{name}", commit or _commit(root)
    files, rows = {}, []
    for lesson in lessons:
        notebook = folder.with_stored_outputs(root, build.build(root, lesson, "learner"))
        package = course.config(root).package or "course"
        cell = new_code_cell(FIRST.format(repository=repository, commit=commit, package=package), id="colab")
        notebook.cells.insert(0, cell)
        files[f"{lesson}.ipynb"] = build.to_bytes(notebook)
        title = notebook.cells[1].source.splitlines()[0].removeprefix("# ")
        address = f"https://colab.research.google.com/github/{owner}/{name}/blob/{BRANCH}/{lesson}.ipynb"
        rows.append(f"| {title} | [Open in Colab]({address}) |")
    page = PAGE.format(branch=BRANCH, repository=repository, rows="\n".join(rows), command=course.command(root))
    return {**files, "README.md": page.encode()}


def _commit(root: Path) -> str:
    from coursekit import folder

    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise folder.HandoutError("build colab names the commit that learners install, and this folder is no clone: "
                                   "git clone the course, and build there")  # fmt: skip
    return done.stdout.strip()
