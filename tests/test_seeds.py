"""A number of seeds that prose or a claim states is the one that the lesson, or a measured file, has."""

import json
import re
import shutil
from pathlib import Path

import pytest

from coursekit import course, gate

ROOT = Path(__file__).resolve().parents[1]
OWN = re.compile(r"^SEEDS = range\(lesson\.choose\(quick=2, full=(\d+)\)\)$", re.MULTILINE)
SAYING = "# # Tiny\n#\n# Means over {said} seeds."


def of_seeds(root: Path, lesson: str) -> list[str]:
    return [line for line in gate.lint(root, [lesson]) if "seeds" in line]


@pytest.fixture
def five(tiny):
    """A lesson with five seeds that says so."""
    tiny.plant("# # Tiny", SAYING.format(said="five"))
    tiny.plant("print(lesson.profile)", "SEEDS = range(lesson.choose(quick=2, full=5))")
    assert of_seeds(tiny.root, tiny.lesson) == []
    return tiny


def test_seeds_that_were_cut_are_told(five):
    five.plant("full=5", "full=2")
    assert of_seeds(five.root, five.lesson) == [
        "01_tiny: 'five seeds' is said in '# Tiny Means over five seeds. In the', and in the full profile "
        "there are two",
        "01_tiny: it has two seeds in the full profile, and neither prose nor a claim says so",
    ]


@pytest.mark.parametrize(("said", "right"), [
    ("5", True), ("five other", True), ("$20$", True), ("`three`", True), ("some", True), ("twenty", False),
    ("3", False), ("Four different", False), ("two", False),
])  # fmt: skip
def test_what_is_said_beside_it(five, said, right):
    five.plant("over five seeds.", f"over five seeds. With {said} seeds it is as well.")
    assert (of_seeds(five.root, five.lesson) == []) == right


def test_a_claim_is_held_to_the_lesson_and_one_that_is_stored_to_the_file(five):
    five.plant("A loss that only", "Mean of three seeds: a loss that only", five.claims)
    [line] = of_seeds(five.root, five.lesson)
    assert "'three seeds' is said in 'Mean of three seeds: a loss" in line
    folder = five.root / "data" / "measured"
    folder.mkdir(parents=True)
    figures = {"command": "python -m benchmarks.ladder", "runs": [{"seed": seed} for seed in (0, 1, 2, 0)]}
    (folder / "ladder.json").write_text(json.dumps(figures))
    five.plant("SEEDS = ", 'FILE = "ladder.json"\nSEEDS = ')
    assert len(of_seeds(five.root, five.lesson)) == 1  # the lesson reads three seeds of a file, and means its own
    five.plant("Mean of three", "Stored: mean of three", five.claims)
    assert of_seeds(five.root, five.lesson) == []
    five.plant("over five seeds.", "over five seeds, and over three by `python -m benchmarks.ladder`: three seeds.")
    assert of_seeds(five.root, five.lesson) == []
    (folder / "other.json").write_text(json.dumps({"command": "python -m benchmarks.other", "seeds": 3}))
    (folder / "ladder.json").write_text(json.dumps(figures | {"seeds": 2}))
    five.plant('"ladder.json"', '"ladder.json", "other.json"')
    [line] = of_seeds(five.root, five.lesson)  # who names the one is not excused by the other
    assert "by `python" not in line
    assert line.endswith("there are two or five")


@pytest.mark.parametrize("lesson", [one for one in course.lessons(ROOT)
                                    if OWN.search(course.part(ROOT, one, "lesson.py").read_text("utf-8"))])  # fmt: skip
def test_no_lesson_of_this_course_can_cut_its_seeds_in_silence(lesson, tmp_path):
    """As it was planted: from five to two, with a ledger that was stamped anew."""
    shutil.copytree(course.part(ROOT, lesson, ""), course.part(tmp_path, lesson, ""))
    shutil.copytree(ROOT / "data" / "measured", tmp_path / "data" / "measured")
    assert of_seeds(tmp_path, lesson) == []
    source = course.part(tmp_path, lesson, "lesson.py")
    own = OWN.search(source.read_text("utf-8"))
    source.write_text(source.read_text("utf-8").replace(own[0], own[0].replace(f"full={own[1]}", "full=2")), "utf-8")
    assert of_seeds(tmp_path, lesson)
