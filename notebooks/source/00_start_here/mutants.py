"""Wrong answers, each with a fragment of what its check must say."""

from collections import Counter


def in_place(words, i):
    label = words[i]
    words[i] = "[MASK]"
    return words, label


def reads_the_label_too_late(words, i):
    inputs = list(words)
    inputs[i] = "[MASK]"
    return inputs, inputs[i]


def removes_the_word(words, i):
    return words[:i] + words[i + 1 :], words[i]


def hides_every_twin(words, i):
    return ["[MASK]" if word == words[i] else word for word in words], words[i]


def counts_from_one(words, i):
    return ["[MASK]" if at == i else word for at, word in enumerate(words, start=1)], words[i]


def hides_nothing(words, i):
    return list(words), words[i]


def swaps_the_pair(words, i):
    return words[i], [*words[:i], "[MASK]", *words[i + 1 :]]


def joins_the_words(words, i):
    return " ".join([*words[:i], "[MASK]", *words[i + 1 :]]), words[i]


def forgets_the_return(words, i):
    list(words)[i] = "[MASK]"


def first_of_the_word(words, i):
    inputs = list(words)
    inputs[words.index(words[i])] = "[MASK]"
    return inputs, words[i]


def _favourite(words):
    counts = Counter(words)
    return min(counts, key=lambda word: (-counts[word], word))


def _share(word, held_out):
    return held_out.count(word) / len(held_out) if held_out else 0.0


def peeks(train, held_out):
    return _share(_favourite(held_out), held_out) if held_out else 0.0


def ties_by_text(train, held_out):
    return _share(Counter(train).most_common(1)[0][0], held_out)


def ties_by_last(train, held_out):
    counts = Counter(train)
    return _share(max(counts, key=lambda word: (counts[word], word)), held_out)


def divides_by_zero(train, held_out):
    return held_out.count(_favourite(train)) / len(held_out)


def counts_hits(train, held_out):
    return held_out.count(_favourite(train))


def divides_by_train(train, held_out):
    return held_out.count(_favourite(train)) / len(train)


def distinct_words(train, held_out):
    return _share(_favourite(train), sorted(set(held_out)))


def scores_train(train, held_out):
    return _share(_favourite(train), train)


def percent(train, held_out):
    return 100 * _share(_favourite(train), held_out)


def seconds(lengths, row, speed):
    return len(lengths) * row / speed, sum(min(length, row) for length in lengths) / speed


def swaps_the_times(lengths, row, speed):
    return sum(min(length, row) for length in lengths) / speed / 60, len(lengths) * row / speed / 60


def forgets_to_cut(lengths, row, speed):
    return len(lengths) * row / speed / 60, sum(lengths) / speed / 60


def pads_to_the_longest(lengths, row, speed):
    cut = [min(length, row) for length in lengths]
    return len(lengths) * max(cut, default=0) / speed / 60, sum(cut) / speed / 60


def pads_only_upwards(lengths, row, speed):
    return sum(max(length, row) for length in lengths) / speed / 60, sum(min(n, row) for n in lengths) / speed / 60


def drops_long_passages(lengths, row, speed):
    return len(lengths) * row / speed / 60, sum(length for length in lengths if length <= row) / speed / 60


def multiplies(lengths, row, speed):
    return len(lengths) * row * speed / 60, sum(min(length, row) for length in lengths) * speed / 60


def averages(lengths, row, speed):
    return row / speed / 60, sum(min(length, row) for length in lengths) / len(lengths) / speed / 60


MUTANTS = {
    "hide": {
        "changes the caller's list": (in_place, "in place"),
        "takes the label after hiding it": (reads_the_label_too_late, "take the word before you hide it"),
        "removes the word": (removes_the_word, "was removed"),
        "hides the same word elsewhere too": (hides_every_twin, "is hidden too"),
        "counts positions from one": (counts_from_one, "expected only at position"),
        "hides nothing": (hides_nothing, "nothing is hidden"),
        "returns (label, inputs)": (swaps_the_pair, "wrong way round"),
        "returns a string": (joins_the_words, "should be a list"),
        "forgets the return": (forgets_the_return, "is the `return` missing?"),
        "hides the first of equal words": (first_of_the_word, "expected only at position"),
    },
    "baseline_hit_rate": {
        "guesses the held-out favourite": (peeks, "has seen the answers"),
        "breaks ties by the text": (ties_by_text, "not the first in the text"),
        "breaks ties by the last": (ties_by_last, "not the last"),
        "divides by zero": (divides_by_zero, "ZeroDivisionError"),
        "returns the number of hits": (counts_hits, "number of hits"),
        "divides by the training words": (divides_by_train, "length of the training text"),
        "scores distinct words": (distinct_words, "distinct words"),
        "scores the training text": (scores_train, "share in the training text"),
        "returns a percentage": (percent, "percentage"),
    },
    "epoch_minutes": {
        "returns seconds": (seconds, "in seconds"),
        "returns (real, padded)": (swaps_the_times, "padded first"),
        "does not cut without padding": (forgets_to_cut, "cut to row_length in both cases"),
        "pads to the longest passage": (pads_to_the_longest, "padded to row_length"),
        "does not cut with padding": (pads_only_upwards, "also with padding"),
        "drops long passages": (drops_long_passages, "not dropped"),
        "multiplies by the speed": (multiplies, "multiplied by the speed"),
        "takes one passage for the epoch": (averages, "one passage"),
    },
}
