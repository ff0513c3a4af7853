"""The corpus: its contract, its cleaning, and the promise that no country stands in two splits."""

from __future__ import annotations

import re

import pytest
from datasets import DatasetDict

from sslcourse.data import corpus


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    return corpus.load("factbook")


def test_three_splits_with_the_columns_that_later_lessons_use(splits):
    assert isinstance(splits, DatasetDict)
    assert list(splits) == ["train", "validation", "test"]
    for part in splits.values():
        assert set(part.column_names) == {"text", "country", "name", "region", "section", "field"}
        assert len(part) > 1000
        assert all(isinstance(value, str) and value for row in part.select(range(100)) for value in row.values())


def test_no_country_stands_in_two_splits(splits):
    countries = [set(part["country"]) for part in splits.values()]
    assert sum(map(len, countries)) == len(set().union(*countries)) == 256
    assert [len(part) for part in countries[1:]] == [corpus.HELD_OUT_COUNTRIES] * 2


def test_nothing_is_lost_between_the_passages_and_the_splits(splits):
    rows = corpus.passages()
    assert sorted(row["text"] for row in rows) == sorted(text for part in splits.values() for text in part["text"])
    assert corpus.load_splits()["test"] == list(splits["test"])


def test_text_is_clean(splits):
    for part in splits.values():
        for text in part["text"]:
            assert not re.search(r"</?[a-zA-Z!][^>]*>|&[a-zA-Z]+;|&#\d+;|\s\s|[\r\n\t]", text), text
            assert text == text.strip()
            assert len(text.split()) >= corpus.MIN_WORDS


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        ("<p>Kenya&rsquo;s counties<br><br>are <em>47</em></p>", "Kenya’s counties are 47"),
        ("Buddhist <1%, Hindu <1% <em>(2020)</em>", "Buddhist <1%, Hindu <1% (2020)"),  # a figure is no tag
        ("&lt;p&gt;twice&lt;/p&gt; encoded", "twice encoded"),
        ("a <!-- comment --> b\n\n c", "a b c"),
        ('<p style="margin: 0in">x</p>', "x"),
        ("", ""),
    ],
)
def test_clean(raw, want):
    assert corpus.clean(raw) == want


def test_the_draw_of_countries_is_fixed_and_follows_its_seed():
    codes = [f"c{i}" for i in range(256)]
    assert corpus.split_countries(codes) == corpus.split_countries(reversed(codes))
    assert corpus.split_countries(codes, seed=1) != corpus.split_countries(codes, seed=2)


@pytest.mark.parametrize("name", ["wikitext", "", "Factbook"])
def test_any_other_name_is_refused_with_the_remedy(name):
    with pytest.raises(ValueError, match="'factbook'"):
        corpus.load(name)


def test_duplicate_share():
    assert corpus.duplicate_share(["A b", "c"], ["a B", "d"]) == 0.5
    assert corpus.duplicate_share(["c"], []) == 0.0


def test_split_by_country_leaks_less_than_split_by_passage(splits):
    held_out, train = list(splits["validation"]["text"]), list(splits["train"]["text"])
    by_country = corpus.duplicate_share(held_out, train)
    mixed = [row["text"] for row in corpus.passages()]
    by_passage = corpus.duplicate_share(mixed[::10], [text for i, text in enumerate(mixed) if i % 10])
    assert by_country < 0.05 < 0.09 < by_passage
