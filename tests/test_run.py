"""The runner's table, budgets and stored notebooks, and the command line in front of it."""

import json
import os
import subprocess
import sys

import pytest

from coursekit import build, claims, commands, gate, run
from coursekit.run import Outcome


def test_run_prints_a_table_and_leaves_notebooks_and_pages(tiny, capsys):
    assert run.run(tiny.root, [tiny.lesson], "quick") == 0
    said = capsys.readouterr()
    [head, row, note] = said.out.strip().splitlines()
    assert head.split("  ")[0] == "lesson"
    assert all(part in row for part in (tiny.lesson, "passed", "of 1.0", "of 1500 MB", "3/4", "1/1"))
    assert "not reached on this machine, because the quick profile" in note
    assert "lesson" in said.err  # the progress bar
    page = (tiny.root / "build" / "quick" / f"{tiny.lesson}.html").read_text()
    assert "masked_mean_loss" in page
    assert (tiny.root / "build" / "quick" / f"{tiny.lesson}.ipynb").exists()


def test_a_failure_is_shown_with_the_cells_source_and_the_tracebacks_end(tiny, capsys):
    tiny.plant("numbers = [1, 2, 3]", "numbers = [1, 2, three]")
    assert run.run(tiny.root, [tiny.lesson], "quick") == 1
    said = capsys.readouterr().out
    for part in ("FAILED", "a cell raised NameError", "name 'three' is not defined", "from coursekit import check"):
        assert part in said
    assert "\x1b" not in said


def test_what_is_stored(stored):
    """The learner's notebook in full: outputs there, parameters not injected, ledger fresh, no trace of the tools."""
    notebook = build.nbformat.read(stored.notebook, as_version=4)
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)
    assert gate.outputs_of_checks(notebook) == {"masked_mean_loss": "– Exercise masked_mean_loss: not attempted yet"}
    ledger = claims.stored(stored.root, stored.lesson)
    assert (ledger.lesson, ledger.profile) == ("tiny", "full")
    assert ledger.values == {"tiny-sum": 6.0, "tiny-count": 3.0, "tiny-error": 0.0, "tiny-loss": 2.25}
    assert claims.stale.why(ledger.definitions, claims.definitions(stored.root, stored.lesson)) == []
    assert {"the lesson's cells", "start"} <= ledger.definitions.keys()
    assert ledger.machine["torch"]
    assert ledger.command == "python -m sslcourse notebooks tiny"
    assert ledger.minutes > 0
    assert str(stored.root.parent) not in stored.notebook.read_text()


def test_a_stored_table_shows_this_run_only(stored):
    notebook = build.nbformat.read(stored.notebook, as_version=4)
    [output] = build.code_cells(notebook)[-1].outputs
    assert {"text/plain", "text/html"} == set(output.data)
    assert "stored run" not in output.data["text/plain"].lower()
    assert "✓ holds" in output.data["text/plain"]


def test_a_lesson_that_raises_leaves_what_was_stored(stored, capsys):
    before = stored.ledger.read_text()
    stored.plant("numbers = [1, 2, 3]", "numbers = [1, 2, three]")
    outcome = run.store_one(stored.root, stored.lesson, "full")
    assert outcome.red
    assert stored.ledger.read_text() == before


@pytest.mark.parametrize(
    ("minutes", "memory", "red", "said"),
    [
        (0.9, 900, False, ""),
        (1.5, 900, False, "over its minutes"),
        (0.9, 1001, True, "over its memory budget: 1001 MB of 1000 MB"),
    ],
)
def test_budgets(minutes, memory, red, said):
    outcome = Outcome("01_tiny", budget_minutes=1.0, budget_mb=1000, minutes=minutes, peak_mb=memory)
    run.judge_budget(outcome)
    assert outcome.red == red
    assert said in " ".join(outcome.problems + outcome.notes)


def test_the_memory_of_children_is_counted_and_of_earlier_ones_is_not():
    hold = "import time; held = bytearray(200_000_000); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as earlier:
        earlier.stdout.readline()
        with run.Kernel() as kernel:
            again = hold.replace("200_000", "100_000").replace("time.sleep(60)", "time.sleep(0.8)")
            subprocess.run([sys.executable, "-c", again], check=True, stdout=subprocess.DEVNULL)
        earlier.kill()
    assert 100 < kernel.peak_mb < 200


def test_the_kernels_environment_is_undone(monkeypatch):
    monkeypatch.setenv("COURSEKIT_CHECKS", "strict")
    with run.environment(COURSEKIT_CHECKS=None, COURSEKIT_NEW="1"):
        assert "COURSEKIT_CHECKS" not in os.environ
        assert os.environ["COURSEKIT_NEW"] == "1"
    assert os.environ["COURSEKIT_CHECKS"] == "strict"
    assert "COURSEKIT_NEW" not in os.environ


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "chosen"), [([], ["01_tiny"]), (["01"], ["01_tiny"]), (["1"], ["01_tiny"]),
                                               (["01_tiny", "tiny", "1"], ["01_tiny"])])  # fmt: skip
def test_how_lessons_are_named(tiny, words, chosen):
    assert commands.select(tiny.root, words) == chosen


