"""Graders."""

from __future__ import annotations

from coursekit.checks import Answer, Rng, Wrong, close, grader, true

WORDS = ["the", "sea", "of", "Kenya", "is", "warm", "and", "its", "coast", "long"]


def _words(rng: Rng, length: int) -> list[str]:
    """Words with repetitions; never one alone, so that a grader can tell a hidden word from its twin."""
    return [rng.python.choice(WORDS) for _ in range(length)]


@grader("hide")
def hide(answer: Answer, rng: Rng) -> None:
    long = _words(rng, rng.integer(6, 12))
    twins = [*_words(rng, 3), "coast", *_words(rng, 2), "coast"]
    cases = [(long, rng.integer(1, len(long) - 2)), (long, 0), (long, len(long) - 1), (twins, 3), (twins, 6)]
    for words, i in [*cases, (_words(rng, 1), 0)]:
        got = answer(words, i)
        true(isinstance(got, tuple) and len(got) == 2, "return two things: `return inputs, label`")
        inputs, label = got
        swapped = isinstance(inputs, str) and isinstance(label, list)
        true(not swapped, "the pair is the wrong way round: inputs first, then the label")
        true(isinstance(inputs, list), f"inputs should be a list of words, got {type(inputs).__name__}")
        true(inputs != words, "nothing is hidden: the word is still in the inputs, where a model would only copy it")
        true(label != "[MASK]", 'the label is "[MASK]": take the word before you hide it')
        _hidden(words, i, inputs)
        true(label == words[i], f"the label is {label!r}, but the word at position {i} is {words[i]!r}")


def _hidden(words: list[str], i: int, inputs: list[str]) -> None:
    without = words[:i] + words[i + 1 :]
    if len(inputs) != len(words):
        true(inputs != without, 'the word was removed; put "[MASK]" in its place, so that the gap can be seen')
        raise Wrong(f"inputs has {len(inputs)} words, expected {len(words)}")
    masked = [at for at, word in enumerate(inputs) if word == "[MASK]"]
    true(masked, 'no "[MASK]" in the inputs: the hidden word is replaced by exactly this string')
    others = [at for at in masked if at != i]
    twins = [at for at in others if words[at] == words[i]]
    if i in masked and twins:
        raise Wrong(f"position {twins[0]} is hidden too, because the same word stands there; hide only position i={i}")
    true(masked == [i], f'"[MASK]" stands at {masked}, expected only at position {i} (positions count from 0)')
    changed = [at for at, (new, old) in enumerate(zip(inputs, words, strict=True)) if at != i and new != old]
    true(not changed, f"the word at position {changed[0] if changed else 0} changed as well; only position {i} should")


@grader("baseline_hit_rate")
def baseline_hit_rate(answer: Answer, rng: Rng) -> None:
    a, b, c, d = rng.python.sample(sorted(WORDS), 4)
    low, middle, high = sorted((a, b, c))
    _plain(answer, rng, a, b, c, d)
    _tied(answer, [middle] * 3 + [high] * 3 + [low] * 3, [low, middle, middle, high, high, high, d])
    _tied(answer, [high] * 3 + [middle] + [low] * 3, [low, high, high])
    close(_share(answer, [a, a, b], [b, c] * rng.integer(1, 3)), 0.0, "the hit rate without a single hit")
    close(_share(answer, [a, a, b], []), 0.0, "the hit rate of an empty held-out text")


def _share(answer: Answer, train: list[str], held_out: list[str]) -> float:
    got = answer(train, held_out)
    number = isinstance(got, (int, float)) and not isinstance(got, bool)
    true(number, f"return the share as a number, got {type(got).__name__}")
    return got


def _plain(answer: Answer, rng: Rng, a: str, b: str, c: str, d: str) -> None:
    """One favourite, ``a``; the counts are such that no two of the known mistakes give the same share."""
    train = [a] * 8 + [b] * rng.integer(3, 5) + [c] * 2
    held_out = [a] * 2 + [b] * rng.integer(5, 6) + [c, d]
    rng.python.shuffle(train)
    rng.python.shuffle(held_out)
    hits, size = 2, len(held_out)
    close(_share(answer, train, held_out), hits / size, "the hit rate", mistakes={
        "this is the number of hits; divide it by the number of held-out words": hits,
        "this is a percentage; the share lies between 0 and 1": 100 * hits / size,
        "your guess is the favourite of the held-out text, so it has seen the answers": held_out.count(b) / size,
        "you divided by the length of the training text; the score is over the held-out words": hits / len(train),
        "you scored distinct words; every held-out word counts, repetitions too": 1 / len(set(held_out)),
        "this is the favourite's share in the training text; score the held-out words": 8 / len(train),
    })  # fmt: skip


def _tied(answer: Answer, train: list[str], held_out: list[str]) -> None:
    """Several favourites: the text's first and the alphabet's first and last differ in their hits."""
    first, last, met_first = min(train), max(word for word in train if train.count(word) == 3), train[0]
    rule = "words are tied for most frequent: take the first in the alphabet"
    close(_share(answer, train, held_out), held_out.count(first) / len(held_out), f"{rule}; the hit rate", mistakes={
        f"{rule}, not the last": held_out.count(last) / len(held_out),
        f"{rule}, not the first in the text": held_out.count(met_first) / len(held_out),
    })  # fmt: skip


@grader("epoch_minutes")
def epoch_minutes(answer: Answer, rng: Rng) -> None:
    row = rng.integer(32, 128)
    short = [rng.integer(1, row - 1) for _ in range(rng.integer(5, 20))]
    long = [row + rng.integer(1, 300) for _ in range(rng.integer(2, 5))]
    speed = rng.integer(1000, 30000)
    for lengths in (short, rng.python.sample(short + long, len(short + long)), [row], long, []):
        got = answer(lengths, row, speed)
        true(isinstance(got, (tuple, list)) and len(got) == 2, "return two numbers: (padded, real)")
        to_minutes = 1 / speed / 60
        cut = [min(length, row) for length in lengths]
        padded, real = len(lengths) * row, sum(cut)
        close(got[0], padded * to_minutes, "the time with padding", mistakes={
            "the times are in seconds; a minute has 60": padded / speed,
            "the two times are the wrong way round: padded first": real * to_minutes,
            "multiplied by the speed; positions divided by positions a second are seconds": padded * speed / 60,
            "every passage is padded to row_length, not to the longest passage": len(lengths) * max(lengths, default=0)
            * to_minutes,
            "every passage is padded to row_length, not to the longest one left after the cut":
                len(lengths) * max(cut, default=0) * to_minutes,
            "long passages are cut to row_length in both cases, also with padding":
                sum(max(length, row) for length in lengths) * to_minutes,
            "this is the time of one passage; an epoch has len(lengths) of them": row * to_minutes,
        }, rtol=1e-6, atol=1e-12)  # fmt: skip
        close(got[1], real * to_minutes, "the time without padding", mistakes={
            "the times are in seconds; a minute has 60": real / speed,
            "long passages are cut to row_length in both cases, also without padding": sum(lengths) * to_minutes,
            "without padding a passage costs only its own tokens, not row_length": padded * to_minutes,
            "passages that are too long are cut, not dropped":
                sum(length for length in lengths if length <= row) * to_minutes,
        }, rtol=1e-6, atol=1e-12)  # fmt: skip
