import random

import torch


# 2.1 ------------------------------------------------------------------
def w21_last_id_missing(input_ids, selected, vocab_size, mask_token_id):
    draw = torch.rand(input_ids.shape)
    noise = torch.randint(mask_token_id + 1, vocab_size - 1, input_ids.shape)
    inputs = torch.where(selected & (draw < 0.8), mask_token_id, input_ids)
    inputs = torch.where(selected & (draw >= 0.8) & (draw < 0.9), noise, inputs)
    return inputs, torch.where(selected, input_ids, -100)


def w21_mask_can_be_drawn(input_ids, selected, vocab_size, mask_token_id):
    draw = torch.rand(input_ids.shape)
    noise = torch.randint(mask_token_id, vocab_size, input_ids.shape)
    inputs = torch.where(selected & (draw < 0.8), mask_token_id, input_ids)
    inputs = torch.where(selected & (draw >= 0.8) & (draw < 0.9), noise, inputs)
    return inputs, torch.where(selected, input_ids, -100)


def w21_tenth_of_the_rest(input_ids, selected, vocab_size, mask_token_id):
    masked = selected & (torch.rand(input_ids.shape) < 0.8)
    randomised = selected & ~masked & (torch.rand(input_ids.shape) < 0.1)
    noise = torch.randint(mask_token_id + 1, vocab_size, input_ids.shape)
    inputs = torch.where(masked, mask_token_id, input_ids)
    inputs = torch.where(randomised, noise, inputs)
    return inputs, torch.where(selected, input_ids, -100)


def w21_inplace(input_ids, selected, vocab_size, mask_token_id):
    labels = input_ids.clone()
    labels[~selected] = -100
    draw = torch.rand(input_ids.shape)
    input_ids[selected & (draw < 0.8)] = mask_token_id
    swap = selected & (draw >= 0.8) & (draw < 0.9)
    input_ids[swap] = torch.randint(mask_token_id + 1, vocab_size, (int(swap.sum()),))
    return input_ids, labels


def w21_kept_not_labelled(input_ids, selected, vocab_size, mask_token_id):
    draw = torch.rand(input_ids.shape)
    noise = torch.randint(mask_token_id + 1, vocab_size, input_ids.shape)
    inputs = torch.where(selected & (draw < 0.8), mask_token_id, input_ids)
    inputs = torch.where(selected & (draw >= 0.8) & (draw < 0.9), noise, inputs)
    return inputs, torch.where(inputs != input_ids, input_ids, -100)


def r21_where(input_ids, selected, vocab_size, mask_token_id):
    draw = torch.rand(input_ids.shape)
    noise = torch.randint(mask_token_id + 1, vocab_size, input_ids.shape)
    shown = torch.where(draw < 0.8, mask_token_id, torch.where(draw < 0.9, noise, input_ids))
    return torch.where(selected, shown, input_ids), torch.where(selected, input_ids, -100)


def r21_die(input_ids, selected, vocab_size, mask_token_id):
    inputs, labels = input_ids.clone(), torch.full_like(input_ids, -100)
    old = input_ids[selected]
    labels[selected] = old
    new, die = old.clone(), torch.randint(10, old.shape)
    new[die < 8] = mask_token_id
    new[die == 8] = torch.randint(mask_token_id + 1, vocab_size, (int((die == 8).sum()),))
    inputs[selected] = new
    return inputs, labels


# 2.2 ------------------------------------------------------------------
def _special(input_ids, special_ids):
    return torch.isin(input_ids, torch.tensor(special_ids, dtype=input_ids.dtype))


def w22_exact_count(input_ids, special_ids, mask_rate):
    special = _special(input_ids, special_ids)
    score = torch.rand(input_ids.shape).masked_fill(special, 2.0)
    rank = score.argsort(1).argsort(1)
    return (rank < torch.round((~special).sum(1, keepdim=True) * mask_rate)) & ~special


def w22_above_largest(input_ids, special_ids, mask_rate):
    return (torch.rand(input_ids.shape) < mask_rate) & (input_ids > max(special_ids, default=-1))


def w22_same_columns(input_ids, special_ids, mask_rate):
    return (torch.rand(input_ids.shape[1]) < mask_rate) & ~_special(input_ids, special_ids)


def w22_hard_coded(input_ids, special_ids, mask_rate):
    return (torch.rand(input_ids.shape) < 0.15) & ~_special(input_ids, special_ids)