def test_an_unknown_lesson_is_one_line_and_status_2(tiny, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.select(tiny.root, ["77"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "there is no lesson '77'. Known: 01_tiny\n"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["run", "--profile", "fast"], ["run", "77"]])
def test_a_command_line_without_sense_is_status_2(argv):
    with pytest.raises(SystemExit) as stop:
        commands.main(argv)
    assert stop.value.code == 2


def test_build_and_gate(tiny, monkeypatch, capsys):
    monkeypatch.setenv("COURSEKIT_ROOT", str(tiny.root))
    assert commands.main(["build", "student", "01", "--out", str(tiny.root / "class")]) == 0
    student = json.loads((tiny.root / "class" / "01_tiny.ipynb").read_text())
    assert student["metadata"]["coursekit"]["kind"] == "student"
    assert commands.main(["build"]) == 0
    assert tiny.notebook.exists()
    assert commands.main(["gate"]) == 1
    assert "no stored run" in capsys.readouterr().err


def test_an_unknown_key_of_the_course_is_one_line_and_status_2(tiny, monkeypatch, capsys):
    tiny.plant("package =", "pakage =", tiny.root / "pyproject.toml")
    monkeypatch.setenv("COURSEKIT_ROOT", str(tiny.root))
    assert commands.main(["gate"]) == 2
    assert "[tool.coursekit] has 'pakage'" in capsys.readouterr().err


def test_the_gate_says_that_two_have_one_name_and_nothing_falls_over(tiny, monkeypatch, capsys):
    monkeypatch.setenv("COURSEKIT_ROOT", str(tiny.root))
    (tiny.root / "README.md").write_text("<!-- @tiny -->01<!-- /@ -->")
    tiny.add("02_other")
    tiny.plant("other_loss", "tiny", tiny.folder.with_name("02_other") / "lesson.py")
    assert commands.main(["gate"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("02_other: 'tiny' is already 01")


def test_pretrain_and_doctor_need_no_jupyter():
    """On a bare node the command line imports neither Jupyter nor the teaching side."""
    code = ("import sys, contextlib, io; from sslcourse.commands import command_line;\n"
            "for command in ('pretrain', 'doctor'):\n"
            "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:\n"
            "        command_line.main([command, '--help'])\n"
            "    assert f'sslcourse {command}' in said.getvalue()\n"
            "bad = [m for m in sys.modules if m.split('.')[0] in"
            " ('jupytext', 'papermill', 'nbformat', 'nbclient', 'IPython', 'matplotlib', 'datasets')"
            " or m.startswith('coursekit')]; sys.exit(str(bad) if bad else 0)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("minutes", "cpu", "slowdown", "red"),
    [
        (4.1, 3.9, 1.0, False),  # it waited for a busy machine
        (1.5, 4.1, 1.0, True),  # both cores and more of them, all the time
        (30.0, 3.9, 1.0, False),
        (9.0, 9.0, 3.0, False),  # a machine a third as fast needs three times the processor time
        (9.0, 12.1, 3.0, True),
    ],
)
def test_time_is_red_for_work_and_not_for_waiting(minutes, cpu, slowdown, red):
    outcome = Outcome("tiny", 1.0, 1500, minutes=minutes, cpu_minutes=cpu, slowdown=slowdown)
    run.judge_budget(outcome)
    assert outcome.red == red
    assert outcome.notes or red


BURN = "import time\nwhile time.process_time() < {}: pass"


def worked(seconds: float, beside: int) -> Outcome:
    """What is measured of a process that computes for so long, with so many others that do nothing else."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
    try:
        with run.Kernel() as kernel:
            subprocess.run([sys.executable, "-c", BURN.format(seconds) + "\ntime.sleep(0.5)"], check=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    return Outcome("tiny", 0.5 / 60, 1500, minutes=kernel.minutes, cpu_minutes=kernel.cpu_minutes,
                   slowdown=kernel.slowdown)  # fmt: skip


def test_a_busy_machine_warns_and_too_much_work_is_red():
    """A budget of half a second for two cores: one second of work is right, and takes longer beside eight others."""
    busy = worked(1.0, beside=8)
    assert busy.cpu_minutes * 60 == pytest.approx(1.0, abs=0.3)  # a start, and what the last look missed
    assert busy.minutes * 60 > 1.5  # or the machine was not busy
    run.judge_budget(busy)
    assert (busy.red, len(busy.notes)) == (False, 1)
    much = worked(8.0, beside=0)  # four times as much, on a machine three times as slow still too much
    much.slowdown = min(much.slowdown, 3.0)
    run.judge_budget(much)
    assert much.red
    assert "over 2 times its minutes" in much.problems[0]


def test_a_slower_machine_is_measured_in_the_same_run(monkeypatch):
    def looked() -> float:
        with run.Kernel() as kernel:
            pass
        return kernel.slowdown

    monkeypatch.setattr(run, "FIXED_WORK", run.fixed_work())
    here = looked()
    work = run.fixed_work
    monkeypatch.setattr(run, "fixed_work", lambda: sum(work() for _ in range(10)))
    assert looked() > 3 * here  # ten times; three, since a look of twenty milliseconds may be off


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere resident memory is all that is summed")
def test_what_processes_share_is_counted_once_and_their_own_for_each():
    code = (
        "import os, sys, numpy as np; shared = np.ones(25_000_000); pids = [os.getpid()]; reader, writer = os.pipe()\n"
        "for _ in range(2):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        own = np.ones(5_000_000); os.write(writer, b'.'); sys.stdin.read(); os._exit(0)\n"
        "    pids.append(pid)\n"
        "os.read(reader, 1); os.read(reader, 1); print(*pids, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tree:
        pids = [int(pid) for pid in tree.stdout.readline().split()]
        shares = sum(run.share(pid) for pid in pids) / 1e6
        resident = sum(run.psutil.Process(pid).memory_info().rss for pid in pids) / 1e6
        tree.stdin.close()
    assert resident > 680
    assert 280 < shares < 400  # 200 shared, 40 for each of two, and the interpreter
