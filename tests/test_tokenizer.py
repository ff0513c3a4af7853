"""The tokenizer: its layout, that it is the same in every process, and that it opens without this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from sslcourse.data import corpus, tokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [row["text"] for row in corpus.load_splits()["train"][:1500]]


@pytest.fixture(scope="module")
def trained(texts):
    return tokenizer.train(texts, vocab_size=1024)


def test_specials_have_ids_0_to_4_and_mask_is_the_last_of_them(trained):
    assert trained.convert_ids_to_tokens(range(5)) == SPECIALS
    assert (trained.pad_token_id, trained.unk_token_id, trained.cls_token_id, trained.sep_token_id) == (0, 1, 2, 3)
    assert trained.mask_token_id == max(trained.all_special_ids) == 4


def test_vocabulary_has_the_size_asked_for_and_ids_without_gaps(trained):
    assert len(trained) == 1024
    assert sorted(trained.get_vocab().values()) == list(range(1024))


def test_default_size_on_the_whole_corpus_is_4096():
    trained = tokenizer.train(row["text"] for row in corpus.load_splits()["train"])
    assert len(trained) == 4096


PROGRAM = """
import json
from sslcourse.data import corpus, tokenizer
texts = [row["text"] for row in corpus.load_splits()["train"][:1500]]
print(json.dumps(tokenizer.train(texts, vocab_size=1024).get_vocab()))
"""


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_trains_the_same_vocabulary(trained, hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout) == trained.get_vocab()


def test_the_order_of_the_texts_does_not_matter(texts):
    assert tokenizer.train(texts, 600).get_vocab() == tokenizer.train(reversed(texts), 600).get_vocab()


def test_auto_tokenizer_opens_what_is_saved(trained, texts, tmp_path):
    trained.save_pretrained(tmp_path)
    reopened = AutoTokenizer.from_pretrained(tmp_path)
    assert reopened(texts[:50])["input_ids"] == trained(texts[:50])["input_ids"]
    assert reopened.mask_token == "[MASK]"
    assert reopened.mask_token_id == 4
    assert reopened.model_max_length == tokenizer.MAX_LENGTH


def test_single_text_and_pair_are_wrapped(trained):
    ids = trained("kenya", "peru")["input_ids"]
    assert ids[0] == trained.cls_token_id
    assert ids.count(trained.sep_token_id) == 2
    assert ids[-1] == trained.sep_token_id


def test_encode_adds_and_cuts_nothing(trained, texts):
    long = " ".join(texts[:40])
    (ids,) = tokenizer.encode(trained, [long])
    assert len(ids) > tokenizer.MAX_LENGTH
    assert not set(ids) & {0, 2, 3, 4}
    assert tokenizer.encode(trained, ["[MASK]"])[0] == [4]  # the one special token that a text may ask for


def test_decode_gives_the_words_back(trained):
    text = "the coastline of the country is long"
    assert trained.decode(tokenizer.encode(trained, [text])[0]) == text


def test_case_and_accents_do_not_matter(trained):
    assert tokenizer.encode(trained, ["São Tomé"]) == tokenizer.encode(trained, ["sao tome"])


def test_chinese_is_cut_at_every_character():
    trained = tokenizer.train(["肯尼亚的首都是内罗毕。", "秘鲁的首都是利马。"] * 5, vocab_size=100)
    assert trained.tokenize("首都是") == ["首", "都", "是"]
    assert trained.unk_token_id not in tokenizer.encode(trained, ["肯尼亚的首都是内罗毕"])[0]
    assert trained.tokenize("龙") == ["[UNK]"]


@pytest.mark.parametrize("size", [7, 10, 64])
def test_tiny_vocabularies_keep_their_bound(size):
    trained = tokenizer.train(["low lower lowest"] * 5, vocab_size=size)
    assert 5 < len(trained) <= size
    assert trained.convert_ids_to_tokens(range(5)) == SPECIALS
    assert tokenizer.encode(trained, ["low"])[0]


@pytest.mark.parametrize("size", [5, 0, -1])
def test_no_room_for_a_piece_is_refused(size):
    with pytest.raises(ValueError, match="vocab_size"):
        tokenizer.train(["some words"], vocab_size=size)


@pytest.mark.parametrize("nothing", [[], [""], ["   "]])
def test_no_text_is_refused(nothing):
    with pytest.raises(ValueError, match="texts"):
        tokenizer.train(nothing)


@pytest.mark.parametrize("vocab_size", [7, 8, 12, 40])
def test_a_small_vocabulary_is_never_exceeded(vocab_size):
    assert len(tokenizer.train(["river town mill grain bread stone"] * 3, vocab_size)) <= vocab_size


def test_a_frequent_word_is_not_one_long_string():
    from collections import Counter

    pieces = list(tokenizer._repeated(Counter({"the": 7, "a": 2}), at_once=3))
    assert pieces == ["a a", "the the the", "the the the", "the"]
    texts = ["the old town and the river and the mill " * 40, "a ship and a road and a harbour " * 30]
    whole = tokenizer.train(texts, 60).get_vocab()
    repeated = tokenizer._repeated
    try:
        tokenizer._repeated = lambda words: repeated(words, at_once=2)
        assert tokenizer.train(texts, 60).get_vocab() == whole
    finally:
        tokenizer._repeated = repeated
