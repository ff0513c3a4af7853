import itertools
import math
import re
import statistics

import numpy as np
import torch
import torch.nn.functional as F


# 4.1 ------------------------------------------------------------------
def w41_compares_tags(word_ids, tags):
    labels, before = [], None
    for word in word_ids:
        tag = None if word is None else tags[word]
        labels.append(-100 if tag is None or tag == before else tag)
        before = tag
    return labels


def w41_all_pieces(word_ids, tags):
    return [-100 if word is None else tags[word] for word in word_ids]


def w41_word_0_is_false(word_ids, tags):
    labels, before = [], None
    for word in word_ids:
        labels.append(tags[word] if word and word != before else -100)
        before = word
    return labels


def w41_last_piece(word_ids, tags):
    after = [*word_ids[1:], None]
    return [-100 if word is None or word == then else tags[word] for word, then in zip(word_ids, after)]


def w41_every_word_must_be_there(word_ids, tags):
    labels = [-100] * len(word_ids)
    for word, tag in enumerate(tags):
        labels[word_ids.index(word)] = tag
    return labels


def w41_counts_words_itself(word_ids, tags):
    labels, before, count = [], None, 0
    for word in word_ids:
        if word is None or word == before:
            labels.append(-100)
        else:
            labels.append(tags[count])  # a word without a piece shifts all that follow
            count += 1
        before = word
    return labels


def w41_wraps_around(word_ids, tags):
    labels = []
    for i, word in enumerate(word_ids):
        first = word is not None and word_ids[i - 1] != word  # at i = 0 that is the last token
        labels.append(tags[word] if first else -100)
    return labels


def w41_special_at_both_ends(word_ids, tags):
    labels, before = [-100], None
    for word in word_ids[1:-1]:
        labels.append(-100 if word is None or word == before else tags[word])
        before = word
    return [*labels, -100]


def w41_specials_are_o(word_ids, tags):
    labels, before = [], None
    for word in word_ids:
        labels.append(0 if word is None else -100 if word == before else tags[word])
        before = word
    return labels


def r41_first_places(word_ids, tags):
    labels = [-100] * len(word_ids)
    for place in range(len(word_ids) - 1, -1, -1):
        word = word_ids[place]
        if word is not None and (place == 0 or word_ids[place - 1] != word):
            labels[place] = tags[word]
    return labels


def r41_groups(word_ids, tags):
    labels = []
    for word, pieces in itertools.groupby(word_ids):
        labels += [-100 if word is None else tags[word]] + [-100] * (len(list(pieces)) - 1)
    return labels


def r41_numpy(word_ids, tags):
    words = np.array([-1 if word is None else word for word in word_ids], dtype=np.int64)
    before = np.concatenate([[-1], words])[:-1]
    first = (words >= 0) & (words != before)
    labels = np.full(len(words), -100)
    labels[first] = np.array(tags, dtype=np.int64)[words[first]]
    return labels.tolist()


# 4.2 ------------------------------------------------------------------
def w42_i_goes_on_with_any_type(tags):
    found, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        if kind and not tag.startswith("I"):
            found.add((start, i, kind))
            kind = None
        if tag != "O" and kind is None:
            start, kind = i, tag[2:]
    return found


def w42_stray_i_dropped(tags):
    found, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        if kind and tag != f"I-{kind}":
            found.add((start, i, kind))
            kind = None
        if tag.startswith("B"):
            start, kind = i, tag[2:]
    return found


def w42_last_not_closed(tags):
    found, start, kind = set(), 0, None
    for i, tag in enumerate(tags):
        if kind and tag != f"I-{kind}":
            found.add((start, i, kind))
            kind = None
        if tag != "O" and kind is None:
            start, kind = i, tag[2:]
    return found


def w42_b_goes_on(tags):
    found, i = set(), 0
    while i < len(tags):
        end = i + 1
        if tags[i] != "O":
            while end < len(tags) and tags[end][2:] == tags[i][2:]:
                end += 1
            found.add((i, end, tags[i][2:]))
        i = end
    return found


