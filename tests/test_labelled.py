"""The labelled tasks: what an example says is in its text, and no country is in two splits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sslcourse.data import labelled

TASKS = (labelled.sections, labelled.regions, labelled.person_names, labelled.questions, labelled.relations)


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: task.__name__)
def splits(request):
    return request.param()


def test_no_country_is_in_two_splits(splits):
    countries = {split: {row.country for row in rows} for split, rows in splits.items()}
    assert set(splits) == {"train", "validation", "test"}
    assert all(len(of_split) > 10 for of_split in countries.values())
    assert not countries["train"] & countries["validation"]
    assert not countries["train"] & countries["test"]
    assert not countries["validation"] & countries["test"]


def test_counts_in_the_data_card_are_recomputed(splits, request):
    card = (Path(__file__).resolve().parents[1] / "data" / "README.md").read_text(encoding="utf-8")
    row = next(line for line in card.splitlines() if line.startswith(f"| `{request.node.callspec.id}`"))
    assert row.endswith("| " + " | ".join(f"{len(splits[name]):,}" for name in ("train", "validation", "test")) + " |")


def test_the_same_examples_in_another_process():
    code = "from sslcourse.data import labelled as l, whole_files as c; print(c.fingerprint([repr(t()) for t in " \
           "(l.sections, l.person_names, l.questions, l.relations)], []))"  # fmt: skip
    seen = {subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
                           capture_output=True, text=True).stdout for seed in ("1", "2")}  # fmt: skip
    assert len(seen) == 1
    assert seen != {""}


@pytest.mark.parametrize(("task", "least"), [(labelled.sections, 12), (labelled.regions, 11), (labelled.relations, 11)])
def test_every_class_of_the_test_countries_was_in_training(task, least):
    splits = task()
    known = set(labelled.label_names(splits["train"]))
    assert len(known) >= least
    assert {row.label for row in splits["test"]} <= known


def test_a_text_has_one_section():
    rows = [row for of_split in labelled.sections().values() for row in of_split]
    assert len({(row.country, row.text) for row in rows}) == len(rows)


def test_tags_are_bio_and_words_lower_case():
    rows = labelled.person_names()["train"]
    named = 0
    for row in rows:
        assert len(row.words) == len(row.tags)
        assert all(word == word.lower() for word in row.words)
        for before, tag in zip(("O", *row.tags), row.tags, strict=False):
            assert tag in ("O", "B-PER", "I-PER")
            assert tag != "I-PER" or before != "O"
        named += "B-PER" in row.tags
    assert 0.2 < named / len(rows) < 0.4


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        ("President Samuel DOE was killed", ["Samuel DOE"]),
        ("chief of state : King CHARLES III ( since", ["CHARLES III"]),
        ("Prime Minister Sheikh Jaber AL-SABAH and Ruud VAN DER BERG", ["Jaber AL-SABAH", "Ruud VAN DER BERG"]),
        ("Ambassador Jose do Livramento MONTEIRO ( since", ["Jose do Livramento MONTEIRO"]),
        ("a party or FNA , the GDP and the USA", []),
        ("the Kanem Empire fell", []),
    ],
)
def test_capitals_give_the_names(sentence, names):
    words = sentence.split()
    tags = labelled.tag_names(words, labelled.NOT_NAMES | {"FNA"})
    found = []
    for word, tag in zip(words, tags, strict=True):
        if tag == "B-PER":
            found.append(word)
        elif tag == "I-PER":
            found[-1] += f" {word}"
    assert found == names


def test_answers_and_arguments_are_parts_of_their_texts():
    for row in labelled.questions()["train"]:
        assert row.answer == row.answer.strip() != ""
        assert row.question in labelled.QUESTIONS.values()
    for row in labelled.relations()["train"]:
        subject, item = row.text[slice(*row.subject)], row.text[slice(*row.object)]
        assert row.text.startswith(f"{subject}: ")
        assert item == item.strip()
        assert len(item) > 2
        assert not set(item) & set(",;()%")
        assert row.object[0] >= row.subject[1]
