"""Start several processes by ``torchrun``, with a time limit, ordered output, and the failing rank's own traceback.

    python -m torch.distributed.run --standalone --nproc-per-node=2 -m MODULE ...

is what it runs, on this machine; on several machines a scheduler runs the same line on each (lesson
distributed_training). What a notebook cannot do well is spawn by itself: functions of a notebook cannot be sent to new
processes, outputs interleave, and another rank's error drowns the one that caused it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

GRACE = 10.0  # seconds between asking processes to end and ending them


class RankFailed(RuntimeError):
    """A rank failed; the message holds its number and its own traceback."""


def torchrun(
    target: str | Path,
    *arguments: object,
    processes: int = 2,
    timeout: float = 120.0,
    max_restarts: int = 0,
    threads: int = 1,
    port: int | None = None,
) -> list[str]:
    """Run a module (or a .py file) in ``processes`` processes; what each rank printed, in the order of ranks.

    Args:
        timeout: seconds after which everything that was started is ended.
        max_restarts: how many times all ranks start again after one of them failed.
        threads: of each process; on two cores two processes of one thread each are usual.
        port: of the rendezvous; by default one that is free.

    Raises:
        ValueError: for a count or a port that cannot be.
        RankFailed: if a rank fails more often than ``max_restarts``; with the first failing rank's traceback.
        TimeoutError: after ``timeout`` seconds, with what each rank said last.
    """
    for name, value, least in (("processes", processes, 1), ("threads", threads, 1), ("max_restarts", max_restarts, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value} must be a whole number, at least {least}")
    if not timeout > 0:
        raise ValueError(f"timeout={timeout} must be positive: the seconds that the whole job may take")
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"port={port} must lie in 1 to 65535; leave it out for a free one")
    meet = ["--standalone"] if port is None else [f"--master-port={port}", "--master-addr=127.0.0.1"]
    what = [str(target)] if str(target).endswith(".py") else ["-m", str(target)]
    with tempfile.TemporaryDirectory(prefix="torchrun-", ignore_cleanup_errors=True) as folder:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", *meet, f"--nproc-per-node={processes}"),
            *(f"--max-restarts={max_restarts}", "--redirects=3", f"--log-dir={folder}", "--monitor-interval=0.1"),
            *what,
            *map(str, arguments),
        ]
        surroundings = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        said = Path(folder) / "torchrun.log"
        with said.open("w") as log:
            agent = subprocess.Popen(command, env=surroundings, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                     start_new_session=True)  # fmt: skip
            try:
                status = agent.wait(timeout)
            except subprocess.TimeoutExpired:
                raise TimeoutError(
                    f"{target} was not done after timeout={timeout:g} s and was ended; a rank may be waiting for "
                    f"another. {_last_words(Path(folder))}"
                ) from None
            finally:
                _end(agent)
        if status:
            raise RankFailed(_reason(Path(folder), said.read_text(errors="replace"), str(target), port))
        attempt = _attempts(Path(folder))[-1]
        return [(attempt / str(rank) / "stdout.log").read_text(errors="replace") for rank in range(processes)]


def _end(agent: subprocess.Popen) -> None:
    """End torchrun and everything below it: asked first, then forced. Ranks are in sessions of their own."""
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(agent.pid).children(recursive=True)
        if agent.poll() is None:
            agent.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(below, timeout=0 if agent.poll() is not None else GRACE)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    if agent.poll() is None:
        agent.kill()
    agent.wait()


def _attempts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/attempt_*"), key=lambda path: int(path.name.rpartition("_")[2]))


def _last_words(folder: Path) -> str:
    words = []
    for path in sorted((_attempts(folder) or [folder])[-1].glob("*/std*.log")):
        lines = path.read_text(errors="replace").strip().splitlines()
        words += [f"rank {path.parent.name}: {lines[-1][:500]}"] if lines else []
    return "Last lines: " + "; ".join(words) if words else "No rank had printed anything."


def _reason(folder: Path, said: str, target: str, port: int | None) -> str:
    """The first failing rank and its traceback: the others often fail only because that one is gone."""
    if "EADDRINUSE" in said or "address already in use" in said.lower():
        return f"port={port} is in use by another job; leave port out, and a free one is found"
    attempts = _attempts(folder)
    reports = [report for path in attempts[-1].iterdir() if (report := _report(path))] if attempts else []
    if reports:
        _, _, rank, trace = min(reports)
        return f"rank {rank} of {target} failed first:\n{trace.strip()}"
    last = _last_words(folder)
    return f"{target} failed, and no rank left a traceback. {last}\n{said.strip()[-2000:]}"


def _report(folder: Path) -> tuple[bool, float, int, str] | None:
    """(did it only lose another rank, when, rank, what it said) of a rank that failed, from what torchrun kept of it.

    Times are in whole seconds, so who lost a peer comes last whatever the time.
    """
    moment, trace = 0.0, ""
    if (folder / "error.json").is_file():  # written for a function under torch's @record
        with suppress(ValueError, KeyError, TypeError):
            extra = json.loads((folder / "error.json").read_text())["message"]["extraInfo"]
            moment, trace = float(extra["timestamp"]), extra["py_callstack"]
    if not trace and (folder / "stderr.log").is_file():
        text = (folder / "stderr.log").read_text(errors="replace")
        trace = text[text.index("Traceback") :] if "Traceback" in text else ""
    lost = any(sign in trace for sign in ("Connection closed by peer", "Connection reset", "Timed out"))
    return (lost, moment, int(folder.name), trace) if trace else None
