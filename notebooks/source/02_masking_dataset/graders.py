"""Graders: corrupting, selecting, whole words, packing, and the isolation mask.

Three of the answers are random, so they are judged by counts. A right answer is refused when its counts are further
off than luck allows once in ten million (``ALARM``) a test; a grading makes about ten such tests.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coursekit.checks import Answer, Rng, Wrong, grader, same, true

IGNORE = -100
ALARM = 1e-7


# --- 2.1: corrupt -----------------------------------------------------------------------------------------------------


@grader("corrupt")
def corrupt(answer: Answer, rng: Rng) -> None:
    mask = rng.integer(2, 6)
    vocab = mask + 1 + rng.integer(40, 60)
    rows, length = rng.integer(300, 400), rng.integer(90, 110)
    ids = rng.integers(mask + 1, vocab, rows, length)
    ids[:, 0] = 0  # a special token that is never selected
    selected = rng.uniform(rows, length) < 0.6
    selected[:, 0] = False
    inputs, labels = _pair(answer(ids, selected, vocab, mask), ids)
    _labels(ids, selected, inputs, labels)
    _own_draws(inputs == mask, selected, "draw one number for each position")
    _replacements(ids[selected], inputs[selected], vocab, mask)

    few = mask + 4  # three ordinary ids: among so few, a fourth that is drawn as well shows in the counts
    among_few = rng.integers(mask + 1, few, rows, length)
    seen, _ = _pair(answer(among_few, selected, few, mask), among_few)
    share = float((seen[selected] == mask).double().mean())
    number = int(selected.sum())
    true(
        _plausible(share * number, number, 0.8),
        f"with a vocabulary of three ordinary ids {share:.1%} of the selected tokens are [MASK], expected 80 %: "
        "is [MASK] itself among the random tokens? Draw from mask_token_id + 1 up",
    )

    again, _ = _pair(answer(ids, selected, vocab, mask), ids)
    true(
        not torch.equal(again, inputs),
        "two calls on the same batch draw the same masks: is there a fixed seed inside? "
        "Masks must be new at every call",
    )
    nothing = torch.zeros_like(selected)
    inputs, labels = _pair(answer(ids, nothing, vocab, mask), ids)
    _labels(ids, nothing, inputs, labels)


def _pair(got: object, ids: Tensor) -> tuple[Tensor, Tensor]:
    true(isinstance(got, (tuple, list)) and len(got) == 2, "return two tensors, (inputs, labels)")
    for name, value in zip(("inputs", "labels"), got, strict=True):
        true(isinstance(value, Tensor), f"{name} should be a tensor, got {type(value).__name__}")
        true(
            value.shape == ids.shape,
            f"{name} has shape {tuple(value.shape)}, expected {tuple(ids.shape)}, that of input_ids",
        )
        true(value.dtype == ids.dtype, f"{name} has dtype {value.dtype}; ids and labels stay {ids.dtype}")
    return got[0], got[1]


def _labels(ids: Tensor, selected: Tensor, inputs: Tensor, labels: Tensor) -> None:
    true(
        bool((labels[~selected] == IGNORE).all()),
        "labels are not -100 at positions that are not selected: the loss would score tokens that the model can see",
    )
    if not selected.any():
        true(torch.equal(inputs, ids), "nothing is selected, yet inputs differ from input_ids")
        return
    if torch.equal(labels[selected], inputs[selected]):
        raise Wrong("labels hold the corrupted inputs; they should hold the original ids at selected positions")
    true(
        not bool((labels[selected] == IGNORE).any()),
        "labels are -100 at some selected positions; kept and replaced tokens are scored too, not only [MASK]",
    )
    true(
        torch.equal(labels[selected], ids[selected]),
        "labels at selected positions should be the original ids of input_ids",
    )
    true(
        torch.equal(inputs[~selected], ids[~selected]),
        "inputs differ from input_ids at positions that are not selected",
    )


def _replacements(originals: Tensor, seen: Tensor, vocab: int, mask: int) -> None:
    count, ordinary = len(originals), vocab - mask - 1
    true(
        not bool((seen < 0).any() or (seen >= vocab).any()),
        f"inputs hold ids outside the vocabulary of {vocab}: are positions or other integers put in place of tokens?",
    )
    masked = seen == mask
    true(
        not bool(((seen < mask) & (seen != originals)).any()),
        "special tokens are drawn as random replacements; draw from mask_token_id + 1 up",
    )
    changed, kept = ~masked & (seen != originals), seen == originals
    shares = [float(x.double().mean()) for x in (masked, changed, kept)]
    other = 0.1 * (1 - 1 / ordinary)
    wanted = (0.8, other, 0.2 - other)
    if any(not _plausible(share * count, count, want) for share, want in zip(shares, wanted, strict=True)):
        got = ", ".join(
            f"{share:.1%} {what}" for share, what in zip(shares, ("[MASK]", "changed", "as they were"), strict=True)
        )
        raise Wrong(f"of the selected tokens {got}; expected 80 %, 10 % and 10 %{_swapped(shares)}")
    drawn = seen[changed]
    each = torch.bincount(drawn - mask - 1, minlength=ordinary)
    true(
        each.max() < len(drawn) / 2,
        "all random replacements are the same token: draw one for each position, not one for all",
    )
    if (each == 0).any():  # 25 draws or more an id are expected, so luck does this once in 1e9
        absent = int(each.argmin()) + mask + 1
        raise Wrong(f"id {absent} is never drawn as a random replacement; all from {mask + 1} to {vocab - 1} should be")
    true(_even(each), f"random replacements are not uniform over the ordinary ids {mask + 1} to {vocab - 1}")


def _swapped(shares: list[float]) -> str:
    masked, changed, kept = shares
    if masked < 0.3:
        return "; are the probabilities swapped?"
    if abs(changed - 0.1) < 0.02 and kept < 0.02:
        return "; the rest of the selected tokens stay as they are"
    if abs(masked - 0.8) < 0.02:
        return "; if you draw a second time for what is not [MASK], the probability there is one half"
    return ""


def _own_draws(hit: Tensor, among: Tensor, remedy: str) -> None:
    """Neighbours must not share their draw: half-way between chance and full agreement is far beyond luck."""
    share = float((hit & among).sum()) / max(int(among.sum()), 1)
    chance = share**2 + (1 - share) ** 2
    for what, a, b in (("rows", hit, among), ("columns", hit.T, among.T)):
        both = b[:-1] & b[1:]
        agree = int(((a[:-1] == a[1:]) & both).sum())
        if agree > int(both.sum()) * (1 + chance) / 2 and 0 < share < 1:
            raise Wrong(f"{what} of a batch share their draws: {remedy}")


# --- 2.2: select ------------------------------------------------------------------------------------------------------


@grader("select")
def select(answer: Answer, rng: Rng) -> None:
    special = rng.python.sample(range(50), rng.integer(2, 5))
    rate = rng.integer(15, 30) / 100
    rows, length = rng.integer(250, 350), rng.integer(70, 120)
    ids = rng.integers(0, 50, rows, length)
    ids[:, -length // 3 :] = special[-1]  # as padding does: a third of each row
    ordinary = ~torch.isin(ids, torch.tensor(special))
    selected = _boolean(answer(ids, special, rate), ids)
    true(not bool((selected & ~ordinary).any()), "special tokens are scored; every id in special_ids must be left out")
    _own_draws(selected, ordinary, "draw one number for each position, not one for each column or row")
    number = int(ordinary.sum())
    share = float((selected & ordinary).sum()) / number
    if not _plausible(share * number, number, rate):
        hint = (
            "; is the comparison the wrong way round?"
            if _plausible(share * number, number, 1 - rate)
            else ("; the rate is a share of the ordinary tokens, not of all positions" if share > rate else "")
        )
        raise Wrong(f"{share:.1%} of the ordinary tokens are scored, expected {rate:.0%}{hint}")
    _independent(selected, ordinary, rate, "tokens")
    alike = torch.full((8, 200), next(token for token in range(50) if token not in special))
    scored = _boolean(answer(alike, special, 0.5), alike).sum(1)
    true(
        bool(((scored > 0) & (scored < 200)).all()),  # luck does this once in 2 ** 196
        "tokens with the same id share one draw: draw one number for each position, not one for each id",
    )
    again = _boolean(answer(ids, special, rate), ids)
    true(not torch.equal(again, selected), "two calls draw the same positions: is there a fixed seed inside?")
    for extreme in (0.0, 1.0):
        got = _boolean(answer(ids, special, extreme), ids)
        true(
            torch.equal(got, ordinary & bool(extreme)),
            f"with mask_rate={extreme:g} {'all' if extreme else 'no'} ordinary tokens should be scored",
        )


def _boolean(got: object, like: Tensor) -> Tensor:
    true(isinstance(got, Tensor), f"return a tensor, not {type(got).__name__}")
    true(
        got.shape == like.shape,
        f"the result has shape {tuple(got.shape)}, expected {tuple(like.shape)}: one answer a position",
    )
    true(
        got.dtype == torch.bool, f"the result has dtype {got.dtype}; return torch.bool, true where a position is scored"
    )
    return got


def _independent(selected: Tensor, ordinary: Tensor, rate: float, what: str) -> None:
    """Numbers scored in a row vary as a binomial's do, neither less nor more."""
    n = ordinary.sum(1).double()
    counts = (selected & ordinary).sum(1).double()
    z = ((counts - n * rate) ** 2 / (n * rate * (1 - rate))).sum()
    if float(z) < len(n) / 2:  # a chi-square of 250 or more degrees of freedom at half its mean: under 1e-15
        raise Wrong(
            f"nearly every row has the same number of scored {what}: mask_rate is a probability for each of them, "
            "not a count"
        )
    if float(z) > 2 * len(n):
        raise Wrong(
            f"scored {what} come in clumps: some rows have far too many and others none; draw every position on its own"
        )


