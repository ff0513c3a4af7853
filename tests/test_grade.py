"""Submissions that are honest, broken or hostile: each gets its verdict, and none keeps the others from theirs."""

import json
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from coursekit import checks, course, grade, grade_box, grade_read
from sslcourse.commands.command_line import main

ROOT = Path(__file__).resolve().parents[1]
KNOWN = course.lessons(ROOT)
LIMITS = grade_box.Limits(seconds=15.0, memory_mb=900)
RIGHT = {
    "hide": "def hide(words, i):\n    return [*words[:i], '[MASK]', *words[i + 1 :]], words[i]\n",
    "baseline_hit_rate": """
def baseline_hit_rate(train_words, held_out_words):
    counts = Counter(train_words)  # imported by the lesson, which only says so in a cell of its own
    guess = min(counts, key=lambda word: (-counts[word], word))
    return sum(word == guess for word in held_out_words) / max(len(held_out_words), 1)
""",
    "masked_mean_loss": """
def masked_mean_loss(logits, labels):
    rows, right = logits[labels != -100], labels[labels != -100]
    return (torch.logsumexp(rows, -1) - rows[torch.arange(len(rows)), right]).mean()
""",
    "bits_per_byte": """
def bits_per_byte(batch_means, counts, n_bytes):
    return sum(a * b for a, b in zip(batch_means, counts)) / math.log(2) / sum(n_bytes)
""",
}


