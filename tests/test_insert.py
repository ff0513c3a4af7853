"""A lesson is put in between two others, and nothing else is touched: a toy lesson, in a copy of the whole course.

The later lessons' folders get their next number by ``git mv`` alone. Then one command stores the toy's run and writes
what is made anew, and all that looks at lessons is asked whether it is content.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACE = 3  # the number that the toy lesson gets
LEFT_OUT = {".git", ".venv", "build", "work", "cache", "__pycache__"}
LESSON = '''# ---
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
# # A toy
#
# **In this lesson you double a number.** It was {{toy-double}} in the stored run. Lesson @fine_tuning doubles nothing.

# %% tags=["parameters"]
profile = "auto"

# %%
from coursekit import start

lesson = start("toy", profile)

# %%
from coursekit import check, plots
import matplotlib.pyplot as plt

figure, axis = plt.subplots()
axis.plot([1, 2], [2, 4])
axis.set_xlabel("a number")
plots.show(figure, alt="A line from two to four.")
EXERCISES# %% [markdown]
# ## What we measured
#
# A common misconception: doubling is adding two.

# %%
lesson.record("toy-double", 2 * 21)
lesson.record("toy-half", 21)
lesson.record("toy-zero", 0)
lesson.claims()

# %% [markdown]
# ## Test yourself
#
# {{quiz}}
#
# ## Where it comes from
#
# - [Doubling](https://example.org/double)
'''
EXERCISE = '''
# %% [markdown]
# ### Exercise NAME — Twice · ★☆☆ · 2 minutes

# %% tags=["exercise"]
def NAME(number):
    """Twice the number."""
    ### BEGIN SOLUTION
    return FACTOR * number
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("NAME", NAME)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Multiply.</details>
# <details><summary>Hint 2</summary>By FACTOR.</details>

'''
NAMES = {"toy_twice": 2, "toy_thrice": 3, "toy_fourfold": 4}
ANSWERS = [
    (2, True, "A number and itself are two times that number, which is what doubling means."),
    (3, False, "That is three times the number: count how often it stands in the question."),
    (1, False, "That is the number itself, once; the question has it two times."),
]
QUESTIONS = [
    {"question": f"What is {n} and {n}?", "type": "multiple_choice", "answers": [
        {"answer": f"{times * n}", "correct": right, "feedback": why}
        for times, right, why in (*ANSWERS[n % 3:], *ANSWERS[: n % 3])
    ]} for n in range(10, 15)
]  # fmt: skip
CLAIMS = "\n".join(
    f'[[claim]]\nid = "toy-{name}"\nstatement = "The {name}"\nunit = "1"\nvalue = {value}\ntolerance = 0\n'
    'kind = "exact"\nprofiles = ["quick", "full"]\nformat = ".0f"\n'
    for name, value in (("double", 42), ("half", 21), ("zero", 0))
)
GRADERS = '"""Graders."""\n\nfrom coursekit.checks import Answer, Rng, close, grader\n' + "".join(f'''

@grader("{name}")
def {name}(answer: Answer, rng: Rng) -> None:
    number = rng.integer(1, 9)
    close(answer(number), {factor} * number, "the product")
''' for name, factor in NAMES.items())  # fmt: skip
WRONG = '"""Wrong answers."""\n\nMUTANTS = {\n' + "".join(
    f'    "{name}": {{str(n): (lambda number, n=n: {factor} * number + n, "the product is") for n in (1, 2, 3)}},\n'
    for name, factor in NAMES.items()
) + "}\n"  # fmt: skip
BLIND = '"""Blind answers."""\n\nWRONG = {\n' + "".join(
    f'    "{name}": {{str(n): (lambda number, n=n: {factor} * number + n) for n in range(1, 6)}},\n'
    for name, factor in NAMES.items()
) + "}\nRIGHT = {\n" + "".join(
    f'    "{name}": {{"a": lambda number: number * {factor}, "b": lambda number: sum([number] * {factor})}},\n'
    for name, factor in NAMES.items()
) + "}\n"  # fmt: skip
STUCK = "# If you are stuck in lesson @toy\n\n- `the product`: it is another number. *What is twice one?*\n"
TEACHING = """# @toy · A toy

As lesson @mlm_pretraining, shorter.

## Timing

Ten minutes.

## Misconceptions to expect

| what they believe | what to ask | who shows it |
|---|---|---|
ROWS
## Board sketches

A line from two to four.

## Questions for discussion

What is twice nothing?

## Exercises

EXERCISES

## If the machines are weak