def w22_draw_per_id(input_ids, special_ids, mask_rate):
    draws = torch.rand(int(input_ids.max()) + 1)
    return (draws[input_ids] < mask_rate) & ~_special(input_ids, special_ids)


def r22_isin(input_ids, special_ids, mask_rate):
    return (torch.rand(input_ids.shape) < mask_rate) & ~_special(input_ids, special_ids)


def r22_bernoulli(input_ids, special_ids, mask_rate):
    p = torch.full(input_ids.shape, float(mask_rate))
    for special in special_ids:
        p[input_ids == special] = 0.0
    return torch.bernoulli(p).bool()


# 2.3 ------------------------------------------------------------------
def w23_spread_tokens(word_ids, mask_rate):
    out = torch.zeros_like(word_ids, dtype=torch.bool)
    hit = (torch.rand(word_ids.shape) < mask_rate) & (word_ids >= 0)
    for b, i in hit.nonzero().tolist():
        out[b] |= word_ids[b] == word_ids[b, i]
    return out


def w23_shared_between_rows(word_ids, mask_rate):
    draws = torch.rand(max(int(word_ids.max()), 0) + 1)
    return (draws[word_ids.clamp(min=0)] < mask_rate) & (word_ids >= 0)


def w23_special_with_word_0(word_ids, mask_rate):
    clamped = word_ids.clamp(min=0)
    draws = torch.rand(len(word_ids), int(clamped.max()) + 1)
    return draws.gather(1, clamped) < mask_rate


def w23_exact_count(word_ids, mask_rate):
    out = torch.zeros_like(word_ids, dtype=torch.bool)
    for b, row in enumerate(word_ids.tolist()):
        words = sorted({w for w in row if w >= 0})
        chosen = set(random.sample(words, round(mask_rate * len(words))))
        out[b] = torch.tensor([w in chosen for w in row], dtype=torch.bool)
    return out


def w23_last_two_together(word_ids, mask_rate):
    n = max(int(word_ids.max()), 1)  # should be + 1; the clamp below hides the IndexError
    draws = torch.rand(len(word_ids), n)
    return (draws.gather(1, word_ids.clamp(0, n - 1)) < mask_rate) & (word_ids >= 0)


def r23_gather(word_ids, mask_rate):
    index = word_ids.clamp(min=0)
    draws = torch.rand(word_ids.shape[0], int(index.max()) + 1)
    return (draws.gather(1, index) < mask_rate) & (word_ids >= 0)


def r23_python(word_ids, mask_rate):
    rows = []
    for row in word_ids.tolist():
        chosen = {w: random.random() < mask_rate for w in sorted(set(row))}
        rows.append([w != -1 and chosen[w] for w in row])
    return torch.tensor(rows, dtype=torch.bool)


# 2.4 ------------------------------------------------------------------
def _tape(documents, cls_id, sep_id):
    tape, owner = [], []
    for n, document in enumerate(documents):
        tape += [cls_id, *document, sep_id]
        owner += [n] * (len(document) + 2)
    return tape, owner


def _rows(tape, owner, length):
    return torch.tensor(tape, dtype=torch.long).view(-1, length), torch.tensor(owner, dtype=torch.long).view(-1, length)


def w24_drops_last(documents, length, cls_id, sep_id, pad_id):
    tape, owner = _tape(documents, cls_id, sep_id)
    whole = len(tape) // length * length
    return _rows(tape[:whole], owner[:whole], length)


def w24_extra_row(documents, length, cls_id, sep_id, pad_id):
    tape, owner = _tape(documents, cls_id, sep_id)
    missing = length - len(tape) % length
    return _rows(tape + [pad_id] * missing, owner + [-1] * missing, length)


def w24_cls_sep_unowned(documents, length, cls_id, sep_id, pad_id):
    tape, owner = [], []
    for n, document in enumerate(documents):
        tape += [cls_id, *document, sep_id]
        owner += [-1, *[n] * len(document), -1]
    missing = -len(tape) % length
    return _rows(tape + [pad_id] * missing, owner + [-1] * missing, length)


def w24_pad_by_value(documents, length, cls_id, sep_id, pad_id):
    tape, owner = _tape(documents, cls_id, sep_id)
    missing = -len(tape) % length
    ids, owners = _rows(tape + [pad_id] * missing, owner + [-1] * missing, length)
    return ids, owners.masked_fill(ids == pad_id, -1)


