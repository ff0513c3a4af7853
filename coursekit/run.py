"""Run lessons without a browser, and store their outputs: ``run`` and ``notebooks``.

    run      papermill, the profile as its parameter; executed notebooks and HTML under build/; a table; red or green
    store    the learner's notebook in the ``full`` profile; its outputs and its ledger are what the repository keeps

A lesson is red if a cell raises, a check does not say what it must, a claim fails, it uses more memory than its budget,
does far more work than its minutes hold (``too_slow``; a slow or busy machine is only said), or tries the network.

What this module does not do: run two lessons at a time. They would falsify each other's times.
"""

from __future__ import annotations

import datetime
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import papermill
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from coursekit import build, claims, course, gate, seals

SAMPLE_SECONDS = 0.2
SHARE_SECONDS = 1.0  # between two looks at what processes share: each costs milliseconds per process
SPEED_SECONDS = 30.0  # between two looks at how fast the machine is
SLOW = 2.0  # this many times the work that the declared minutes hold is red
CORES = 2  # that the declared minutes are for
FIXED_WORK = 0.020  # seconds of `fixed_work` where the minutes were declared: an AMD EPYC of 2022, nothing beside it
START_SECONDS = 120  # for a kernel to come up
KERNEL_ARGUMENTS = ["--log-level=CRITICAL"]  # else it talks of plain TCP, and of the interrupt that ends it
FAILURES = (PapermillExecutionError, CellExecutionError, CellTimeoutError, DeadKernelError)
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass
class Outcome:
    """What came of one lesson."""

    lesson: str
    budget_minutes: float
    budget_mb: float
    minutes: float = 0.0
    peak_mb: float = 0.0  # resident memory of the kernel and its children, shared pages once, at its highest
    cpu_minutes: float = 0.0  # spent by the kernel and its children: the work, however long it had to wait
    slowdown: float = 1.0  # of this machine during the run, beside that for which the minutes were declared
    held: int = 0
    claimed: int = 0
    passed: int = 0
    checks: int = 0
    problems: list[str] = field(default_factory=list)  # any of them makes it red
    notes: list[str] = field(default_factory=list)

    @property
    def red(self) -> bool:
        return bool(self.problems)


def share(pid: int) -> int:
    """Bytes of a process, shared pages divided among those that share them (Linux); elsewhere resident memory."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return 1024 * int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[1])
    except (OSError, TypeError):  # another system, or the process has ended
        with suppress(psutil.Error):
            return psutil.Process(pid).memory_info().rss
        return 0


def fixed_work() -> float:
    """Processor seconds that a small piece of work takes, always the same: how fast this machine is just now."""
    began = time.thread_time()
    total = 0
    for number in range(200_000):
        total += number * number % 7
    np.sort(np.sin(np.arange(150_000.0)))
    return time.thread_time() - began


class Kernel(threading.Thread):
    """Watch the processes that are started while it runs, the kernel and its children: their memory and their work."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self._cpu: dict[tuple[int, float], float] = {}  # a process's seconds, as last seen
        self._speeds = [fixed_work()]
        self._before = {child.pid for child in psutil.Process().children(recursive=True)}
        self._stop_now = threading.Event()

    def run(self) -> None:
        me, looked, timed, highest = psutil.Process(), 0.0, time.monotonic(), 0
        while not self._stop_now.wait(SAMPLE_SECONDS):
            now = time.monotonic()
            if now - timed > SPEED_SECONDS:
                timed = now
                self._speeds.append(fixed_work())
            resident, family = 0, [child for child in me.children(recursive=True) if child.pid not in self._before]
            for child in family:
                with suppress(psutil.NoSuchProcess):  # it ended between the two lines
                    resident += child.memory_info().rss
                    spent = child.cpu_times()
                    self._cpu[child.pid, child.create_time()] = spent.user + spent.system
            news = resident > highest or now - looked > SHARE_SECONDS
            if news and resident / 1e6 > self.peak_mb:  # else the shares, which add up to no more, are no new peak
                looked, highest = now, max(highest, resident)
                self.peak_mb = max(self.peak_mb, sum(share(child.pid) for child in family) / 1e6)

    @property
    def cpu_minutes(self) -> float:
        """Processor time of all processes, what the last 0.2 s of each took left out."""
        return sum(self._cpu.values()) / 60

    @property
    def slowdown(self) -> float:
        """How many times as long work takes here as where the minutes were declared; 1 on a faster machine."""
        return max(1.0, statistics.median(self._speeds) / FIXED_WORK)

    def __enter__(self) -> Kernel:
        self.started = time.monotonic()
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.minutes = (time.monotonic() - self.started) / 60
        self._stop_now.set()
        self.join()