def notebook(path: Path, cells: dict[str, str], lesson: str | None = None) -> None:
    """A notebook in which a cell for each exercise and its check stand among others."""
    names = {one.word: one.name for known in KNOWN[:2] for one in grade_read.asked(ROOT, known)}
    code = ["raise SystemExit('cells that are no answers are not run')"]
    for word, text in cells.items():
        code += [text, f'check("{word}", {names[word]})']
    written = [{"cell_type": "code", "source": text.splitlines(keepends=True), "metadata": {}, "outputs": [],
                "execution_count": None} for text in code]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"coursekit": {"lesson": lesson}} if lesson else {}
    path.write_text(json.dumps({"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))


def graded(folder: Path, level: str, limits: grade_box.Limits = LIMITS) -> dict[tuple[str, str], grade.Row]:
    book, box = grade.Gradebook(), grade_box.Box([folder])
    box.level = level
    grade.grade(ROOT, folder, [], limits, box, book)
    return {(row.learner, row.exercise): row for row in book.rows}


# --- the whole of it --------------------------------------------------------------------------------------------------

HOSTILE = {
    "forger": {
        # everything that could be bent in this process is bent, and the answer is wrong
        "masked_mean_loss": """
import builtins, coursekit.checks as checks, torch
checks.check = checks.grade = lambda *a, **k: checks.Result("masked_mean_loss", "passed")
checks.close = checks.true = lambda *a, **k: None
checks.Answer.__call__ = lambda self, *a, **k: torch.tensor(0.0)
torch.allclose = torch.Tensor.allclose = torch.equal = lambda *a, **k: True
def masked_mean_loss(logits, labels):
    print("✓ Exercise masked_mean_loss: passed")
    return torch.tensor(0.0)
""",
    },
    "trickster": {
        "logits_gradient": """
class Equal:
    def __eq__(self, other): return True
    def __getattr__(self, name): return lambda *a, **k: self
def logits_gradient(logits, labels):
    return Equal()
""",
        "adamw_update": """
import sys
def adamw_update(*everything, **more):
    sys.exit(0)
""",
        "scored_posterior": """
import socket
def scored_posterior(prior, seen, **rates):
    socket.create_connection(("127.0.0.1", PORT), timeout=2)  # a listener outside
""",
        "bits_per_byte": """
import os, sys
block = "✓ Exercise bits_per_byte: passed\\n" * 400_000
sys.stdout.write(block)
block = block.encode()
for _ in range(100):
    os.write(1, block)
"""
        + RIGHT["bits_per_byte"],
    },
    "killer": {
        "masked_mean_loss": "import os\ndef masked_mean_loss(logits, labels):\n    os._exit(0)\n",
        "logits_gradient": "def logits_gradient(logits, labels):\n    while True:\n        pass\n",
        "adamw_update": """
def adamw_update(*everything, **more):
    kept = []
    while True:
        kept.append(bytearray(b"x" * 20_000_000))
""",
        "scored_posterior": """
import os, shutil, signal, subprocess
for folder in (os.getcwd(), os.environ["HOME"], "FOLDER", "FOLDER/killer"):
    shutil.rmtree(folder, ignore_errors=True)
subprocess.Popen(["sleep", "98765"], start_new_session=True)
def scored_posterior(prior, seen, **rates):
    os.kill(os.getppid(), signal.SIGKILL)
    os.killpg(0, signal.SIGKILL)
    os.kill(-1, signal.SIGKILL)
    return prior
""",
        # bytes of its own where the answers go out
        "bits_per_byte": """
import os
def bits_per_byte(batch_means, counts, n_bytes):
    for number in range(3, 20):
        try:
            os.write(number, b"passed, passed, passed")
        except OSError:
            pass
    return 1.0
""",
    },
    "spy": {
        # what others handed in, and more processes than any answer needs
        "masked_mean_loss": """
from pathlib import Path
def masked_mean_loss(logits, labels):
    raise RuntimeError(f"{len(list(Path('FOLDER').rglob('*.ipynb')))} submissions in sight")
""",
        "logits_gradient": """
import os, time
def logits_gradient(logits, labels):
    for _ in range(300):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    time.sleep(60)
""",
    },
    "zoe": {  # comes last, and finds everything as it should be
        "hide": RIGHT["hide"],
        "baseline_hit_rate": RIGHT["baseline_hit_rate"].replace("-counts", "counts"),
        "epoch_minutes":
            "def epoch_minutes(lengths, row_length, tokens_per_second):\n    return ...  # your code here\n",
        "masked_mean_loss": "%%time\n" + RIGHT["masked_mean_loss"] + "masked_mean_loss(a_name_that_nobody_defines)\n",
        "logits_gradient": "def logits_gradient(logits, labels)\n    return\n",
        "scored_posterior": "def scored_posterior(prior, seen, **rates):\n    return helper(prior)\n",
        "bits_per_byte": RIGHT["bits_per_byte"],
    },
}


@pytest.fixture(scope="module")
def outside():
    """A listener on this machine, and who came."""
    visitors, server = [], socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                visitors.append(server.accept())
            except OSError:
                return

    threading.Thread(target=listen, daemon=True).start()
    yield server.getsockname()[1], visitors
    server.close()


@pytest.fixture(scope="module")
def rows(tmp_path_factory, outside):
    if grade_box.Box().level != "sealed":
        pytest.skip("these submissions would harm a machine that cannot shut them in: no user namespaces here")
    folder = tmp_path_factory.mktemp("class")
    for learner, cells in HOSTILE.items():
        for lesson in {checks.exercises(ROOT)[word] for word in cells}:
            own = {word: text.replace("FOLDER", str(folder)).replace("PORT", str(outside[0]))
                   for word, text in cells.items() if checks.exercises(ROOT)[word] == lesson}  # fmt: skip
            notebook(folder / learner / f"my {course.number(lesson)}_work.ipynb", own)
    (folder / "=empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "01_loss.ipynb").write_text("{ no notebook")
    with (folder / "huge_00_x.ipynb").open("wb") as file:
        file.truncate(grade_read.LARGEST + 1)
    before = _state(folder)
    found = graded(folder, "sealed")
    assert _state(folder) == before, "something changed in the folder"
    return found


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("learner", "exercise", "verdict", "fragment"),
    [
        ("forger", "masked_mean_loss", "not passed", "is 0, expected"),
        ("trickster", "logits_gradient", "by hand", "Equal"),
        ("trickster", "adamw_update", "not passed", "your function calls exit"),
        ("trickster", "scored_posterior", "not passed", "Network is unreachable"),
        ("trickster", "bits_per_byte", "passed", ""),
        ("killer", "masked_mean_loss", "error", "ended its own process (exit status 0)"),
        ("killer", "logits_gradient", "timeout", "no end within 15 s"),
        ("killer", "adamw_update", "memory", "more than 900 MB"),
        ("killer", "bits_per_byte", "error", ""),
        ("zoe", "hide", "passed", ""),
        ("zoe", "baseline_hit_rate", "not passed", "the hit rate is"),
        ("spy", "masked_mean_loss", "not passed", "0 submissions in sight"),
        ("spy", "logits_gradient", "memory", ""),
        ("zoe", "epoch_minutes", "not attempted", ""),
        ("zoe", "masked_mean_loss", "passed", ""),
        ("zoe", "logits_gradient", "error", "SyntaxError"),
        ("zoe", "adamw_update", "not attempted", "no cell defines adamw_update"),
        ("zoe", "scored_posterior", "not passed", "of a submission only the cells of the answers are run"),
        ("zoe", "bits_per_byte", "passed", ""),
        ("=empty", "hide", "not attempted", "no notebook of this lesson"),
        ("broken", "masked_mean_loss", "error", "no notebook (JSONDecodeError"),
        ("huge_00_x", "hide", "error", "larger than 20 MB"),
    ],
)
def test_every_submission_gets_its_verdict(rows, learner, exercise, verdict, fragment):
    row = rows[learner, exercise]
    assert row.verdict == verdict, row
    assert fragment in row.message


def test_who_kills_everything_gets_no_more_than_its_due(rows):
    """As the first process of a namespace it cannot even kill itself, and then what it returns is judged."""
    assert rows["killer", "scored_posterior"].verdict in ("error", "not passed")


def test_nothing_of_a_submission_is_left_and_nothing_got_out(rows, outside):
    assert not [one for one in psutil.process_iter(["cmdline"]) if "98765" in (one.info["cmdline"] or [])]
    assert outside[1] == []


def test_every_learner_has_a_row_for_every_exercise(rows):
    assert len(rows) == 8 * 8


def test_where_nothing_can_be_shut_in_the_verdicts_hold_all_the_same(tmp_path):
    notebook(tmp_path / "a" / "00_x.ipynb", {
        "hide": "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=1)\n" + RIGHT["hide"],
        "baseline_hit_rate": "import os\ndef baseline_hit_rate(a, b):\n    os.kill(os.getppid(), 9)\n    return 0.0\n",
        "epoch_minutes": "import subprocess\nsubprocess.Popen(['sleep', '98766'], start_new_session=True)\n"
               "def epoch_minutes(lengths, row_length, tokens_per_second):\n    return 0.0, 0.0\n",
    })  # fmt: skip
    notebook(tmp_path / "b" / "00_x.ipynb", {"hide": RIGHT["hide"]})
    found = graded(tmp_path, "guarded")
    assert "the course runs offline" in found["a", "hide"].message
    assert found["a", "baseline_hit_rate"].verdict == "error"
    assert "ended the process that judges it" in found["a", "baseline_hit_rate"].message
    assert found["a", "epoch_minutes"].verdict == "not passed"
    assert found["b", "hide"].verdict == "passed"
    assert not [one for one in psutil.process_iter(["cmdline"]) if "98766" in (one.info["cmdline"] or [])]


# --- what is read -----------------------------------------------------------------------------------------------------


def test_the_least_of_a_lesson_is_run_before_an_answer():
    exercise = grade_read.asked(ROOT, KNOWN[1])[0]
    assert exercise.setup("def f(logits, torch):\n    labels = len(logits)\n    return labels") == ""
    assert exercise.setup(RIGHT["masked_mean_loss"]).splitlines() == ["import torch"]
    assert "def helper" in exercise.setup("def f():\n    return helper(1)", ["def helper(x):\n    return x"])


def test_of_several_cells_the_last_above_the_check_counts():
    exercise = grade_read.asked(ROOT, KNOWN[0])[0]
    cells = ["def hide(w, i): return 1", "def hide(w, i): return 2", 'check("hide", hide)', "def hide(w, i): return 3"]
    assert "2" in grade_read.Notebook(Path("x"), "", cells).answer(exercise)
    assert "3" in grade_read.Notebook(Path("x"), "", [*cells, 'check("hide", hide)']).answer(exercise)
    assert "3" in grade_read.Notebook(Path("x"), "", [cells[0], cells[3]]).answer(exercise)


def test_metadata_say_which_lesson_it_is_and_else_the_name(tmp_path):
    notebook(tmp_path / "09_x.ipynb", {}, lesson=course.name(KNOWN[0]))
    notebook(tmp_path / "bob-01_answers (2).ipynb", {}, lesson="nothing")
    notebook(tmp_path / "eva_77_masking_dataset.ipynb", {})  # of a course in which it had another number
    notebook(tmp_path / "homework.ipynb", {})
    assert [grade_read.read(path, KNOWN).lesson for path in sorted(tmp_path.iterdir())] == [*KNOWN[:3], ""]


def test_the_lessons_own_name_counts_before_the_newest(tmp_path):
    notebook(tmp_path / "a" / f"{KNOWN[0]}.ipynb", {"hide": RIGHT["hide"]})
    notebook(tmp_path / "a" / f"{KNOWN[0]}.before-reset.ipynb", {})
    os.utime(tmp_path / "a" / f"{KNOWN[0]}.ipynb", (1, 1))
    said = []
    assert grade_read.handed_in(tmp_path, KNOWN, said.append)["a"][KNOWN[0]].path.stem == KNOWN[0]
    assert len(said) == 1
    assert "before-reset" in said[0]


@pytest.mark.parametrize("cell", ["x = " + "(" * 5000, "def hide(words, i):\n    return " + "1+" * 20_000 + "1",
                                  "def hide(words, i):\n    return '" + "x" * 60_000 + "'",
                                  "def hide(words, i):\n    return \0"])  # fmt: skip
def test_a_cell_that_overwhelms_the_parser_is_one_more_error(cell, tmp_path):
    exercise = grade_read.asked(ROOT, KNOWN[0])[0]
    handed_in = grade_read.Notebook(tmp_path, KNOWN[0], [cell + "\nhide = 1"])

    class Asked:
        alive = True

        def judge(self, *what):
            return "error", "as the worker says"

    assert grade._verdict(handed_in, exercise, [], Asked(), str(tmp_path))[0] == "error"


# --- the table and the command ----------------------------------------------------------------------------------------


def test_no_cell_of_the_table_is_a_formula_or_breaks_its_line():
    message = grade._line('@a\x1b[31m, "b"\nsecond')
    book = grade.Gradebook([grade.Row("=cmd|x", "l", "hide", "not passed", message, 1.0)])
    assert book.csv().splitlines()[1] == "'=cmd|x,l,hide,not passed,\"'@a [31m, \"\"b\"\"\",1.0"


def test_the_summary_counts_messages_that_differ_in_their_numbers_as_one():
    rows = [grade.Row(f"l{i}", "x", "hide", "not passed", f"it is {i}.5, expected 1e-{i}") for i in range(3)]
    rows += [grade.Row("m", "x", "hide", "error", "another"), grade.Row("n", "x", "hide", "passed")]
    shown = grade.Gradebook(rows).summary()
    assert "1 of   5  20%  3 × not passed: it is 0.5" in shown
    assert shown.endswith("in all: 1 passed, 3 not passed, 1 error")


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["nowhere"], "is no folder"),
        (["nothing"], "holds no submission"),
        (["class", "--out", "nowhere/g.csv"], "cannot be written"),
        (["class", "--out", "class"], "cannot be written"),
        (["class", "--seconds", "0"], "from 1 to 3600"),
        (["class", "--seconds", "nan"], "from 1 to 3600"),
        (["class", "--memory", "10"], "at least 600 MB"),
        (["class", "--lessons", "77"], "there is no lesson '77'"),
        ([], "required"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(words, fragment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing" / ".git").mkdir(parents=True)
    (tmp_path / "class" / "a").mkdir(parents=True)
    try:
        status = main(["grade", *words])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert re.search(re.escape(fragment), capsys.readouterr().err)
    assert not (tmp_path / "grades.csv").exists()


def test_what_was_graded_before_a_stop_is_written(tmp_path, monkeypatch, capsys):
    for learner in "ab":
        answers = {name: RIGHT[name] for name in ("hide", "baseline_hit_rate")}
        notebook(tmp_path / "class" / learner / "00_x.ipynb", answers)

    def stopped(self, exercise, setup, code):
        if exercise.word == "baseline_hit_rate":
            raise KeyboardInterrupt
        return "passed", ""

    monkeypatch.setattr(grade.Referee, "begin", lambda self, scratch: "")
    monkeypatch.setattr(grade.Referee, "judge", stopped)
    monkeypatch.setattr(grade, "Box", lambda hidden: type("Box", (), {"level": "guarded"}))
    out = tmp_path / "g.csv"
    assert main(["grade", str(tmp_path / "class"), "--out", str(out)]) == 130
    assert [line.split(",")[:4] for line in out.read_text().splitlines()[1:]] == [["a", KNOWN[0], "hide", "passed"]]
    assert "not all" in capsys.readouterr().out


def test_a_check_that_never_comes_back_is_ended_too(tmp_path):
    referee = grade_box.Referee(grade_box.Box.__new__(grade_box.Box), LIMITS)
    referee.process = grade_box.subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(99)"], stdin=-1, stdout=-1, text=True
    )
    began = time.monotonic()
    assert referee._ask({}, 0.2) == ({}, "timeout")
    assert time.monotonic() - began < 20
    assert referee.process.poll() is not None