# --- 2.3: whole words -------------------------------------------------------------------------------------------------


@grader("select_words")
def select_words(answer: Answer, rng: Rng) -> None:
    rate = rng.integer(15, 35) / 100
    ids, length = _words(rng, rows=rng.integer(500, 600))
    selected = _boolean(answer(ids, rate), ids)
    true(not bool(selected[ids < 0].any()), "positions with word id -1 (special tokens) are scored; they never are")
    words = int(ids.max()) + 1
    where = ids.clamp(min=0) + words * torch.arange(len(ids))[:, None]
    inside = ids >= 0
    pieces = torch.bincount(where[inside], minlength=len(ids) * words)
    scored = torch.bincount(where[inside], weights=selected[inside].double(), minlength=len(ids) * words).long()
    exists = pieces > 0
    partly = (scored > 0) & (scored < pieces)
    true(not bool(partly.any()), "some words are scored in part: all pieces of a word, or none")
    table, there = (scored > 0).view(len(ids), words), exists.view(len(ids), words)
    _own_draws(table, there, "draw each word of each row on its own; word 3 of one row is not word 3 of the next")
    for size in range(1, length + 1):
        of_size = exists & (pieces == size)
        number, hits = int(of_size.sum()), int((scored[of_size] > 0).sum())
        if not _plausible(hits, number, rate):
            hint = (
                " (draw words; spreading draws of tokens makes long words too likely)" if hits > rate * number else ""
            )
            raise Wrong(
                f"{hits / number:.1%} of the words of {size} pieces are scored, expected {rate:.0%}{hint}"
            )
    _independent(table, there, rate, "words")
    count = rng.integer(3, 6)
    alike = torch.arange(count).repeat_interleave(2).expand(400, -1).clone()  # the same in every row
    drawn = _boolean(answer(alike, 0.5), alike)[:, ::2]
    for word in range(1, count):
        agree = int((drawn[:, word] == drawn[:, word - 1]).sum())
        where = "the last two words" if word == count - 1 else f"words {word - 1} and {word}"
        true(
            _plausible(agree, 400, 0.5),
            f"{where} of a row share their draw, of {count} words: is there one draw for each word?",
        )
    again = _boolean(answer(ids, rate), ids)
    true(not torch.equal(again, selected), "two calls draw the same words: is there a fixed seed inside?")
    for extreme in (0.0, 1.0):
        got = _boolean(answer(ids, extreme), ids)
        true(
            torch.equal(got, inside & bool(extreme)),
            f"with mask_rate={extreme:g} exactly {'all' if extreme else 'no'} words should be scored",
        )


