"""The process in which a submission's answers run: it shuts itself in, then does what it is asked over its pipes.

Nothing that it says is believed: ``grade_referee`` calls the functions that live here, and judges what they return.
What is written to standard output or error goes nowhere. How an answer behaves *inside* this process (does it call
the course's package, a forbidden function, does it change an argument in place?) can only be seen from inside, so a
submission that sets out to can hide it; it could as well copy the solution.

What this module does not do: limit time and memory. ``grade`` watches both, from outside.
"""

from __future__ import annotations

import ctypes
import json
import linecache
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

SCRATCH_MB = 256  # of files that a submission may write; they lie in memory
MOUNT_SETATTR, AT_FDCWD, RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
CAPABILITIES, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 41, 24, 38


# --- shut in (Linux) --------------------------------------------------------------------------------------------------


class _Attributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user"))


def shut_in(level: str, scratch: Path, hidden: list[str]) -> None:
    """Inside new namespaces: every file system read-only, except a small one in memory; then give up every right.

    ``level`` "sealed" does all of it, "cut" leaves the files as they are (kernels before 5.12), "guarded" does nothing.

    Raises:
        OSError: if the system refuses.
    """
    if level == "guarded":
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def must(result: int, what: str) -> None:
        if result:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    def empty(folder: str, size: int) -> None:
        must(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 6, f"size={size}m".encode()), folder)  # nosuid, nodev

    if level == "sealed":
        wish = _Attributes(READ_ONLY, 0, 0, 0)
        size = ctypes.sizeof(wish)
        must(libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", RECURSIVE, ctypes.byref(wish), size), "read-only")
        for folder in hidden:
            empty(folder, 1)
        empty(str(scratch), SCRATCH_MB)
        os.chdir(scratch)
    for number in range(CAPABILITIES):
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)  # one that this kernel does not know is refused, which is right
    must(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    must(libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()), "capabilities")


def _limit() -> None:
    """What costs nothing: no core dumps, no huge file."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (SCRATCH_MB << 20, SCRATCH_MB << 20))


# --- answers ----------------------------------------------------------------------------------------------------------


class Desk:
    """The names of one exercise at a time."""

    module = ModuleType("__main__")

    def define(self, exercise: str, name: str, setup: str, code: str) -> str:
        """Run what the lesson defines before, then the answer's cell. -> What went wrong, or nothing."""
        self.module = sys.modules["__main__"] = ModuleType("__main__")
        names = self.module.__dict__
        try:
            exec(compile(setup, f"<lesson before {exercise}>", "exec"), names)
        except BaseException as error:
            return f"what the lesson defines before it failed: {type(error).__name__}: {error}"
        names.pop(name, None)  # the lesson may define one of the same name, which is nobody's answer
        where = f"<answer {exercise}>"
        linecache.cache[where] = (len(code), None, code.splitlines(keepends=True), where)
        try:
            exec(compile(code, where, "exec"), names)
        except BaseException as error:  # SystemExit too: `exit()` in a cell ends the cell, not the grading
            if name not in names:
                return f"the cell raised {type(error).__name__}: {error}"
        return "" if name in names else f"the cell does not define {name}"

    def answer(self, name: str, forbidden: list[str], args: list, kwargs: dict) -> list:
        """Call an answer, watched as in the notebook. -> [what came of it, the result or the message]."""
        from coursekit.checks import Answer, NotAttempted, Wrong

        function = self.module.__dict__[name]
        if not callable(function):
            return ["wrong", f"{name} is not a function, it is {type(function).__name__}"]
        try:
            return ["result", Answer(function, tuple(forbidden))(*args, **kwargs)]
        except NotAttempted:
            return ["not attempted", ""]
        except Wrong as wrong:
            return ["wrong", str(wrong)]
        except SystemExit:
            return ["wrong", "your function calls exit; it should return its result"]


def main() -> None:
    """Take the pipes away from what prints, shut in, import, serve."""
    orders = json.loads(sys.argv.pop())
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    shut_in(orders["level"], Path(orders["scratch"]), orders["hidden"])
    _limit()
    if orders.get("probe"):
        outgoing.write(b"shut in")
        outgoing.flush()
        return
    if orders["level"] == "guarded":  # second best: elsewhere there is no network to be reached
        from coursekit import offline

        offline.guard()
    import torch

    from coursekit.checks import Wrong
    from coursekit.grade_wire import Peer

    torch.set_num_threads(1)
    desk = Desk()
    functions: dict[str, Any] = {"hello": lambda: True, "define": desk.define, "answer": desk.answer}
    with suppress(KeyboardInterrupt):
        Peer(incoming, outgoing, functions, Wrong).serve()
    os._exit(0)  # threads of the submission may still run


if __name__ == "__main__":
    main()