@contextmanager
def environment(**variables: str | None) -> Iterator[None]:
    """Variables for the kernels that are started inside; None removes one."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    for name in (name for name, value in variables.items() if value is None):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def kernel_environment(root: Path, record: Path) -> dict[str, str | None]:
    return {
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, whatever the user has registered
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger in ipykernel writes to stderr
        "COURSEKIT_ROOT": str(root),
        "COURSEKIT_LEDGER": str(record),
        "COURSEKIT_CHECKS": None,
        "COURSEKIT_STORING": None,
        course.config(root).variable("PROFILE"): None,
    }


# -- run ---------------------------------------------------------------------------------------------------------------


def run(root: Path, lessons: list[str], profile: str = "quick", kind: str = "teacher", out: Path | None = None) -> int:
    """Run lessons one after the other and print what came of them; the exit status, 1 if any is red."""
    outcomes = []
    with tqdm(lessons, unit="lesson", desc=f"{kind}, {profile}", file=sys.stderr) as bar:
        for lesson in bar:
            bar.set_postfix_str(lesson)
            outcome = run_one(root, lesson, profile, kind, out)
            outcomes.append(outcome)
            if outcome.red:
                bar.write(f"{lesson}: FAILED: {outcome.problems[0]}", file=sys.stderr)
    print(report(outcomes))
    return int(any(outcome.red for outcome in outcomes))


def run_one(root: Path, lesson: str, profile: str, kind: str = "teacher", out: Path | None = None) -> Outcome:
    """Build and run one lesson; the notebook and its HTML are in ``out`` (default ``build/``) / profile [-kind]."""
    notebook = build.build(root, lesson, kind)
    outcome = new_outcome(notebook, lesson, profile)
    folder = (out or root / "build") / (profile if kind == "teacher" else f"{profile}-{kind}")
    folder.mkdir(parents=True, exist_ok=True)
    target, record = folder / f"{lesson}.ipynb", folder / f"{lesson}.json"
    record.unlink(missing_ok=True)
    variables = kernel_environment(root, record.resolve())
    variables["COURSEKIT_CHECKS"] = "strict" if kind == "teacher" else None

    def execute() -> None:
        papermill.execute_notebook(
            notebook, target.resolve(), parameters={"profile": profile}, kernel_name="python3",
            cwd=root / "notebooks", extra_arguments=KERNEL_ARGUMENTS, start_timeout=START_SECONDS,
            execution_timeout=patience(outcome),
            progress_bar={"desc": lesson, "leave": False, "disable": None},  # None: only on a terminal
        )  # fmt: skip

    watch(outcome, execute, variables)
    if target.exists():
        executed = nbformat.read(target, as_version=4)
        describe_failure(executed, outcome)
        judge_checks(executed, outcome, kind)
        (folder / f"{lesson}.html").write_text(to_html(executed), encoding="utf-8")
    judge_claims(root, claims.Ledger.read(record), outcome, profile)
    judge_budget(outcome)
    return outcome


def new_outcome(notebook: NotebookNode, lesson: str, profile: str) -> Outcome:
    budgets = build.budgets(notebook)
    budget = budgets.get(profile) or budgets.get("full") or {}
    return Outcome(lesson, budget.get("minutes", float("inf")), budget.get("memory_mb", float("inf")))


def patience(outcome: Outcome) -> int | None:
    """Seconds after which a cell is taken to hang: far beyond what would be red anyway."""
    endless = outcome.budget_minutes == float("inf")
    return None if endless else int(60 * (20 + 10 * outcome.budget_minutes))


def watch(outcome: Outcome, execute: Callable[[], Any], variables: dict[str, str | None]) -> None:
    """Execute a notebook in its environment, take its time and memory, and note what it raised."""
    with environment(**variables), Kernel() as kernel:
        try:
            execute()
        except FAILURES as error:
            name = getattr(error, "ename", "") or type(error).__name__
            outcome.problems.append(f"a cell raised {name}" if isinstance(error, FAILURES[:2]) else f"{name}: {error}")
    outcome.minutes, outcome.peak_mb = kernel.minutes, kernel.peak_mb
    outcome.cpu_minutes, outcome.slowdown = kernel.cpu_minutes, kernel.slowdown


# -- judge -------------------------------------------------------------------------------------------------------------


def describe_failure(notebook: NotebookNode, outcome: Outcome) -> None:
    """Add the source and the traceback's end of every cell that raised."""
    for cell in build.code_cells(notebook):
        for output in (output for output in cell.outputs if output.output_type == "error"):
            source = "\n".join(f"    {line}" for line in cell.source.splitlines()[:4])
            trace = ANSI.sub("", "\n".join(output.traceback)).rstrip().splitlines()[-8:]
            shown = "\n".join(f"  | {line}" for line in trace)
            outcome.problems.append(f"cell [{cell.execution_count}]:\n{source}\n{shown}")