def _words(rng: Rng, rows: int) -> tuple[Tensor, int]:
    """([rows, seq] word ids with -1 at both ends and as padding, longest word); words have 1 to 4 pieces."""
    longest, seq = 4, rng.integer(40, 50)
    made = []
    for _ in range(rows):
        row = [-1]
        for number in range(rng.integer(12, 20)):
            row += [number] * rng.integer(1, longest)
        row = row[: seq - 1]
        made.append(row + [-1] * (seq - len(row)))
    return torch.tensor(made), longest


# --- 2.4: pack --------------------------------------------------------------------------------------------------------


@grader("pack_documents")
def pack_documents(answer: Answer, rng: Rng) -> None:
    for kind in ("some", "some", "exact", "one long", "short"):
        length = rng.integer(5, 20)
        sizes = {
            "some": [rng.integer(1, 3 * length) for _ in range(rng.integer(3, 12))],
            "exact": [length - 2] * rng.integer(2, 4),
            "one long": [4 * length + 1],
            "short": [1, 1],
        }[kind]
        documents = [[rng.integer(10, 99) for _ in range(size)] for size in sizes]
        cls, sep, pad = rng.python.sample(range(10), 3)
        got = answer(documents, length, cls, sep, pad)
        _packed(got, documents, length, cls, sep, pad)
    _, owner = answer([[11, pad, 12], [13]], 4, cls, sep, pad)
    true(
        owner.flatten().tolist() == [0, 0, 0, 0, 0, 1, 1, 1],
        "a document that holds the id of [PAD] is taken for padding: padding is known by its place, behind the last "
        "document, not by its id",
    )


