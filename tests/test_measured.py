"""Every summary under data/measured is what its command makes of the trials that stand beside it, to the last digit."""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks import MEASURED, __main__, accelerator, quantization
from benchmarks.pretraining import __main__ as pretraining
from benchmarks.pretraining import report
from benchmarks.pretraining.peers import Knobs
from coursekit import seeds

ROOT = Path(__file__).resolve().parents[1]
Figures = dict[str, Any]
FILES = sorted(path.stem for path in MEASURED.glob("*.json"))


# --- what each command makes of its trials: {place in the file: value}, places as "peers/course/best" -----------------


def race(figures: Figures) -> Figures:
    found = report.summary(figures["trials"])
    return found | {"long": report.against_long(figures["long"], figures["trials"])}


def sweep(figures: Figures) -> Figures:
    found: Figures = {}
    for name, peer in figures["peers"].items():
        found[f"peers/{name}/best"] = as_said(pretraining.best_of(peer["trials"]), peer["best"])
        for number, trial in enumerate(peer["trials"]):
            move, knobs = pretraining.next_trial(name, peer["trials"][:number])
            place = f"peers/{name}/trials/{number}"
            found |= {f"{place}/move": move, f"{place}/knobs": as_said(knobs, trial["knobs"])}
    return found


def as_said(knobs: Knobs, said: Figures) -> Figures:
    """The settings, without those that a file does not name since they are as nobody has set them."""
    usual = asdict(Knobs())
    return {name: value for name, value in asdict(knobs).items() if name in said or value != usual[name]}


def ladder(figures: Figures) -> Figures:
    counts = {len(trials) for group in ("climb", "without", "further") for trials in figures[group].values()}
    return {"seeds": one(counts)}


def seeds_of_runs(figures: Figures) -> Figures:
    return {"seeds": len({run["seed"] for run in figures["runs"]})}


def on_gpu(figures: Figures) -> Figures:
    rows = figures["contestants"]
    found: Figures = {f"contestants/{name}/mfu": accelerator.used(row["tokens_per_second"], row["flops_per_token"],
                                                                  figures["peak_flops"]) for name, row in rows.items()}
    if "ratios" not in figures:
        return found
    for name, row in rows.items():
        found |= {f"contestants/{name}/{part}": value for part, value in accelerator.choice(row["trials"]).items()}
    tokens = round(rows["bert"]["curves"][0][-1][2] / rows["bert"]["epochs"])  # all read the same text
    found |= {f"contestants/{name}/epochs": row["curves"][0][-1][2] / tokens for name, row in rows.items()}
    return found | {"ratios": accelerator.ratios(rows), "seeds": one({len(row["curves"]) for row in rows.values()})}


def int8(figures: Figures) -> Figures:
    found: Figures = {"minus_fp32": quantization.minus_fp32(figures["token_f1"]),
                      "seeds": one({len(of_seeds) for of_seeds in figures["token_f1"].values()})}
    for shape, routes in figures["speed"].items():
        rows = int(shape.partition(" ")[0])
        found |= {f"speed/{shape}/{name}/rows_per_second": rows / (route["p50_ms"] / 1e3)
                  for name, route in routes.items()}
    return found


def choices(figures: Figures) -> Figures:
    counts = {len(scores) for table in figures["score"].values() for scores in table.values()}
    return {f"best/{name}": float(benchmarks.best(table)) for name, table in figures["score"].items()} | {
        "seeds": figures["seeds"][: one(counts)]}


def strengths(figures: Figures) -> Figures:
    counts = {len(scores) for table in figures["entity_f1"].values() for scores in table.values()}
    return {"learning_rate": float(benchmarks.best(figures["entity_f1"]["plain, learning rate"])),
            "seeds": figures["seeds"][: one(counts)]}


def confirmed(figures: Figures) -> Figures:
    return {"seeds": one({len(of_seeds) for of_seeds in figures["entity_f1"].values()})}


def label_efficiency(figures: Figures) -> Figures:
    return {"seeds": one({len(of) for kind in ("token_f1", "entity_f1") for of in figures[kind].values()})}


def blocks(figures: Figures) -> Figures:
    return {"batch_share_of_step": __main__.batch_share(figures["results"])}


RECOMPUTED = {
    "accelerator_110m": on_gpu,
    "accelerator_110m_parts": on_gpu,
    "accelerator_30m": on_gpu,
    "accelerator_30m_parts": on_gpu,
    "building_blocks": blocks,
    "fine_tuning_choices": choices,
    "ladder": ladder,
    "minilm_label_efficiency": label_efficiency,
    "pretraining_long": race,
    "pretraining_race": race,
    "pretraining_sweep": sweep,
    "quantization_minilm": int8,
    "remedies_strength": strengths,
    "remedies_twenty_seeds": confirmed,
    "schedules": seeds_of_runs,
    "starts": seeds_of_runs,
    "untrained_1200_steps_label_efficiency": label_efficiency,
}


def one(values: set) -> Any:
    """What all have."""
    [value] = values
    return value


# --- the comparison ---------------------------------------------------------------------------------------------------


def stored(stem: str) -> Figures:
    return json.loads((MEASURED / f"{stem}.json").read_text(encoding="utf-8"))


def at(figures: Any, place: str) -> Any:
    for key in place.split("/"):
        figures = figures[int(key) if isinstance(figures, list) else key]
    return figures