def w42_end_included(tags):
    found, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        if kind and tag != f"I-{kind}":
            found.add((start, i - 1, kind))
            kind = None
        if tag != "O" and kind is None:
            start, kind = i, tag[2:]
    return found


def w42_type_cut_at_hyphen(tags):
    found, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        prefix, this = tag.split("-")[:2] if "-" in tag else ("O", None)
        if kind and (prefix != "I" or this != kind):
            found.add((start, i, kind))
            kind = None
        if this and kind is None:
            start, kind = i, this
    return found


def w42_o_forgets_nothing(tags):
    found, start, kind = [], 0, None
    for i, tag in enumerate(tags):
        if tag == "O":
            continue
        if tag[0] == "B" or tag[2:] != kind:
            start, kind = i, tag[2:]
            found.append((start, i + 1, kind))
        else:
            found[-1] = (start, i + 1, kind)  # also where an O lies between
    return set(found)


def w42_other_type_opens_nothing(tags):
    found, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        if kind:
            if tag == f"I-{kind}":
                continue
            found.add((start, i, kind))
            kind = None
            if tag.startswith("B"):
                start, kind = i, tag[2:]
        elif tag != "O":
            start, kind = i, tag[2:]
    return found


def w42_other_type_loses_the_first(tags):
    found, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        prefix, this = tag[0], tag[2:]
        if prefix == "I" and this == kind:
            continue
        if prefix in "BO" and kind:
            found.add((start, i, kind))
        start, kind = i, this or None
    return found


def w42_only_persons(tags):
    found, start = set(), None
    for i, tag in enumerate([*tags, "O"]):
        if start is not None and tag != "I-PER":
            found.add((start, i, "PER"))
            start = None
        if tag.endswith("PER") and start is None:
            start = i
    return found


def r42_starts_then_ends(tags):
    def goes_on(i):
        return i < len(tags) and i > 0 and tags[i][0] == "I" and tags[i - 1] != "O" and tags[i][2:] == tags[i - 1][2:]

    found = set()
    for i, tag in enumerate(tags):
        if tag != "O" and not goes_on(i):
            end = i + 1
            while goes_on(end):
                end += 1
            found.add((i, end, tag[2:]))
    return found


def r42_growing_list(tags):
    found = []
    for i, tag in enumerate(tags):
        if tag == "O":
            continue
        if tag[0] == "I" and found and found[-1][1] == i and found[-1][2] == tag[2:]:
            found[-1][1] = i + 1
        else:
            found.append([i, i + 1, tag[2:]])
    return {tuple(one) for one in found}


def r42_regular_expression(tags):
    kinds = sorted({tag[2:] for tag in tags if tag != "O"})
    if not kinds:
        return set()
    letters = {kind: (chr(0x100 + 2 * i), chr(0x101 + 2 * i)) for i, kind in enumerate(kinds)}
    text = "".join("." if tag == "O" else letters[tag[2:]][tag[0] == "I"] for tag in tags)
    pattern = re.compile("|".join(f"[{b}{i}]{i}*" for b, i in letters.values()))
    back = {letter: kind for kind, pair in letters.items() for letter in pair}
    return {(match.start(), match.end(), back[match[0][0]]) for match in pattern.finditer(text)}


# 4.3 ------------------------------------------------------------------
def w43_biased(pretrained, scratch, t):
    gains = [a - b for a, b in zip(pretrained, scratch)]
    mean, half = statistics.mean(gains), t * statistics.pstdev(gains) / math.sqrt(len(gains))
    return mean, mean - half, mean + half


def w43_no_root_n(pretrained, scratch, t):
    gains = [a - b for a, b in zip(pretrained, scratch)]
    mean, half = statistics.mean(gains), t * statistics.stdev(gains)
    return mean, mean - half, mean + half


def w43_divided_by_n(pretrained, scratch, t):
    gains = [a - b for a, b in zip(pretrained, scratch)]
    mean, half = statistics.mean(gains), t * statistics.stdev(gains) / len(gains)
    return mean, mean - half, mean + half