def judge_checks(notebook: NotebookNode, outcome: Outcome, kind: str) -> None:
    """Every check must say "passed" in the teacher's notebook, and "not attempted yet" in one of stubs."""
    wanted = build.VERDICTS[kind]
    for exercise, said in gate.outputs_of_checks(notebook).items():
        right = f"Exercise {exercise}: {wanted}" in said
        outcome.checks += 1
        outcome.passed += right
        if not right:
            short = ANSI.sub("", said).strip().splitlines()[-1:] or ["nothing"]
            outcome.problems.append(f"check {exercise} should say {wanted!r}, it says: {short[0]}")


def judge_claims(root: Path, record: claims.Ledger | None, outcome: Outcome, profile: str) -> None:
    """Judge the recorded values once more, from outside: a lesson that swallows its own failure is still red."""
    expected = [claim for claim in claims.load(root, outcome.lesson).values() if profile in claim.profiles]
    outcome.claimed = len(expected)
    if record is None:
        outcome.problems.append("it did not come to lesson.claims(), so nothing was recorded")
        return
    for claim in expected:
        value = record.values.get(claim.id)
        verdict = claims.holds(claim, value, record.machine, profile)
        outcome.held += verdict.status == "holds"
        shown = "" if value is None else f", it is {claim.show(value)}"
        if verdict.red:
            outcome.problems.append(f"claim {claim.id!r}: {verdict}{shown}")
        elif verdict.status != "holds":
            outcome.notes.append(f"claim {claim.id!r}: {verdict}{shown}, claimed {claim.bound()}")
    if record.refused:
        outcome.problems.append(f"it tried the network: {', '.join(sorted(set(record.refused)))}")


def too_slow(outcome: Outcome) -> bool:
    """Whether a lesson does more work than its minutes hold, and not whether a slow or busy machine took longer for it.

    Work is processor time: waiting for a busy machine does not add to it. A slower machine needs more of it for the
    same, as much as ``fixed_work`` says that was timed in the same run. Minutes are declared for ``CORES`` cores; the
    margin of ``SLOW`` is for what a shared cache and a second thread on one core cost, and for a coarse look at both.
    A lesson that idles is not told from one that waits; what hangs is ended by ``patience``.
    """
    return outcome.cpu_minutes > SLOW * CORES * outcome.budget_minutes * outcome.slowdown


def judge_budget(outcome: Outcome) -> None:
    if outcome.peak_mb > outcome.budget_mb:
        outcome.problems.append(f"over its memory budget: {outcome.peak_mb:.0f} MB of {outcome.budget_mb:.0f} MB")
    minutes = f"{outcome.minutes:.1f} of {outcome.budget_minutes:.1f} minutes"
    if too_slow(outcome):
        right = CORES * outcome.budget_minutes * outcome.slowdown
        work = f"{outcome.cpu_minutes:.1f} of processor time, where {right:.1f} are right"
        outcome.problems.append(f"over {SLOW:g} times its minutes: {minutes}, and {work}")
    elif outcome.minutes > outcome.budget_minutes:
        outcome.notes.append(f"over its minutes, as on a slow or busy machine: {minutes}")


