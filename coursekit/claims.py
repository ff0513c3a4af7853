"""Claims: every number that the course states, where it comes from, and whether it still holds.

    claims.toml    in a lesson's folder: what it claims: statement, unit, bound, profiles      (edited by hand)
    ledger.json    beside it: what the last stored run of the lesson computed, and where       (``make notebooks``)

An *exact* claim (a count, an error bound, FLOPs) holds on every machine, and a run in which it does not fails. A
*measured* one (a loss, a ratio of speeds) must hold in the stored ``full`` run; in a learner's run it may be missed,
which is said and never raised. Prose prints the ledger's values: ``{{claim-id}}``.

The ledger carries a hash of each definition that the run reached (``coursekit.stale``). Comments, docstrings and prose
do not count, so that mending a sentence does not ask for a new run; any change of what the lesson runs does. It carries
hashes of the outputs and of itself, too (``coursekit.seals``): no number is changed but by a run.

What this module does not do: compute anything. Lessons do, through ``Lesson.record``.
"""

from __future__ import annotations

import difflib
import html
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from coursekit import course, seals, source, stale

PROFILES = ("quick", "full", "gpu")
KINDS = ("exact", "measured")
MACHINES = ("any", "bf16")
ENFORCED_IN_QUICK = 3  # exact claims that every lesson enforces in its shortest profile

REFERENCE = re.compile(r"\{\{\s*([a-z0-9]+(?:-[a-z0-9]+)*)\s*\}\}")
PICTURE = re.compile(r"""(?:!\[[^]]*]\(|<img [^>]*src=["'])([^)"':\s]+)""")  # a file, no address

SHOWN = 3  # changed definitions that the gate names; the rest is counted
RUNS = ("coursekit.lesson", "coursekit.plots", "coursekit.widgets")  # what of this package a lesson's numbers depend on


class ClaimError(ValueError):
    """A claim is badly written, unknown, unrecorded or recorded twice."""


class UnsupportedClaimError(AssertionError):
    """A lesson's run does not support what the lesson claims."""


# -- one claim ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One number with its bound: at least ``min``, at most ``max``, or ``value`` give or take ``tolerance``."""

    lesson: str
    id: str
    statement: str
    unit: str
    kind: str
    profiles: tuple[str, ...]
    format: str = ".3g"
    machine: str = "any"
    min: float | None = None
    max: float | None = None
    value: float | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        for name, right, remedy in (
            ("id", re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.id), "write it in kebab-case"),
            ("statement", self.statement.strip(), "say in a sentence what the number is"),
            ("unit", self.unit.strip(), 'name it; a pure number has "1"'),
            ("kind", self.kind in KINDS, f"use one of {', '.join(KINDS)}"),
            ("profiles", self.profiles and set(self.profiles) <= set(PROFILES), f"list some of {', '.join(PROFILES)}"),
            ("machine", self.machine in MACHINES, f"use one of {', '.join(MACHINES)}"),
            ("format", _formats(self.format), 'use a format of Python\'s for one number, like ".2f"'),
            ("value", (self.value is None) == (self.tolerance is None), "give value and tolerance together"),
            ("tolerance", self.tolerance is None or self.tolerance >= 0, "it is a distance, 0 or more"),
            ("min", self.min is not None or self.max is not None or self.value is not None,
             "give min, max, or value with tolerance"),
            ("max", self.min is None or self.max is None or self.min <= self.max, "it lies below min"),
        ):  # fmt: skip
            if not right:
                raise ClaimError(f"{self.lesson}/claims.toml: claim {self.id!r}: field {name!r} is "
                                 f"{getattr(self, name)!r}: {remedy}")

    def holds(self, value: float) -> bool:
        """Whether a value lies within the bound; nan never does."""
        return (
            math.isfinite(value)
            and (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.value is None or abs(value - self.value) <= self.tolerance)
        )

    def show(self, value: float) -> str:
        """The value as prose prints it, without its unit."""
        return "0" if value == 0 and self.format.endswith("e") else format(value, self.format)

    def with_unit(self, value: float) -> str:
        silent = self.unit in ("1", "ratio") or "%" in self.format
        return self.show(value) if silent else f"{self.show(value)} {self.unit}"

    def bound(self) -> str:
        if self.value is not None:
            return f"{self.value:g}" + (f" ± {self.tolerance:g}" if self.tolerance else "")
        low, high = self.min is not None, self.max is not None
        if low and high:
            return f"{self.min:g} to {self.max:g}"
        return f"≥ {self.min:g}" if low else f"≤ {self.max:g}"