def w43_unpaired(pretrained, scratch, t):
    n = len(pretrained)
    mean = statistics.mean(pretrained) - statistics.mean(scratch)
    half = t * math.sqrt((statistics.variance(pretrained) + statistics.variance(scratch)) / n)
    return mean, mean - half, mean + half


def w43_scratch_first(pretrained, scratch, t):
    gains = [b - a for a, b in zip(pretrained, scratch)]
    mean, half = statistics.mean(gains), t * statistics.stdev(gains) / math.sqrt(len(gains))
    return mean, mean - half, mean + half


def w43_t_of_five_seeds(pretrained, scratch, t):
    gains = [a - b for a, b in zip(pretrained, scratch)]
    mean, half = statistics.mean(gains), 2.776 * statistics.stdev(gains) / math.sqrt(len(gains))
    return mean, mean - half, mean + half


def w43_corrected_twice(pretrained, scratch, t):
    gains = [a - b for a, b in zip(pretrained, scratch)]
    mean, half = statistics.mean(gains), t * statistics.stdev(gains) / math.sqrt(len(gains) - 1)
    return mean, mean - half, mean + half


def w43_sorted_first(pretrained, scratch, t):
    gains = [a - b for a, b in zip(sorted(pretrained), sorted(scratch))]
    mean, half = statistics.mean(gains), t * statistics.stdev(gains) / math.sqrt(len(gains))
    return mean, mean - half, mean + half


def w43_absolute(pretrained, scratch, t):
    gains = [abs(a - b) for a, b in zip(pretrained, scratch)]
    mean, half = statistics.mean(gains), t * statistics.stdev(gains) / math.sqrt(len(gains))
    return mean, mean - half, mean + half


def w43_cut_at_1(pretrained, scratch, t):
    gains = [a - b for a, b in zip(pretrained, scratch)]
    mean, half = statistics.mean(gains), t * statistics.stdev(gains) / math.sqrt(len(gains))
    return mean, max(-1.0, mean - half), min(1.0, mean + half)  # scores lie between 0 and 1


def w43_median(pretrained, scratch, t):
    gains = [a - b for a, b in zip(pretrained, scratch)]
    middle, half = statistics.median(gains), t * statistics.stdev(gains) / math.sqrt(len(gains))
    return middle, middle - half, middle + half


def w43_median_inside_the_right_interval(pretrained, scratch, t):
    gains = [a - b for a, b in zip(pretrained, scratch)]
    mean, half = statistics.mean(gains), t * statistics.stdev(gains) / math.sqrt(len(gains))
    return statistics.median(gains), mean - half, mean + half


def w43_always_five(pretrained, scratch, t):
    gains = [pretrained[i] - scratch[i] for i in range(5)]
    mean, half = sum(gains) / 5, t * statistics.stdev(gains) / math.sqrt(5)
    return mean, mean - half, mean + half


def w43_half_only(pretrained, scratch, t):
    gains = [a - b for a, b in zip(pretrained, scratch)]
    mean, half = statistics.mean(gains), t * statistics.stdev(gains) / math.sqrt(len(gains))
    return mean, mean - half / 2, mean + half / 2


def r43_statistics(pretrained, scratch, t):
    gains = [a - b for a, b in zip(pretrained, scratch)]
    mean, half = statistics.fmean(gains), t * statistics.stdev(gains) / math.sqrt(len(gains))
    return [mean, mean - half, mean + half]


def r43_numpy(pretrained, scratch, t):
    gains = np.asarray(pretrained) - np.asarray(scratch)
    half = t * np.sqrt(gains.var(ddof=1) / len(gains))
    return gains.mean(), gains.mean() - half, gains.mean() + half


def r43_tensors(pretrained, scratch, t):
    gains = torch.tensor(pretrained, dtype=torch.float64) - torch.tensor(scratch, dtype=torch.float64)
    std, mean = torch.std_mean(gains)
    return mean, mean - t * std / len(gains) ** 0.5, mean + t * std / len(gains) ** 0.5