They will do.
""".replace("ROWS", "".join(f"| twice is more | what is twice one | @{name} `1`, `2` |\n" for name in NAMES)).replace(
    "EXERCISES", "\n".join(f"- @{name}: a minute." for name in NAMES))  # fmt: skip
CHEATSHEET = "# @toy · Toy\n\n```python\nfrom coursekit import check\n\nprint(2 * 21)\n```\n"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The course with a toy lesson in it, stored and built."""
    root = tmp_path_factory.mktemp("inserted") / "course"
    shutil.copytree(ROOT, root, ignore=lambda _, names: LEFT_OUT & set(names), symlinks=True)
    sources = root / "notebooks" / "source"
    for folder in sorted(sources.glob("[0-9][0-9]_*"), reverse=True):
        if int(folder.name[:2]) >= PLACE:
            folder.rename(sources / f"{int(folder.name[:2]) + 1:02d}{folder.name[2:]}")
    toy = sources / f"{PLACE:02d}_toy"
    toy.mkdir()
    exercises = "".join(EXERCISE.replace("NAME", name).replace("FACTOR", str(by)) for name, by in NAMES.items())
    files = {"lesson.py": LESSON.replace("EXERCISES", exercises), "graders.py": GRADERS, "mutants.py": WRONG,
             "blind.py": BLIND, "claims.toml": CLAIMS, "quiz.json": json.dumps(QUESTIONS), "teaching.md": TEACHING,
             "cheatsheet.md": CHEATSHEET, "stuck.md": STUCK}  # fmt: skip
    for name, text in files.items():
        (toy / name).write_text(text, encoding="utf-8")
    assert asked(root, "-m", "coursekit", "build").returncode == 0  # the others take their notebooks along
    stored = asked(root, "-m", "coursekit", "notebooks", "toy")
    assert stored.returncode == 0, stored.stdout + stored.stderr
    return root


def asked(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COURSEKIT", "SSLCOURSE"))}
    return subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True, timeout=600,
                          env={**environment, "PYTHONPATH": str(root)}, encoding="utf-8")  # fmt: skip


def test_the_gate_is_content(course):
    said = asked(course, "-m", "coursekit", "gate")
    assert (said.returncode, said.stderr) == (0, "")
    lessons = len(list((ROOT / "notebooks" / "source").glob("[0-9][0-9]_*"))) + 1
    assert said.stdout == f"gate: {lessons} lessons, nothing to say\n"


def test_later_lessons_have_the_next_number_everywhere(course):
    """In titles, exercises, cross references, README and the site; and their outputs are kept."""
    from coursekit import site, source

    numbers = source.numbers(course)
    assert numbers["toy"] == f"{PLACE:02d}"
    assert numbers["toy_thrice"] == f"{PLACE}.2"
    before = source.numbers(ROOT)
    later = [name for name, number in before.items() if int(number.split(".")[0]) >= PLACE]
    assert later
    assert all(int(numbers[name].split(".")[0]) == int(before[name].split(".")[0]) + 1 for name in later)
    readme = (course / "README.md").read_text(encoding="utf-8")
    assert f"| {numbers['fine_tuning']} | [**" in readme
    notebook = json.loads((course / "notebooks" / f"{numbers['fine_tuning']}_fine_tuning.ipynb").read_text("utf-8"))
    assert "".join(notebook["cells"][0]["source"]).startswith(f"# {numbers['fine_tuning']} · ")
    assert all(cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    pages = site.pages(course)
    assert f"lessons/{PLACE:02d}_toy.ipynb" in pages
    assert f"lesson {numbers['fine_tuning']}" in pages["glossary.md"]
    left = [name for name, text in pages.items() if re.search(r"(?<!\w)@(toy|toy_twice|fine_tuning)\b", text)]
    assert left == []


def test_progress_and_doctor_know_it(course):
    table = asked(course, "-m", "coursekit", "progress", "--work", str(course / "work"))
    assert re.search(rf"^{PLACE:02d}  \[\.\.\.  \]  0 of 3  A toy .*next: {PLACE}\.1 Twice", table.stdout, re.MULTILINE)
    assert re.search(rf"^  {PLACE:02d}_toy +ready", asked(course, "-m", "sslcourse", "doctor").stdout, re.MULTILINE)


def test_every_test_of_lessons_is_green(course):
    """The graders' tests for the toy alone, since the others are the same; whatever else looks at lessons, whole."""
    tests = sorted(path for path in (course / "tests").glob("test_*.py") if path.name != Path(__file__).name)
    looking = [path for path in tests if re.search(r"course\.lessons|source\.numbers", path.read_text("utf-8"))]
    graders = [path for path in looking if path.name in ("test_exercises.py", "test_blind.py")]
    others = [str(path) for path in looking if path not in graders and "test_site" not in path.name]
    for arguments in ([*map(str, graders), "-k", "toy"], others):
        done = asked(course, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments)
        assert done.returncode == 0, done.stdout[-3000:]
