"""Every test runs offline and without a screen; ``tiny`` is a course of one small lesson in a scratch folder."""

import os
import shutil
import sys
from pathlib import Path

import pytest

os.environ.update({"MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"})
# Two files are tested at a time, with two threads each. A thread that has nothing to do shall not spin on a core that
# the other file needs: four files of tests took 75 s with spinning threads, and 39 s without.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
sys.path.insert(0, str(Path(__file__).parent))  # tests may import each other's helpers

from coursekit import offline

offline.guard()

LONGEST = ("test_two_hosts", "test_distributed", "test_faults", "test_grade", "test_race")


def pytest_collection_modifyitems(items):
    """The longest files come first, so that of two workers neither waits long for the other at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


ROOT = Path(__file__).resolve().parents[1]
LESSON = "01_tiny"
PROJECT = '[tool.coursekit]\npackage = "sslcourse"\n'
SOURCE = '''# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   coursekit:
#     budget:
#       quick: {minutes: 1.0, memory_mb: 1500}
#       full: {minutes: 1.0, memory_mb: 1500}
# ---

# %% [markdown]
# # Tiny
#
# In the stored run the sum was {{tiny-sum}}, and the loss {{tiny-loss}} nats.

# %% tags=["parameters"]
profile = "auto"

# %%
from coursekit import start
lesson = start("tiny", profile)

# %%
# planted faults go below this line
from coursekit import check
numbers = [1, 2, 3]
lesson.record("tiny-sum", sum(numbers))
lesson.record("tiny-count", len(numbers))
lesson.record("tiny-error", 0.0)
lesson.record("tiny-loss", lesson.choose(quick=3.25, full=2.25))
print(lesson.profile)

# %% [markdown]
# ### Exercise masked_mean_loss — The masked mean · ★☆☆ · 5 minutes

# %% tags=["exercise"]
def masked_mean_loss(logits, labels):
    """Mean loss over the positions whose label is not -100."""
    ### BEGIN SOLUTION
    rows = logits[labels != -100]
    right = rows.gather(-1, labels[labels != -100][:, None]).squeeze(-1)
    return (rows.logsumexp(-1) - right).mean()
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("masked_mean_loss", masked_mean_loss)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>First keep the scored rows.</details>

# %%
lesson.claims()
'''
CLAIMS = '''
[[claim]]
id = "tiny-sum"
statement = "Sum of three numbers"
unit = "1"
value = 6
tolerance = 0
kind = "exact"
profiles = ["quick", "full"]
format = ".0f"

[[claim]]
id = "tiny-count"
statement = "How many they are"
unit = "numbers"
value = 3
tolerance = 0
kind = "exact"
profiles = ["quick", "full"]
format = ".0f"

[[claim]]
id = "tiny-error"
statement = "Their error"
unit = "1"
max = 1e-10
kind = "exact"
profiles = ["quick", "full"]
format = ".1e"

[[claim]]
id = "tiny-loss"
statement = "A loss that only the full profile reaches"
unit = "nats"
max = 2.5
kind = "measured"
profiles = ["quick", "full"]
format = ".2f"
'''


class Course:
    """A scratch course; its lesson can be edited, run and stored."""

    lesson = LESSON

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "notebooks" / "source" / LESSON
        self.source, self.graders = self.folder / "lesson.py", self.folder / "graders.py"
        self.claims, self.ledger = self.folder / "claims.toml", self.folder / "ledger.json"
        self.notebook = root / "notebooks" / f"{LESSON}.ipynb"

    def plant(self, old: str, new: str, path: Path | None = None) -> None:
        """Replace a text that must be there."""
        path = path or self.source
        text = path.read_text()
        assert old in text, f"{old!r} is not in {path.name}, so nothing was planted"
        path.write_text(text.replace(old, new))

    def add(self, lesson: str) -> Path:
        """Another lesson, never run, in which everything has another name of one word; its folder."""
        folder, name = self.folder.with_name(lesson), lesson[3:]
        folder.mkdir()
        for part in (self.source, self.claims):
            text = part.read_text().replace("tiny", name).replace("masked_mean_loss", f"{name}_loss")
            (folder / part.name).write_text(text)
        return folder

    def run(self, profile: str = "quick", kind: str = "teacher"):
        from coursekit import run

        return run.run_one(self.root, LESSON, profile, kind, self.root / "build")

    def gate(self) -> list[str]:
        from coursekit import claims, gate

        return gate.drift(self.root) + claims.problems(self.root)


def write_course(root: Path) -> Course:
    course = Course(root)
    course.folder.mkdir(parents=True)
    graders = (ROOT / "notebooks" / "source" / "01_loss_derivation" / "graders.py").read_text(encoding="utf-8")
    for path, text in ((course.source, SOURCE), (course.claims, CLAIMS), (course.graders, graders)):
        path.write_text(text, encoding="utf-8")
    (root / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    return course


@pytest.fixture
def tiny(tmp_path: Path) -> Course:
    """A course that was never run."""
    return write_course(tmp_path / "course")


@pytest.fixture(scope="session")
def stored_course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A course with its outputs stored, once for all tests; take ``stored`` for a copy."""
    from coursekit import run

    course = write_course(tmp_path_factory.mktemp("stored") / "course")
    assert run.store(course.root, [LESSON]) == 0
    return course


@pytest.fixture
def stored(stored_course: Course, tmp_path: Path) -> Course:
    """A copy of a stored course, to plant faults in."""
    shutil.copytree(stored_course.root, tmp_path / "course")
    return Course(tmp_path / "course")