# 4.4 ------------------------------------------------------------------
def w44_each_alone(start_scores, end_scores, longest):
    return int(start_scores.argmax()), int(end_scores.argmax())


def w44_one_too_long(start_scores, end_scores, longest):
    pairs = start_scores[:, None] + end_scores[None, :]
    allowed = torch.ones_like(pairs, dtype=torch.bool).triu().tril(longest)
    best = int(pairs.masked_fill(~allowed, -math.inf).argmax())
    return divmod(best, len(start_scores))


def w44_one_too_short(start_scores, end_scores, longest):
    best, pair = -math.inf, (0, 0)
    for first in range(len(start_scores)):
        for last in range(first, min(first + max(longest - 1, 1), len(end_scores))):
            if start_scores[first] + end_scores[last] > best:
                best, pair = start_scores[first] + end_scores[last], (first, last)
    return pair


def w44_greedy(start_scores, end_scores, longest):
    first = int(start_scores.argmax())
    return first, first + int(end_scores[first : first + longest].argmax())


def w44_swaps(start_scores, end_scores, longest):
    first, last = sorted((int(start_scores.argmax()), int(end_scores.argmax())))
    return first, min(last, first + longest - 1)


def w44_zero_outside(start_scores, end_scores, longest):
    pairs = (start_scores[:, None] + end_scores).triu().tril(longest - 1)
    return divmod(int(pairs.argmax()), len(end_scores))


def w44_best_begins_at_0(start_scores, end_scores, longest):
    best, pair = 0.0, (0, 0)
    for first in range(len(start_scores)):
        for last in range(first, min(first + longest, len(end_scores))):
            if start_scores[first] + end_scores[last] > best:
                best, pair = float(start_scores[first] + end_scores[last]), (first, last)
    return pair


def w44_longest_beyond_the_end(start_scores, end_scores, longest):
    best, pair = -math.inf, (0, 0)
    for first in range(len(start_scores)):
        for last in range(first, first + longest):
            if start_scores[first] + end_scores[last] > best:
                best, pair = float(start_scores[first] + end_scores[last]), (first, last)
    return pair


def w44_windows_must_fit(start_scores, end_scores, longest):
    best, pair = -math.inf, (0, 0)
    for first in range(len(start_scores) - longest + 1):
        value, length = end_scores[first : first + longest].max(0)
        if start_scores[first] + value > best:
            best, pair = float(start_scores[first] + value), (first, first + int(length))
    return pair


def w44_top_three(start_scores, end_scores, longest):
    best, pair, k = -math.inf, (0, 0), min(3, len(start_scores))
    for first in start_scores.topk(k).indices.tolist():
        for last in end_scores.topk(k).indices.tolist():
            if first <= last < first + longest and start_scores[first] + end_scores[last] > best:
                best, pair = float(start_scores[first] + end_scores[last]), (first, last)
    return pair


def w44_top_twenty(start_scores, end_scores, longest):
    best, pair, k = -math.inf, (0, 0), min(20, len(start_scores))
    for first in start_scores.topk(k).indices.tolist():
        for last in end_scores.topk(k).indices.tolist():
            if first <= last < first + longest and start_scores[first] + end_scores[last] > best:
                best, pair = float(start_scores[first] + end_scores[last]), (first, last)
    return pair


def w44_without_the_first(start_scores, end_scores, longest):
    pairs = start_scores[:, None] + end_scores[None, :]
    allowed = torch.ones_like(pairs, dtype=torch.bool).triu().tril(longest - 1)
    allowed[0] = len(pairs) == 1  # [CLS]
    return divmod(int(pairs.masked_fill(~allowed, -math.inf).argmax()), len(pairs))


def w44_first_before_last(start_scores, end_scores, longest):
    pairs = start_scores[:, None] + end_scores[None, :]
    allowed = torch.ones_like(pairs, dtype=torch.bool).triu(1).tril(longest - 1)
    return divmod(int(pairs.masked_fill(~allowed, -math.inf).argmax()), len(pairs))


