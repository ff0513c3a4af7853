import math
from collections import Counter


# 0.1 ------------------------------------------------------------------
def w01_inplace(words, i):
    inputs = words
    label = words[i]
    inputs[i] = "[MASK]"
    return inputs, label


def w01_every(words, i):
    label = words[i]
    return ["[MASK]" if word == label else word for word in words], label


def w01_first(words, i):
    label = words[i]
    inputs = list(words)
    inputs[inputs.index(label)] = "[MASK]"
    return inputs, label


def w01_insert(words, i):
    return words[:i] + ["[MASK]"] + words[i:], words[i]


def w01_label_after(words, i):
    inputs = list(words)
    inputs[i] = "[MASK]"
    return inputs, inputs[i]


def r01_copy(words, i):
    inputs = list(words)
    label, inputs[i] = inputs[i], "[MASK]"
    return inputs, label


def r01_comprehension(words, i):
    return ["[MASK]" if j == i else word for j, word in enumerate(words)], words[i]


# 0.2 ------------------------------------------------------------------
def w02_text_order(train_words, held_out_words):
    if not held_out_words:
        return 0.0
    guess = Counter(train_words).most_common(1)[0][0]
    return sum(w == guess for w in held_out_words) / len(held_out_words)


def w02_last_alphabet(train_words, held_out_words):
    if not held_out_words:
        return 0.0
    counts = Counter(train_words)
    guess = max(counts, key=lambda w: (counts[w], w))
    return sum(w == guess for w in held_out_words) / len(held_out_words)


def w02_no_guard(train_words, held_out_words):
    counts = Counter(train_words)
    guess = min(counts, key=lambda w: (-counts[w], w))
    return sum(w == guess for w in held_out_words) / len(held_out_words)


def w02_counts_both(train_words, held_out_words):
    if not held_out_words:
        return 0.0
    counts = Counter(train_words + held_out_words)
    guess = min(counts, key=lambda w: (-counts[w], w))
    return sum(w == guess for w in held_out_words) / len(held_out_words)


def w02_distinct(train_words, held_out_words):
    if not held_out_words:
        return 0.0
    counts = Counter(train_words)
    guess = min(counts, key=lambda w: (-counts[w], w))
    distinct = set(held_out_words)
    return sum(w == guess for w in distinct) / len(distinct)


def r02_counter(train_words, held_out_words):
    counts = Counter(train_words)
    guess = min(counts, key=lambda w: (-counts[w], w))
    return sum(w == guess for w in held_out_words) / len(held_out_words) if held_out_words else 0.0


def r02_loops(train_words, held_out_words):
    best, best_count = None, 0
    for word in sorted(set(train_words)):
        n = train_words.count(word)
        if n > best_count:
            best, best_count = word, n
    return held_out_words.count(best) / max(1, len(held_out_words))


# 0.3 ------------------------------------------------------------------
def w03_real_not_cut(lengths, row_length, tokens_per_second):
    return len(lengths) * row_length / tokens_per_second / 60, sum(lengths) / tokens_per_second / 60


def w03_split_rows(lengths, row_length, tokens_per_second):
    rows = sum(math.ceil(n / row_length) for n in lengths)
    real = sum(min(n, row_length) for n in lengths)
    return rows * row_length / tokens_per_second / 60, real / tokens_per_second / 60


def w03_longest(lengths, row_length, tokens_per_second):
    kept = [min(n, row_length) for n in lengths]
    width = max(kept, default=0)
    return len(kept) * width / tokens_per_second / 60, sum(kept) / tokens_per_second / 60


def w03_dropped(lengths, row_length, tokens_per_second):
    kept = [n for n in lengths if n <= row_length]
    return len(kept) * row_length / tokens_per_second / 60, sum(kept) / tokens_per_second / 60


def w03_floor_division(lengths, row_length, tokens_per_second):
    real = sum(min(n, row_length) for n in lengths)
    return len(lengths) * row_length // tokens_per_second / 60, real // tokens_per_second / 60


def r03_sum(lengths, row_length, tokens_per_second):
    per_minute = tokens_per_second * 60
    return len(lengths) * row_length / per_minute, sum(min(n, row_length) for n in lengths) / per_minute


def r03_loop(lengths, row_length, tokens_per_second):
    padded = real = 0
    for n in lengths:
        padded += row_length
        real += row_length if n > row_length else n
    return (padded / tokens_per_second) / 60, (real / tokens_per_second) / 60


WRONG = {
    "hide": {
        "changes words": w01_inplace,
        "hides every equal word": w01_every,
        "hides first equal word": w01_first,
        "inserts instead of replacing": w01_insert,
        "label read after hiding": w01_label_after,
    },
    "baseline_hit_rate": {
        "tie by text order": w02_text_order,
        "tie last in alphabet": w02_last_alphabet,
        "empty held-out crashes": w02_no_guard,
        "counts held-out too": w02_counts_both,
        "scores distinct words": w02_distinct,
    },
    "epoch_minutes": {
        "real not cut": w03_real_not_cut,
        "long passages become several rows": w03_split_rows,
        "pads to longest": w03_longest,
        "drops long passages": w03_dropped,
        "integer seconds": w03_floor_division,
    },
}
RIGHT = {
    "hide": {"copy": r01_copy, "comprehension": r01_comprehension},
    "baseline_hit_rate": {"counter": r02_counter, "loops": r02_loops},
    "epoch_minutes": {"sum": r03_sum, "loop": r03_loop},
}
