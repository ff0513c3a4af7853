"""Scores of fine-tuned models.

    accuracy, macro_f1          one class a text
    entity_score, token_score   BIO tags, by whole entity or by word
    exact_match, answer_f1      answers to questions, as SQuAD compares them
    labels_worth                how many labels a score is worth, on a curve over numbers of labels

Written out, because a score that nobody can read is believed too easily; each is tested against the library that is
known for it (scikit-learn, nervaluate, torchmetrics). How sure one may be of a mean over seeds says
``measure.intervals``.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple


class Score(NamedTuple):
    """Precision, recall and their harmonic mean, each between 0 and 1; 0 where nothing was found or asked for."""

    precision: float
    recall: float
    f1: float

    @classmethod
    def of(cls, correct: int, predicted: int, gold: int) -> Score:
        precision = correct / predicted if predicted else 0.0
        recall = correct / gold if gold else 0.0
        return cls(precision, recall, 2 * correct / (predicted + gold) if predicted + gold else 0.0)


def accuracy(gold: Sequence[Any], predicted: Sequence[Any]) -> float:
    """Share of equal pairs."""
    same_length(gold=gold, predicted=predicted)
    return sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold)


def macro_f1(gold: Sequence[Any], predicted: Sequence[Any]) -> float:
    """Mean over the classes that occur of each one's F1, so that a rare class counts as much as a frequent one."""
    same_length(gold=gold, predicted=predicted)
    pairs = list(zip(gold, predicted, strict=True))
    classes = set(gold) | set(predicted)
    counts = [(sum(a == b == c for a, b in pairs), sum(b == c for _, b in pairs), sum(a == c for a, _ in pairs))
              for c in classes]  # fmt: skip
    return sum(Score.of(*count).f1 for count in counts) / len(classes)


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(start, end, type) of every entity in a sentence of BIO tags; ``end`` is excluded.

    The rules of the CoNLL scorer: B- begins an entity; so does an I- behind O or behind another type; an I- of the
    same type goes on (Tjong Kim Sang and De Meulder 2003, conlleval).

    Raises:
        ValueError: for a tag that is not O, B-... or I-....
    """
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, this = tag.partition("-")
        if tag != "O" and (prefix not in ("B", "I") or not this):
            raise ValueError(f"tags[{place}]={tag!r} is not BIO; write O, B-TYPE or I-TYPE")
        if kind and (prefix != "I" or this != kind):
            found.add((start, place, kind))
            kind = ""
        if tag != "O" and not kind:
            start, kind = place, this
    return found


def entity_score(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Score:
    """Whole entities: right only if start, end and type are. Summed over all sentences, then divided once.

    Agrees with what ``nervaluate`` calls strict (a test compares).
    """
    same_length(gold=gold, predicted=predicted)
    correct = found = wanted = 0
    for row, (of_gold, of_predicted) in enumerate(zip(gold, predicted, strict=True)):
        _same_sentence(row, of_gold, of_predicted)
        right, guess = entities(of_gold), entities(of_predicted)
        correct, found, wanted = correct + len(right & guess), found + len(guess), wanted + len(right)
    return Score.of(correct, found, wanted)


def _same_sentence(row: int, gold: Sequence[str], predicted: Sequence[str]) -> None:
    if len(gold) != len(predicted):
        raise ValueError(f"sentence {row}: gold has {len(gold)} tags, predicted has {len(predicted)}")


def token_score(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Score:
    """Single words: inside a name or not, whatever the tag's B or I. Kinder than ``entity_score``."""
    same_length(gold=gold, predicted=predicted)
    for row, (of_gold, of_predicted) in enumerate(zip(gold, predicted, strict=True)):
        _same_sentence(row, of_gold, of_predicted)
    pairs = [(a != "O", b != "O") for rows in zip(gold, predicted, strict=True) for a, b in zip(*rows, strict=True)]
    return Score.of(sum(a and b for a, b in pairs), sum(b for _, b in pairs), sum(a for a, _ in pairs))


def normalise(answer: str) -> str:
    """As SQuAD compares answers: lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016)."""
    letters = "".join(char for char in answer.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


def exact_match(gold: str, predicted: str) -> float:
    """1 if the two answers are the same once normalised, else 0."""
    return float(normalise(gold) == normalise(predicted))


def answer_f1(gold: str, predicted: str) -> float:
    """F1 over the words that the two answers share, as bags; an empty answer matches an empty one only."""
    gold_words, words = normalise(gold).split(), normalise(predicted).split()
    if not gold_words or not words:
        return float(gold_words == words)
    return Score.of(sum((Counter(gold_words) & Counter(words)).values()), len(words), len(gold_words)).f1


def labels_worth(counts: Sequence[int], scores: Sequence[float], score: float) -> float:
    """How many labels the curve ``scores`` over ``counts`` needs to reach ``score``, between points in log(count).

    Infinity where the curve never gets there; the first count where it starts above.

    Raises:
        ValueError: for unequal lengths, or counts that do not rise.
    """
    same_length(counts=counts, scores=scores)
    if any(b <= a for a, b in pairwise(counts)):
        raise ValueError(f"counts={list(counts)} must rise")
    if counts[0] <= 0 or not all(map(math.isfinite, (*scores, score))):
        raise ValueError(f"counts={list(counts)} must be positive, and scores={list(scores)} and {score=} finite")
    if scores[0] >= score:
        return float(counts[0])
    points = list(zip(counts, scores, strict=True))
    for (a, low), (b, high) in pairwise(points):
        if low < score <= high:
            share = (score - low) / (high - low)
            return math.exp(math.log(a) + share * (math.log(b) - math.log(a)))
    return math.inf


def same_length(**columns: Sequence) -> None:
    """ValueError unless the columns, given by name, are not empty and equally long."""
    lengths = {name: len(column) for name, column in columns.items()}
    first = next(iter(lengths))
    if not lengths[first]:
        raise ValueError(f"{first} is empty: there is nothing to train on or to score")
    if len(set(lengths.values())) > 1:
        raise ValueError("unequal lengths: " + ", ".join(f"{name} has {n}" for name, n in lengths.items()))
