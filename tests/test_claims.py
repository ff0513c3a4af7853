"""Claims: their files are validated, their verdicts are right, and a stale ledger is red."""

import json
from pathlib import Path

import pytest

from coursekit import claims
from coursekit.claims import Claim, ClaimError, holds

ROOT = Path(__file__).resolve().parents[1]
HERE, THERE = {"bf16": False}, {"bf16": True}


def claim(**fields) -> Claim:
    base = {"lesson": "01_tiny", "id": "some-loss", "statement": "A loss", "unit": "nats", "kind": "exact",
            "profiles": ("quick", "full"), "format": ".2f"}  # fmt: skip
    return Claim(**{**base, **fields})


def test_the_claims_of_the_course_are_well_written():
    assert claims.load_all(ROOT)


@pytest.mark.parametrize(
    ("bound", "inside", "outside"),
    [
        ({"max": 2.0}, [2.0, -9.0], [2.1, float("nan"), float("inf")]),
        ({"min": 2.0}, [2.0, 9.0], [1.9, float("nan"), float("inf")]),
        ({"min": 1.0, "max": 2.0}, [1.0, 2.0], [0.9, 2.1]),
        ({"value": 6, "tolerance": 0}, [6.0], [6.1, 5.9]),
        ({"value": -1.0, "tolerance": 0.5}, [-1.5, -0.5], [-1.6, -0.4]),
    ],
)
def test_bounds(bound, inside, outside):
    assert all(claim(**bound).holds(value) for value in inside)
    assert not any(claim(**bound).holds(value) for value in outside)


@pytest.mark.parametrize(
    ("fields", "value", "machine", "profile", "status"),
    [
        ({"kind": "exact"}, 1.0, HERE, "quick", "holds"),
        ({"kind": "exact"}, 3.0, HERE, "quick", "missed"),
        ({"kind": "exact"}, None, HERE, "quick", "unrecorded"),
        ({"kind": "exact", "profiles": ("full",)}, None, HERE, "quick", "not asked"),
        ({"kind": "exact", "profiles": ("full",)}, 3.0, HERE, "quick", "not asked"),
        ({"kind": "exact", "machine": "bf16"}, 3.0, HERE, "full", "not reached"),
        ({"kind": "exact", "machine": "bf16"}, 3.0, THERE, "full", "missed"),
        ({"kind": "measured"}, 3.0, THERE, "full", "not reached"),
        ({"kind": "measured"}, float("nan"), THERE, "full", "not reached"),
        ({"kind": "measured"}, None, THERE, "full", "unrecorded"),
    ],
)
def test_verdicts(fields, value, machine, profile, status):
    verdict = holds(claim(max=2.0, **fields), value, machine, profile)
    assert verdict.status == status
    assert verdict.red == (status in ("missed", "unrecorded"))


def test_a_slower_machine_is_told_why():
    assert "because its CPU has no bf16" in str(holds(claim(max=2.0, machine="bf16"), 3.0, HERE))
    assert "because the quick profile" in str(holds(claim(max=2.0, kind="measured"), 3.0, THERE, "quick"))


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [(0.0, ".1e", "0"), (1e-16, ".1e", "1.0e-16"), (0.75, ".0%", "75%"), (12345, ",.0f", "12,345")],
)
def test_how_prose_prints(value, form, text):
    assert claim(max=1.0, format=form).show(value) == text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('unit = "1"\nvalue = 6', 'value = 6', "claim 'tiny-sum': field 'unit' is missing"),
        ("tolerance = 0", "", "field 'value'"),
        ("value = 6", 'value = "6"', "of the wrong type"),
        ("value = 6", "value = true", "of the wrong type"),
        ("value = 6", "valeu = 6", "field 'valeu' is unknown"),
        ("value = 6\ntolerance = 0", "", "give min, max, or value"),
        ('"tiny-sum"', '"Tiny_Sum"', "kebab-case"),
        ('"tiny-sum"', '"tiny-count"', "stands there twice"),
        ('["quick", "full"]', '["quik"]', "field 'profiles'"),
        ('format = ".0f"', 'format = ".0q"', "field 'format'"),
        ("[[claim]]", "[[claim", "01_tiny/claims.toml: "),
    ],
)
def test_a_badly_written_file_names_file_claim_and_field(tiny, old, new, said):
    tiny.plant(old, new, tiny.claims)
    with pytest.raises(ClaimError, match=r"^01_tiny/claims\.toml: ") as error:
        claims.load(tiny.root, tiny.lesson)
    assert said in str(error.value)


