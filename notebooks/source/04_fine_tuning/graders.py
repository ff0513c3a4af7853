"""Graders: tags for pieces, entities, the paired gain, the best span, merged LoRA."""

from __future__ import annotations

import math
from typing import Any

import torch

from coursekit.checks import Answer, Rng, Wrong, close, grader, true


@grader("align_tags")
def align_tags(answer: Answer, rng: Rng) -> None:
    """(word_ids, tags) -> a label for each token."""
    for word_ids, tags in (
        ([0, 0, 1], [3, 4]),  # no special tokens
        ([0, 1, 1], [2, 1]),
        ([0, 0], [2]),
        ([None, 0, 2, 2, None], [1, 2, 3]),  # a word that the tokenizer left out
        ([], []),
    ):
        _compare_labels(answer(list(word_ids), list(tags)), list(word_ids), tags)
    for round_ in range(6):
        pieces = [rng.integer(1, 3) for _ in range(rng.integer(4, 8))]
        pieces[1] = 3  # a word of several pieces
        tags = [rng.integer(0, 4) for _ in pieces]
        tags[1], tags[2] = 3, 3  # two neighbours with the same tag
        tags[0] = 0
        word_ids: list[int | None] = [None]
        for word, count in enumerate(pieces):
            word_ids += [word] * count
        if round_ % 2:
            word_ids = word_ids[: rng.integer(len(word_ids) // 2, len(word_ids) - 1)]  # cut off
        word_ids.append(None)
        if round_ >= 3:
            word_ids += [None] * rng.integer(1, 3)  # padding
        _compare_labels(answer(word_ids, tags), word_ids, tags)


def _compare_labels(got: Any, word_ids: list[int | None], tags: list[int]) -> None:
    before = [None, *word_ids]
    after = [*word_ids, None][1:]
    labels = [-100 if word is None or word == last else tags[word]
              for last, word in zip(before, word_ids, strict=False)]  # fmt: skip
    everywhere = [-100 if word is None else tags[word] for word in word_ids]
    last_piece = [-100 if word is None or word == follows else tags[word]
                  for word, follows in zip(word_ids, after, strict=True)]  # fmt: skip
    by_tag, previous = [], None
    for word in word_ids:
        tag = None if word is None else tags[word]
        by_tag.append(-100 if tag is None or tag == previous else tag)
        previous = tag
    if isinstance(got, torch.Tensor):
        got = got.tolist()
    true(isinstance(got, (list, tuple)), f"return a list with one label a token, got {type(got).__name__}")
    got = list(got)
    true(len(got) == len(word_ids), f"{len(word_ids)} tokens came in and {len(got)} labels out: give one a token")
    known = {
        "every piece carries its word's tag; only the first piece should, or a long word counts more": everywhere,
        "the last piece of a word carries the tag; it is the first one that does": last_piece,
        "two neighbouring words with the same tag became one: compare the word's index, not its tag": by_tag,
        "pieces that are not scored hold 0, which is a tag; -100 is what the loss leaves out":
            [0 if label == -100 else label for label in labels],
        "special tokens (word index None) are not scored: they hold -100":
            [0 if word is None else label for word, label in zip(word_ids, labels, strict=True)],
        "the pieces behind a word's first one hold -100 too":
            [label if word is None or label != -100 else 0 for word, label in zip(word_ids, labels, strict=True)],
    }  # fmt: skip
    if got == labels:
        return
    for hint, wrong in known.items():
        if got == wrong:
            raise Wrong(hint)
    place = next(i for i, (a, b) in enumerate(zip(got, labels, strict=True)) if a != b)
    raise Wrong(f"token {place} (word {word_ids[place]}) has label {got[place]!r}, expected {labels[place]}")


@grader("find_entities", forbidden=("get_entities", "start_of_chunk", "end_of_chunk"))
def find_entities(answer: Answer, rng: Rng) -> None:
    """BIO tags -> set of (start, end, type)."""
    planted = [
        (["B-PER", "I-PER", "O"], "an I- of the same type goes on with the entity before it"),
        (["O", "O"], "where every tag is O there is no entity"),
        (["O", "B-PER", "I-PER"], "an entity that reaches the end of the sentence counts, too"),
        (["B-PER", "B-PER", "O"], "a B- always begins a new entity, also right behind another"),
        (["O", "I-PER", "I-PER"], "an I- behind O begins an entity"),
        (["I-LOC", "O"], "an I- at the start begins an entity"),
        (["B-PER", "I-LOC", "O"], "an I- of another type begins a new entity"),
        (["B-PER", "O", "I-PER"], "an I- behind O begins a new entity, even if one of its type stood before the O"),
        (["B-LOC", "I-LOC", "B-LOC", "I-LOC"], "a B- of the same type ends the entity before it"),
        (["B-PER"], "a sentence of one word can be one entity"),
        (["B-geo-loc", "I-geo-loc", "O", "B-geo"], "the type is all that stands behind the first hyphen"),
        ([], "no tags, no entities: return an empty set"),
    ]
    rng.python.shuffle(planted)
    for tags, rule in planted:
        _compare_entities(answer, tags, rule)
    choices = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-B", "I-B"]
    for _ in range(20):
        tags = [rng.python.choice(choices) for _ in range(rng.integer(3, 12))]
        _compare_entities(answer, tags, "walk through the tags once and close what is open before opening anew")


def _compare_entities(answer: Answer, tags: list[str], rule: str) -> None:
    want = _entities(tags)
    got = answer(list(tags))
    collection = isinstance(got, (set, frozenset, list, tuple))
    true(collection, f"return a set of (start, end, type), got {type(got).__name__}")
    true(all(isinstance(one, tuple) and len(one) == 3 for one in got), "each entity is a tuple (start, end, type)")
    found = set(got)
    true(len(found) == len(got), f"{rule}; for {tags} an entity is in your answer twice")
    if found and found == {(start, end - 1, kind) for start, end, kind in want}:
        raise Wrong("end is excluded: the entity of one word at place 2 is (2, 3, type)")
    if found == want:
        return
    raise Wrong(f"{rule}; for {tags} expected {sorted(want)}, got {sorted(found, key=str)}")


def _entities(tags: list[str]) -> set[tuple[int, int, str]]:
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, this = tag.partition("-")
        if kind and (prefix != "I" or this != kind):
            found.add((start, place, kind))
            kind = ""
        if this and not kind:
            start, kind = place, this
    return found


@grader("paired_gain")
def paired_gain(answer: Answer, rng: Rng) -> None:
    """(pretrained, scratch, t) -> (mean, low, high) of the paired differences."""
    for round_ in range(6):
        n = 2 if round_ == 5 else rng.integer(4, 9)
        t = 12.706 if n == 2 else rng.python.uniform(1.9, 4.0)
        shared = (0.2 * rng.normal(n, dtype=torch.float64)).tolist()
        noise = 0.03 if round_ else 0.2  # at first so much that the seeds' order differs: pairs must stay pairs
        a = [0.6 + x + noise * rng.python.gauss(0, 1) for x in shared]
        b = [0.45 + x + 0.03 * rng.python.gauss(0, 1) for x in shared]
        if round_ == 3:
            a, b = b, a  # pretraining may hurt
        elif round_ == 4:
            a = [x + 0.02 * (-1) ** place for place, x in enumerate(b)]  # and win at every other seed only
        elif n == 2:
            a = [b[0] + 0.1, b[1] + 0.4]  # an interval that reaches far beyond -1 and 1
        _compare_gain(answer(a, b, t), a, b, t)


def _compare_gain(got: Any, a: list[float], b: list[float], t: float) -> None:
    n = len(a)
    first, second = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    gains = first - second
    mean, s = gains.mean(), gains.std()

    def triple(centre: torch.Tensor, half: Any) -> torch.Tensor:
        return torch.stack([centre, centre - half, centre + half])

    half = t * s / math.sqrt(n)
    unpaired = t * torch.sqrt((first.var() + second.var()) / n)
    mistakes = {
        "the interval is that of two independent samples; the seeds are paired, so take the differences first, then "
        "their spread": triple(mean, unpaired),
        "s is the sample standard deviation: divide the squares by n - 1, not by n":
            triple(mean, half * math.sqrt((n - 1) / n)),
        "the interval is that of a single run; a mean of n runs varies sqrt(n) times less": triple(mean, t * s),
        "divide s by sqrt(n), not by n": triple(mean, t * s / n),
        "the factor t is missing from the interval": triple(mean, s / math.sqrt(n)),
        "the gain has the wrong sign: it is pretrained - scratch": triple(-mean, half),
        "s is the square root of the mean square: did you leave out the root?": triple(mean, t * s**2 / math.sqrt(n)),
        "a gain may be negative: keep the sign of each difference": triple(
            gains.abs().mean(), t * gains.abs().std() / math.sqrt(n)),
        "low and high are changed over": torch.stack([mean, mean + half, mean - half]),
        "low comes before high, and the mean first: (mean, low, high)": torch.stack([mean - half, mean, mean + half]),
        "return the ends of the interval, mean - half and mean + half, not half its width":
            torch.stack([mean, half, half]),
    }  # fmt: skip
    true(isinstance(got, (tuple, list, torch.Tensor)) and len(got) == 3, "return three numbers, (mean, low, high)")
    try:
        numbers = torch.tensor([float(value) for value in got], dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Wrong("return three numbers, (mean, low, high)") from error
    close(numbers, triple(mean, half), "(mean, low, high)", rtol=1e-4, atol=1e-5, mistakes=mistakes)


@grader("best_span")
def best_span(answer: Answer, rng: Rng) -> None:
    """(start_scores, end_scores, longest) -> (first, last)."""
    for round_ in range(20):
        longest = rng.integer(2, 4)
        seq = longest + rng.integer(5, 9)
        start, end = rng.normal(seq).clamp(-2, 2), rng.normal(seq).clamp(-2, 2)
        blocked = rng.integer(0, 2)
        start[:blocked], end[:blocked] = -math.inf, -math.inf
        place = rng.integer(blocked, seq - longest - 2)
        if round_ % 5 == 4:  # every score is negative, as logarithms of probabilities are
            start, end = -1 - start.abs(), -1 - end.abs()
        elif round_ % 5 == 0:  # the best start lies behind the best end
            start[seq - 1], end[place], end[seq - 1] = 9.0, 9.0, -9.0
        elif round_ % 5 == 1:  # the best pair is one token too long
            start[place], end[place + longest] = 5.0, 5.0
        elif round_ % 5 == 2:  # the best pair is just short enough
            start[place], end[place + longest - 1] = 5.0, 5.0
        else:  # the best start and the best end are each in no good pair
            start[seq - 1], end[seq - 1] = 3.0, -9.0
            start[place], end[place + 1] = 2.9, 2.9
        _compare_span(answer(start, end, longest), start, end, longest)
    for start, end, longest in (
        ([1.0], [2.0], 1),
        ([3.0, 0.0, 0.5], [2.0, 0.5, 0.0], 2),  # the first token
        ([0.0, 0.1, 0.0, 0.2, 4.0], [0.3, 0.0, 0.1, 0.0, 3.0], 3),  # the last token, though longer ones end there
        ([0.0, 0.0], [1.0, 3.0], 9),  # the limit is longer than the sequence
        (list(range(40)), [-place / 2 for place in range(40)], 3),  # every score counts, not the best few of each list
        ([-600.0, 0.0, 2.0, 1.0, 300.0], [300.0, 0.0, 0.5, 0.0, -600.0], 2),  # exp of these scores would be 0 or inf
    ):
        first, last = (torch.tensor(scores, dtype=torch.float32) for scores in (start, end))
        _compare_span(answer(first, last, longest), first, last, longest)


def _compare_span(got: Any, start: torch.Tensor, end: torch.Tensor, longest: int) -> None:
    true(isinstance(got, (tuple, list, torch.Tensor)) and len(got) == 2, "return two positions, (first, last)")
    try:
        first, last = (int(value) for value in got)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Wrong("first and last are whole numbers") from error
    seq = len(start)
    best, value = _best(start, end, longest)
    if (first, last) == best:
        return
    where = f"you chose ({first}, {last}) of {seq} tokens with longest={longest}; the best pair is {best}"
    true(0 <= first < seq and 0 <= last < seq, f"both positions lie in the sequence; {where}")
    if best == (first, last - 1) and _best(start, end, longest + 1)[0] != (first, last):
        raise Wrong(f"last is the last token itself, not the one behind it; {where}")
    if value < 0 and (last < first or last - first >= longest):
        where += " (if you filled a table: what is not allowed must hold -inf, since 0 beats a negative sum)"
    true(first <= last, f"an answer cannot end before it starts: look for the best pair, not for two bests; {where}")
    if last - first + 1 > longest:
        over = "one token too long: both ends count" if last - first == longest else "too long"
        raise Wrong(f"the span is {over}; {where}")
    sum_ = float(start[first] + end[last])
    negative = ", and sums may be negative: does your search for the largest start at 0?" if value < 0 else ""
    true(math.isfinite(sum_), f"a position with score -inf may not be chosen{negative}; {where}")
    if math.isclose(sum_, value, abs_tol=1e-6):
        return  # a tie
    if (first, last) == _best(start, end, longest - 1)[0]:
        raise Wrong(f"a span of exactly `longest` tokens is allowed; {where}")
    raise Wrong(f"its score {sum_:.3f} is below {value:.3f}: take the pair with the largest sum; {where}")


def _best(start: torch.Tensor, end: torch.Tensor, longest: int) -> tuple[tuple[int, int], float]:
    best, value = (-1, -1), -math.inf
    for first in range(len(start)):
        for last in range(first, min(len(start), first + longest)):
            if float(start[first] + end[last]) > value:
                best, value = (first, last), float(start[first] + end[last])
    return best, value


@grader("merge", forbidden=("merge_and_unload", "get_delta_weight"))
def merge(answer: Answer, rng: Rng) -> None:
    """(weight, a, b, alpha) -> weight + alpha / rank * b a."""
    for round_ in range(5):
        rank = rng.integer(2, 4) if round_ < 4 else 12  # more than the weight's own rank: len(a) all the same
        # square in some rounds, so that a transposed product has the right shape and wrong values
        outputs = rng.integer(5, 9)
        inputs = outputs if round_ % 2 else outputs + rng.integer(1, 3)
        weight, a, b = rng.normal(outputs, inputs), rng.normal(rank, inputs), rng.normal(outputs, rank)
        alpha = rng.python.uniform(9.0, 40.0)
        if round_ == 3:
            b = torch.zeros_like(b)  # as LoRA starts
        want = weight + alpha / rank * b @ a
        mistakes = {
            "the scale is alpha, where it should be alpha / rank": weight + alpha * b @ a,
            "the scale alpha / rank is missing": weight + b @ a,
            "the scale is upside down: alpha / rank, not rank / alpha": weight + rank / alpha * b @ a,
            "the weight itself is missing: the merged map does all of the work": alpha / rank * b @ a,
            "the product is subtracted; LoRA adds it": weight - alpha / rank * b @ a,
            "rank is the number of rows of a, not of its columns": weight + alpha / inputs * b @ a,
            "the scale belongs to the product alone, not to the weight": alpha / rank * (weight + b @ a),
        }
        if outputs == inputs:
            mistakes["b a is transposed: its rows are outputs, as the weight's"] = weight + alpha / rank * (b @ a).T
        close(answer(weight, a, b, alpha), want, "the merged weight", rtol=1e-4, atol=1e-4, mistakes=mistakes)
