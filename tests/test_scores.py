"""Scores against the libraries that are known for them, on hand-made and random cases."""

import math
import random
import statistics

import pytest
from nervaluate import Evaluator
from scipy import stats
from sklearn.metrics import accuracy_score
from sklearn.metrics import f1_score as sklearn_f1
from torchmetrics.text import SQuAD

from sslcourse.measure import intervals
from sslcourse.tasks import scores

HAND_MADE = [
    ("B-PER I-PER O", "B-PER I-PER O"),
    ("B-PER I-PER O", "B-PER O O"),  # half a name: one wrong, one missed
    ("B-PER B-PER O", "B-PER I-PER O"),
    ("O I-PER I-PER", "O B-PER I-PER"),  # an I- behind O begins an entity
    ("B-PER I-LOC O", "B-PER I-PER O"),
    ("O O O", "O O O"),
    ("O B-LOC I-LOC", "O O O"),
    ("O O O", "B-PER I-PER I-PER"),
]


def by_nervaluate(gold: list[list[str]], found: list[list[str]]) -> tuple[float, float, float]:
    strict = Evaluator(gold, found, tags=["PER", "LOC"], loader="list").evaluate()["overall"]["strict"]
    return strict.precision, strict.recall, strict.f1


@pytest.mark.parametrize(("gold", "found"), HAND_MADE)
def test_entities_are_scored_as_nervaluate_scores_them(gold, found):
    gold, found = [gold.split()], [found.split()]
    assert scores.entity_score(gold, found) == pytest.approx(by_nervaluate(gold, found), abs=1e-12)


@pytest.mark.parametrize("seed", range(60))
def test_random_tags_are_scored_as_nervaluate_scores_them(seed):
    """Any tag behind any other: an I- without its B- as well, and a sentence of one word or without a name."""
    draw = random.Random(seed)
    tags = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    gold = [[draw.choice(tags) for _ in range(draw.randint(1, 15))] for _ in range(draw.choice([1, 3, 60]))]
    found = [[tag if draw.random() < 0.8 else draw.choice(tags) for tag in row] for row in gold]
    assert scores.entity_score(gold, found) == pytest.approx(by_nervaluate(gold, found), abs=1e-12)


def test_entities_are_counted_over_all_sentences_and_divided_once():
    gold = [["B-PER"], ["B-PER"] * 9]
    found = [["O"], ["B-PER"] * 9]
    assert scores.entity_score(gold, found).recall == pytest.approx(0.9)  # a mean of sentences would be 0.5


@pytest.mark.parametrize("tag", ["PER", "B_PER", "X-PER", "B-", ""])
def test_a_tag_that_is_not_bio_is_refused(tag):
    with pytest.raises(ValueError, match="is not BIO"):
        scores.entities(["O", tag])


def test_tokens_are_scored_inside_or_outside():
    score = scores.token_score([["B-PER", "I-PER", "O", "O"]], [["I-PER", "O", "B-PER", "O"]])
    assert score == pytest.approx((0.5, 0.5, 0.5))


ANSWERS = [
    ("the Kenya hills", "Kenya hills"),
    ("Kenya", "kenya!"),
    ("5,199 m", "5199 m"),
    ("a gold coast", "gold the coast coast"),
    ("Mount Kenya", "Lake Victoria"),
    ("an answer with many words", "answer with words"),
    ("Côte d'Ivoire", "cote d'ivoire"),
    ("tea, coffee", "coffee tea tea"),
    ("the—end", "—end"),
    ("«the cat»", "« cat»"),
    ("A°C", "°C"),
    ("l’a b", "l’ b"),
]


@pytest.mark.parametrize(("gold", "found"), ANSWERS)
def test_answers_are_scored_as_squad_scores_them(gold, found):
    metric = SQuAD()
    wanted = {"answers": {"answer_start": [0], "text": [gold]}, "id": "1"}
    metric.update([{"prediction_text": found, "id": "1"}], [wanted])
    theirs = {name: float(value) / 100 for name, value in metric.compute().items()}
    assert scores.exact_match(gold, found) == theirs["exact_match"]
    assert scores.answer_f1(gold, found) == pytest.approx(theirs["f1"], abs=1e-6)  # theirs is in fp32


def test_an_empty_answer_matches_an_empty_one_only():
    assert scores.answer_f1("the", "") == 1.0  # nothing is left of an article
    assert scores.answer_f1("", "word") == 0.0


def test_classes_are_scored_as_scikit_learn_scores_them():
    draw = random.Random(0)
    gold = [draw.choice("aaabc") for _ in range(300)]
    found = [one if draw.random() < 0.6 else draw.choice("abcd") for one in gold]
    assert scores.accuracy(gold, found) == pytest.approx(accuracy_score(gold, found), abs=1e-12)
    assert scores.macro_f1(gold, found) == pytest.approx(sklearn_f1(gold, found, average="macro"), abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 20, 21, 25, 40])
def test_the_interval_is_students(n):
    values = [random.Random(i).random() for i in range(n)]
    low, high = stats.t.interval(0.95, n - 1, statistics.mean(values), stats.sem(values))
    assert intervals.interval(values) == pytest.approx((statistics.mean(values), low, high), abs=1e-3)  # 3 digits of t


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="at least two seeds"):
        intervals.interval([0.5])


def test_labels_worth_reads_the_curve_sideways():
    assert scores.labels_worth([10, 100], [0.2, 0.6], 0.4) == pytest.approx(math.sqrt(1000))
    assert scores.labels_worth([10, 100], [0.2, 0.6], 0.6) == pytest.approx(100)
    assert scores.labels_worth([10, 100], [0.2, 0.6], 0.1) == 10
    assert scores.labels_worth([10, 100], [0.2, 0.6], 0.7) == math.inf
    with pytest.raises(ValueError, match="must rise"):
        scores.labels_worth([100, 10], [0.2, 0.6], 0.4)
    for counts, curve in (([0, 10], [0.2, 0.6]), ([1, 10], [0.2, math.nan])):
        with pytest.raises(ValueError, match="must be positive"):
            scores.labels_worth(counts, curve, 0.4)


def test_a_run_that_failed_has_no_interval():
    with pytest.raises(ValueError, match="a run failed"):
        intervals.interval([0.5, math.nan])


@pytest.mark.parametrize("score", [scores.accuracy, scores.macro_f1, scores.entity_score, scores.token_score])
def test_nothing_to_score_and_unequal_lengths_are_refused(score):
    with pytest.raises(ValueError, match="gold is empty"):
        score([], [])
    with pytest.raises(ValueError, match="unequal lengths"):
        score([["O"]], [["O"], ["O"]])


@pytest.mark.parametrize("score", [scores.entity_score, scores.token_score])
def test_a_sentence_of_another_length_is_named(score):
    with pytest.raises(ValueError, match="sentence 1: gold has 2 tags, predicted has 1"):
        score([["O"], ["O", "O"]], [["O"], ["O"]])
