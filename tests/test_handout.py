"""What a teacher hands out: no solution in it, offline, in the formats it claims, never written over other files."""

import base64
import copy
import functools
import html.parser
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from traitlets.config import Config

from coursekit import assignments, build, colab, commands, course, folder, handout, quiz, source

ROOT = Path(__file__).resolve().parents[1]
LESSONS = course.lessons(ROOT)
GITHUB = "https://github.com/someone/course"


@pytest.fixture(scope="module", autouse=True)
def built_once():
    """Every kind starts from the same few notebooks, which take a quarter of a second each."""
    original = build.build
    made = functools.cache(original)

    def cached(root, *words):
        return copy.deepcopy(made(root, *words)) if root == ROOT else original(root, *words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build", cached)
        yield


def read(files, name):
    return nbformat.reads(files[name].decode(), as_version=4)


def below(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


# -- students' copies --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """The folder as a class gets it: every file in it."""
    out = tmp_path_factory.mktemp("class") / "student"
    assert handout.main(ROOT, "student", LESSONS, out) == 0
    return below(out)


def test_every_exercise_has_lines_that_can_be_searched_for():
    secret = handout.solutions(ROOT)
    sources = "".join(course.part(ROOT, lesson, "lesson.py").read_text(encoding="utf-8") for lesson in LESSONS)
    assert sorted(secret) == sorted(word for word, _ in source.CHECK.findall(sources))
    assert all(secret.values())
    lines = sum(bool(line.strip()) for match in source.SOLUTION.finditer(sources) for line in match[2].splitlines())
    assert sum(map(len, secret.values())) > 0.9 * lines, "the lessons show too much of their own solutions"


def test_no_file_of_a_students_folder_holds_a_solution(students):
    assert {f"{lesson}.ipynb" for lesson in LESSONS} < set(students)
    assert handout.leaks(ROOT, students) == []
    whole = b"".join(students.values())
    assert b"### BEGIN" not in whole
    assert b"<summary>Solution" not in whole


@pytest.mark.parametrize("kind", ["teacher", "learner"])
def test_the_search_finds_every_solution_where_there_is_one(kind):
    files = handout.make(ROOT, kind, LESSONS[:3])
    named = set(re.findall(r"exercise (\S+):", "\n".join(handout.leaks(ROOT, files))))
    assert named == {one.word for lesson in LESSONS[:3] for one in source.read(ROOT, lesson).exercises}


def test_answers_of_the_self_test_stay_folded(students):
    """A student's copy has them: one reads an answer after one has chosen it. Outside of a fold there is none."""
    for lesson in LESSONS:
        notebook = read(students, f"{lesson}.ipynb")
        folded = "\n".join(cell.source for cell in notebook.cells)
        open_ = re.sub(r"(?s)<details>.*?</details>", "", folded) + json.dumps(notebook.metadata)
        for answer in (answer for question in quiz.load(ROOT, lesson) for answer in question.answers):
            assert answer.feedback in folded
            assert answer.feedback not in open_
        assert "**Right.**" in folded
        assert "**Right.**" not in open_


LINE = "right = rows.gather(-1, labels[labels != -100][:, None]).squeeze(-1)"
PLACES = {
    "the source of a cell": lambda notebook: notebook.cells[3].update(source=f"x = 1\n    {LINE}"),
    "wrapped over two lines": lambda notebook: notebook.cells[3].update(source=LINE.replace(", ", ",\n        ")),
    "metadata": lambda notebook: notebook.metadata.update(kept={"answers": [LINE]}),
    "metadata of a cell": lambda notebook: notebook.cells[2].metadata.update(solution=LINE),
    "what a cell printed": lambda notebook: printed(notebook, nbformat.v4.new_output("stream", text=LINE)),
    "a page that a cell showed": lambda notebook: printed(
        notebook, nbformat.v4.new_output("display_data", {"text/html": LINE.replace("rows", "<b>rows</b>")
                                                          .replace("!=", "!&#61;")})),
    "a traceback": lambda notebook: printed(
        notebook, nbformat.v4.new_output("error", ename="E", evalue="", traceback=[f"----> 4 {LINE}"])),
    "an attachment": lambda notebook: notebook.cells[0].update(
        attachments={"key.txt": {"text/plain": base64.b64encode((LINE * 4).encode()).decode()}}),
}  # fmt: skip


def printed(notebook, output):
    build.code_cells(notebook)[0].outputs.append(output)


@pytest.mark.parametrize("place", PLACES)
def test_a_leak_is_found_wherever_it_stands(tiny, place):
    notebook = build.build(tiny.root, tiny.lesson, "student")
    assert handout.leaks(tiny.root, {"a.ipynb": build.to_bytes(notebook)}) == []
    PLACES[place](notebook)
    [line] = handout.leaks(tiny.root, {"a.ipynb": build.to_bytes(notebook)})
    assert line.startswith("a.ipynb: holds a line of the solution of exercise masked_mean_loss: right = ")


def test_a_leak_in_another_file_is_found(tiny):
    assert handout.leaks(tiny.root, {"notes.txt": f"by the way: {LINE}".encode()})


def test_a_build_that_would_leak_writes_nothing(tiny, tmp_path, monkeypatch, capsys):
    filled = build.build(tiny.root, tiny.lesson, "teacher")
    monkeypatch.setattr(build, "build", lambda *words: filled)
    assert handout.main(tiny.root, "student", [tiny.lesson], tmp_path / "out") == 1
    said = "nothing was written: 01_tiny.ipynb: holds a line of the solution of exercise masked_mean_loss"
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tiny.root]


# -- the folder --------------------------------------------------------------------------------------------------------


def teachers(tiny, out):
    return handout.main(tiny.root, "teacher", [tiny.lesson], out)


def test_a_folder_is_made_and_made_again(tiny, tmp_path):
    out = tmp_path / "new" / "folder"
    assert teachers(tiny, out) == 0
    before = below(out)
    assert set(before) == {"01_tiny.ipynb", folder.MADE}
    tiny.plant("# # Tiny", "# # Tiny indeed")
    assert teachers(tiny, out) == 0
    assert below(out)["01_tiny.ipynb"] != before["01_tiny.ipynb"]
    assert [path.name for path in out.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("learner", "01_tiny.ipynb"),
        ("student", "01_tiny.ipynb"),
        ("teacher", "01_tiny.ipynb"),
        ("slides", "01_tiny.html"),
        ("nbgrader", "source/01_tiny/01_tiny.ipynb"),
    ],
)
def test_the_command_makes_each_kind_of_a_lesson_by_its_name_or_its_number(tiny, tmp_path, monkeypatch, kind, made):
    monkeypatch.setenv("COURSEKIT_ROOT", str(tiny.root))
    for word in ("tiny", "1", "01_tiny"):
        assert commands.main(["build", kind, word, "--out", str(tmp_path / word)]) == 0
        assert made in below(tmp_path / word)


