"""Wrong answers to the exercises, named after the mistake, with a fragment of the message each must get."""

from __future__ import annotations

import torch

# --- 2.1 --------------------------------------------------------------------------------------------------------------


def _corrupt(input_ids, selected, vocab_size, mask_token_id, mask=0.8, random=0.1, ordinary=None, low=None, high=None):
    low, high = mask_token_id + 1 if low is None else low, vocab_size if high is None else high
    action = torch.rand(input_ids.shape)
    ordinary = torch.randint_like(input_ids, low, high) if ordinary is None else ordinary
    inputs = torch.where(selected & (action < mask + random), ordinary, input_ids)
    inputs = torch.where(selected & (action < mask), mask_token_id, inputs)
    return inputs, torch.where(selected, input_ids, -100)


def puts_one_integer(input_ids, selected, vocab_size, mask_token_id):
    """d2l, pull request 1979: one integer stands for every random word."""
    one = torch.randint_like(input_ids, mask_token_id + 1, vocab_size)
    return _corrupt(input_ids, selected, vocab_size, mask_token_id, ordinary=torch.full_like(input_ids, int(one[0, 0])))


def puts_positions(input_ids, selected, vocab_size, mask_token_id):
    where = torch.arange(input_ids.numel()).view_as(input_ids)
    return _corrupt(input_ids, selected, vocab_size, mask_token_id, ordinary=where)


def draws_specials(input_ids, selected, vocab_size, mask_token_id):
    return _corrupt(input_ids, selected, vocab_size, mask_token_id, low=0)


def never_draws_the_last(input_ids, selected, vocab_size, mask_token_id):
    return _corrupt(input_ids, selected, vocab_size, mask_token_id, high=vocab_size - 1)


def changes_its_input(input_ids, selected, vocab_size, mask_token_id):
    inputs, labels = _corrupt(input_ids, selected, vocab_size, mask_token_id)
    input_ids.copy_(inputs)
    return input_ids, labels


def labels_everywhere(input_ids, selected, vocab_size, mask_token_id):
    return _corrupt(input_ids, selected, vocab_size, mask_token_id)[0], input_ids.clone()


def labels_after_corruption(input_ids, selected, vocab_size, mask_token_id):
    inputs, _ = _corrupt(input_ids, selected, vocab_size, mask_token_id)
    return inputs, torch.where(selected, inputs, -100)


def labels_at_masks_only(input_ids, selected, vocab_size, mask_token_id):
    inputs, labels = _corrupt(input_ids, selected, vocab_size, mask_token_id)
    return inputs, torch.where(inputs == mask_token_id, labels, -100)


def swapped(input_ids, selected, vocab_size, mask_token_id):
    return _corrupt(input_ids, selected, vocab_size, mask_token_id, mask=0.1, random=0.8)


def keeps_none(input_ids, selected, vocab_size, mask_token_id):
    return _corrupt(input_ids, selected, vocab_size, mask_token_id, mask=0.9, random=0.1)


def second_draw(input_ids, selected, vocab_size, mask_token_id):
    """Draws again among the 20 % that are not [MASK], and takes 10 % of them."""
    return _corrupt(input_ids, selected, vocab_size, mask_token_id, random=0.02)


def fixed_seed(input_ids, selected, vocab_size, mask_token_id):
    torch.manual_seed(42)
    return _corrupt(input_ids, selected, vocab_size, mask_token_id)


def corrupts_everywhere(input_ids, selected, vocab_size, mask_token_id):
    inputs, _ = _corrupt(input_ids, torch.ones_like(selected), vocab_size, mask_token_id)
    return inputs, torch.where(selected, input_ids, -100)


def one_draw_a_column_of_actions(input_ids, selected, vocab_size, mask_token_id):
    action = torch.rand(input_ids.shape[1]).expand(input_ids.shape)
    inputs = torch.where(selected & (action < 0.8), mask_token_id, input_ids)
    return inputs, torch.where(selected, input_ids, -100)


# --- 2.2 --------------------------------------------------------------------------------------------------------------


def _ordinary(input_ids, special_ids):
    return ~torch.isin(input_ids, torch.tensor(special_ids))


def scores_specials(input_ids, special_ids, mask_rate):
    return torch.rand(input_ids.shape) < mask_rate


def scores_all_but_the_first_special(input_ids, special_ids, mask_rate):
    return (torch.rand(input_ids.shape) < mask_rate) & (input_ids != special_ids[0])


def inverted(input_ids, special_ids, mask_rate):
    return (torch.rand(input_ids.shape) > mask_rate) & _ordinary(input_ids, special_ids)