def w24_does_not_split(documents, length, cls_id, sep_id, pad_id):
    tape, owner = [], []
    for n, document in enumerate(documents):
        piece = [cls_id, *document, sep_id]
        left = -len(tape) % length
        if 0 < left < len(piece):
            tape += [pad_id] * left
            owner += [-1] * left
        tape += piece
        owner += [n] * len(piece)
    missing = -len(tape) % length
    return _rows(tape + [pad_id] * missing, owner + [-1] * missing, length)


def r24_lists(documents, length, cls_id, sep_id, pad_id):
    tape, owner = _tape(documents, cls_id, sep_id)
    missing = -len(tape) % length
    return _rows(tape + [pad_id] * missing, owner + [-1] * missing, length)


def r24_fill(documents, length, cls_id, sep_id, pad_id):
    total = sum(len(d) + 2 for d in documents)
    rows = (total + length - 1) // length
    ids = torch.full((rows, length), pad_id, dtype=torch.int64)
    owners = torch.full((rows, length), -1, dtype=torch.int64)
    at = 0
    for n, document in enumerate(documents):
        for token in [cls_id] + list(document) + [sep_id]:
            ids[at // length, at % length] = token
            owners[at // length, at % length] = n
            at += 1
    return ids, owners


# 2.5 ------------------------------------------------------------------
def w25_padding_reads_nothing(document_ids):
    same = document_ids[:, :, None] == document_ids[:, None, :]
    return (same & (document_ids >= 0)[:, None, :])[:, None]


def w25_padding_reads_itself(document_ids):
    same = document_ids[:, :, None] == document_ids[:, None, :]
    diagonal = torch.eye(document_ids.shape[1], dtype=torch.bool)
    return ((same & (document_ids >= 0)[:, None, :]) | diagonal)[:, None]


def w25_integers(document_ids):
    return (document_ids[:, None, :, None] == document_ids[:, None, None, :]).long()


def w25_first_row_for_all(document_ids):
    row = document_ids[0]
    return (row[:, None] == row[None, :]).expand(len(document_ids), 1, -1, -1).clone()


def w25_no_head_axis(document_ids):
    return document_ids[:, :, None] == document_ids[:, None, :]


def r25_broadcast(document_ids):
    return (document_ids[:, :, None] == document_ids[:, None, :])[:, None]


def r25_loops(document_ids):
    return torch.tensor([[[[q == k for k in row] for q in row]] for row in document_ids.tolist()], dtype=torch.bool)


WRONG = {
    "corrupt": {
        "last id never drawn": w21_last_id_missing,
        "[MASK] can be drawn at random": w21_mask_can_be_drawn,
        "80/2/18": w21_tenth_of_the_rest,
        "changes input_ids": w21_inplace,
        "unchanged positions not labelled": w21_kept_not_labelled,
    },
    "select": {
        "exact count": w22_exact_count,
        "only ids above the largest special": w22_above_largest,
        "same columns in every row": w22_same_columns,
        "hard-coded 15 %": w22_hard_coded,
        "one draw an id": w22_draw_per_id,
    },
    "select_words": {
        "tokens spread to words": w23_spread_tokens,
        "rows share draws": w23_shared_between_rows,
        "specials go with word 0": w23_special_with_word_0,
        "exact count of words": w23_exact_count,
        "last two words tied": w23_last_two_together,
    },
    "pack_documents": {
        "drops last row": w24_drops_last,
        "extra row of padding": w24_extra_row,
        "CLS and SEP have no owner": w24_cls_sep_unowned,
        "padding recognised by id": w24_pad_by_value,
        "starts a new row if it does not fit": w24_does_not_split,
    },
    "document_mask": {
        "padding reads nothing": w25_padding_reads_nothing,
        "padding reads itself only": w25_padding_reads_itself,
        "integers": w25_integers,
        "first row for all": w25_first_row_for_all,
        "no head axis": w25_no_head_axis,
    },
}
RIGHT = {
    "corrupt": {"where": r21_where, "ten-sided die": r21_die},
    "select": {"isin": r22_isin, "bernoulli": r22_bernoulli},
    "select_words": {"gather": r23_gather, "python random": r23_python},
    "pack_documents": {"lists": r24_lists, "fill": r24_fill},
    "document_mask": {"broadcast": r25_broadcast, "loops": r25_loops},
}