def test_ids_are_unique_over_the_course(tiny):
    (tiny.add("02_other") / "claims.toml").write_text(tiny.claims.read_text())
    assert claims.problems(tiny.root) == ["02_other/claims.toml: claim 'tiny-sum' is also in 01_tiny/claims.toml: ids "
                                          "are unique over the course"]  # fmt: skip


def test_a_lesson_without_claims_or_with_too_few_is_red(tiny):
    first = tiny.claims.read_text().split("[[claim]]")[1]
    tiny.claims.write_text("[[claim]]" + first)
    assert any("at least 3 are needed" in line for line in claims.problems(tiny.root))
    tiny.claims.unlink()
    assert any("notebooks/source/01_tiny/claims.toml is missing" in line for line in claims.problems(tiny.root))


def test_a_bf16_claim_must_be_stored_on_a_machine_that_has_it(stored):
    stored.plant('max = 2.5\nkind = "measured"', 'max = 2.0\nmachine = "bf16"\nkind = "measured"', stored.claims)
    ledger = json.loads(stored.ledger.read_text())
    ledger["machine"]["bf16"] = False
    stored.ledger.write_text(json.dumps(ledger))
    assert any("on a CPU without bf16" in line for line in claims.problems(stored.root))


def test_prose_prints_the_stored_value(stored):
    assert claims.fill("sum {{tiny-sum}}, loss {{ tiny-loss }} nats", stored.root) == "sum 6, loss 2.25 nats"
    stored.ledger.unlink()
    assert claims.fill("sum {{tiny-sum}}", stored.root) == "sum (not measured yet)"
    with pytest.raises(ClaimError, match="did you mean 'tiny-sum'"):
        claims.fill("{{tiny-sums}}", stored.root)


def test_the_table_says_everything_in_both_forms(stored):
    ledger = claims.stored(stored.root, stored.lesson)
    expected = claims.load(stored.root, stored.lesson).values()
    head, rows = claims.table(expected, {"tiny-sum": 7.0}, HERE, "quick", ledger)
    text, page = claims.as_text(head, rows), claims.as_html(head, rows, ["<machine>"])
    assert head == ("claim", "this run", "bound", "stored run", "")
    assert "✗ missed: outside 6" in text
    assert "this run 7, bound 6, stored run 6" in text
    assert "3 numbers" in text
    assert "&lt;machine&gt;" in page
    assert page.count("<tr>") == 5


def test_a_picture_that_prose_shows_and_the_quiz_are_part_of_a_run(stored):
    before = claims.definitions(stored.root, stored.lesson)
    stored.plant("# # Tiny", "# # Tiny\n#\n# ![A drawing.](drawn.svg)")
    (stored.notebook.parent / "drawn.svg").write_text("<svg/>")
    (stored.folder / "quiz.json").write_text("[]")
    now = claims.definitions(stored.root, stored.lesson)
    assert now.keys() - before.keys() == {"the picture drawn.svg", "the quiz"}


def test_only_what_computes_is_followed_into_the_machinery(stored):
    """Its other modules judge and build: what they say of a lesson's numbers cannot change them."""
    files = {found.file for found in claims.definitions(stored.root, stored.lesson).values() if found.file}
    assert "coursekit/lesson.py" in files
    assert not files & {"coursekit/checks.py", "coursekit/claims.py", "coursekit/course.py", "coursekit/offline.py"}


def test_solutions_make_nothing_stale(stored):
    before = claims.definitions(stored.root, stored.lesson)
    stored.plant("rows = logits[labels != -100]", "rows = logits[labels >= 0]")
    assert claims.definitions(stored.root, stored.lesson) == before


def test_the_gate_names_the_definitions_that_made_a_run_stale(stored):
    ledger = claims.stored(stored.root, stored.lesson)
    changed = dict.fromkeys(["start", "Lesson", "show"], "of old")
    ledger.definitions |= {"gone_by": "of old", **changed}
    ledger.write(stored.ledger)
    [line] = claims.problems(stored.root)
    assert line == (
        "01_tiny: the stored run is stale: `Lesson` (coursekit/lesson.py) has changed, `gone_by` is gone, "
        f"`show` is gone, and 1 more since {ledger.date}: run `python -m sslcourse notebooks tiny`"
    )