def fixed_count(input_ids, special_ids, mask_rate):
    ordinary = _ordinary(input_ids, special_ids)
    score = torch.rand(input_ids.shape).masked_fill(~ordinary, 2.0)
    rank = score.argsort(1).argsort(1)
    return (rank < (mask_rate * ordinary.sum(1, keepdim=True)).round()) & ordinary


def share_of_all_positions(input_ids, special_ids, mask_rate):
    ordinary = _ordinary(input_ids, special_ids)
    return (torch.rand(input_ids.shape) < mask_rate / ordinary.float().mean()) & ordinary


def one_draw_a_column(input_ids, special_ids, mask_rate):
    return (torch.rand(input_ids.shape[1]) < mask_rate) & _ordinary(input_ids, special_ids)


def select_with_fixed_seed(input_ids, special_ids, mask_rate):
    return (torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(0)) < mask_rate) & _ordinary(
        input_ids, special_ids
    )


def returns_integers(input_ids, special_ids, mask_rate):
    return ((torch.rand(input_ids.shape) < mask_rate) & _ordinary(input_ids, special_ids)).long()


# --- 2.3 --------------------------------------------------------------------------------------------------------------


def draws_tokens(word_ids, mask_rate):
    return (torch.rand(word_ids.shape) < mask_rate) & (word_ids >= 0)


def one_draw_a_number(word_ids, mask_rate):
    return (torch.rand(int(word_ids.max()) + 2) < mask_rate)[word_ids.clamp(min=0)] & (word_ids >= 0)


def scores_special_words(word_ids, mask_rate):
    draws = torch.rand(len(word_ids), int(word_ids.max()) + 2)
    return draws.gather(1, word_ids + 1) < mask_rate


def spreads_tokens(word_ids, mask_rate):
    hit = draws_tokens(word_ids, mask_rate)
    same = (word_ids[:, :, None] == word_ids[:, None, :]) & (word_ids >= 0)[:, :, None]
    return (same & hit[:, None, :]).any(-1)


def first_pieces_only(word_ids, mask_rate):
    first = torch.ones_like(word_ids, dtype=torch.bool)
    first[:, 1:] = word_ids[:, 1:] != word_ids[:, :-1]
    return draws_tokens(word_ids, mask_rate) & first


def counts_words(word_ids, mask_rate):
    """Scores every word whose number is a multiple of 1/rate: a share, but no draw."""
    return (word_ids % round(1 / mask_rate) == 0) & (word_ids >= 0) if mask_rate else torch.zeros_like(word_ids).bool()


# --- 2.4 --------------------------------------------------------------------------------------------------------------


def _pack(documents, length, cls_id, sep_id, pad_id, owner_of_padding=-1, around=True):
    tape, owner = [], []
    for number, document in enumerate(documents):
        piece = [cls_id, *document, sep_id] if around else [cls_id, *document]
        tape += piece
        owner += [number] * len(piece)
    missing = -len(tape) % length
    tape, owner = tape + [pad_id] * missing, owner + [owner_of_padding] * missing
    return torch.tensor(tape).view(-1, length), torch.tensor(owner).view(-1, length)


def drops_the_last_row(documents, length, cls_id, sep_id, pad_id):
    ids, owner = _pack(documents, length, cls_id, sep_id, pad_id)
    whole = sum(len(document) + 2 for document in documents) // length
    return ids[:whole], owner[:whole]


def no_separator(documents, length, cls_id, sep_id, pad_id):
    return _pack(documents, length, cls_id, sep_id, pad_id, around=False)


def padding_is_document_0(documents, length, cls_id, sep_id, pad_id):
    return _pack(documents, length, cls_id, sep_id, pad_id, owner_of_padding=0)


def one_document_a_row(documents, length, cls_id, sep_id, pad_id):
    rows = [[cls_id, *document[: length - 2], sep_id] for document in documents]
    ids = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows])
    owner = torch.tensor([[number] * len(row) + [-1] * (length - len(row)) for number, row in enumerate(rows)])
    return ids, owner


def numbers_restart_in_every_row(documents, length, cls_id, sep_id, pad_id):
    ids, owner = _pack(documents, length, cls_id, sep_id, pad_id)
    return ids, torch.where(owner >= 0, owner - owner[:, :1], owner)


def pads_a_full_row(documents, length, cls_id, sep_id, pad_id):
    ids, owner = _pack(documents, length, cls_id, sep_id, pad_id)
    if int(owner[-1, -1]) == -1:
        return ids, owner
    return torch.cat([ids, torch.full((1, length), pad_id)]), torch.cat([owner, torch.full((1, length), -1)])