def report(outcomes: list[Outcome]) -> str:
    """The table, and below it what needs a word."""
    memory = f"peak memory ({'PSS' if sys.platform == 'linux' else 'RSS'})"
    head = ("lesson", "status", "minutes", memory, "claims held", "checks")
    rows = [(
        outcome.lesson,
        "FAILED" if outcome.red else "passed",
        f"{outcome.minutes:.1f} of {outcome.budget_minutes:.1f}",
        f"{outcome.peak_mb:.0f} of {outcome.budget_mb:.0f} MB",
        f"{outcome.held}/{outcome.claimed}",
        f"{outcome.passed}/{outcome.checks}",
    ) for outcome in outcomes]  # fmt: skip
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in (head, *rows)]  # fmt: skip
    lines += [f"{outcome.lesson}: note: {note}" for outcome in outcomes for note in outcome.notes]
    lines += [f"{outcome.lesson}: {problem}" for outcome in outcomes for problem in outcome.problems]
    return "\n".join(lines)


def to_html(notebook: NotebookNode) -> str:
    """A page with the outputs in it. Its formulas need MathJax from the network; everything else is in the page."""
    from nbconvert import HTMLExporter

    notebook = nbformat.from_dict(notebook)
    notebook.metadata.pop("widgets", None)  # or the page asks the network for a widget manager
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    return page


# -- store -------------------------------------------------------------------------------------------------------------


def store(root: Path, lessons: list[str], profile: str = "full") -> int:
    """Run the learner's notebooks, keep their outputs and ledgers, and print the prose anew; 1 if any is red.

    A lesson that raises leaves what was stored before as it was.
    """
    outcomes = [store_one(root, lesson, profile) for lesson in lessons]
    for lesson in course.lessons(root):  # prose may print another lesson's claim
        if course.notebook_path(root, lesson).exists():
            build.write_learner(root, lesson)
    for outcome in outcomes:
        if not outcome.red:
            found = gate.drift(root, [outcome.lesson]) + claims.problems(root, [outcome.lesson])
            outcome.problems += [line.removeprefix(f"{outcome.lesson}: ") for line in found]
    print(report(outcomes))
    return int(any(outcome.red for outcome in outcomes))


def store_one(root: Path, lesson: str, profile: str) -> Outcome:
    notebook = build.build(root, lesson, "learner")
    outcome = new_outcome(notebook, lesson, profile)
    reached = claims.definitions(root, lesson)  # before the run: a source edited meanwhile must be stale
    cells = len(build.code_cells(notebook))
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=cells, desc=lesson, unit="cell") as bar:
        record = Path(scratch) / "ledger.json"
        client = NotebookClient(
            notebook, kernel_name="python3", timeout=patience(outcome), startup_timeout=START_SECONDS,
            extra_arguments=KERNEL_ARGUMENTS, record_timing=False, coalesce_streams=True,
            resources={"metadata": {"path": str(root / "notebooks")}},
            on_cell_complete=lambda cell, cell_index: bar.update(),
        )  # fmt: skip
        variables = kernel_environment(root, record)
        variables |= {course.config(root).variable("PROFILE"): profile, "COURSEKIT_STORING": "1"}
        watch(outcome, client.execute, variables)
        ledger = claims.Ledger.read(record)
    describe_failure(notebook, outcome)
    judge_checks(notebook, outcome, "learner")
    judge_claims(root, ledger, outcome, profile)
    judge_budget(outcome)
    if outcome.red or ledger is None:
        return outcome
    ledger.definitions = {name: found.hash for name, found in reached.items()}
    ledger.date = datetime.date.today().isoformat()
    ledger.command = f"{course.command(root)} notebooks {course.name(lesson)}"
    ledger.minutes, ledger.peak_memory_mb = round(outcome.minutes, 2), round(outcome.peak_mb)
    ledger.outputs = [seals.of_outputs(cell) for cell in build.code_cells(strip(notebook))]
    ledger.write(course.part(root, lesson, "ledger.json"))
    build.write_learner(root, lesson, notebook)
    return outcome


def strip(notebook: NotebookNode) -> NotebookNode:
    """Drop what depends on the tools that ran the notebook: timings, widget state, papermill's notes."""
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        for key in ("papermill", "execution", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(gate.LIVE, None)  # beside it stands the picture that a reader sees
    return notebook
