"""Named wrong answers to the exercises; every one must be rejected with the words beside it."""

import math
import statistics

import torch

# --- 4.1 ---


def tag_on_every_piece(word_ids, tags):
    return [-100 if word is None else tags[word] for word in word_ids]


def tag_on_the_last_piece(word_ids, tags):
    after = [*word_ids[1:], None]
    return [-100 if word is None or word == follows else tags[word] for word, follows in zip(word_ids, after)]


def zero_where_not_scored(word_ids, tags):
    labels, before = [], None
    for word in word_ids:
        labels.append(0 if word is None or word == before else tags[word])
        before = word
    return labels


def specials_are_outside(word_ids, tags):
    labels, before = [], None
    for word in word_ids:
        labels.append(0 if word is None else -100 if word == before else tags[word])
        before = word
    return labels


def compares_tags(word_ids, tags):
    labels, before = [], None
    for word in word_ids:
        tag = None if word is None else tags[word]
        labels.append(-100 if tag is None or tag == before else tag)
        before = tag
    return labels


def drops_special_tokens(word_ids, tags):
    labels, before = [], None
    for word in word_ids:
        if word is not None:
            labels.append(-100 if word == before else tags[word])
        before = word
    return labels


def one_label_a_word(word_ids, tags):
    return list(tags)


# --- 4.2 ---


def _walk(tags, *, lonely_i=True, split_types=True, b_always=True, close_last=True, shift=0):
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"] if close_last else tags):
        prefix, _, this = tag.partition("-")
        ends = prefix == "O" or (prefix == "B" and (b_always or this != kind)) or (split_types and this != kind)
        if kind and ends:
            found.add((start, place - shift, kind))
            kind = ""
        if this and not kind and (prefix == "B" or lonely_i):
            start, kind = place, this
    return found


def ignores_a_lonely_i(tags):
    return _walk(tags, lonely_i=False)


def keeps_another_type(tags):
    return _walk(tags, split_types=False)


def merges_neighbours(tags):
    return _walk(tags, b_always=False)


def loses_the_last(tags):
    return _walk(tags, close_last=False)


def end_included(tags):
    return _walk(tags, shift=1)


def every_word_is_an_entity(tags):
    return {(i, i + 1, tag[2:]) for i, tag in enumerate(tags) if tag != "O"}


def without_type(tags):
    return {(start, end) for start, end, _ in _walk(tags)}


# --- 4.3 ---


def unpaired(pretrained, scratch, t):
    n = len(scratch)
    mean = statistics.mean(pretrained) - statistics.mean(scratch)
    half = t * math.sqrt((statistics.variance(pretrained) + statistics.variance(scratch)) / n)
    return mean, mean - half, mean + half


def _gain(pretrained, scratch, t, spread, root=math.sqrt, sign=1):
    gains = [sign * (a - b) for a, b in zip(pretrained, scratch)]
    mean = statistics.mean(gains)
    half = t * spread(gains) / root(len(gains))
    return mean, mean - half, mean + half


def population_deviation(pretrained, scratch, t):
    return _gain(pretrained, scratch, t, statistics.pstdev)


def of_a_single_run(pretrained, scratch, t):
    return _gain(pretrained, scratch, t, statistics.stdev, root=lambda n: 1)


def divides_by_n(pretrained, scratch, t):
    return _gain(pretrained, scratch, t, statistics.stdev, root=lambda n: n)


def without_t(pretrained, scratch, t):
    return _gain(pretrained, scratch, 1.0, statistics.stdev)


def wrong_way_round(pretrained, scratch, t):
    return _gain(pretrained, scratch, t, statistics.stdev, sign=-1)


def variance_not_deviation(pretrained, scratch, t):
    return _gain(pretrained, scratch, t, statistics.variance)


def half_width(pretrained, scratch, t):
    mean, low, _ = _gain(pretrained, scratch, t, statistics.stdev)
    return mean, mean - low


# --- 4.4 ---


def two_bests(start_scores, end_scores, longest):
    return int(start_scores.argmax()), int(end_scores.argmax())


def _limited(start_scores, end_scores, reach):
    size = len(start_scores)
    allowed = torch.ones(size, size).bool().triu().tril(reach)
    pairs = (start_scores[:, None] + end_scores).masked_fill(~allowed, float("-inf"))
    return divmod(int(pairs.argmax()), size)


def no_limit(start_scores, end_scores, longest):
    return _limited(start_scores, end_scores, len(start_scores))