def w44_product_of_softmax(start_scores, end_scores, longest):
    pairs = start_scores.softmax(0)[:, None] * end_scores.softmax(0)[None, :]  # a small one is 0
    return divmod(int(pairs.triu().tril(longest - 1).argmax()), len(pairs))


def w44_end_behind(start_scores, end_scores, longest):
    pairs = start_scores[:, None] + end_scores[None, :]
    allowed = torch.ones_like(pairs, dtype=torch.bool).triu().tril(longest - 1)
    first, last = divmod(int(pairs.masked_fill(~allowed, -math.inf).argmax()), len(pairs))
    return first, last + 1


def r44_loops(start_scores, end_scores, longest):
    start, end = start_scores.tolist(), end_scores.tolist()
    spans = [(i, j) for i in range(len(start)) for j in range(i, min(i + longest, len(end)))]
    return max(spans, key=lambda span: start[span[0]] + end[span[1]])


def r44_by_length(start_scores, end_scores, longest):
    n, best, pair = len(start_scores), -math.inf, (0, 0)
    for more in range(min(longest, n)):
        sums = start_scores[: n - more] + end_scores[more:]
        if sums.max() > best:
            best, pair = sums.max(), (sums.argmax(), sums.argmax() + more)
    return pair  # 0-d tensors


def r44_numpy(start_scores, end_scores, longest):
    pairs = np.add.outer(start_scores.detach().numpy(), end_scores.detach().numpy())
    far = np.subtract.outer(np.arange(len(pairs)), np.arange(len(pairs)))  # first - last
    pairs[(far > 0) | (far <= -longest)] = -np.inf
    return np.unravel_index(pairs.argmax(), pairs.shape)


# 4.5 ------------------------------------------------------------------
def w45_no_rank(weight, a, b, alpha):
    return weight + alpha * b @ a


def w45_rank_is_out(weight, a, b, alpha):
    return weight + alpha / len(b) * b @ a


def w45_rank_is_in(weight, a, b, alpha):
    return weight + alpha / a.shape[1] * b @ a


def w45_transposed(weight, a, b, alpha):
    return weight + alpha / len(a) * (b @ a).T


def w45_without_weight(weight, a, b, alpha):
    return alpha / len(a) * b @ a


def w45_rank_8(weight, a, b, alpha):
    return weight + alpha / 8 * b @ a


def w45_alpha_16(weight, a, b, alpha):
    return weight + 16 / len(a) * b @ a


def w45_root_of_rank(weight, a, b, alpha):
    return weight + alpha / math.sqrt(len(a)) * b @ a


def w45_whole_division(weight, a, b, alpha):
    return weight + alpha // len(a) * (b @ a)


def w45_weight_scaled_too(weight, a, b, alpha):
    return alpha / len(a) * (weight + b @ a)


def w45_rank_of_the_product(weight, a, b, alpha):
    product = b @ a
    return weight + alpha / torch.linalg.matrix_rank(product) * product  # 0 / 0 where training starts


def w45_scaled_twice(weight, a, b, alpha):
    scale = alpha / len(a)
    return weight + (scale * b) @ (scale * a)


def w45_minus(weight, a, b, alpha):
    return weight - alpha / len(a) * b @ a


def w45_rank_is_the_smallest_side(weight, a, b, alpha):
    return weight + alpha / min(*a.shape, *b.shape) * b @ a  # a rank may be larger than in or out


def r45_units(weight, a, b, alpha):
    units = torch.eye(weight.shape[1], dtype=weight.dtype)
    return (F.linear(units, weight) + alpha / a.shape[0] * F.linear(F.linear(units, a), b)).T


def r45_addmm(weight, a, b, alpha):
    return torch.addmm(weight, b, a, alpha=alpha / b.shape[1])