def wrong(stem: str, figures: Figures) -> list[str]:
    """Places at which the file does not say what its command makes of its trials."""
    found = json.loads(json.dumps(RECOMPUTED[stem](figures)))  # lists and text for keys, as in the file
    return [place for place, value in found.items() if at(figures, place) != value]


def test_of_every_file_it_is_said_what_can_be_computed_again():
    assert sorted(RECOMPUTED) == FILES


@pytest.mark.parametrize("stem", FILES)
def test_a_summary_is_what_its_trials_make(stem):
    assert RECOMPUTED[stem](stored(stem))
    assert wrong(stem, stored(stem)) == []


def numbers(value: Any, place: str) -> Iterator[str]:
    """Places of the numbers in a value."""
    if isinstance(value, dict | list):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(below, f"{place}/{key}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place


def edited(figures: Figures, place: str) -> Figures:
    """The figures with one number a thousandth larger."""
    copied = copy.deepcopy(figures)
    above, _, last = place.rpartition("/")
    holder = at(copied, above) if above else copied
    key = int(last) if isinstance(holder, list) else last
    holder[key] += 1 if isinstance(holder[key], int) else 1e-3 * holder[key] or 1e-3
    return copied


@pytest.mark.parametrize(("stem", "part"), [
    ("pretraining_race", "peers/course"), ("pretraining_race", "speedups"), ("pretraining_race", "shorter"),
    ("pretraining_race", "long/times_as_fast"), ("pretraining_race", "long/not_by"), ("pretraining_long", "speedups"),
    ("pretraining_sweep", "peers/course/best"), ("accelerator_30m", "ratios"), ("accelerator_110m", "ratios"),
    ("accelerator_30m", "contestants/course/mfu"), ("accelerator_110m", "contestants/bert/rate"),
    ("accelerator_30m", "contestants/modernbert/epochs"), ("accelerator_110m_parts", "contestants/whole step/mfu"),
    ("building_blocks", "batch_share_of_step"), ("quantization_minilm", "minus_fp32"),
    ("fine_tuning_choices", "best"), ("remedies_strength", "learning_rate"), ("remedies_twenty_seeds", "seeds"),
    ("ladder", "seeds"), ("starts", "seeds"), ("schedules", "seeds"), ("minilm_label_efficiency", "seeds"),
])  # fmt: skip
def test_a_summary_that_was_edited_is_found(stem, part):
    """Every number of it, one at a time."""
    figures = stored(stem)
    places = list(numbers(at(figures, part), part))
    assert places
    assert [place for place in places if not wrong(stem, edited(figures, place))] == []


def test_a_trial_that_was_left_out_is_found():
    figures = stored("pretraining_race")
    figures["trials"] = [trial for trial in figures["trials"] if trial["seed"] != 2]
    assert {"peers", "speedups", "shorter", "long"} <= set(wrong("pretraining_race", figures))


# --- prose that states figures of a file, and no claim does -----------------------------------------------------------


def prose(lesson: str) -> str:
    text = (ROOT / "notebooks" / "source" / lesson / "lesson.py").read_text(encoding="utf-8")
    return " ".join(text.replace("\n# ", " ").split())


def test_what_the_ladders_lesson_says_of_a_gpu_is_in_the_files():
    """Its other figures of a GPU are claims, computed from these files whenever it runs."""
    files = {stem.removeprefix("accelerator_"): stored(stem) for stem in FILES if stem.startswith("accelerator")}
    wide, deep = (files[size]["contestants"] for size in ("30m", "110m"))
    rates = [trial["rate"] for trial in wide["bert"]["trials"]]
    plateau = [point[1] for curve in deep["bert"]["curves"] for point in curve]
    speeds = [rows["course"]["tokens_per_second"][1] / rows["course rows"]["tokens_per_second"][1]
              for rows in (wide, deep)]  # fmt: skip
    best = [row["rate"] == max(trial["rate"] for trial in row["trials"])
            for name, row in wide.items() if name != "bert"]  # fmt: skip
    said = prose("08_efficiency_ladder")
    for sentence, right in {
        "It ran on an H100.": all("H100" in figures["device"] for figures in files.values()),
        "full batches of 64 rows": all(figures["size"]["rows"] == 64 for figures in files.values()),
        "the best of eight settings, four rates and two sizes of batch": (len(rates), len(set(rates))) == (8, 4),
        "With four layers `course rows`": files["30m"]["size"]["layers"] == 4,
        "with fifteen {{gpu-110m-rows-speed}}": files["110m"]["size"]["layers"] == 15,
        "within a hundredth or two": all(0.98 < ratio < 1.02 for ratio in speeds),
        "the best rate was the largest tried, ModernBERT's and ours": all(best),
        "BERT with 110 million weights never left the plateau": min(plateau) > 6,
        "Ten seconds are short.": all(10 <= curve[-1][0] < 11 for row in wide.values() for curve in row["curves"]),
    }.items():
        assert sentence in said, f"the lesson no longer says {sentence!r}: mend this list"
        assert right, sentence


def test_readme_says_of_how_many_seeds_the_race_has_its_medians():
    said = [match[1] for match in seeds.SAID.finditer((ROOT / "README.md").read_text(encoding="utf-8"))]
    assert said == [seeds.WORDS[len({trial["seed"] for trial in stored("pretraining_race")["trials"]})]]