def changes_the_documents(documents, length, cls_id, sep_id, pad_id):
    for document in documents:
        document.insert(0, cls_id)
        document.append(sep_id)
    return _pack([document[1:-1] for document in documents], length, cls_id, sep_id, pad_id)


def shuffles_the_documents(documents, length, cls_id, sep_id, pad_id):
    return _pack(documents[::-1], length, cls_id, sep_id, pad_id)


# --- 2.5 --------------------------------------------------------------------------------------------------------------


def _mask(document_ids):
    return (document_ids[:, :, None] == document_ids[:, None, :])[:, None]


def causal(document_ids):
    return _mask(document_ids).tril()


def no_axis_for_heads(document_ids):
    return _mask(document_ids)[:, 0]


def padding_reads_nothing(document_ids):
    return _mask(document_ids) & (document_ids >= 0)[:, None, :, None]


def inverted_mask(document_ids):
    return ~_mask(document_ids)


def only_padding_is_hidden(document_ids):
    real = document_ids >= 0
    return (real[:, :, None] == real[:, None, :])[:, None]


def first_row_for_all(document_ids):
    return _mask(document_ids[:1]).expand(len(document_ids), -1, -1, -1)


def additive(document_ids):
    return torch.zeros(_mask(document_ids).shape).masked_fill(~_mask(document_ids), float("-inf"))


MUTANTS = {
    "corrupt": {
        "one integer in place of every random word": (puts_one_integer, "the same token"),
        "positions in place of words": (puts_positions, "outside the vocabulary"),
        "draws special tokens": (draws_specials, "special tokens are drawn"),
        "never draws the last id": (never_draws_the_last, "never drawn"),
        "changes the caller's tensor": (changes_its_input, "in place"),
        "labels everywhere": (labels_everywhere, "not -100 at positions that are not selected"),
        "labels taken after the corruption": (labels_after_corruption, "corrupted inputs"),
        "labels at [MASK] only": (labels_at_masks_only, "-100 at some selected positions"),
        "80/10/10 swapped": (swapped, "swapped"),
        "keeps none": (keeps_none, "expected 80 %, 10 % and 10 %"),
        "a second draw of 10 %": (second_draw, "one half"),
        "a fixed seed": (fixed_seed, "fixed seed"),
        "one draw a column": (one_draw_a_column_of_actions, "share their draws"),
        "corrupts unselected positions": (corrupts_everywhere, "positions that are not selected"),
    },
    "select": {
        "scores special tokens": (scores_specials, "special tokens are scored"),
        "knows one special id only": (scores_all_but_the_first_special, "special tokens are scored"),
        "comparison the wrong way round": (inverted, "wrong way round"),
        "a fixed count a row": (fixed_count, "not a count"),
        "rate relative to all positions": (share_of_all_positions, "share of the ordinary tokens"),
        "one draw a column": (one_draw_a_column, "share their draws"),
        "a fixed seed": (select_with_fixed_seed, "fixed seed"),
        "integers in place of booleans": (returns_integers, "torch.bool"),
    },
    "select_words": {
        "draws tokens": (draws_tokens, "in part"),
        "one draw a word number": (one_draw_a_number, "share their draws"),
        "special tokens are a word": (scores_special_words, "special tokens"),
        "spreads token draws to words": (spreads_tokens, "too likely"),
        "first pieces only": (first_pieces_only, "in part"),
        "every k-th word": (counts_words, "share their draws"),
    },
    "pack_documents": {
        "drops the last row": (drops_the_last_row, "dropped"),
        "no [SEP]": (no_separator, "[SEP]"),
        "padding belongs to document 0": (padding_is_document_0, "at padding should be -1"),
        "one document a row, cut": (one_document_a_row, "lost"),
        "document numbers restart in every row": (numbers_restart_in_every_row, "go on from row to row"),
        "pads a full row": (pads_a_full_row, "only if it is not full"),
        "changes the documents": (changes_the_documents, "in place"),
        "another order": (shuffles_the_documents, "order"),
    },
    "document_mask": {
        "causal": (causal, "causal"),
        "no axis for the heads": (no_axis_for_heads, "axis for all heads"),
        "padding reads nothing": (padding_reads_nothing, "nan"),
        "inverted": (inverted_mask, "inverted"),
        "hides padding only": (only_padding_is_hidden, "leak"),
        "the first row's mask for all": (first_row_for_all, "row"),
        "an additive mask": (additive, "torch.bool"),
    },
}