def _packed(got: object, documents: list[list[int]], length: int, cls: int, sep: int, pad: int) -> None:
    true(isinstance(got, (tuple, list)) and len(got) == 2, "return two tensors, (input_ids, document_ids)")
    ids, owner = got
    for name, value in (("input_ids", ids), ("document_ids", owner)):
        true(isinstance(value, Tensor), f"{name} should be a tensor, got {type(value).__name__}")
        true(
            value.ndim == 2 and value.shape[1] == length,
            f"{name} has shape {tuple(value.shape)}, expected rows of {length}",
        )
        true(value.dtype == torch.int64, f"{name} has dtype {value.dtype}, expected torch.int64")
    tape = [token for document in documents for token in (cls, *document, sep)]
    owners = [number for number, document in enumerate(documents) for _ in range(len(document) + 2)]
    flat, numbers, missing = ids.flatten().tolist(), owner.flatten().tolist(), -len(tape) % length
    plain = [token for document in documents for token in document]
    # known mistakes first, so that the message names them
    true(
        same(flat, tape) or len(flat) >= len(tape) or flat != tape[: len(flat)],
        f"{len(tape) - len(flat)} tokens are lost: the last, unfinished row must be padded, not dropped",
    )
    true(
        len(flat) > len(plain) + missing or sep in flat,
        "[SEP] is missing: each document stands between [CLS] and [SEP]",
    )
    true(
        flat.count(sep) == len(documents),
        f"there are {flat.count(sep)} [SEP] for {len(documents)} documents; each document ends with one",
    )
    true(
        flat.count(cls) == len(documents),
        f"there are {flat.count(cls)} [CLS] for {len(documents)} documents; each document begins with one",
    )
    kept = [token for token in flat if token >= 10]
    true(
        len(kept) >= len(plain),
        f"{len(plain) - len(kept)} tokens of the documents are lost: a document longer than a row goes on "
        "in the next one",
    )
    true(
        len(flat) == len(tape) + missing,
        f"there are {len(flat) // length} rows, expected {(len(tape) + missing) // length}: only the last "
        "row is padded, and only if it is not full",
    )
    true(
        flat == tape + [pad] * missing,
        "input_ids hold the right number of tokens in the wrong order, or another id than pad_id as padding",
    )
    if missing and numbers[len(tape) :] != [-1] * missing:
        raise Wrong(
            f"document_ids at padding should be -1, got {numbers[-1]}: padding would count as part of a document"
        )
    if numbers != owners + [-1] * missing:
        first = next(i for i, (a, b) in enumerate(zip(numbers, owners, strict=False)) if a != b)
        raise Wrong(
            f"document_ids: position {first % length} of row {first // length} belongs to document {owners[first]}, "
            f"you say {numbers[first]}; [CLS] and [SEP] belong to their document, and numbers go on from row to row"
        )


