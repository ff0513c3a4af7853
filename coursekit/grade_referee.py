"""The process that judges: checks run here, on what the functions of a submission return from another process.

The command ``grade`` starts it, tells it by lines of JSON what to grade, and ends it if it does not answer. It
runs no line of a submission. What it does not do: watch time and memory; ``grade`` does.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import warnings
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from coursekit import checks, course
from coursekit.grade_wire import Failed, Gone, Peer

VERDICTS = {"passed": "passed", "wrong": "not passed", "not attempted": "not attempted"}
ONLY_ANSWERS = "; of a submission only the cells of the answers are run, each in its lesson's surroundings"


class Worker:
    """The process of one submission, as seen from here."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: str) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            cwd=folder, start_new_session=True,
        )  # fmt: skip
        self.peer = Peer(self.process.stdout, self.process.stdin, {}, checks.Wrong)  # type: ignore[arg-type]
        self.peer.start()
        self.peer.call("hello")  # it is ready

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(OSError):  # what could not be sent any more; the other pipe is closed by who reads it
            self.process.stdin.close()

    def judge(self, exercise: str, name: str, setup: str, code: str) -> tuple[str, str]:
        """(verdict, message) of one exercise."""
        self.peer.forget()
        try:
            if trouble := self.peer.call("define", exercise, name, setup, code):
                return "error", str(trouble)
            result = checks.grade(exercise, partial(self.peer.call, "answer", name), wrap=Remote)
            verdict, message = VERDICTS[result.status], result.message
        except Gone:
            verdict, message = "error", ""
        except Exception as error:  # a check met a value that nobody foresaw; that is never a pass
            verdict, message = "error", f"the check could not judge this: {type(error).__name__}: {error}"
        if verdict != "passed" and self.peer.gone:  # also where a check took the end of the process for an answer
            return "error", self._end()
        if verdict != "passed" and (self.peer.opaque or "functorch" in message):
            return "by hand", f"its values cannot be sent to the judging process: {message}"
        return verdict, message + (ONLY_ANSWERS if "raised NameError" in message else "")

    def _end(self) -> str:
        try:
            status = self.process.wait(2)
        except subprocess.TimeoutExpired:
            return "the answer's process sent what is no message"
        return f"the answer ended its own process (exit status {status})"


class Remote(checks.Answer):
    """An answer that lives in another process."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kind, value = self.function(list(self.forbidden), list(args), kwargs)
        if kind == "not attempted":
            raise checks.NotAttempted
        if kind != "result":
            raise checks.Wrong(str(value))
        if value is None or value is checks.TODO:
            raise Failed("an answer of a kind that the worker never sends")
        return value


class Bench:
    """Takes orders: lines of JSON in, one line of JSON back for each."""

    worker: Worker | None = None

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        if order["do"] == "judge" and self.worker:
            verdict, message = self.worker.judge(*order["what"])
            return {"verdict": verdict, "message": message, "alive": not self.worker.peer.gone}
        self.end()
        if order["do"] == "start":
            try:
                self.worker = Worker(order["command"], order["environment"], order["folder"])
            except (OSError, Gone) as error:
                return {"trouble": f"no process for answers could be started: {error}"}
        return {}

    def end(self) -> None:
        if self.worker:
            self.worker.end()
        self.worker = None


def main() -> None:
    """Obey until the input ends; it is read on a thread, since it may end while a check waits for ever."""
    lines, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    warnings.simplefilter("ignore")
    threading.excepthook = lambda _: None  # a check that calls from threads; `judge` sees that the other side is gone
    torch.set_num_threads(1)
    root = course.root()
    for exercise in checks.exercises(root):  # now, while the files are what they were
        checks.find(root, exercise)
    bench, orders = Bench(), queue.SimpleQueue()

    def read() -> None:
        for line in lines:
            orders.put(line)
        bench.end()  # whoever asked is gone
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        reply = bench.obey(json.loads(orders.get()))
        with suppress(BrokenPipeError):
            replies.write(json.dumps(reply) + "\n")
            replies.flush()


if __name__ == "__main__":
    main()