def _formats(spec: str) -> bool:
    try:
        return bool(format(1.0, spec))
    except ValueError:
        return False


@dataclass(frozen=True)
class Verdict:
    """What a run says about one claim; only "missed" and "unrecorded" make it red."""

    status: str  # "holds", "missed", "unrecorded", "not reached" or "not asked"
    reason: str = ""

    @property
    def red(self) -> bool:
        return self.status in ("missed", "unrecorded")

    def __str__(self) -> str:
        mark = {"holds": "✓ ", "missed": "✗ ", "unrecorded": "✗ "}.get(self.status, "– ")
        text = "not reached on this machine" if self.status == "not reached" else self.status
        link = ", because " if self.status == "not reached" else ": " if self.reason else ""
        return f"{mark}{text}{link}{self.reason}"


def holds(claim: Claim, value: float | None, machine: Mapping[str, Any], profile: str = "full") -> Verdict:
    """Judge one claim in somebody's own run: a slower machine is told so and is never red."""
    asked = profile in claim.profiles
    if value is None:
        return Verdict("unrecorded", "no cell recorded it") if asked else Verdict("not asked", f"not part of {profile}")
    if claim.holds(value):
        return Verdict("holds")
    if claim.machine == "bf16" and not machine.get("bf16"):
        return Verdict("not reached", "its CPU has no bf16 instructions")
    if not asked:
        return Verdict("not asked", f"the bound is not for {profile}")
    if claim.kind == "exact":
        return Verdict("missed", f"outside {claim.bound()}")
    if profile == "quick":
        return Verdict("not reached", "the quick profile trains for seconds only")
    return Verdict("not reached", "times and losses depend on the machine and on what else it does")


# -- files -------------------------------------------------------------------------------------------------------------


def load(root: Path, lesson: str) -> dict[str, Claim]:
    """A lesson's claims by id, in the order of its file.

    Raises:
        FileNotFoundError: if the lesson has no file of claims.
        ClaimError: naming the file, the claim and the field that is wrong.
    """
    path, name = course.part(root, lesson, "claims.toml"), f"{lesson}/claims.toml"
    if not path.exists():
        raise FileNotFoundError(f"notebooks/source/{name} is missing: write it, and install the course from a clone "
                                "(pip install -e .)")
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8")).get("claim", [])
    except tomllib.TOMLDecodeError as error:
        raise ClaimError(f"{name}: {error}") from error
    claims = [_claim(name, lesson, row) for row in rows]
    if twice := _repeated(claim.id for claim in claims):
        raise ClaimError(f"{name}: claim {twice!r} stands there twice")
    return {claim.id: claim for claim in claims}


def _claim(name: str, lesson: str, row: dict[str, Any]) -> Claim:
    known = {entry.name: entry for entry in fields(Claim) if entry.name != "lesson"}
    required = ("id", "statement", "unit", "kind", "profiles")
    which = f"{name}: claim {row.get('id', '(without id)')!r}"
    for missing in (key for key in required if key not in row):
        raise ClaimError(f"{which}: field {missing!r} is missing")
    for key, value in row.items():
        if key not in known:
            raise ClaimError(f"{which}: field {key!r} is unknown; known: {', '.join(known)}")
        right = list if key == "profiles" else (int, float) if key in ("min", "max", "value", "tolerance") else str
        if not isinstance(value, right) or isinstance(value, bool):
            raise ClaimError(f"{which}: field {key!r} is {value!r}, of the wrong type")
    return Claim(lesson=lesson, **{**row, "profiles": tuple(row["profiles"])})


