"""What every lesson starts with and ends with.

    lesson = start("01_loss_derivation", profile)   # seeds, offline, quiet; which profile this is
    steps = lesson.choose(quick=20, full=2000)      # what depends on it
    lesson.record("loss-gradient-error", error)     # a number that the lesson claims
    lesson.claims()                                 # last cell: all of them, and whether they hold

What this module does not do: it makes no two machines agree. Seeds repeat a run on one machine with one number of
threads; sums in another order differ in their last digits.
"""

from __future__ import annotations

import os
import platform
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coursekit import claims as ledger
from coursekit import course, offline, plots

SEED = 0
_SAME = object()

# Read by the Hugging Face libraries when they are imported, so they are set before a lesson imports any.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass
class Lesson:
    """One run of one lesson."""

    id: str
    profile: str  # "quick", "full" or "gpu"
    root: Path = field(default_factory=course.root)
    values: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.expected = ledger.load(self.root, self.id)
        self.machine = machine(self.root)

    @property
    def headless(self) -> bool:
        """True while ``run`` or ``notebooks`` runs the lesson: each cell once, in order, with nobody looking."""
        return "COURSEKIT_LEDGER" in os.environ

    @property
    def live(self) -> bool:
        """True while a person is looking; a progress bar would only leave dirt in a stored notebook."""
        return not self.headless

    def choose(self, *, quick: Any, full: Any, gpu: Any = _SAME) -> Any:
        """The value for this run's profile; ``gpu`` is ``full`` unless it is given."""
        return {"quick": quick, "full": full, "gpu": full if gpu is _SAME else gpu}[self.profile]

    def record(self, claim: str, value: Any) -> Any:
        """Record a measured number under its claim's id, and return it as it was given.

        Raises:
            ClaimError: if the lesson claims no such thing, the value is not one number, or a headless run already
                recorded another value. (A person may run a cell again: then the last value counts.)
        """
        if claim not in self.expected:
            raise ledger.ClaimError(ledger.unknown(claim, self.expected))
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ledger.ClaimError(f"claim {claim!r}: {type(value).__name__} is not one number") from error
        before = self.values.get(claim)
        if before is not None and before != number and (self.headless or not _in_notebook()):
            raise ledger.ClaimError(f"claim {claim!r} was recorded as {before!r} and now as {number!r}: record it once")
        self.values[claim] = number
        return value

    def claims(self) -> None:
        """Show what was measured beside what is claimed, then raise if this run does not support it.

        Raises:
            UnsupportedClaimError: if a claim of this profile was not recorded, or an exact one is out of its bound.
        """
        if self.headless:
            self._write(Path(os.environ["COURSEKIT_LEDGER"]))
        storing = os.environ.get("COURSEKIT_STORING") == "1"
        kept = None if storing else ledger.stored(self.root, self.id)
        head, rows = ledger.table(self.expected.values(), self.values, self.machine, self.profile, kept)
        lines = [f"This run: {self.profile} profile on {ledger.describe(self.machine)}"]
        lines += [f"Stored run: {kept.where()}"] if kept else []
        _display("\n".join([*lines, "", ledger.as_text(head, rows)]), ledger.as_html(head, rows, lines))
        wrong = self.missed()
        if wrong:
            raise ledger.UnsupportedClaimError(f"{len(wrong)} of {self.id}'s claims failed:\n" + "\n".join(wrong))

    def missed(self) -> list[str]:
        """One line for each claim that makes this run red."""
        judged = {name: ledger.holds(claim, self.values.get(name), self.machine, self.profile)
                  for name, claim in self.expected.items()}  # fmt: skip
        return [f"{name}: {verdict.status}, {verdict.reason}" + (
                    f", it is {self.values[name]!r}" if name in self.values else "")
                for name, verdict in judged.items() if verdict.red]  # fmt: skip

    def _write(self, path: Path) -> None:
        name, values, refused = course.name(self.id), dict(self.values), list(offline.attempts)
        ledger.Ledger(name, self.profile, values, self.machine, refused=refused).write(path)


def start(name: str, profile: str = "auto") -> Lesson:
    """Begin a lesson: choose its profile, fix the seeds, go offline and quiet, set the style of figures.

    ``profile`` "auto" means the learner's variable of the environment (``SSLCOURSE_PROFILE``), else "full".

    Raises:
        ValueError: if the profile is not known.
        LookupError: if there is no lesson of that name.
        FileNotFoundError: if it has no claims.
    """
    root = course.root()
    config = course.config(root)
    lesson = Lesson(course.find(root, name), resolve(profile, config.variable("PROFILE")), root)
    _go_offline_and_quiet(config.variable("ONLINE"))
    config.call("prepare")
    seed_everything(SEED)
    plots.use_style()
    return lesson


def resolve(profile: str, variable: str) -> str:
    """The profile that a parameter means; "auto" leaves it to a variable of the environment."""
    chosen, source = profile, "profile"
    if profile == "auto":
        chosen, source = os.environ.get(variable) or "full", variable
    if chosen not in ledger.PROFILES:
        known = ", ".join(repr(name) for name in ledger.PROFILES)
        raise ValueError(f"{source} is {chosen!r}: choose {known}" + (" or 'auto'" if source == "profile" else ""))
    return chosen


def seed_everything(seed: int) -> None:
    """Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def machine(root: Path) -> dict[str, Any]:
    """What a reader needs to know about the machine to judge a measured number; the course adds what matters to it."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    } | (course.config(root).call("machine") or {})


def _go_offline_and_quiet(variable: str) -> None:
    os.environ.update(QUIET)
    if os.environ.get(variable) != "1":
        offline.ALLOW = f"set {variable}=1"
        os.environ.update(OFFLINE)
        offline.guard()
        if "huggingface_hub" in sys.modules:  # imported earlier, so it has read its settings already
            sys.modules["huggingface_hub"].constants.HF_HUB_OFFLINE = True
    if "transformers" in sys.modules:
        logging = sys.modules["transformers"].utils.logging
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def _in_notebook() -> bool:
    return "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None


def _display(text: str, html: str) -> None:
    """One output in two forms: a table in Jupyter, text in a terminal."""
    if not _in_notebook():
        print(text)
        return
    from IPython.display import display

    display({"text/plain": text, "text/html": html}, raw=True)