def r45_sum_of_outer_products(weight, a, b, alpha):
    merged = weight.clone()
    for row, column in zip(a, b.T):
        merged = merged + torch.outer(column, row) * (alpha / len(a))
    return merged


WRONG = {
    "align_tags": {
        "compares tags": w41_compares_tags,
        "all pieces": w41_all_pieces,
        "word 0 is false": w41_word_0_is_false,
        "last piece": w41_last_piece,
        "every word must be there": w41_every_word_must_be_there,
        "counts words itself": w41_counts_words_itself,
        "first token looks at the last": w41_wraps_around,
        "takes both ends for special": w41_special_at_both_ends,
        "0 at special tokens": w41_specials_are_o,
    },
    "find_entities": {
        "I- goes on with any type": w42_i_goes_on_with_any_type,
        "stray I- dropped": w42_stray_i_dropped,
        "last one not closed": w42_last_not_closed,
        "B- goes on": w42_b_goes_on,
        "end included": w42_end_included,
        "type cut at its hyphen": w42_type_cut_at_hyphen,
        "goes on over an O": w42_o_forgets_nothing,
        "I- of another type only closes": w42_other_type_opens_nothing,
        "I- of another type loses the first": w42_other_type_loses_the_first,
        "only persons": w42_only_persons,
    },
    "paired_gain": {
        "divides by n in s": w43_biased,
        "no sqrt(n)": w43_no_root_n,
        "n in place of sqrt(n)": w43_divided_by_n,
        "unpaired": w43_unpaired,
        "scratch - pretrained": w43_scratch_first,
        "t ignored": w43_t_of_five_seeds,
        "sqrt(n - 1)": w43_corrected_twice,
        "sorted first": w43_sorted_first,
        "absolute gains": w43_absolute,
        "cut at -1 and 1": w43_cut_at_1,
        "median": w43_median,
        "median in the right interval": w43_median_inside_the_right_interval,
        "always five seeds": w43_always_five,
        "half the width": w43_half_only,
    },
    "best_span": {
        "each alone": w44_each_alone,
        "one too long": w44_one_too_long,
        "one too short": w44_one_too_short,
        "best first, then best last": w44_greedy,
        "swaps": w44_swaps,
        "0 where not allowed": w44_zero_outside,
        "negative sums never win": w44_best_begins_at_0,
        "runs beyond the end": w44_longest_beyond_the_end,
        "window must fit": w44_windows_must_fit,
        "only the three best": w44_top_three,
        "only the twenty best": w44_top_twenty,
        "never the first token": w44_without_the_first,
        "never a single token": w44_first_before_last,
        "product of softmaxes": w44_product_of_softmax,
        "end excluded": w44_end_behind,
    },
    "merge": {
        "not divided by rank": w45_no_rank,
        "rank is out": w45_rank_is_out,
        "rank is in": w45_rank_is_in,
        "transposed": w45_transposed,
        "without weight": w45_without_weight,
        "rank is 8": w45_rank_8,
        "alpha is 16": w45_alpha_16,
        "sqrt(rank)": w45_root_of_rank,
        "alpha // rank": w45_whole_division,
        "weight scaled too": w45_weight_scaled_too,
        "rank of the product": w45_rank_of_the_product,
        "scaled twice": w45_scaled_twice,
        "minus": w45_minus,
        "rank is the smallest side": w45_rank_is_the_smallest_side,
    },
}
RIGHT = {
    "align_tags": {"backwards": r41_first_places, "groups": r41_groups, "numpy": r41_numpy},
    "find_entities": {
        "starts, then ends": r42_starts_then_ends,
        "growing list": r42_growing_list,
        "regular expression": r42_regular_expression,
    },
    "paired_gain": {"statistics, list": r43_statistics, "numpy": r43_numpy, "0-d tensors": r43_tensors},
    "best_span": {"loops": r44_loops, "by length, 0-d tensors": r44_by_length, "numpy": r44_numpy},
    "merge": {"unit vectors": r45_units, "addmm": r45_addmm, "sum of outer products": r45_sum_of_outer_products},
}