def load_all(root: Path) -> dict[str, Claim]:
    """The claims of all lessons by id; an id that two lessons use is a ``ClaimError``."""
    found: dict[str, Claim] = {}
    for path in sorted(course.sources(root).glob("*/claims.toml")):
        for claim in load(root, path.parent.name).values():
            if claim.id in found:
                raise ClaimError(f"{claim.lesson}/claims.toml: claim {claim.id!r} is also in "
                                 f"{found[claim.id].lesson}/claims.toml: ids are unique over the course")
            found[claim.id] = claim
    return found


@dataclass
class Ledger:
    """What one run of a lesson computed."""

    lesson: str
    profile: str
    values: dict[str, float]
    machine: dict[str, Any] = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)  # name -> hash of all that the run depends on
    date: str = ""  # YYYY-MM-DD
    command: str = ""
    minutes: float = 0.0
    peak_memory_mb: float = 0.0
    refused: list[str] = field(default_factory=list)  # hosts that the offline guard refused
    outputs: list[str] = field(default_factory=list)  # hash of what each code cell of the notebook has left behind
    seal: str = ""  # hash of all the rest

    def write(self, path: Path) -> None:
        self.seal = self.sealed()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Ledger | None:
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def sealed(self) -> str:
        """What ``seal`` must be."""
        return seals.of(asdict(self) | {"seal": ""})

    def where(self) -> str:
        """Machine and date in one line."""
        return f"{self.profile} profile on {describe(self.machine)}, {self.date}"


def describe(machine: Mapping[str, Any]) -> str:
    return f"{machine.get('cpu', 'an unknown CPU')}, {machine.get('threads', '?')} threads"


def stored(root: Path, lesson: str) -> Ledger | None:
    """The ledger of the last stored run, or None."""
    return Ledger.read(course.part(root, lesson, "ledger.json"))


# -- prose -------------------------------------------------------------------------------------------------------------


def fill(text: str, root: Path, claims: Mapping[str, Claim] | None = None) -> str:
    """Put stored values in place of ``{{claim-id}}``; an absent one reads "(not measured yet)".

    ``claims`` are those of the whole course, if the caller has them already.

    Raises:
        ClaimError: for an id that no lesson claims.
    """
    claims = load_all(root) if claims is None else claims

    def value(match: re.Match) -> str:
        claim = claims.get(match[1])
        if claim is None:
            raise ClaimError(unknown(match[1], claims))
        ledger = stored(root, claim.lesson)
        known = ledger is not None and claim.id in ledger.values
        return claim.show(ledger.values[claim.id]) if known else "(not measured yet)"

    return REFERENCE.sub(value, text)


