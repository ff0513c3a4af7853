"""The processes behind the command ``grade``: a worker shut in as far as this system allows, and the referee.

``Box`` finds out what this system can enforce and makes the command that starts a worker; ``Referee`` asks for
verdicts, and watches time and memory from outside while it waits. Nothing here reads what a submission says.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from coursekit import course
from coursekit.grade_read import Exercise

CLONE = Path(__file__).resolve().parents[1]
START = 300.0  # seconds in which a process must be ready that only imports; a busy machine takes its time
TICK = 0.1  # seconds between two looks at time and memory
PROCESSES = 200  # that a submission may have at once
REFEREE_MB = 3000  # what the referee itself may take; it needs a tenth
MARK = "COURSEKIT_GRADE"  # in the environment of every process of a submission: by this they are found


@dataclass(frozen=True)
class Limits:
    """For one exercise."""

    seconds: float = 30.0
    memory_mb: int = 2000


UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--mount", "--ipc", "--fork", "--kill-child"]
LEVELS = {
    "sealed": "Linux namespaces: no network, no sight of other processes, files read-only except a scratch folder in "
              "memory, submissions out of sight",
    "cut": "Linux namespaces: no network, no sight of other processes. NOT enforced: files can be written (this kernel "
           "cannot make them read-only)",
    "guarded": "NOT enforced on this system: network (only Python's own sockets are refused), files (a submission can "
               "write and delete what you can), other processes (it can end yours). Grade on Linux, or in a virtual "
               "machine, what you do not trust",
}  # fmt: skip


class Box:
    """How a worker is started here: shut in as far as this system allows."""

    def __init__(self, hidden: Iterable[Path] = ()) -> None:
        needed = [Path(one).resolve() for one in
                  (CLONE, course.root(), sys.prefix, sys.base_prefix, tempfile.gettempdir())]
        hidden = [one.resolve() for one in (*hidden, Path("/run")) if one.is_dir()]  # in /run are other programs' doors
        self.hidden = [str(one) for one in hidden if not any(need.is_relative_to(one) for need in needed)]
        self.level = next(level for level in LEVELS if level == "guarded" or self._works(level))

    def command(self, scratch: str, **more: Any) -> list[str]:
        orders = json.dumps({"level": self.level, "scratch": scratch, "hidden": self.hidden, **more})
        inside = [sys.executable, "-P", "-m", "coursekit.grade_worker", orders]
        return inside if self.level == "guarded" else [*UNSHARE, *inside]

    def environment(self, scratch: str, mark: str) -> dict[str, str]:
        """Little of ours: no token of anybody's, one thread, a home that is empty."""
        kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "LANG")
                if name in os.environ}  # fmt: skip
        own = {"HOME": scratch, "USERPROFILE": scratch, "TMPDIR": scratch, "TEMP": scratch, "TMP": scratch}
        return kept | own | {"PYTHONPATH": str(CLONE), "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg",
                             "OMP_NUM_THREADS": "1", "COURSEKIT_ROOT": str(course.root()), MARK: mark,
                             course.config(course.root()).variable("PROFILE"): "quick"}  # fmt: skip

    def _works(self, level: str) -> bool:
        self.level = level
        with tempfile.TemporaryDirectory() as scratch, suppress(OSError, subprocess.TimeoutExpired):
            tried = subprocess.run(
                self.command(scratch, probe=True), env=self.environment(scratch, "probe"), cwd=scratch,
                stdin=subprocess.DEVNULL, capture_output=True, timeout=START,
            )  # fmt: skip
            return tried.stdout == b"shut in"
        return False