def a_file(out):
    out.write_text("mine")


def other_work(out):
    out.mkdir()
    (out / "thesis.txt").write_text("mine")


def a_changed_copy(out):
    (out / "01_tiny.ipynb").write_text("mine")


def a_file_beside(out):
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("mine")


def another_kind(out):
    record = json.loads((out / folder.MADE).read_text())
    (out / folder.MADE).write_text(json.dumps({**record, "kind": "student"}))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (a_file, "it is a file; choose a folder"),
        (other_work, "it holds thesis.txt, which this command did not make; choose a new"),
        (a_changed_copy, "01_tiny.ipynb, which was changed since"),
        (a_file_beside, "notes/mine.txt, which this command did not make"),
        (another_kind, "what `build student` made; choose a new"),
    ],
)
def test_a_folder_that_is_not_ours_stays_as_it_is(tiny, tmp_path, capsys, what, said):
    out = tmp_path / "out"
    if what not in (a_file, other_work):
        assert teachers(tiny, out) == 0
    what(out)
    before = out.read_text() if out.is_file() else below(out)
    assert teachers(tiny, out) == 2
    assert said in capsys.readouterr().err
    assert (out.read_text() if out.is_file() else below(out)) == before


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(self, content):
        if self.name == "two.html":
            raise OSError(28, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(folder.HandoutError, match="No space left on device; choose another folder"):
        folder.place({"one.html": b"1", "two.html": b"2"}, "slides", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "repository", "said"),
    [
        ("slide", None, "choose one of learner, student, teacher, slides, nbgrader, colab"),
        ("colab", None, "--repository"),
        ("student", GITHUB, "--repository goes with"),
        ("colab", "https://gitlab.com/someone/course", "give https://github.com/OWNER/NAME"),
        ("colab", "https://me:secret@github.com/someone/course", "without a password"),
        ("colab", 'https://github.com/someone/course"); import os', "give https://github.com"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny, tmp_path, capsys, kind, repository, said):
    assert handout.main(tiny.root, kind, [tiny.lesson], tmp_path / "out", repository) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- slides ------------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """What a page would fetch, its pictures, and how its slides are nested."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.pictures, self.depth, self.slides = [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        fetching = {"a": []}.get(tag, ["src", "href", "data", "poster", "srcset"])
        self.fetched += [given[name] for name in fetching if name in given and not given[name].startswith("data:")]
        self.fetched += re.findall(r"url\(([^)]*)\)", given.get("style") or "")
        if tag == "img":
            self.pictures.append(given)
        if tag == "section":
            self.depth += 1
            self.slides.append(self.depth)

    def handle_endtag(self, tag):
        self.depth -= tag == "section"

    def handle_data(self, data):
        if self.lasttag == "style":
            self.fetched += re.findall(r"@import[^;]*|url\((?!['\"]?data:)[^)]*\)", data)


@pytest.fixture(scope="module")
def decks():
    return {name: (content.decode(), Page(content.decode()))
            for name, content in handout.make(ROOT, "slides", LESSONS).items()}  # fmt: skip


def test_a_page_that_fetches_is_told():
    for bad in ('<script src="https://x.org/a.js">', '<link href="//x.org/a.css">', '<img src="http://x.org/a.png">',
                "<style>@import url(https://x.org/a.css);</style>", "<style>@font-face{src:url(https://x/a)}</style>",
                "<p style='background:url(http://x/a)'>"):  # fmt: skip
        assert Page(bad).fetched
    assert not Page('<a href="https://x.org">x</a><img src="data:image/png;base64,AA"><style>p{}</style>').fetched


def test_slides_fetch_nothing(decks):
    links = [f"{lesson}.html" for lesson in LESSONS]  # the index has them, in <a>
    assert {name: page.fetched for name, (_, page) in decks.items() if page.fetched} == {}
    assert set(decks) == {*links, "index.html"}
    assert all("Reveal.initialize(" in decks[link][0] and f'href="{link}"' in decks["index.html"][0] for link in links)


@pytest.mark.parametrize("lesson", LESSONS)
def test_slides_show_the_lesson(decks, lesson):
    text, page = decks[f"{lesson}.html"]
    stored = folder.with_stored_outputs(ROOT, build.build(ROOT, lesson, "student"))
    figures = [output for cell in build.code_cells(stored) for output in cell.outputs
               if "image/png" in output.get("data", {})]  # fmt: skip
    assert len(page.pictures) == len(figures)
    assert all(picture["alt"].strip() for picture in page.pictures)
    assert set(page.slides) == {1, 2}
    assert page.depth == 0
    exercises, numbers = source.read(ROOT, lesson).exercises, source.numbers(ROOT)
    assert text.count("your code here") == len(exercises) > 0
    assert all(f"<h3>Exercise {numbers[one.word]} — " in text for one in exercises)
    assert f"<h1>{course.number(lesson)} · " in text
    shown = re.sub(r"(?s)<(pre|code)\b.*?</\1>", "", text.partition('class="slides"')[2].partition("<script>")[0])
    assert not re.findall(r"\$[^$<>\n]*\\[a-z]+[^$<>\n]*\$", shown), "a formula stands as it was typed"


class TestSlides:
    @pytest.fixture(autouse=True)
    def _module(self):
        from coursekit import slides

        self.slides = slides

    def test_headings_and_questions_open_a_slide_and_what_is_long_goes_on(self):
        long = "\n\n".join(["word " * 80] * 5)
        cut = list(self.slides.pages(f"# A\n\none\n## B\n\n{long}\n\n**1.** What?\n\n<details>x\n\ny</details>"))
        assert [page.split()[0] for page in cut] == ["#", "##", "word", "word", "**1.**"]
        assert cut[-1].endswith("y</details>")
        assert "".join("".join(cut).split()) == "".join(f"#Aone##B{long}**1.**What?<details>x\n\ny</details>".split())

    def test_a_fence_and_a_formula_are_not_cut(self):
        fenced = "```python\nx = 1\n\n\n# no heading\n```"
        assert list(self.slides.blocks(f"a\n\n{fenced}\n\n$$\nx\n\ny\n$$\n\nb")) == ["a", fenced, "$$\nx\n\ny\n$$", "b"]

    def test_formulas_become_mathml(self):
        made = self.slides.markdown("so $x_i \\in \\mathbb R$\n\n<details><summary>a) $n < m$</summary>b</details>")
        assert made.count("<math") == 2
        assert "<mi>ℝ</mi>" in made
        assert "$" not in made

    def test_a_formula_that_is_not_understood_is_said(self):
        with pytest.raises(folder.SourceError, match=r"does not know \\nosuch"):
            self.slides.mathml(r"\nosuch x", "inline")

    def test_hints_are_for_the_speaker(self, tiny):
        shown = self.slides.slides(build.build(tiny.root, tiny.lesson, "student"))
        [exercise] = [slide for slide in shown if "Exercise 1.1" in slide.body]
        assert "your code here" in exercise.body
        assert "Hint 1" in exercise.notes
        assert not any("Hint 1" in slide.body or "check(" in slide.body for slide in shown)

    def test_a_package_that_is_missing_is_named(self, tiny, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert handout.main(tiny.root, "slides", [tiny.lesson], tmp_path / "out") == 2
        assert "sphinx-revealjs" in capsys.readouterr().err


# -- nbgrader ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", LESSONS)
def test_an_assignment_keeps_to_nbgraders_format(lesson):
    notebook = assignments.assignment(ROOT, lesson)
    nbformat.validate(notebook)
    roles = [(cell, cell.metadata.nbgrader) for cell in notebook.cells if "nbgrader" in cell.metadata]
    ids = [role.grade_id for _, role in roles]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[\w-]+", name) for name in ids)
    solutions, tests = roles[::2], roles[1::2]
    assert len(solutions) == len(tests) == len(source.read(ROOT, lesson).exercises)
    assert {(role.schema_version, role.task) for _, role in roles} == {(3, False)}
    for cell, role in solutions:
        assert (role.solution, role.grade, role.locked) == (True, False, False)
        assert "points" not in role
        assert len(source.SOLUTION.findall(cell.source)) == 1
    for cell, role in tests:
        assert (role.solution, role.grade, role.locked) == (False, True, True)
        assert 1 <= role.points <= 3
        assert cell.source.endswith('assert verdict.status == "passed", verdict')
    marked = [cell for cell in notebook.cells if "### BEGIN SOLUTION" in cell.source]
    assert marked == [cell for cell, _ in solutions]


def test_nbgraders_folder_and_settings(tiny, monkeypatch):
    files = assignments.make(tiny.root, [tiny.lesson])
    assert set(files) == {"nbgrader_config.py", "source/01_tiny/01_tiny.ipynb"}
    monkeypatch.setenv("SSLCOURSE_PROFILE", "quick")  # as the settings do, and undone afterwards
    assert "01_tiny" in files["nbgrader_config.py"].decode()
    c = Config()
    exec(files["nbgrader_config.py"].decode(), {"get_config": lambda: c})
    assert c.ClearSolutions.code_stub == {"python": source.STUB}, "checks know an untouched stub by what it returns"


@pytest.mark.skipif(importlib.util.find_spec("nbgrader") is None, reason="nbgrader, 100 packages, is not installed")
def test_nbgrader_itself_takes_it(tiny, tmp_path):
    """It makes the release, fails its stub, passes the filled-in copy, and gives each its points."""
    from nbgrader.api import Gradebook

    course = tmp_path / "nbgrader"
    assert handout.main(tiny.root, "nbgrader", [tiny.lesson], course) == 0
    filled = course / "source" / tiny.lesson / f"{tiny.lesson}.ipynb"
    release = course / "release" / tiny.lesson / f"{tiny.lesson}.ipynb"
    said = nbgrader(tiny.root, course, "generate_assignment", tiny.lesson, "--create")
    assert release.is_file(), said
    assert handout.leaks(tiny.root, {"release": release.read_bytes()}) == []
    stubs = [cell.source for cell in build.code_cells(build.build(tiny.root, tiny.lesson, "student"))]
    released = [cell.source for cell in build.code_cells(nbformat.read(release, as_version=4))]
    assert [one for one in stubs if "your code here" in one] == [one for one in released if "your code here" in one]
    said = nbgrader(tiny.root, course, "validate", str(release))
    assert "FAILED ON 1 CELL" in said, said
    assert "not attempted yet" in said, said
    said = nbgrader(tiny.root, course, "validate", str(filled))
    assert "Success" in said, said
    for student, answer in (("ada", release), ("bob", filled)):
        target = course / "submitted" / student / tiny.lesson / f"{tiny.lesson}.ipynb"
        target.parent.mkdir(parents=True)
        target.write_bytes(answer.read_bytes())
    said = nbgrader(tiny.root, course, "autograde", tiny.lesson, "--create")
    with Gradebook(f"sqlite:///{course}/gradebook.db") as book:
        scores = {one.student.id: (one.score, one.max_score) for one in book.assignment_submissions(tiny.lesson)}
    assert scores == {"ada": (0.0, 1.0), "bob": (1.0, 1.0)}, said


def nbgrader(root, course, *words):
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it calls alembic by name
    environment = {**os.environ, "PATH": scripts, "PYTHONPATH": str(ROOT), "COURSEKIT_ROOT": str(root),
                   "JUPYTER_PREFER_ENV_PATH": "1"}  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "nbgrader", *words], cwd=course, env=environment,
                          capture_output=True, text=True, timeout=600)  # fmt: skip
    return done.stdout + done.stderr


# -- Colab -------------------------------------------------------------------------------------------------------------


def test_a_notebook_for_colab_begins_with_its_installation(tiny):
    files = colab.make(tiny.root, [tiny.lesson], f"{GITHUB}.git", commit="0123abc")
    notebook = read(files, "01_tiny.ipynb")
    first = notebook.cells[0]
    compile(first.source, "cell", "exec")
    assert f'"{GITHUB}"' in first.source
    assert '"checkout", "--quiet", "0123abc"' in first.source
    assert [cell.source for cell in notebook.cells[1:]] == [
        cell.source for cell in build.build(tiny.root, tiny.lesson, "learner").cells]  # fmt: skip
    assert "(https://colab.research.google.com/github/someone/course/blob/colab/01_tiny.ipynb)" in \
        files["README.md"].decode()  # fmt: skip


def test_outside_a_clone_there_is_no_commit_to_install(tiny):
    with pytest.raises(folder.HandoutError, match="git clone"):
        colab.make(tiny.root, [tiny.lesson], GITHUB)


def test_colabs_torch_and_kernel_stay_and_what_is_missing_is_pinned():
    pins = "# the lock\nipykernel==7.4.0\npandas==3.1.1\npeft==0.21.2\ntorch==2.13.0\n"
    held = colab.constraints(pins, {"torch": "2.14.0+cu130", "ipykernel": "6.17.1", "pandas": "2.2.2"}).splitlines()
    assert held == ["torch==2.14.0+cu130", "ipykernel==6.17.1", "peft==0.21.2"]


def test_the_half_that_runs_on_colab_needs_only_pythons_library():
    code = "import sys; from coursekit import colab; print({name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "coursekit" in done.stdout