def unknown(identifier: str, claims: Iterable[str]) -> str:
    near = difflib.get_close_matches(identifier, list(claims), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; add it to the lesson's claims.toml"
    return f"there is no claim {identifier!r}{hint}"


# -- the table that a lesson ends with ---------------------------------------------------------------------------------

Row = tuple[str, ...]


def table(claims: Iterable[Claim], values: Mapping[str, float], machine: Mapping[str, Any], profile: str,
          kept: Ledger | None) -> tuple[Row, list[Row]]:  # fmt: skip
    """Header and rows; ``kept`` is the stored run that stands beside this one, or None while it is being made."""
    head: Row = ("claim", "this run", "bound", *(["stored run"] if kept else []), "")
    rows = []
    for claim in claims:
        value = values.get(claim.id)
        old = kept.values.get(claim.id) if kept else None
        shown = [claim.with_unit(number) if number is not None else "–" for number in (value, old)]
        verdict = str(holds(claim, value, machine, profile))
        rows.append((claim.statement, shown[0], claim.bound(), *(shown[1:] if kept else []), verdict))
    return head, rows


def as_text(head: Row, rows: list[Row]) -> str:
    """One block a claim: the statement, then its numbers. Statements are too long for columns of text."""
    lines = []
    for statement, *cells in rows:
        *numbers, verdict = cells
        named = ", ".join(f"{name} {number}" for name, number in zip(head[1:-1], numbers, strict=True))
        lines += [f"{verdict}", f"    {statement}", f"    {named}"]
    return "\n".join(lines)


def as_html(head: Row, rows: list[Row], above: Iterable[str] = ()) -> str:
    """The table, with lines of text above it."""

    def line(cells: Row, tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    said = "".join(f"<p>{html.escape(text)}</p>\n" for text in above)
    body = "\n".join(line(row, "td") for row in rows)
    return f"{said}<table>\n<thead>{line(head, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


# -- what was measured -------------------------------------------------------------------------------------------------


def definitions(root: Path, lesson: str) -> dict[str, stale.Found]:
    """What a lesson's run depends on: its cells, every definition that they reach, the figures and questions it shows.

    Solutions are left out: the stored run is the learner's notebook, which has none.
    """
    text = source.read(root, lesson).text
    shown = {f"the picture {name}": root / "notebooks" / name for name in PICTURE.findall(text)}
    shown["the quiz"] = course.part(root, lesson, "quiz.json")
    shown_bytes = {name: path.read_bytes() for name, path in shown.items() if path.is_file()}
    files = stale.snapshot(root)
    others = {stale.module_name(file) for file in files if file.startswith("coursekit/")} - set(RUNS)
    return stale.find(files, source.to_stub(text), shown=shown_bytes, not_followed=others)


def cells_as_stored(root: Path, lesson: str) -> bool:
    """Whether the lesson's cells do what they did in the stored run."""
    ledger = stored(root, lesson)
    return ledger is not None and ledger.definitions.get(stale.CELLS) == definitions(root, lesson)[stale.CELLS].hash


# -- the gate ----------------------------------------------------------------------------------------------------------


def problems(root: Path, only: Iterable[str] | None = None) -> list[str]:
    """What is wrong with the claims of the course, one line each; an empty list is green.

    Every claim of every lesson was recorded by the stored ``full`` run, lies in its bound, and was computed by the code
    as it is now.
    """
    try:
        load_all(root)
    except ClaimError as error:
        return [str(error)]
    chosen = course.lessons(root) if only is None else list(only)
    return [line for lesson in chosen for line in _problems(root, lesson)]


def _problems(root: Path, lesson: str) -> list[str]:
    try:
        claims = load(root, lesson)
    except FileNotFoundError as error:
        return [f"{lesson}: {error}"]
    found = []
    enforced = [claim for claim in claims.values() if claim.kind == "exact" and "quick" in claim.profiles]
    if len(enforced) < ENFORCED_IN_QUICK:
        found.append(f"{lesson}: {len(enforced)} exact claims in quick, at least {ENFORCED_IN_QUICK} are needed")
    ledger = stored(root, lesson)
    remedy = f"run `{course.command(root)} notebooks {course.name(lesson)}`"
    if ledger is None:
        return [*found, f"{lesson}: no stored run: {remedy}"]
    if ledger.seal != ledger.sealed():
        found.append(f"{lesson}: ledger.json was edited since the run of {ledger.date} that wrote it: restore it, or "
                     + remedy)  # fmt: skip
    if ledger.profile != "full":
        found.append(f"{lesson}: the stored run is of profile {ledger.profile!r}, not full: {remedy}")
    if changes := stale.why(ledger.definitions, definitions(root, lesson)):
        more = f", and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
        what = ", ".join(changes[:SHOWN]) + more
        found.append(f"{lesson}: the stored run is stale: {what} since {ledger.date}: {remedy}")
    found += [f"{lesson}: the stored run records {name!r}, which is no claim: {remedy}"
              for name in ledger.values if name not in claims]  # fmt: skip
    for claim in claims.values():
        found += _stored_problem(claim, ledger, remedy)
    return found


def _stored_problem(claim: Claim, ledger: Ledger, remedy: str) -> list[str]:
    where = f"{claim.lesson}: claim {claim.id!r}"
    value = ledger.values.get(claim.id)
    if value is None:
        return [f"{where} was never recorded by the stored run: {remedy}"] if "full" in claim.profiles else []
    if "full" not in claim.profiles or claim.holds(value):
        return []
    bf16 = claim.machine == "bf16" and not ledger.machine.get("bf16")
    why = "; it was stored on a CPU without bf16, store it on one that has it" if bf16 else ""
    return [f"{where} is out of bounds: {claim.show(value)} ({value!r}), claimed {claim.bound()}{why}"]


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