class Referee:
    """The process that judges, kept until it has to be replaced."""

    def __init__(self, box: Box, limits: Limits) -> None:
        self.box, self.limits, self.mark = box, limits, f"{os.getpid()}-{time.time_ns()}"
        self.process: subprocess.Popen | None = None
        self.alive = False  # the worker
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None

    def begin(self, scratch: str) -> str:
        """A fresh worker, in a folder of its own. -> What went wrong, or nothing."""
        self.end()
        if self.process is None or self.process.poll() is not None:
            if self.process is not None:
                self._gone()
            environment = os.environ | {"PYTHONPATH": str(CLONE), "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "coursekit.grade_referee"], env=environment, text=True,
                encoding="utf-8", stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            self._lines = queue.SimpleQueue()
            self._reader = threading.Thread(target=self._read, args=(self.process, self._lines), daemon=True)
            self._reader.start()
        reply, why = self._ask({"do": "start", "command": self.box.command(scratch), "folder": scratch,
                                "environment": self.box.environment(scratch, self.mark)}, START)  # fmt: skip
        trouble = why or reply.get("trouble", "")
        self.alive = not trouble
        return trouble

    def judge(self, exercise: Exercise, setup: str, code: str) -> tuple[str, str]:
        """(verdict, message) of one answer; whatever it does, this comes back in time."""
        what = [exercise.word, exercise.name, setup, code]
        reply, why = self._ask({"do": "judge", "what": what}, self.limits.seconds)
        self.alive = bool(reply.get("alive")) and not why
        if why:
            return why, {"timeout": f"no end within {self.limits.seconds:g} s",
                         "memory": f"more than {self.limits.memory_mb} MB, or than {PROCESSES} processes",
                         "error": "the submission ended the process that judges it"}[why]  # fmt: skip
        return reply["verdict"], reply["message"]

    def end(self) -> None:
        """End the worker and everything that came from it."""
        self.alive = False
        self._sweep()
        if self.process is not None and self.process.poll() is None:
            self._ask({"do": "end"}, 10.0)

    def close(self) -> None:
        self._sweep()
        if self.process is not None:
            self.process.kill()
            self._gone()

    def _gone(self) -> None:
        """Wait for its end, and let go of its pipes."""
        assert self.process is not None
        self.process.wait()
        if self._reader:
            self._reader.join()  # it ends with the other end of the pipe
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what could not be sent any more
                pipe.close()

    def _ask(self, order: dict[str, Any], seconds: float) -> tuple[dict[str, Any], str]:
        """(reply, "") or what stopped it: "timeout", "memory", or "error" if the referee is gone."""
        assert self.process is not None
        assert self.process.stdin is not None
        until, why = time.monotonic() + seconds, ""
        with suppress(OSError):  # it is gone: its end is read below
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        while True:
            with suppress(queue.Empty):
                if line := self._lines.get(timeout=TICK):
                    return json.loads(line), why
                self._gone()
                return {}, why or "error"
            late = time.monotonic() > until
            if why and late:  # the worker was ended, and still no reply: the check itself hangs
                self.process.kill()
                self._gone()
                return {}, why
            if late or (self._too_large() and not why):
                why = "timeout" if late else "memory"
                until = time.monotonic() + 5.0
                self._sweep()

    @staticmethod
    def _read(process: subprocess.Popen, lines: queue.SimpleQueue) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def _too_large(self) -> bool:
        assert self.process is not None
        with suppress(psutil.Error):
            referee = psutil.Process(self.process.pid)
            if referee.memory_info().rss > REFEREE_MB << 20:
                self.process.kill()
                return True
            total, below = 0, referee.children(recursive=True)
            if len(below) > PROCESSES:
                return True
            for one in below:
                with suppress(psutil.Error):  # it ended between the two lines
                    total += one.memory_info().rss
            return total > self.limits.memory_mb << 20
        return False

    def _sweep(self) -> None:
        """Kill the worker, its children, and those that left it and still bear its mark."""
        below: list[psutil.Process] = []
        if self.process is not None:
            with suppress(psutil.Error):
                below = psutil.Process(self.process.pid).children(recursive=True)
        for one in [*below, *psutil.process_iter()]:
            with suppress(psutil.Error, OSError):
                if one in below or one.environ().get(MARK) == self.mark:
                    one.kill()