def one_too_long(start_scores, end_scores, longest):
    return _limited(start_scores, end_scores, longest)


def one_too_short(start_scores, end_scores, longest):
    return _limited(start_scores, end_scores, max(longest - 2, 0))


def best_end_behind_the_best_start(start_scores, end_scores, longest):
    first = int(start_scores.argmax())
    return first, first + int(end_scores[first : first + longest].argmax())


def any_order(start_scores, end_scores, longest):
    size = len(start_scores)
    distance = (torch.arange(size)[:, None] - torch.arange(size)).abs()
    pairs = (start_scores[:, None] + end_scores).masked_fill(distance >= longest, float("-inf"))
    return divmod(int(pairs.argmax()), size)


def largest_product(start_scores, end_scores, longest):
    size = len(start_scores)
    allowed = torch.ones(size, size).bool().triu().tril(longest - 1)
    pairs = (start_scores[:, None] * end_scores).nan_to_num(-9, posinf=-9).masked_fill(~allowed, float("-inf"))
    return divmod(int(pairs.argmax()), size)


# --- 4.5 ---


def scale_without_rank(weight, a, b, alpha):
    return weight + alpha * b @ a


def no_scale(weight, a, b, alpha):
    return weight + b @ a


def scale_upside_down(weight, a, b, alpha):
    return weight + len(a) / alpha * b @ a


def weight_forgotten(weight, a, b, alpha):
    return alpha / len(a) * b @ a


def wrong_rank(weight, a, b, alpha):
    return weight + alpha / a.shape[1] * b @ a


def scales_everything(weight, a, b, alpha):
    return alpha / len(a) * (weight + b @ a)


def in_place(weight, a, b, alpha):
    weight += alpha / len(a) * b @ a
    return weight


def inner_product(weight, a, b, alpha):
    return weight + alpha / len(a) * a @ b


MUTANTS = {
    "align_tags": {
        "puts the tag on every piece": (tag_on_every_piece, "only the first piece should"),
        "puts the tag on the last piece": (tag_on_the_last_piece, "the first one that does"),
        "writes 0 where nothing is scored": (zero_where_not_scored, "hold 0"),
        "calls special tokens outside": (specials_are_outside, "special tokens"),
        "compares tags in place of words": (compares_tags, "compare the word's index"),
        "drops special tokens": (drops_special_tokens, "one a token"),
        "gives one label a word": (one_label_a_word, "one a token"),
    },
    "find_entities": {
        "ignores an I- that stands alone": (ignores_a_lonely_i, "begins"),
        "goes on with another type": (keeps_another_type, "another type"),
        "merges neighbours of one type": (merges_neighbours, "B-"),
        "loses an entity at the end": (loses_the_last, "expected"),
        "includes the end": (end_included, "end is excluded"),
        "makes every word an entity": (every_word_is_an_entity, "expected"),
        "leaves out the type": (without_type, "(start, end, type)"),
    },
    "paired_gain": {
        "forgets that seeds are paired": (unpaired, "the seeds are paired"),
        "divides the squares by n": (population_deviation, "n - 1"),
        "gives the interval of one run": (of_a_single_run, "a single run"),
        "divides by n": (divides_by_n, "not by n"),
        "leaves out t": (without_t, "factor t"),
        "takes scratch - pretrained": (wrong_way_round, "wrong sign"),
        "takes the variance": (variance_not_deviation, "leave out the root"),
        "returns mean and half width": (half_width, "three numbers"),
    },
    "best_span": {
        "takes the best of each": (two_bests, "end before it starts"),
        "knows no limit": (no_limit, "long"),
        "is one too long": (one_too_long, "both ends count"),
        "is one too short": (one_too_short, "exactly `longest`"),
        "fixes the best start first": (best_end_behind_the_best_start, "largest sum"),
        "allows any order": (any_order, "end before it starts"),
        "multiplies scores": (largest_product, "largest sum"),
    },
    "merge": {
        "scales by alpha": (scale_without_rank, "alpha / rank"),
        "does not scale": (no_scale, "missing"),
        "scales by rank / alpha": (scale_upside_down, "upside down"),
        "forgets the weight": (weight_forgotten, "weight itself"),
        "takes the columns for the rank": (wrong_rank, "number of rows"),
        "scales the weight, too": (scales_everything, "product alone"),
        "works in place": (in_place, "in place"),
        "multiplies a b": (inner_product, "raised"),
    },
}