# --- 2.5: the isolation mask ------------------------------------------------------------------------------------------


@grader("document_mask")
def document_mask(answer: Answer, rng: Rng) -> None:
    for _ in range(4):
        batch, seq = rng.integer(2, 4), rng.integer(12, 24)
        owner = torch.stack([_owners(rng, seq) for _ in range(batch)])
        _isolates(answer(owner), owner)
    owner = torch.zeros(1, 6, dtype=torch.int64)
    _isolates(answer(owner), owner)


def _owners(rng: Rng, seq: int) -> Tensor:
    """[seq]: three documents or more with numbers that need not start at 0, then padding."""
    number, row = rng.integer(0, 5), []
    while len(row) < seq - 3:
        row += [number] * rng.integer(1, 5)
        number += 1
    return torch.tensor((row[: seq - 3] + [-1] * 3)[:seq])


def _isolates(got: object, owner: Tensor) -> None:
    batch, seq = owner.shape
    true(isinstance(got, Tensor), f"return a tensor, not {type(got).__name__}")
    true(
        got.shape == (batch, 1, seq, seq),
        f"the mask has shape {tuple(got.shape)}, expected {(batch, 1, seq, seq)}: "
        "batch, one axis for all heads, query, key",
    )
    true(
        got.dtype == torch.bool,
        f"the mask has dtype {got.dtype}; a float or integer mask would be added to the scores: return torch.bool",
    )
    want = torch.stack([row[:, None] == row[None, :] for row in owner])[:, None]
    true(not torch.equal(got, ~want), "the mask is inverted: true means that a query may read a key")
    padding = (owner == -1)[:, None, :, None].expand_as(want)
    true(
        not padding.any() or got[padding].any() or not torch.equal(got | padding, want | padding),
        "padding reads nothing: a row of the mask without any true gives nan in softmax; let padding read padding",
    )
    if not torch.equal(got, want):
        leaks = got & ~want
        if leaks.any():
            b, _, q, k = (int(i) for i in leaks.nonzero()[0])
            raise Wrong(
                f"document {int(owner[b, q])} reads document {int(owner[b, k])} (row {b}, query {q}, key {k}): "
                "documents leak into each other"
            )
        b, _, q, k = (int(i) for i in (want & ~got).nonzero()[0])
        later = "; a token may read later ones too, this is no causal model" if k > q else ""
        raise Wrong(f"query {q} cannot read key {k} of its own document (row {b}){later}")


# --- luck -------------------------------------------------------------------------------------------------------------


def _reach() -> float:
    """Standard deviations that a normal variable exceeds, on either side, with probability ALARM."""
    return float(torch.special.ndtri(torch.tensor(1 - ALARM / 2, dtype=torch.float64)))


def _plausible(hits: float, number: int, probability: float) -> bool:
    """Whether a binomial count is within luck; one more for its discreteness and for the normal tail."""
    return abs(hits - number * probability) <= 1.1 * _reach() * math.sqrt(number * probability * (1 - probability)) + 1


def _even(counts: Tensor) -> bool:
    """Whether counts are within luck of uniform (Pearson's chi-square)."""
    counts = counts.double()
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    return (
        float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), statistic / 2)) > ALARM
    )
